"""The aggregate D: exact counts a batch, the source column, empty sources, and what is kept for how long."""

import errno
import os
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from dagdiff.aggregate import Aggregate, rounds_to_keep
from dagdiff.checks import Refusal
from dagdiff.mixture import SOURCES, Shares

PER_ROUND = 12


def records(value: float, n: int = PER_ROUND) -> TensorDict:
    return TensorDict({"x_t": torch.full((n, 2), value), "t": torch.rand(n), "s": torch.zeros(n)}, [n])


def aggregate(rounds: int | None = None, seed: int = 0, capacity: int = 0) -> Aggregate:
    sizes = dict.fromkeys(SOURCES, capacity)
    return Aggregate(sizes, rounds, torch.Generator().manual_seed(seed))


def filled() -> Aggregate:
    it = aggregate()
    for value, source in ((-1.0, "forward"), (1.0, "student"), (2.0, "expert")):
        it.add(source, records(value), 1)
    return it


@pytest.mark.parametrize(
    ("shares", "rows", "counts"),
    [
        (Shares(0.5, 0.25, 0.25), 64, [32, 16, 16]),
        (Shares(1, 0, 0), 9, [9, 0, 0]),
        (Shares(0, 1, 0), 9, [0, 9, 0]),
        (Shares(0, 0, 1), 9, [0, 0, 9]),
        (Shares(0.7, 0.0, 0.3), 10, [7, 0, 3]),
    ],
)
def test_each_batch_has_exact_counts_and_says_where_each_row_comes_from(shares, rows, counts) -> None:
    it = filled()
    for _ in range(5):
        batch = it.draw(rows, shares)
        assert batch.batch_size == torch.Size([rows])
        assert torch.bincount(batch["source"], minlength=3).tolist() == counts
        value_of_source = torch.tensor([-1.0, 1.0, 2.0])[batch["source"]]
        assert torch.equal(batch["x_t"], value_of_source[:, None].expand(-1, 2)), "the column tells the truth"
        assert (batch["round"] == 1).all()


def test_odd_batches_are_split_to_the_row() -> None:
    it = filled()
    for _ in range(20):
        counts = torch.bincount(it.draw(7, Shares(0.4, 0.3, 0.3))["source"], minlength=3).tolist()
        assert sum(counts) == 7
        assert counts[0] in (2, 3) and counts[1] in (2, 3) and counts[2] in (2, 3)


def test_an_empty_source_drops_out_and_the_others_share_its_part() -> None:
    it = aggregate()
    it.add("forward", records(-1.0), 1)
    assert torch.bincount(it.draw(8, Shares(0.25, 0.5, 0.25))["source"], minlength=3).tolist() == [8, 0, 0]
    it.add("expert", records(2.0), 1)
    assert torch.bincount(it.draw(8, Shares(0.25, 0.5, 0.25))["source"], minlength=3).tolist() == [4, 0, 4]


def test_with_every_wanted_source_empty_nothing_can_be_drawn() -> None:
    it = aggregate()
    it.add("forward", records(-1.0), 1)
    with pytest.raises(Refusal, match=r"no records to draw by the shares \(0, 1, 0\)\. Gather first"):
        it.draw(8, Shares(0, 1, 0))
    it.clear()
    assert len(it) == 0
    with pytest.raises(Refusal, match="Gather first"):
        it.draw(8, Shares(1, 0, 0))


def numbered(first: int, n: int) -> TensorDict:
    return records(0.0, n).set("t", torch.arange(float(first), float(first + n)))


FORWARD = Shares(1, 0, 0)


def test_forward_states_enter_in_order_and_each_serves_as_often_as_every_other() -> None:
    it = aggregate()
    it.add("forward", numbered(0, 7), 1)
    it.add("forward", numbered(7, 5), 1)
    drawn = torch.cat([it.draw(4, FORWARD)["t"] for _ in range(9)])
    assert drawn[:12].tolist() == list(range(12)), "the first pass is as they entered, so batches can be all fresh"
    assert sorted(drawn[12:24].tolist()) == sorted(drawn[24:].tolist()) == list(range(12))
    assert drawn[12:24].tolist() != list(range(12)) and drawn[24:].tolist() != drawn[12:24].tolist()


@pytest.mark.parametrize("sizes", [(12, 12), (12, 5), (5, 12)])
def test_forward_states_of_a_round_replace_those_of_the_last(sizes: tuple[int, int]) -> None:
    it = aggregate(capacity=12)
    for number, size in enumerate(sizes, 1):
        for first in range(0, size, 4):
            it.add("forward", numbered(100 * number + first, min(4, size - first)), number)
        it.draw(3, FORWARD)
    assert len(it) == sizes[1]
    assert it.records("forward")["t"].tolist() == [200.0 + place for place in range(sizes[1])]
    assert it.draw(sizes[1] - 3, FORWARD)["t"].tolist() == [203.0 + place for place in range(sizes[1] - 3)]


def test_rounds_may_bring_different_numbers_of_records() -> None:
    """The window is of rounds, not of records; where more come than there is room for, room is made."""
    it = aggregate(rounds=2, capacity=10)
    for number, size in enumerate((4, 6, 3, 3, 30, 1), 1):
        it.add("student", numbered(100 * number, size), number)
    rows = it.records("student")
    assert rows["t"].tolist() == [*range(500, 530), 600]
    assert rows["round"].tolist() == [5] * 30 + [6]


def kept_rounds(it: Aggregate, source: str, shares: Shares) -> set[int]:
    return set(it.draw(4000, shares)["round"].tolist())


@pytest.mark.parametrize(
    ("rounds_kept", "expected"), [(None, {1, 2, 3, 4, 5}), (1, {5}), (2, {4, 5}), (99, {1, 2, 3, 4, 5})]
)
def test_the_window_of_student_rounds(rounds_kept: int | None, expected: set[int]) -> None:
    window = rounds_to_keep([30] * 5, rounds_kept, None)
    it = aggregate(window, capacity=PER_ROUND)
    for number in range(1, 6):
        it.add("student", records(1.0), number)
        it.add("expert", records(2.0), number)
    assert kept_rounds(it, "student", Shares(0, 1, 0)) == expected
    assert kept_rounds(it, "expert", Shares(0, 0, 1)) == {1, 2, 3, 4, 5}, "the expert's records are never dropped"
    assert len(it) == (len(expected) + 5) * PER_ROUND


@pytest.mark.parametrize(
    ("rounds_kept", "max_age", "expected"),
    [
        (None, None, 20),
        (3, None, 3),
        (None, 90, 3),
        (None, 89, 2),
        (None, 10, 1),
        (2, 90, 2),
        (5, 90, 3),
        (None, 10_000, 20),
    ],
)
def test_the_two_limits_together(rounds_kept: int | None, max_age: int | None, expected: int) -> None:
    assert rounds_to_keep([30] * 20, rounds_kept, max_age) == expected


@pytest.mark.parametrize(
    ("updates", "max_age", "expected"),
    [
        ([4, 3, 3], 10, 3),
        ([4, 3, 3], 9, 2),
        ([4, 3, 3], 7, 2),
        ([4, 3, 3], 6, 1),
        ([4, 3, 3], 3, 1),
        ([1, 5, 1, 1], 5, 1),
        ([1, 5, 1, 1], 6, 2),
        ([1, 5, 1, 1], 7, 3),
    ],
)
def test_an_age_in_uneven_rounds(updates: list[int], max_age: int, expected: int) -> None:
    """Records that n rounds train on are as old, at the end of the last, as the updates of these rounds."""
    kept = rounds_to_keep(updates, None, max_age)
    assert kept == expected
    windows = [sum(updates[start : start + kept]) for start in range(len(updates) + 1 - kept)]
    assert kept == 1 or max(windows) <= max_age


def test_the_same_generator_draws_the_same_batches() -> None:
    def batches(seed: int) -> torch.Tensor:
        it = aggregate(seed=seed)
        it.add("forward", records(-1.0), 1)
        it.add("student", numbered(0, PER_ROUND), 1)
        return torch.cat([it.draw(5, Shares(0.3, 0.7, 0.0))["t"][-2:] for _ in range(6)])

    assert torch.equal(batches(0), batches(0))
    assert not torch.equal(batches(0), batches(1))


def test_every_record_is_drawn_about_equally_often() -> None:
    it = aggregate()
    for number in (1, 2):
        it.add("student", records(1.0).set("t", number * 100 + torch.arange(float(PER_ROUND))), number)
    drawn = it.draw(24_000, Shares(0, 1, 0))["t"].unique(return_counts=True)[1]
    assert len(drawn) == 2 * PER_ROUND
    assert (drawn - 1000).abs().max() < 150


def test_what_was_stored_does_not_change_when_its_maker_does() -> None:
    it, mine = aggregate(), records(1.0)
    it.add("student", mine, 1)
    mine["x_t"].fill_(9.0)
    batch = it.draw(6, Shares(0, 1, 0))
    assert (batch["x_t"] == 1.0).all()
    batch["x_t"].fill_(7.0)
    assert (it.draw(6, Shares(0, 1, 0))["x_t"] == 1.0).all()


def test_sources_have_the_index_of_their_name() -> None:
    assert [SOURCES[i] for i in filled().draw(4, Shares(0.25, 0.25, 0.5))["source"].tolist()] == [
        "forward",
        "student",
        "expert",
        "expert",
    ]


@pytest.mark.parametrize("shares", [Shares(0.5, 0.25, 0.25), Shares(0.4, 0.33, 0.27), Shares(0, 1, 0)])
def test_how_much_is_read_at_once_changes_no_batch(shares: Shares, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, found = [6, 10, 10, 6, 10, 7], []
    for limit in (1, 1500, 2**26):
        monkeypatch.setattr("dagdiff.aggregate.READ", limit)
        it = aggregate(seed=3)
        for place, source in enumerate(SOURCES):
            it.add(source, numbered(100 * place, 9 + place), 1)
        found.append(list(it.draws(sizes, shares)))
    for batches in found:
        assert [len(batch) for batch in batches] == sizes
        assert all((batch["source"].diff() >= 0).all() for batch in batches), "source by source"
        assert all(torch.equal(batch["t"] // 100, batch["source"].float()) for batch in batches)
        assert all(torch.equal(one["t"], two["t"]) for one, two in zip(batches, found[0], strict=True))


# Memory-mapped files


def rows(count: int) -> TensorDict:
    return TensorDict({"x_t": torch.randn(count, 2), "t": torch.rand(count)}, [count])


def test_files_are_allocated_before_they_are_used(tmp_path: Path) -> None:
    """A file with holes in it kills its writer where the disk is full."""
    aggregate = Aggregate({"student": 50_000}, folder=tmp_path)
    aggregate.add("student", rows(3), 1)
    files = [file.stat() for file in tmp_path.rglob("*.memmap")]
    assert files and all(each.st_blocks * 512 >= each.st_size for each in files)


def test_a_full_disk_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    aggregate = Aggregate({"student": 50}, folder=tmp_path)
    with pytest.raises(Refusal, match=r"memmap .* has no room for 50 records \(No space left on device\)"):
        aggregate.add("student", rows(3), 1)


def test_what_a_killed_process_has_left_is_swept_away_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    left = tmp_path / "aggregate-left"
    left.mkdir()
    (left / ".lock").touch()
    (tmp_path / "mine").mkdir()
    used = Aggregate({"student": 8}, folder=tmp_path)
    again = Aggregate({"student": 8}, folder=tmp_path)
    assert used.folder and again.folder
    assert {each.name for each in tmp_path.iterdir()} == {"mine", used.folder.name, again.folder.name}


@pytest.mark.parametrize(("rounds", "kept"), [(5, 5), (20, 20), (200, 20)])
def test_a_long_run_keeps_no_more_than_a_short_one(rounds: int, kept: int) -> None:
    assert rounds_to_keep([3] * rounds, None, None) == kept
    assert rounds_to_keep([3] * rounds, rounds, None) == rounds


def test_a_part_of_each_round_goes_to_each_process() -> None:
    whole = Aggregate({})
    for number in (1, 2):
        whole.add("student", rows(7), number)
    state = whole.state_dict()
    for window in state["windows"].values():
        window["records"] = [each.make() for each in window["records"]]
    parts = [Aggregate({}) for _ in range(3)]
    for place, part in enumerate(parts):
        part.load_part([state], place, 3)
    assert [len(part) for part in parts] == [6, 4, 4]
    found = torch.cat([part.records("student")["t"] for part in parts]).sort().values
    assert torch.equal(found, whole.records("student")["t"].sort().values)
