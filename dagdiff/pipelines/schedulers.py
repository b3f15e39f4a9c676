"""A student's chain in the words of diffusers: one record of it, whose scheduler is the chain.

DDIM's step (progressive distillation) is that of diffusers' DDIM, of DPM-Solver++ of first order, and of Euler on
rectified flow; re-noising (consistency and distribution matching) is LCM's. Which of them can be told the student's
grid is *tried*: a scheduler is configured, its own ``set_timesteps`` is run as the pipeline's call runs it, and the
first whose grid is the student's is taken. Where no configuration has the grid, the call must be told timesteps or
sigmas. What can't be told at all is refused by name. The way back is :mod:`dagdiff.pipelines.few_step`.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)

from dagdiff.checks import Refusal, check_times
from dagdiff.pipelines.grids import explicit, read_grid
from dagdiff.pipelines.noise_law import NoiseLaw
from dagdiff.policies.prediction import EPSILON, FLOW, X0, Prediction, V
from dagdiff.schedule import FlowSchedule, Schedule, step_grid
from dagdiff.shapes import Times
from dagdiff.threshold import DynamicThreshold, NoThreshold, StaticThreshold, Threshold
from dagdiff.transition import Ddim, Renoise, Transition


@dataclass(frozen=True)
class ChainRecord:
    """All that is to be told of a student's chain.

    Args:
        scheduler: of diffusers; its configuration is the chain, but for ``call``.
        times: the grid as it is read back from the scheduler, ``(K + 1,)``.
        timesteps: what the network is asked at, K of them.
        call: ``timesteps`` or ``sigmas`` that the pipeline's call must be told; empty where K is enough.
        entries: T, the length of the network's clock.
        prediction: what the network's output means.
    """

    scheduler: Any
    times: Times
    timesteps: tuple[float, ...]
    call: dict[str, Any]
    entries: int
    prediction: str

    @property
    def steps(self) -> int:
        """K."""
        return len(self.timesteps)


def record_chain(transition: Transition, times: Times, law: NoiseLaw, threshold: Threshold) -> ChainRecord:
    """Return the record of a student's chain.

    A student of a table is asked at whole timesteps: times that lie between two of them, as those of older runs do,
    move by less than one.

    Args:
        transition: the student's law of motion.
        times: its grid, ``(K + 1,)``.
        law: of its states and of the clock that its network reads, with its pipeline's scheduler if there is one.
        threshold: of its guesses.

    Raises:
        Refusal: for a law, grid, prediction or threshold that no scheduler can be told.
    """
    steps = len(check_times(times)) - 1
    asked = _asked(times, law)
    flow = isinstance(law.schedule, FlowSchedule)
    apart = 1e-4 if flow else 0.999 / law.entries
    for make, timesteps in _candidates(transition, law, threshold, steps, asked):
        scheduler = make()
        try:
            found = read_grid(scheduler, law, steps, timesteps)
        except Refusal:
            continue
        if float((found - times.cpu()).abs().max()) < apart:
            told = {} if timesteps is None else explicit(law, timesteps)
            visited = tuple(float(each) for each in law.timestep(found[:-1]))
            return ChainRecord(make(), found, visited, told, law.entries, law.prediction.name)
    raise Refusal(
        f"no scheduler of diffusers has the times {[round(t, 4) for t in times.tolist()]} on a clock of {law.entries} "
        "timesteps. Distil to other timesteps, or to fewer steps."
    )


def usual_times(transition: Transition, law: NoiseLaw, steps: int, timesteps: Sequence[float] | None = None) -> Times:
    """Return the grid that a student of K steps is trained on: the one that its exported pipeline will run.

    On rectified flow that is the grid of the teacher's own pipeline, shifted as its call shifts it; of a table, the
    even grid at whole timesteps.

    Args:
        transition: the student's law of motion.
        law: of the teacher.
        steps: K.
        timesteps: at which the network is to be asked instead, falling; None takes the usual ones.

    Raises:
        Refusal: if no such grid can be told to a scheduler.
    """
    if timesteps is not None:
        told = explicit(law, timesteps)
        if len(timesteps) != steps:
            raise Refusal(f"{len(timesteps)} timesteps are named for {steps} steps. Pass --steps {len(timesteps)}.")
        named = torch.tensor(told.get("timesteps", timesteps), dtype=torch.float64)
        return law.times(named)
    if isinstance(law.schedule, FlowSchedule):
        return step_grid(steps) if law.scheduler is None else _usual_of_base(transition, law, steps)
    if steps > law.entries:
        raise Refusal(f"a clock of {law.entries} timesteps has no {steps} steps. Pass --steps {law.entries} or less.")
    if not isinstance(transition, Ddim | Renoise):
        return step_grid(steps)
    return record_chain(transition, step_grid(steps), law, NoThreshold()).times


def few_step_scheduler(
    transition: Transition,
    times: Times,
    schedule: Schedule,
    prediction: Prediction,
    threshold: Threshold,
    entries: int = 1000,
) -> Any:
    """Return the diffusers scheduler whose default chain of K steps is the student's; see :func:`record_chain`.

    Args:
        transition: the student's law of motion.
        times: its grid, ``(K + 1,)``.
        schedule: of its states.
        prediction: what its network's output means.
        threshold: of its guesses.
        entries: T, the length of the clock that its network reads.

    Raises:
        Refusal: for what it can't be told.
    """
    law = own_law(schedule, prediction, entries)
    record = record_chain(transition, times, law, threshold)
    if record.call:
        raise Refusal(
            f"a scheduler takes even grids; got times {[round(t, 4) for t in times.tolist()]}, which a pipeline's call "
            f"must be told: {record.call}."
        )
    return record.scheduler


def own_law(schedule: Schedule, prediction: Prediction, entries: int = 1000) -> NoiseLaw:
    """Return the noise law of a network of our own, whose clock has so many timesteps."""
    return NoiseLaw(schedule, prediction, NoThreshold(), entries, first=int(not isinstance(schedule, FlowSchedule)))


Candidate = tuple[Callable[[], Any], Sequence[float] | None]
"""Makes a scheduler; and the timesteps that its pipeline's call is told, if any."""


def _candidates(
    transition: Transition, law: NoiseLaw, threshold: Threshold, steps: int, asked: Sequence[float]
) -> Iterator[Candidate]:
    """The schedulers that may have a student's grid, the plainest first."""
    renoising = _renoises(transition)
    if isinstance(law.schedule, FlowSchedule):
        if law.prediction != FLOW:
            raise Refusal(f"flow schedulers read velocities alone; got {law.prediction.name}. Export a flow-student.")
        if not isinstance(threshold, NoThreshold):
            raise Refusal(
                f"no flow scheduler of diffusers can be told {threshold}. Export a student without threshold."
            )
        kind = FlowMatchLCMScheduler if renoising else FlowMatchEulerDiscreteScheduler
        even = {"shift": 1.0, "shift_terminal": 1.0 / steps if steps > 1 else None}
        if law.scheduler is not None and not _rounds(law.scheduler):
            yield lambda: _of_base(transition, law, steps), None
        yield lambda: kind(num_train_timesteps=law.entries, **even), None
        yield lambda: kind(num_train_timesteps=law.entries, shift=1.0), asked
        return
    # text pipelines expect to see an offset of 1; these grids have none
    told = {"num_train_timesteps": law.entries, "steps_offset": 1, "prediction_type": _predicted(law.prediction)}
    if renoising:
        lcm = {"original_inference_steps": law.entries, "timestep_scaling": _SHARP, "set_alpha_to_one": True}
        betas = {"trained_betas": _betas(law.schedule, law.entries)}
        for timesteps in (None, asked):
            yield lambda: LCMScheduler(**told, **betas, **lcm, **_clipping(threshold)), timesteps
        return
    if law.entries % steps == 0 and _plain(threshold):
        trailing = {"timestep_spacing": "trailing", "set_alpha_to_one": True}
        betas = {"trained_betas": _betas(law.schedule, law.entries)}
        yield lambda: DDIMScheduler(**told, **betas, **trailing, **_clipping(threshold)), None
    first = {"solver_order": 1, "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero", "lower_order_final": True}
    betas = {"trained_betas": _betas(law.schedule, law.entries, silent=_WHISPER)}
    spaced = [("trailing", None), ("linspace", None), ("trailing", asked)]
    for spacing, timesteps in spaced:

        def make(spacing: str = spacing) -> Any:
            return DPMSolverMultistepScheduler(
                **told, **betas, **first, **_thresholding(threshold), timestep_spacing=spacing
            )

        yield make, timesteps


def _renoises(transition: Transition) -> bool:
    """Whether a student moves by re-noising, or else by DDIM's step; another law is refused."""
    if isinstance(transition, Renoise):
        return True
    if isinstance(transition, Ddim) and transition.eta == 0.0:
        return False
    raise Refusal(
        f"no scheduler of diffusers moves by {type(transition).__name__} as this student does. Export one that is "
        "sampled by DDIM with eta 0 or by re-noising, with epsilon_scale 1."
    )


def _usual_of_base(transition: Transition, law: NoiseLaw, steps: int) -> Times:
    """The times that the teacher's own pipeline visits in so many steps, from pure noise on."""
    if not _rounds(law.scheduler):
        return read_grid(_of_base(transition, law, steps), law, steps)
    times = read_grid(copy.deepcopy(law.scheduler), law, steps)
    times[0] = 1.0  # its tables begin a thousandth below
    return times


def _rounds(scheduler: Any) -> bool:
    """Whether a scheduler of rectified flow asks at whole timesteps, as DPM-Solver and UniPC do.

    A student is asked at its times themselves, so it leaves with a scheduler that does not round.
    """
    return isinstance(scheduler, DPMSolverMultistepScheduler | UniPCMultistepScheduler)


def _of_base(transition: Transition, law: NoiseLaw, steps: int) -> Any:
    """The scheduler of the student's law that is spaced as the one of its teacher's pipeline on rectified flow."""
    base: Any = law.scheduler
    kind = FlowMatchLCMScheduler if isinstance(transition, Renoise) else FlowMatchEulerDiscreteScheduler
    config = {name: value for name, value in base.config.items() if name in _SPACED}
    if steps == 1:
        config["shift_terminal"] = None  # the first time can't be stretched to be the last one too
    return kind(**config)


def _asked(times: Times, law: NoiseLaw) -> list[float]:
    """The timesteps of a grid: whole numbers of a table, or any on rectified flow."""
    timesteps = times[:-1].double().cpu() * law.entries - law.first
    if not isinstance(law.schedule, FlowSchedule):
        timesteps = timesteps.round()
    found: list[float] = timesteps.tolist()
    return found


def _betas(schedule: Schedule, entries: int, silent: float = 0.0) -> list[float]:
    """The table of betas by which a scheduler rebuilds the noise law: entry i is the time (i + 1) / T.

    Args:
        schedule: of the states.
        entries: T.
        silent: the least that is kept of the signal's variance, for schedulers that divide by it.
    """
    t = torch.arange(1, entries + 1, dtype=torch.float64) / entries
    alpha, sigma = (part.double() for part in schedule(t.float()))
    cumulated = (alpha**2 / (alpha**2 + sigma**2)).clamp(min=silent)
    before = torch.cat([cumulated.new_ones(1), cumulated[:-1]])
    kept = torch.where(before > 0, cumulated / before, 0.0)  # no signal comes back: long tables underflow to 0
    betas: list[float] = (1.0 - kept).clamp(0.0, 1.0).tolist()
    return betas


def _predicted(prediction: Prediction) -> str:
    for known, name in ((EPSILON, "epsilon"), (V, "v_prediction"), (X0, "sample")):
        if prediction == known:
            return name
    raise Refusal(f"no few-step scheduler reads the prediction {prediction}. Export an x0-, epsilon- or v-student.")


def _plain(threshold: Threshold) -> bool:
    """Whether DDIM serves: without a threshold, or with one that DPM-Solver can't be told.

    With any other DDIM keeps the noise of the guess before its threshold, unless its call says otherwise.
    """
    try:
        return not _thresholding(threshold)
    except Refusal:
        return True


def _clipping(threshold: Threshold) -> dict[str, Any]:
    """What DDIM and LCM are told of the threshold."""
    if isinstance(threshold, NoThreshold):
        return {"clip_sample": False}
    if isinstance(threshold, StaticThreshold) and threshold.low == -threshold.high:
        return {"clip_sample": True, "clip_sample_range": threshold.high}
    return {"clip_sample": False, **_thresholding(threshold)}


def _thresholding(threshold: Threshold) -> dict[str, Any]:
    """What DPM-Solver is told of the threshold: the box of pixels is dynamic thresholding with a ceiling of 1."""
    if isinstance(threshold, NoThreshold):
        return {}
    if isinstance(threshold, StaticThreshold) and threshold.low == -1.0 and threshold.high == 1.0:
        return {"thresholding": True, "sample_max_value": 1.0}
    if isinstance(threshold, DynamicThreshold) and threshold.bound == 1.0:
        return {"thresholding": True, "dynamic_thresholding_ratio": threshold.quantile, "sample_max_value": 1e9}
    raise Refusal(f"no scheduler of diffusers can be told {threshold}. Export a student without threshold, or boxed.")


_SPACED = (
    "num_train_timesteps", "shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len",
    "max_image_seq_len", "shift_terminal", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "time_shift_type",
)  # fmt: skip
"""What tells how a scheduler of rectified flow spaces its steps."""

_SHARP = 1e4
"""LCM's scale of timesteps: above the first its scheduler then returns the guess, as the student's chain does."""

_WHISPER = 1e-10
"""The signal that DPM-Solver keeps where there is none left (zero terminal SNR): it divides by it."""
