"""``dagdiff judge``: somebody's student on the bench, and its row."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagdiff.checks import Refusal, check_at_least
from dagdiff.commands import add_trust, make_parser
from dagdiff.judging.terms import LAWS, SEEDS, check_seeds, check_task
from dagdiff.runs import config

if TYPE_CHECKING:
    from dagdiff.judging.judgement import Judgement


def judge(words: Sequence[str]) -> None:
    """Judge a student on a task of DistillBench: its scores beside the floor and the expert, and its row for the table.

    STUDENT is the import path of a callable (x_t, t, condition) -> x0, a .npz file of samples or chains, the folder of
    a run, or a diffusers folder. Seeds, number of points and references are frozen.
    """
    parser = make_parser("judge", judge)
    parser.add_argument("student", help="import path (mypkg.mine:student), .npz file, run or diffusers folder")
    parser.add_argument("--task", type=str, required=True, help="that it is judged on; `dagdiff list tasks` names them")
    parser.add_argument(
        "--steps", type=int | None, default=None, help="of its chain, 4 by default; a run and a file of chains tell it"
    )
    parser.add_argument("--seeds", type=int, default=3, help=f"how many of the frozen seeds, at most {len(SEEDS)}")
    parser.add_argument(
        "--law", type=str | None, default=None, help=f"by which it moves: {', '.join(LAWS)}; by default ddim"
    )
    parser.add_argument(
        "--schedule", type=str | None, default=None, help="the noise schedule of its states; by default the task's"
    )
    parser.add_argument("--entry", type=str | None, default=None, help="its name in the row; by default STUDENT")
    parser.add_argument(
        "--out", type=Path | None, default=None, help="a new folder for judge.json, row.md and shift.csv"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    add_trust(parser)
    given = config.read(parser, words)
    check_task(given.task)
    check_seeds(given.seeds)
    if given.steps is not None:
        check_at_least("steps", given.steps, 1)
    if given.out is not None:
        _check_new(given.out)
    found = _judged(given)
    print(told(found))
    if given.out is not None:
        keep(found, given.out)
        print(f"\nsaved in {given.out}: {', '.join(sorted(each.name for each in given.out.iterdir()))}")


def _judged(given: Any) -> "Judgement":
    from dagdiff.judging.judge import judge as ask

    beside = {name: getattr(given, name) for name in ("law", "schedule", "entry", "device", "trust_code")}
    return ask(given.student, given.task, given.steps, given.seeds, **beside)


def told(found: "Judgement") -> str:
    """Return what the bench says of a student: the table with its references, the shift, and the row alone."""
    from dagdiff.judging.judgement import expert, floor, header, row
    from dagdiff.metrics.shift import Bracket, Shift, StepShift
    from dagdiff.report.anatomy import conclusion, format_shift

    lines = [
        f"{found.task}, {found.steps} steps; bench {found.bench}, {len(found.seeds)} seeds of {found.points} points",
        *header(found.scores),
        floor(found),
        expert(found),
        row(found),
    ]
    if found.ends is not None and "loss_own" in found.shift[0]:
        names = StepShift.__dataclass_fields__
        steps = [StepShift(**{name: step[name] for name in names if name in step}) for step in found.shift]  # type: ignore[arg-type]
        shift = Shift(steps, Bracket(**found.ends))
        lines += ["", format_shift(shift), "", conclusion(shift)]
    elif found.ends is not None:
        lines += ["", f"ends: W2 to the expert's ends is between {found.ends['low']:.3g} and {found.ends['high']:.3g}"]
    return "\n".join([*lines, "", "its row:", row(found)])


def keep(found: "Judgement", out: Path) -> None:
    """Fill a new folder with all that was found, at once or not at all."""
    from dagdiff.checkpoint import follow_umask, refused_writes, save_csv, save_text
    from dagdiff.judging.judgement import header, row, save_judgement

    with refused_writes(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            save_text(aside / "row.md", "\n".join([*header(found.scores), row(found)]) + "\n")
            if found.shift:
                save_csv(aside / "shift.csv", found.shift)
            save_judgement(found, aside / "judge.json")
            follow_umask(aside)
            aside.chmod(0o777 & ~_umask())
            if out.is_dir():
                out.rmdir()  # it is empty
            aside.rename(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _check_new(out: Path) -> None:
    """Reject a folder that holds something, or can't be made."""
    from dagdiff.checkpoint import check_writable

    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise Refusal(f"--out {out} is not empty. Name a new folder.")
    check_writable("--out", out)
