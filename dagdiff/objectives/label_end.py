r"""Label ends: to which time the expert walks from a state at t, for the label that the student is asked to match.

In the words of reinforcement learning a label that ends near t is a one-step bootstrap: the student itself says the
rest, and its errors are copied from step to step. One that ends at data is the Monte Carlo return: nothing is
bootstrapped, the student imitates. What lies between is an n-step return, as in consistency trajectory models (Kim et
al. 2023, https://arxiv.org/abs/2310.02279). A long label costs more evaluations of the expert, but it is bought once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dagdiff.checks import Refusal, check_at_least
from dagdiff.importing import imported, reach_working_folder
from dagdiff.shapes import Times

LabelEnd = Callable[[Times, torch.Generator | None], Times]
"""``(t, generator) -> end``, both ``(B,)``: 0 <= end <= t."""


@dataclass(frozen=True)
class Data:
    """The end of the path, time 0: the whole walk."""

    def __call__(self, t: Times, generator: torch.Generator | None = None) -> Times:
        """Return zeros."""
        return torch.zeros_like(t)


@dataclass(frozen=True)
class Ahead:
    """So much time on, or the end of the path where less is left."""

    time: float

    def __call__(self, t: Times, generator: torch.Generator | None = None) -> Times:
        """Return t - time, at least 0."""
        return (t - self.time).clamp(min=0.0)


@dataclass(frozen=True)
class Uniform:
    """A time of a grid of so many steps, drawn uniformly from those below t."""

    steps: int

    def __post_init__(self) -> None:
        check_at_least("steps", self.steps, 1)

    def __call__(self, t: Times, generator: torch.Generator | None = None) -> Times:
        """Return the drawn times."""
        places = (t * self.steps).round()
        drawn = torch.rand(t.shape, generator=generator, device=t.device, dtype=t.dtype)
        return (drawn * places).floor() / self.steps


def as_label_end(value: "float | str | LabelEnd", steps: int) -> LabelEnd:
    """Return what a word, a number or a law of one's own says.

    Args:
        value: ``"step"`` (1 / ``steps`` on), ``"data"``, ``"uniform"``, the time on as a number in (0, 1], or a
            callable ``(t, generator) -> end`` or its import path, such as ``mypkg.law``.
        steps: of the grid on which "step" and "uniform" count.

    Raises:
        Refusal: for anything else.
    """
    words: dict[str, LabelEnd] = {"step": Ahead(1.0 / steps), "data": Data(), "uniform": Uniform(steps)}
    if callable(value):
        return value
    if value in words:
        return words[str(value)]
    try:
        time = float(value)
    except (TypeError, ValueError):
        if isinstance(value, str) and "." in value:
            reach_working_folder()
            return imported("label_end", value)
        time = -1.0
    if not 0.0 < time <= 1.0:
        raise Refusal(
            f"label_end must be {', '.join(words)}, a time in (0, 1] by which the expert walks on, or the import path "
            f"of a law; got {value!r}. Pass e.g. data."
        )
    return Data() if time == 1.0 else Ahead(time)


def check_label_end(end: Times, t: Times) -> Times:
    """Return the ends that a law drew for states at t; reject those outside [0, t]."""
    if not isinstance(end, torch.Tensor) or end.shape != t.shape:
        got = str(tuple(end.shape)) if isinstance(end, torch.Tensor) else type(end).__name__
    elif not end.is_meta and bool((outside := ~((end >= 0.0) & (end <= t))).any()):
        got = f"{float(end[outside][0]):.3g} at t={float(t[outside][0]):.3g}"
    else:
        return end
    raise Refusal(f"label_end must lie in [0, t], one for each state; got {got}. Mend the law that draws it.")
