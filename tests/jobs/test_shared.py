"""Jobs that commands share: none is done twice, none is lost, and what fails is named."""

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dagdiff.checks import Refusal
from dagdiff.jobs import shared
from dagdiff.jobs.locks import Lock
from dagdiff.jobs.shared import Job, Shared
from dagdiff.jobs.stops import Stopped, stoppable
from dagdiff.jobs.workers import Workers
from dagdiff.round import NonFiniteLoss
from dagdiff.sealed import read_sealed


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "POLL", 0.02)


def jobs(folder: Path, function: Callable[[str], Any], names: str = "abcdef") -> dict[str, Job]:
    return {name: Job(f"job {name}", function, (name,), folder / f"records/{name}.json") for name in names}


def test_two_commands_share_the_jobs(tmp_path: Path) -> None:
    done: list[str] = []

    def work(name: str) -> dict[str, str]:
        done.append(name)
        time.sleep(0.02)
        return {"name": name}

    found: dict[int, dict[str, Any]] = {}

    def command(number: int) -> None:
        with ThreadPoolExecutor(2) as pool:
            mine = Shared(pool, 2, tmp_path / "claims")
            found[number] = dict(mine.do("runs", jobs(tmp_path, work)))

    commands = [threading.Thread(target=command, args=(number,)) for number in range(3)]
    for each in commands:
        each.start()
    for each in commands:
        each.join(30)
    assert sorted(done) == list("abcdef")
    assert found[0] == found[1] == found[2] == {name: {"name": name} for name in "abcdef"}
    assert not list((tmp_path / "claims").iterdir())


def test_a_job_whose_owner_has_died_is_done(tmp_path: Path) -> None:
    owner = Lock(tmp_path / "claims/runs-a")
    assert owner.take()
    threading.Timer(0.2, owner.release).start()  # as the system does where a process ends
    with ThreadPoolExecutor(1) as pool:
        found = list(Shared(pool, 1, tmp_path / "claims").do("runs", jobs(tmp_path, lambda name: {"name": name}, "ab")))
    assert [key for key, _ in found] == ["b", "a"]


def failing(name: str) -> dict[str, str]:
    if name == "b":
        raise NonFiniteLoss("not finite at update 3")
    return {"name": name}


def test_a_failure_is_named_and_tried_by_a_later_command_alone(tmp_path: Path) -> None:
    tried: list[str] = []

    def work(name: str) -> dict[str, str]:
        tried.append(name)
        return failing(name)

    with ThreadPoolExecutor(1) as pool:
        one = Shared(pool, 1, tmp_path / "claims")
        failures: dict[str, str] = {}
        late = one.do("runs", jobs(tmp_path, work, "ab"), late_failures := {})
        first = next(late)  # this command has begun, and sees that b has not failed yet
        assert dict(one.do("runs", jobs(tmp_path, work, "bc"), failures)) == {"c": {"name": "c"}}
        assert failures == {"b": "job b: not finite at update 3"}
        assert [first, *late] == [("a", {"name": "a"})] and late_failures == failures
        assert tried == ["a", "b", "c"]
        list(one.do("runs", jobs(tmp_path, work, "b"), {}))
        assert tried == ["a", "b", "c", "b"]
        assert dict(one.do("runs", jobs(tmp_path, lambda name: {"name": name}, "b"), {})) == {"b": {"name": "b"}}
    assert [file.name for file in (tmp_path / "records").iterdir() if file.suffix == ".failed"] == []


def test_a_process_that_is_killed_is_a_failure_and_the_others_go_on(tmp_path: Path) -> None:
    work = {
        "a": Job("job a", signal.raise_signal, (signal.SIGKILL,), tmp_path / "records/a.json"),
        "b": Job("job b", dict, ([("name", "b")],), tmp_path / "records/b.json"),
    }
    failures: dict[str, str] = {}
    with Workers(1) as pool:
        mine = Shared(pool, 1, tmp_path / "claims")
        assert dict(mine.do("runs", work, failures)) == {"b": {"name": "b"}}
        assert failures == {"a": "job a: its worker died (killed by SIGKILL)"}
        with pytest.raises(Refusal, match="teachers, job a: its worker died"):
            list(mine.do("teachers", {"a": work["a"]}))


class Dying(Executor):
    """Loses the first two jobs."""

    lost = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        self.lost += 1
        if self.lost <= 2:
            future.set_exception(OSError("gone"))
        else:
            future.set_result(fn(*args, **kwargs))
        return future


def test_what_nothing_goes_on_without_is_tried_again(tmp_path: Path) -> None:
    mine = Shared(Dying(), 1, tmp_path / "claims")
    assert dict(mine.do("teachers", {"a": Job("job a", abs, (-3,))})) == {"a": 3}


def test_errors_keep_their_kind(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise Refusal("no such thing. Name another.")

    def broken(name: str) -> None:
        raise LookupError(name)

    with ThreadPoolExecutor(1) as pool:
        mine = Shared(pool, 1, tmp_path / "claims")
        with pytest.raises(Refusal, match="runs, job a: no such thing"):
            list(mine.do("runs", jobs(tmp_path, refuse, "a"), {}))
        with pytest.raises(LookupError, match="a"):
            list(mine.do("runs", jobs(tmp_path, broken, "a"), {}))
    with pytest.raises(Refusal, match="the executor takes no more jobs"):
        list(mine.do("runs", jobs(tmp_path, failing, "a"), {}))
    assert not list((tmp_path / "claims").iterdir())


def test_a_record_is_whole_json(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        list(Shared(pool, 1, tmp_path / "claims").do("runs", jobs(tmp_path, failing, "a")))
    assert read_sealed(tmp_path / "records/a.json") == {"name": "a"}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_term_is_answered_like_int(number: signal.Signals, status: int) -> None:
    ignored = signal.signal(
        number, signal.SIG_DFL
    )  # a shell's background jobs ignore INT, and what is ignored stays so
    try:
        with pytest.raises(Stopped) as stop, stoppable():
            signal.raise_signal(number)
        assert stop.value.status == status and signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, ignored)
