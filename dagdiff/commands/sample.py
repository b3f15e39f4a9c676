"""``dagdiff sample``: points from the student of a run."""

from collections.abc import Sequence
from pathlib import Path

from dagdiff.checkpoint import save_arrays
from dagdiff.checks import Refusal, check_at_least, check_at_most, check_seed
from dagdiff.commands import MOST, add_trust, make_parser
from dagdiff.report import figures
from dagdiff.report.images import sample_panels
from dagdiff.runs import config
from dagdiff.runs.folder import open_run


def sample(words: Sequence[str]) -> None:
    """Draw points from the student of a run; writes FILE.npz (x: points, noise: where they started) and FILE.png."""
    parser = make_parser("sample", sample)
    parser.add_argument("folder", type=Path, help="the folder of a run")
    parser.add_argument("--num", type=int, default=2000, help="how many points")
    parser.add_argument("--seed", type=int, default=0, help="of start noise and fresh noise")
    parser.add_argument("--out", type=Path, default=Path("samples.npz"), help="the .npz file to write")
    parser.add_argument("--weights", default="student", help="student (the last round's) or best")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    add_trust(parser)
    given = config.read(parser, words)
    check_at_least("num", given.num, 1)
    check_at_most("num", given.num, MOST)
    check_seed("seed", given.seed)
    if given.out.suffix != ".npz" or given.out.is_dir():
        raise Refusal(f"--out {given.out} must be a .npz file, no folder. Pass e.g. --out samples.npz.")
    experiment = open_run(given.folder, given.device, given.weights, given.trust_code)
    points = experiment.sample(given.num, given.seed)
    noise, condition, _ = experiment.start(given.num, given.seed)
    save_arrays(given.out, x=points, noise=noise, **({} if condition is None else {"condition": condition}))
    seen = {"student": experiment.task.pictures(points[: experiment.task.saved]).numpy(force=True)}
    figures.save(sample_panels(seen), given.out.with_suffix(".png"))
    print(f"{given.num} points in {given.out}, drawn in {given.out.with_suffix('.png')}")
