"""The settings of a run: what may be told, its type and its usual value, and what its value may be.

A new setting is a field here, with a line in the docstring; command line, YAML, help and documentation take it from
there.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from dagdiff.checks import (
    Refusal,
    check_above,
    check_at_least,
    check_at_most,
    check_in,
    check_number,
    check_path,
    check_range,
    check_seed,
    check_share,
    check_shares,
    check_weights,
)
from dagdiff.runs.recipes import PLANE
from dagdiff.tasks.names import PIPELINE, read_name


@dataclass
class Settings:
    """Distil a teacher into a few-step student.

    Args:
        task: the target distribution and the set of its points that the student is trained on, e.g. grid25-biased;
            `dagdiff list tasks` names them all; or pipeline, with --pipeline.path.
        shares: parts of a batch that are forward states, student states and expert states; they sum to 1.
        steps: number of steps of the student.
        stages: progressive halving: the steps of each stage, e.g. 16,8,4; the student of one stage is the expert of
            the next.
        updates: number of student updates over all rounds; with --stages, per stage. The first rounds make one more
            where they do not divide.
        rounds: number of rounds of sampling and training; with --stages, per stage.
        batch_size: number of states of an update.
        chains: number of chains that are sampled at a time.
        substeps: number of steps of the expert within one step of the student; where predictions must be right at
            data (LCM, DMD2), on its way from noise to data, and a part of them from a state between.
        guidance: weight of classifier-free guidance of the expert, on labelled tasks; of a pipeline with prompts also a
            range, e.g. 3,8: each chain has a weight of its own, and the student is told it.
        per_chain: let one driver keep a chain to its end.
        stepwise: give the student a network of its own for each step.
        start: folder of a run whose student this one starts from; `--policy FOLDER` takes its network too.
        input_perturbation: noise that forward states hold beside their own, as a part of it; 0 adds none.
        epsilon_scale: divides the noise in the student's predictions when it samples; 1 leaves it.
        reuse: number of batches that a labelled state serves on average, at least 1; a round makes as many new ones as
            its updates then need, chains in whole batches.
        rounds_kept: number of rounds whose student states stay in the aggregate: 1 the newest, as many as there are
            all; null keeps 20, so that a long run needs no more memory than a short one.
        max_age: age in updates at which student states are dropped; null keeps them.
        lr: learning rate of Adam.
        betas: decay rates of Adam's first and second moment.
        clip: largest norm of a gradient.
        ema: decay of the averaged student, which is the one saved, (1 + n) / (10 + n) at most after n updates; 0 saves
            the last.
        bf16: run student and expert networks in bfloat16 where that is safe (autocast); weights keep their precision.
        compile: compile the networks of student, expert and critic with torch; needs a C++ compiler and minutes at the
            start.
        adam8bit: keep the moments of the student's Adam in 8 bits, by the package bitsandbytes; needs a GPU.
        accumulate: number of parts of a batch that go through the student one after the other, to save memory.
        memmap: folder for the aggregate, memory-mapped; null keeps it in memory.
        gathered: folder of records that `dagdiff gather` has made ahead; a run takes them before it asks the expert.
        metric: more metrics of the samples, comma-separated or repeated: names or import paths; `dagdiff list metrics`
            names those that there are.
        heldout: number of chains of the measurement that closes a round; 0 measures nothing.
        samples: number of points drawn from the student for its final score.
        size: side to which your own pictures are cropped, square and in their middle; null leaves them as they are.
        skip_broken: train without those of your own pictures that can't be read, instead of rejecting them all.
        value_range: black and white of your own .npy or .npz file, e.g. 0,1, where its numbers leave it open; null lets
            their type, or an array `range` in the file, say it.
        seed: seed of everything random, from 0 to 2^32 - 1.
        on_nonfinite: what a loss that is NaN or infinite does: stop ends the run at the last good round; rollback goes
            back to it and makes the round again from new states, three times in a row at most.
        device: auto, cpu, cuda, cuda:1, ...
    """

    task: str = "gaussians8-biased"
    shares: tuple[float, float, float] = PLANE.settings["shares"]
    steps: int = 4
    stages: list[int] | None = None
    updates: int = PLANE.settings["updates"]
    rounds: int = PLANE.settings["rounds"]
    batch_size: int = PLANE.settings["batch_size"]
    chains: int = PLANE.settings["chains"]
    substeps: int = PLANE.settings["substeps"]
    guidance: float | tuple[float, float] = 1.0
    per_chain: bool = False
    stepwise: bool = False
    start: str | None = None
    input_perturbation: float = 0.0
    epsilon_scale: float = 1.0
    reuse: float = PLANE.settings["reuse"]
    rounds_kept: int | None = None
    max_age: int | None = None
    lr: float = PLANE.settings["lr"]
    betas: tuple[float, float] = PLANE.settings["betas"]
    clip: float = PLANE.settings["clip"]
    ema: float = 0.0
    bf16: bool = False
    compile: bool = False
    adam8bit: bool = False
    accumulate: int = 1
    memmap: str | None = None
    gathered: str | None = None
    metric: list[str] = field(default_factory=list)
    heldout: int = PLANE.settings["heldout"]
    samples: int = PLANE.settings["samples"]
    size: int | None = None
    skip_broken: bool = False
    value_range: tuple[float, float] | None = None
    seed: int = 0
    on_nonfinite: str = "stop"
    device: str = "auto"


NAMES = tuple(field.name for field in fields(Settings))
"""Every setting's name."""


LARGEST = {
    **dict.fromkeys(("steps", "stages", "substeps", "size"), 100_000),
    **dict.fromkeys(("batch_size", "accumulate", "chains", "heldout"), 10**8),
    **dict.fromkeys(("updates", "rounds_kept", "max_age"), 10**9),
    "rounds": 10**6,
}
"""Setting -> the largest number that it takes: far beyond use, and far within what can be counted and held."""


def lists_of(kind: type) -> tuple[str, ...]:
    """Return the names of a dataclass's fields that are lists, which words spell with commas."""
    hints = get_type_hints(kind)
    return tuple(each.name for each in fields(kind) if str(hints[each.name]).startswith(("list", "tuple")))


def check_settings(settings: Any) -> None:
    """Reject settings that can't be, each under the name that the user gave it."""
    check_shares(tuple(settings.shares))
    weights = settings.guidance if isinstance(settings.guidance, tuple) else (settings.guidance,)
    for each in weights:
        check_number("guidance", each)
    for name in ("input_perturbation", "epsilon_scale", "reuse", "lr"):
        check_number(name, getattr(settings, name))
    for name, most in LARGEST.items():
        value = getattr(settings, name)
        for each in value if isinstance(value, list) else [value]:
            check_at_most(name, 0 if each is None else each, most)
    for name in ("steps", "rounds", "batch_size", "chains", "substeps", "accumulate", "reuse"):
        check_at_least(name, getattr(settings, name), 1)
    check_at_least("updates", settings.updates, settings.rounds)
    check_seed("seed", settings.seed)
    check_at_least("samples", settings.samples, 10)
    if settings.samples > 20_000:
        raise Refusal(f"samples must be at most 20000, for all pairs are compared; got {settings.samples}.")
    if len(weights) > 1 and read_name(settings.task).kind is not PIPELINE:
        raise Refusal(
            f"guidance takes a range for pipelines alone, and {settings.task!r} is none. Pass one weight, e.g. "
            "--guidance 2."
        )
    if len(weights) > 1:
        check_weights(*weights)
    if read_name(settings.task).kind is PIPELINE and settings.samples > 1000:
        raise Refusal(
            f"samples of a pipeline run through it at once, 1000 at most; got {settings.samples}. Pass e.g. 32."
        )
    if settings.accumulate > settings.batch_size:
        raise Refusal(
            f"accumulate must be at most batch_size, {settings.batch_size}; got {settings.accumulate}. Lower it."
        )
    check_at_least("heldout", settings.heldout, 0)
    check_at_least("input_perturbation", settings.input_perturbation, 0)
    for name in ("clip", "epsilon_scale", "lr"):
        check_above(name, getattr(settings, name), 0)
    check_share("ema", settings.ema)
    for beta in settings.betas:
        check_share("betas", beta)
    for name in ("rounds_kept", "max_age"):
        check_at_least(name, 1 if getattr(settings, name) is None else getattr(settings, name), 1)
    if settings.value_range is not None:
        check_range(*settings.value_range)
    if settings.memmap is not None:
        check_path("memmap", Path(settings.memmap))
        if not settings.memmap.isprintable():  # tensordict writes the names of files as UTF-8
            raise Refusal(f"memmap must be a path that can be printed; got {settings.memmap!r}. Name another folder.")
    check_in("on_nonfinite", settings.on_nonfinite, ("stop", "rollback"))
    if settings.memmap:
        from dagdiff.checkpoint import check_writable  # it loads torch

        check_writable("memmap", Path(settings.memmap))
    if settings.stages is not None:
        from dagdiff.strategies.halving import check_stages  # it loads the loop

        check_stages(settings.stages)
        if settings.stepwise:
            raise Refusal("stepwise has a network a step, and stages change the steps. Leave one of them away.")
    from dagdiff.engine import find_device  # it loads torch

    find_device(settings.device)
