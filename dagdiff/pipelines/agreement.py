"""Does an exported pipeline sample as its student does? Both run their own loop on one small sample of the same noise.

The pipeline is called as its card calls it, with a prompt or a class; only its noise is not its own. What its scheduler
steps to last is compared with the end of dagdiff's chain, as a part of the sample's own scale. In float32 they may
differ by 1e-4. In half precision they may be twice as far from the student in float32 as dagdiff's own chain is, whose
network and states are rounded to the same type: the type's error is not the export's.
"""

import copy
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dagdiff.checks import Refusal, first_line
from dagdiff.pipelines.families import Wanted
from dagdiff.pipelines.grids import read_grid
from dagdiff.pipelines.pretrained import PretrainedNetwork
from dagdiff.pipelines.schedulers import ChainRecord
from dagdiff.policies.student import Student
from dagdiff.policies.unet import UNet
from dagdiff.shapes import Condition, Times
from dagdiff.threshold import Threshold
from dagdiff.transition import Transition

EXACT = 1e-4
"""What both ends may differ by in float32, as a part of the sample's scale."""

PROMPT = "a photo of a cat"


class Agreement(NamedTuple):
    """How far a pipeline's end is from its student's."""

    difference: float
    """Of the pipeline from dagdiff's chain in float32, as a part of the sample's scale."""
    rounding: float
    """Of dagdiff's own chain in the pipeline's type from that in float32; 0 in float32."""
    seeded: bool
    """Whether the pipeline hands its generator to its scheduler, as far as that draws noise."""

    @property
    def allowed(self) -> float:
        """What ``difference`` may be."""
        return EXACT + 2.0 * self.rounding


@torch.no_grad()
def check_agreement(
    pipeline: Any,
    student: nn.Module,
    body: nn.Module,
    record: ChainRecord,
    arguments: dict[str, Any],
    transition: Transition,
    threshold: Threshold,
) -> Agreement:
    """Run both loops and compare; refuse a pipeline that samples otherwise.

    Args:
        pipeline: what is to be exported.
        student: whose chain it is to make.
        body: the student's network in full, adapters merged.
        record: of its chain.
        arguments: of the pipeline's call; a network that is told a weight of guidance is told that of the call.
        transition: the student's law of motion.
        threshold: of its guesses.

    Raises:
        Refusal: if the pipeline's call fails, or ends elsewhere.
    """
    case = _case(pipeline, student, record, arguments)
    generator = torch.Generator().manual_seed(0)
    noises = [torch.randn((1, *case.shape), generator=generator) for _ in range(record.steps + 1)]
    found, seeded = _called(pipeline, case, noises)
    exact = copy.deepcopy(body).float()
    wanted = _walked(case, exact, student, transition, threshold, noises, torch.float32)
    kind = next(_network(pipeline).parameters()).dtype
    rounding = 0.0
    if kind != torch.float32:
        rounded = _walked(case, exact.to(kind), student, transition, threshold, noises, kind)
        rounding = _apart(rounded, wanted)
    agreed = Agreement(_apart(found, case.pack(wanted)), rounding, seeded)
    if not agreed.difference <= agreed.allowed:
        raise Refusal(
            f"the exported {type(pipeline).__name__} does not sample as this student does: from the same noise their "
            f"ends differ by {agreed.difference:.2g} of the sample's scale, where {agreed.allowed:.2g} is allowed "
            f"({str(kind).removeprefix('torch.')}). {_cure(kind)}"
        )
    return agreed


class _Case(NamedTuple):
    """One small sample: how the pipeline is asked for it, and how dagdiff is."""

    shape: tuple[int, ...]
    times: Times
    call: dict[str, Any]
    condition: Condition
    network: Callable[[nn.Module], nn.Module]
    """A body as dagdiff's raw network, told what the pipeline tells it."""
    pack: Callable[[Tensor], Tensor]
    """States as the pipeline keeps them."""


def _case(pipeline: Any, student: Any, record: ChainRecord, arguments: dict[str, Any]) -> _Case:
    """The smallest sample that the network takes."""
    network, call, times = student.network, dict(arguments), record.times
    config = _network(pipeline).config
    if isinstance(network, UNet) or not hasattr(pipeline, "vae"):
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        classes = config.num_class_embeds is not None
        condition = torch.zeros(1, dtype=torch.int64) if classes else None
        call |= {"output_type": "np"} | ({"class_labels": [0]} if classes else {})

        def plain(body: nn.Module) -> nn.Module:
            if isinstance(network, UNet):
                return UNet(body)  # type: ignore[arg-type]
            return PretrainedNetwork(body, network.family, network.conditions, network.law)

        return _Case((config.in_channels, height, width), times, call, condition, plain, lambda x: x)
    family, law = network.family, network.law
    if "guidance_scale" in call and family.embedded(config) is not None:
        family = family.telling(call["guidance_scale"])
    taken = family.channels(config)[0]
    told = _parameters(pipeline)
    usual = family.size(config)
    height, width = usual if isinstance(usual, list | tuple) else (usual, usual)
    factor = family.cell(pipeline)
    if "height" in told:
        least = max(family.multiple(config), 8)
        least += -least % family.multiple(config)
        height, width = min(least, height or least), min(least, width or least)
        call |= {"height": height * factor, "width": width * factor}
    law = replace(law, spacing=partial(family.spacing, config, (height, width)))
    if not record.call:
        times = read_grid(copy.deepcopy(pipeline.scheduler), law, record.steps)
    pixels = (height * factor, width * factor)
    null = getattr(network.conditions, "null", None)
    wanted = Wanted([PROMPT] if "prompt" in told else (), null, pixels)
    conditions = family.conditions(_network(pipeline), pipeline, wanted)
    call |= {"prompt": PROMPT} if "prompt" in told else {"class_labels": [0]}
    call["output_type"] = "latent" if "prompt" in told else "np"

    def asked(body: nn.Module) -> nn.Module:
        kind = next(body.parameters()).dtype
        return PretrainedNetwork(body, family, _Rounded(conditions, kind), law)

    return _Case((taken, height, width), times, call, torch.zeros(1, dtype=torch.int64), asked, family.pack)


class _Rounded(nn.Module):
    """Conditions in the network's own type."""

    def __init__(self, conditions: nn.Module, kind: torch.dtype) -> None:
        super().__init__()
        self.conditions, self.kind = conditions, kind

    def forward(self, condition: Condition, x_t: Tensor) -> Any:
        """Return what the network is told."""
        given = self.conditions(condition, x_t)
        return given.each(lambda part: part.to(self.kind)) if hasattr(given, "each") else given


def _called(pipeline: Any, case: _Case, noises: list[Tensor]) -> tuple[Tensor, bool]:
    """Where the pipeline's own loop ends, and whether its scheduler was handed the generator."""
    scheduler, ends, seeded = pipeline.scheduler, list[Tensor](), list[bool]()
    step = scheduler.step

    @functools.wraps(step)
    def watched(*given: Any, **named: Any) -> Any:
        before = len(drawn)
        answer = step(*given, **named)
        seeded.append(len(drawn) == before or named.get("generator") is not None)
        ends.append(answer[0] if isinstance(answer, tuple) else answer.prev_sample)
        return answer

    scheduler.step = watched
    quiet = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(disable=True)
    device = next(_network(pipeline).parameters()).device
    try:
        with _drawn(noises, case.pack) as drawn:
            pipeline(**case.call, generator=torch.Generator(device).manual_seed(0))
    except Exception as error:  # a pipeline's call may raise anything
        raise Refusal(
            f"the exported {type(pipeline).__name__} can't be called ({type(error).__name__}: {first_line(error)}). "
            f"{_cure(next(_network(pipeline).parameters()).dtype)}"
        ) from error
    finally:
        del scheduler.step
        pipeline.set_progress_bar_config(**quiet)
    return ends[-1], all(seeded)


@contextmanager
def _drawn(noises: list[Tensor], pack: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """Let all of diffusers draw these noises, one after the other; yield those that have been drawn."""
    left, drawn = iter(noises), list[Tensor]()

    def draw(shape: Any, *given: Any, device: Any = None, dtype: Any = None, **named: Any) -> Tensor:
        noise = next(left)
        alone = [side for side in shape if side != 1] == [side for side in noise.shape if side != 1]
        noise = noise.reshape(tuple(shape)) if alone else pack(noise)
        drawn.append(noise)
        return noise.to(device=device, dtype=dtype)

    modules = [each for name, each in list(sys.modules.items()) if name.startswith("diffusers.")]
    kept = {each: vars(each)["randn_tensor"] for each in modules if "randn_tensor" in vars(each)}
    for module in kept:
        module.randn_tensor = draw  # type: ignore[attr-defined]
    try:
        yield drawn
    finally:
        for module, usual in kept.items():
            module.randn_tensor = usual  # type: ignore[attr-defined]


def _walked(
    case: _Case,
    body: nn.Module,
    student: Any,
    transition: Transition,
    threshold: Threshold,
    noises: list[Tensor],
    kind: torch.dtype,
) -> Tensor:
    """The end of dagdiff's chain, its states rounded to a type on the way."""
    device = next(body.parameters()).device
    policy = Student(case.network(body), student.schedule, student.prediction).eval()
    condition = None if case.condition is None else case.condition.to(device)
    x_t, *fresh = (noise.to(device) for noise in noises)
    for (t, s), noise in zip(pairwise(case.times.to(device)), fresh, strict=True):
        t, s = t.expand(1), s.expand(1)
        x_t = x_t.to(kind).float()
        x_t = transition(x_t, threshold(policy(x_t, t, condition)), t, s, noise)
    return x_t


def _cure(kind: torch.dtype) -> str:
    report = "Report it, with the teacher's scheduler_config.json."
    return report if kind == torch.float32 else f"Export with --dtype float32. {report}"


def _apart(a: Tensor, b: Tensor) -> float:
    """How far two ends are apart, as a part of the second's scale."""
    a, b = a.double().cpu(), b.double().cpu()
    return float((a - b).norm() / b.norm()) if a.shape == b.shape else float("inf")


def _network(pipeline: Any) -> Any:
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer


def _parameters(pipeline: Any) -> Any:
    return _signature(pipeline.__call__)


def _signature(function: Any) -> Any:
    import inspect

    return inspect.signature(function).parameters
