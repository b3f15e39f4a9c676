"""``dagdiff shift --expert ... --student ...``: the covariate shift of any few-step student of a diffusers pipeline.

Who trained the student does not matter. Its own scheduler says how it is sampled and at which times
(:mod:`dagdiff.pipelines.few_step`); the teacher's says what noise states hold; both must say the same of that.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dagdiff.batches import InParts
from dagdiff.checkpoint import save_csv
from dagdiff.checks import Refusal, check_at_least, check_seed
from dagdiff.commands import make_parser, read_range
from dagdiff.engine import find_device
from dagdiff.expert import Expert
from dagdiff.metrics.shift import Shift, measure_shift
from dagdiff.pipelines.few_step import Sampler, check_alike, read_sampler, read_scheduler, with_adapters
from dagdiff.pipelines.pictures import told_prompts
from dagdiff.pipelines.pretrained import DiffusersExpert, as_prompts
from dagdiff.pipelines.suited import check_many_steps
from dagdiff.progress import Progress
from dagdiff.report import figures
from dagdiff.report.anatomy import conclusion, format_shift
from dagdiff.report.measured import save_ends
from dagdiff.report.shift import shift_figure
from dagdiff.runs import config
from dagdiff.shapes import Condition, States
from dagdiff.tasks.pipeline_data import own_samples
from dagdiff.tasks.pipeline_images import encoded_images


def shift_pair(words: Sequence[str]) -> None:
    """Measure the covariate shift of a few-step diffusers pipeline against its teacher's, step by step.

    Prints tables, and in sentences which steps err and what to train on. Forward states are made of the images, or,
    where none are given, of samples that the teacher draws itself; they are kept in the cache.
    """
    given = config.read(_parser(), words)
    for name, least in {"num": 10, "steps": 1, "substeps": 1, "batch_size": 1}.items():
        check_at_least(name, getattr(given, name), least)
    check_seed("seed", given.seed)
    pair = load_pair(given)
    x0, condition, told = _data(pair.teacher, given)
    shift = measure(pair, given, x0, condition)
    print(f"{pair.told}\nforward states: {told}\n\n{format_shift(shift)}\n\n{conclusion(shift)}")
    if given.out is not None:
        save_csv(given.out / "shift.csv", [row.as_row() for row in shift.rows])
        figures.save(shift_figure(shift.rows), given.out / "shift.png")
        ends = save_ends(shift, given.out, pair.teacher.autoencoder.decode)
        print(f"\nsaved in {given.out}: {', '.join(['shift.csv', 'shift.png', *ends])}")


class Pair(NamedTuple):
    """Teacher and student, and how the student is sampled."""

    teacher: DiffusersExpert
    student: DiffusersExpert
    sampler: Sampler
    told: str


def load_pair(given: Any) -> Pair:
    """Load both pipelines and the student's sampler.

    Raises:
        Refusal: if one can't be had, the expert is a few-step model, they differ in the shape or the noise of states,
            or the sampler is not served.
    """
    if given.student is None and given.lora is None:
        raise Refusal(
            "there is no student. Pass --student FOLDER, or --lora with the adapters that make the expert one."
        )
    device = str(find_device(given.device))
    of = given.student or given.expert
    prompts = as_prompts(Path(given.prompts), given.prompt_column) if given.prompts else ()
    captions = told_prompts(given.images, given.prompt_column, classes=not given.prompts)
    teacher, student = (
        DiffusersExpert.from_pretrained(
            path, prompts, given.sample_size, given.null_class, given.dtype, device, given.variant,
            allow_pickle=given.allow_pickle, captions=captions,
        )
        for path in (given.expert, of)
    )  # fmt: skip
    if not given.few_step:
        check_many_steps(given.expert, teacher.few_step, "--few_step")
    check_alike(teacher, student, f"--expert {given.expert}", f"--student {of}")
    given.guidance, given.student_guidance = teacher.guided(given.guidance), student.guided(given.student_guidance)
    if given.lora:
        with_adapters(student, of, given.lora, given.variant, given.allow_pickle)
    scheduler = read_scheduler(of, given.scheduler)
    timesteps = None if given.timesteps is None else read_timesteps(given.timesteps)
    steps = given.steps if timesteps is None else len(timesteps)
    sampler = read_sampler(scheduler, student.network.law, steps, timesteps)
    told = ", ".join(f"{time:.3f}" for time in sampler.times.tolist())
    law = f"{type(scheduler).__name__} ({type(sampler.transition).__name__}) at the times {told}"
    law += "".join(f", called with {name}={value}" for name, value in sampler.call.items())
    return Pair(teacher, student, sampler, f"the student's sampler: {law}")


def read_timesteps(text: str) -> list[float]:
    """Return the numbers of a text with commas."""
    try:
        return [float(each) for each in text.strip("[]() ").split(",")]
    except ValueError:
        raise Refusal(f"--timesteps {text} are no numbers. Pass e.g. --timesteps 999,749,499,249.") from None


def measure(pair: Pair, given: Any, x0: States, condition: Condition) -> Shift:
    """Return the shift at each step, on as many chains as there are rows of data."""
    teacher, student = pair.teacher, pair.student
    asked = InParts(teacher, given.batch_size)
    expert = Expert(asked, teacher.schedule, given.substeps, given.guidance, teacher.threshold, guide=teacher.guide)
    policy = Expert(
        InParts(student, given.batch_size),
        student.schedule,
        1,
        given.student_guidance,
        student.threshold,
        guide=student.guide,
    )
    generator = torch.Generator(x0.device).manual_seed(given.seed)
    times = pair.sampler.times.to(x0.device)
    with Progress("shift", len(times) - 1) as bar:
        return measure_shift(policy, expert, pair.sampler.transition, times, x0, condition, generator, tell=bar.advance)


def _data(teacher: DiffusersExpert, given: Any) -> tuple[Tensor, Condition, str]:
    """Clean states, their conditions, and what they are in words."""
    device = next(teacher.network.parameters()).device
    generator = torch.Generator().manual_seed(given.seed)
    if given.images is None:
        splits = own_samples(teacher, given.num, given.own_steps, given.guidance, given.batch_size)
        told = f"{given.num} samples of the teacher itself, of {given.own_steps} steps each (no --images are given)"
        rows = torch.arange(given.num)
    else:
        reach = read_range(given.value_range)
        splits = encoded_images(teacher, given.images, given.prompt_column, given.skip_broken, reach)
        rows = torch.randperm(sum(len(part.points) for part in splits), generator=generator)[: given.num]
        paired = "their captions" if splits[0].labels is not None else "prompts or classes drawn at random"
        told = f"{len(rows)} of the images in {given.images}, with {paired}"
    if len(rows) < given.num:
        raise Refusal(f"--images {given.images} holds {len(rows)} images; got --num {given.num}. Ask for fewer.")
    shown = len(splits[0].points)
    inside, beyond = rows < shown, rows >= shown
    points = torch.empty(len(rows), *splits[0].points.shape[1:])
    points[inside], points[beyond] = splits[0].points[rows[inside]], splits[1].points[rows[beyond] - shown]
    labels = [part.labels for part in splits if part.labels is not None]
    conditions: Any = teacher.network.conditions
    condition = torch.cat(labels)[rows] if labels else conditions.draw(given.num, generator)
    if condition is not None and bool((condition < 0).any()):
        raise Refusal(f"{given.expert!r} is asked with prompts. Give a file of them: --prompts prompts.txt.")
    return points.to(device), None if condition is None else condition.to(device), told


def _parser() -> Any:
    parser = make_parser("shift", shift_pair)
    parser.add_argument("--expert", type=str, required=True, help="the teacher: a pipeline's folder, or a hub id")
    parser.add_argument(
        "--student", type=str | None, default=None, help="the few-step student, alike, with a scheduler of its own"
    )
    parser.add_argument(
        "--lora", type=str | None, default=None, help="adapters on the student, or on the expert's network"
    )
    parser.add_argument(
        "--scheduler", type=str | None, default=None, help="a sampler's class in place of the student's own"
    )
    parser.add_argument("--steps", type=int, default=4, help="of the student's sampler")
    parser.add_argument(
        "--timesteps", type=str | None, default=None, help="of the sampler in place of its own, e.g. 999,749,499,249"
    )
    parser.add_argument("--prompts", type=str | None, default=None, help="a file of prompts, or a bank of embeddings")
    parser.add_argument("--prompt_column", type=str | None, default=None, help="of a table of prompts or captions")
    parser.add_argument(
        "--images",
        type=str | None,
        default=None,
        help="pictures for forward states, as in distill",
    )
    parser.add_argument("--skip_broken", type=bool, default=False, help="leave out pictures that can't be read")
    parser.add_argument("--value_range", type=str | None, default=None, help="black and white of a file of arrays")
    parser.add_argument("--num", type=int, default=64, help="chains and forward states a step")
    parser.add_argument("--guidance", type=float, default=1.0, help="classifier-free weight of the teacher")
    parser.add_argument("--student_guidance", type=float, default=1.0, help="classifier-free weight of the student")
    parser.add_argument("--substeps", type=int, default=8, help="DDIM sub-steps of the teacher within a student step")
    parser.add_argument("--own_steps", type=int, default=50, help="of each sample that the teacher draws as data")
    parser.add_argument("--batch_size", type=int, default=8, help="rows that a network is shown at once")
    told = "take an expert that seems to be a few-step model itself"
    parser.add_argument("--few_step", type=bool, default=False, help=told)
    parser.add_argument("--sample_size", type=int | None, default=None, help="the side of the states")
    parser.add_argument("--null_class", type=int | None, default=None, help="the class that stands for none")
    parser.add_argument("--dtype", default="float32", help="of the weights: float32, bfloat16 or float16")
    parser.add_argument("--variant", type=str | None, default=None, help="of the weight files, such as fp16")
    parser.add_argument("--allow_pickle", type=bool, default=False, help="read weights from pickles; they can run code")
    parser.add_argument("--seed", type=int, default=0, help="of data and noise")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--out", type=Path | None, default=None, help="a folder for shift.csv, shift.png, ends.png")
    return parser
