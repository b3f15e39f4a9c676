"""Measure a student against its teacher from a training loop of somebody else's: ``dagdiff.measure``.

Nothing of dagdiff's loop is needed: two callables ``(x_t, t, condition) -> x0``, clean data, and how the student is
sampled. The answer prints as ``dagdiff shift`` does, with a legend, and draws the ends with one noise a column::

    found = dagdiff.measure(student, teacher, data, dagdiff.Ddim(schedule), times)
    print(found)
    found.pictures().savefig("ends.png")
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from dagdiff.batches import InParts, rows_at_once
from dagdiff.checks import Refusal, check_at_least, check_times
from dagdiff.expert import Expert
from dagdiff.metrics.shift import Shift, StepShift, measure_shift
from dagdiff.points import as_data
from dagdiff.policy import Foreign, StudentPolicy
from dagdiff.report import figures
from dagdiff.report.anatomy import conclusion, format_shift
from dagdiff.report.images import handed_panels
from dagdiff.report.shift import shift_figure
from dagdiff.rollout import Data
from dagdiff.shapes import Condition, Times
from dagdiff.transition import Transition


@dataclass(frozen=True)
class Measured:
    """What was measured of a student; ``str`` of it is the tables, their legend, and what follows.

    Args:
        shift: its numbers, by step.
    """

    shift: Shift

    @property
    def rows(self) -> list[StepShift]:
        """A row a step; ``as_row()`` of each is a mapping of names to numbers, for a logger."""
        return self.shift.rows

    @property
    def conclusion(self) -> str:
        """What the student does wrong and at which steps, in sentences; only what is clear of chance."""
        return conclusion(self.shift)

    def __str__(self) -> str:
        return f"{format_shift(self.shift)}\n\n{self.conclusion}"

    def figure(self) -> Figure:
        """Draw the losses and distances by step."""
        return shift_figure(self.rows)

    def pictures(self, decode: Callable[[Tensor], Tensor] = lambda states: states) -> Figure:
        """Draw ends, one noise a column: the teacher's above, the student's below, between them who changed hands.

        In row k the student acts up to step k and the teacher from there: the row in which a picture breaks names it.

        Args:
            decode: makes images ``(B, C, H, W)`` in [-1, 1] of states, where these are latents.

        Raises:
            Refusal: if states are no images.
        """
        if self.shift.handed is None:
            raise Refusal("these rows were measured by an older version. Measure again.")
        return handed_panels(self.shift.handed, decode)


def measure(
    student: Callable[..., Any],
    teacher: Callable[..., Any] | Expert,
    data: Data | Tensor,
    transition: Transition,
    times: Times,
    *,
    condition: Condition = None,
    num: int = 256,
    substeps: int = 8,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Measured:
    """Measure where a few-step student departs from its teacher, step by step; nobody is trained or charged.

    Args:
        student: any callable ``(x_t, t, condition) -> x0``; a module is asked in eval mode, and its mode restored.
        teacher: another one, or an :class:`~dagdiff.expert.Expert` with sub-steps, guidance and threshold of its own.
        data: clean points, ``(B, *D)``, as many as chains are run; or anything with ``sample(n, generator)``.
        transition: the law by which the student is sampled: ``Ddim(schedule)`` or ``Renoise(schedule)``.
        times: its grid, ``(K + 1,)``, falling to 0.
        condition: of the rows of ``data``, and of the chains.
        num: how many points are drawn, where ``data`` are no points themselves.
        substeps: of a plain teacher, within a step of the student.
        batch_size: rows that are asked at once; None takes what suits their size.
        generator: of all draws, on the device of the times; seeded with 0 if not given.

    Raises:
        Refusal: for what can't be called so, answers of another shape or with NaN, or a grid that does not fall to 0.
    """
    check_times(times)
    draws = generator or torch.Generator(times.device).manual_seed(0)
    if not isinstance(data, Tensor):
        check_at_least("num", num, 2)
        data = as_data(data).sample(num, draws)
    if len(data) < 2:
        raise Refusal(f"measure needs at least 2 points of data; got {len(data)}. Intervals come from their spread.")
    rows = batch_size or rows_at_once(data.shape[1:])
    check_at_least("batch_size", rows, 1)
    named = student if isinstance(student, nn.Module) else Foreign(student)
    policy = InParts(StudentPolicy(named), rows)
    if isinstance(teacher, Expert):
        expert = copy.copy(teacher)  # of the same ledger
        expert.denoiser = InParts(teacher.denoiser, rows)
    else:
        asked = StudentPolicy(teacher if isinstance(teacher, nn.Module) else Foreign(teacher, "the teacher"))
        expert = Expert(InParts(asked, rows), transition.schedule, substeps)
    return Measured(measure_shift(policy, expert, transition, times, data, condition, draws))


def save_ends(shift: Shift, folder: Path, decode: Callable[[Tensor], Tensor]) -> list[str]:
    """Draw ends that are images as ``ends.png``, one noise a column; return the names of the files, none of points."""
    if shift.handed is None or shift.handed.ndim != 5:
        return []
    figures.save(handed_panels(shift.handed, decode), folder / "ends.png")
    return ["ends.png"]
