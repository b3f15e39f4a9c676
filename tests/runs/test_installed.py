"""Short names that installed packages register: a real small package on the path."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import ROOT

from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.runs import installed
from dagdiff.runs.config import configure
from dagdiff.runs.identity import digest
from dagdiff.runs.parts import PARTS, names

CODE = '''
"""Somebody's parts."""

from dagdiff.objectives import Consistency


class Slow(Consistency):
    """LCM with a slower target.

    Args:
        ema: decay of the target network, an update.
    """

    version = 7

    def __init__(self, ema: float = 0.99) -> None:
        super().__init__(ema=ema)


def ball(radius: float = 2.0):
    """Clamp to a ball's box."""
    return lambda x0: x0.clamp(-radius, radius)
'''
TINY = "--policy fresh --policy.width 8 --updates 2 --rounds 1 --chains 4 --batch_size 8 --heldout 4 --samples 20"
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Returns a function that installs a package with these entries, as pip would; it is gone after the test."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))

    def make(*entries: str, name: str = "theirs") -> None:
        (site / f"{name}_parts.py").write_text(CODE)
        about = site / f"{name}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text("\n".join(["[dagdiff.parts]", *entries, ""]))
        installed._entries.cache_clear()

    yield make
    sys.modules.pop("theirs_parts", None)
    monkeypatch.undo()
    installed._entries.cache_clear()


def test_a_registered_name_is_a_name_like_any_other(
    install: Install, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    install("objective.slow = theirs_parts:Slow", "threshold.ball = theirs_parts:ball")
    assert names("objective") == {**PARTS["objective"], "slow": "theirs_parts.Slow"}
    assert main(["list", "objectives"]) == 0
    assert "--objective slow          LCM with a slower target.  [theirs_parts.Slow]" in capsys.readouterr().out
    assert main(["distill", "--objective", "slow", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--objective.ema X Decay of the target network, an update. Default: 0.99." in text
    assert "gaussian-kl, slow or an import path" in text
    words = f"distill {TINY} --objective slow --threshold ball --threshold.radius 1.5 --out out"
    assert main(words.split()) == 0, capsys.readouterr().err
    kept = (tmp_path / "out/config.yaml").read_text()
    assert "class: slow" in kept and "class: ball" in kept


def test_its_path_and_its_name_are_one_run(install: Install) -> None:
    install("objective.slow = theirs_parts:Slow")
    short, path = configure({"objective": "slow"}), configure({"objective": "theirs_parts.Slow"})
    assert short == path and digest(short) == digest(path)
    assert short["objective"] == {"class": "slow", "ema": 0.99}
    assert configure({"task": "digits-biased", "objective": "slow"})["lr"] == 1e-3, "it takes its kind's recipe"


def test_what_is_installed_is_trusted(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    """A run with such a part opens without --trust_code, by short name and by path; not where it isn't installed."""
    install("threshold.ball = theirs_parts:ball")
    assert main(f"distill {TINY} --threshold ball --out out".split()) == 0, capsys.readouterr().err
    assert main(["sample", "out", "--num", "5"]) == 0, capsys.readouterr().err
    for file in ("config.yaml", "student.json"):
        text = Path("out", file).read_text()
        Path("out", file).write_text(text.replace("class: ball", "class: theirs_parts.ball"))
    Path("out", "manifest.json").unlink()
    assert main(["sample", "out", "--num", "5"]) == 0, capsys.readouterr().err
    entries = next(Path("site").glob("*.dist-info")) / "entry_points.txt"
    entries.unlink()
    installed._entries.cache_clear()
    capsys.readouterr()
    assert main(["sample", "out", "--num", "5"]) == 2
    assert "theirs_parts.ball" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ("objective.progressive = theirs_parts:Slow", "'theirs' registers 'objective.progressive', but objective 'p"),
        ("objectiv.slow = theirs_parts:Slow", "unknown part 'objectiv'. Did you mean 'objective'"),
        ("slow = theirs_parts:Slow", "Write an entry as objective.mine = package.module:Class"),
        ("objective.slow = theirs_parts", "Write an entry as objective.mine = package.module:Class"),
        ("objective.my.slow = theirs_parts:Slow", "Write an entry as objective.mine = package.module:Class"),
    ],
)  # fmt: skip
def test_entries_that_cannot_be(entry: str, match: str, install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(entry)
    assert main(["list", "objectives"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and match in told and "theirs" in told


def test_two_packages_with_one_name_are_refused(install: Install) -> None:
    install("objective.slow = theirs_parts:Slow")
    install("objective.slow = others_parts:Slow", name="others")
    with pytest.raises(Refusal, match=r"'(others|theirs)' registers .* is a name of the package '(others|theirs)'"):
        names("objective")


def test_a_registered_package_is_not_imported_until_it_is_chosen(install: Install) -> None:
    install("objective.slow = theirs_parts:Slow")
    code = "import sys; from dagdiff.cli import main; main(['distill', '--help']); print('theirs_parts' in sys.modules)"
    path = f"{ROOT}:{Path('site').resolve()}"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "gaussian-kl, slow or an import path" in " ".join(done.stdout.split())
    assert done.stdout.splitlines()[-1] == "False"
