"""``dagdiff sample``: points or pictures from the student of a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import Tensor

from dagdiff.checkpoint import save_arrays, save_text
from dagdiff.checks import Refusal, check_at_least, check_at_most, check_seed
from dagdiff.commands import MOST, add_batches, add_trust, check_batches, make_parser
from dagdiff.pipelines.conditions import Labels
from dagdiff.report import figures
from dagdiff.report.images import sample_panels, save_grid
from dagdiff.runs import config
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import open_run
from dagdiff.shapes import Condition


def sample(words: Sequence[str]) -> None:
    """Draw points from the student of a run; writes FILE.npz (x: points, noise: where they started) and FILE.png.

    Of images x holds pictures, (N, C, H, W) from -1 (black) to 1 (white); of latents they are decoded, and latents
    holds what the student made.
    """
    parser = make_parser("sample", sample)
    parser.add_argument("folder", type=Path, help="the folder of a run")
    parser.add_argument("--num", type=int, default=2000, help="how many points")
    parser.add_argument("--seed", type=int, default=0, help="of start noise and fresh noise")
    parser.add_argument("--out", type=Path, default=Path("samples.npz"), help="the .npz file to write")
    parser.add_argument(
        "--steps", type=int | None, default=None, help="of a student whose answers are data; else those of its training"
    )
    add_batches(parser)
    parser.add_argument("--prompt", type=str | None, default=None, help="what to show, of a text-to-image pipeline")
    parser.add_argument(
        "--prompts", type=Path | None, default=None, help="a file of prompts to show in turn, or a bank of embeddings"
    )
    parser.add_argument("--prompt_column", type=str | None, default=None, help="of a table of prompts")
    parser.add_argument("--label", type=str | None, default=None, help="the class to show: its name or its number")
    told = "the weight of guidance, of a student that was trained with a range of them; null draws one for each sample"
    parser.add_argument("--guidance", type=float | None, default=None, help=told)
    parser.add_argument("--grid", action="store_true", help="draw all samples in one grid, pixel by pixel")
    parser.add_argument("--weights", default="student", help="student (the last round's) or best")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    add_trust(parser)
    given = config.read(parser, words)
    check_at_least("num", given.num, 1)
    check_at_most("num", given.num, MOST)
    check_batches(given.batch_size)
    check_seed("seed", given.seed)
    if given.out.suffix != ".npz" or given.out.is_dir():
        raise Refusal(f"--out {given.out} must be a .npz file, no folder. Pass e.g. --out samples.npz.")
    experiment = _open(given)
    if given.steps is not None:
        experiment = experiment.in_steps(given.steps)
    experiment.rows = given.batch_size
    experiment.guidance = given.guidance
    experiment.label = None if given.label is None else _label(experiment, given.label)
    if given.grid and len(experiment.task.shape) != 3:
        raise Refusal(f"--grid is for images, and {given.folder} is a run of {experiment.task.name!r}. Leave it away.")
    points = experiment.sample(given.num, given.seed, progress=True)
    noise, condition, _ = experiment.start(given.num, given.seed)
    found = _arrays(experiment, points, condition)
    save_arrays(given.out, **found, noise=noise)
    drawn, picture = f"drawn in {given.out.with_suffix('.png')}", given.out.with_suffix(".png")
    if given.grid:
        shown = save_grid(found["x"].numpy(force=True), picture)
        drawn = f"{'all' if shown == given.num else f'the first {shown}'} {drawn}"
    else:
        seen = {"student": found["x"][: experiment.task.saved].numpy(force=True)}
        figures.save(sample_panels(seen), picture)
    print(f"{given.num} {'points' if points.ndim != 4 else 'pictures'} in {given.out}, {drawn}")


def _open(given: Any) -> Experiment:
    """Open the run; prompts that are given take the place of its own, and are shown in turn."""
    if given.prompt is None and given.prompts is None:
        return open_run(given.folder, given.device, given.weights, given.trust_code)
    if given.prompt is not None and given.prompts is not None:
        raise Refusal("--prompt and --prompts both say what to show. Leave one away.")
    if given.prompt is not None and not given.prompt.strip():
        raise Refusal(f"--prompt is {given.prompt!r}, and shows nothing. Write what to show.")
    with TemporaryDirectory() as place:
        file = Path(place) / "prompts.json"
        if given.prompts is None:
            save_text(file, json.dumps([given.prompt]))
        else:
            file = given.prompts
        return open_run(given.folder, given.device, given.weights, given.trust_code, file, given.prompt_column)


def _label(experiment: Experiment, told: str) -> int:
    """The number of the class that was named; reject it where nothing, or something else, is asked for."""
    task, teacher = experiment.task, getattr(experiment.task, "teacher", None)
    if not task.conditional:
        raise Refusal(f"--label: the student of {task.name!r} is asked for no class. Train on a task NAME-labelled.")
    if teacher is not None:
        classes = teacher.network.conditions
        if not isinstance(classes, Labels):
            raise Refusal("--label is for classes, and this pipeline is asked with prompts. Pass --prompt TEXT.")
        try:
            return classes.numbers([told])[0]
        except Refusal:
            raise Refusal(
                f"--label {told!r:.80} is no class of this pipeline. Pass a number from 0 to {classes.classes - 1}."
            ) from None
    names = getattr(task.world, "classes", ()) or tuple(map(str, range(task.labels)))
    if told in names:
        return names.index(told)
    if told.isdecimal() and int(told) < len(names):
        return int(told)
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    raise Refusal(f"--label {told!r:.80} is no class of {task.name!r}. Pass one of: {shown}.")


def _arrays(experiment: Experiment, points: Tensor, condition: Condition) -> dict[str, Any]:
    """What is kept of the samples: as pictures where they are latents, and what each was to show."""
    found: dict[str, Any] = {"x": points}
    if getattr(experiment.task.world, "latent", False):
        found = {"x": experiment.pictures(points, progress=True), "latents": points}
    if condition is not None:
        task = experiment.task
        found["condition"] = task.numbers(condition)
        weights = task.weights(condition)
        if weights is not None:
            found["guidance"] = weights
        if task.prompts:
            found["prompt"] = np.array(task.prompts)[found["condition"].cpu().numpy()]
    return found
