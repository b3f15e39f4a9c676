"""The students of a pipeline: copies of its network, adapters on it, and few-step models that others have made."""

from typing import Any

import torch
from torch import Tensor, nn

from dagdiff.checks import Refusal, check_in
from dagdiff.pipelines.conditions import Text
from dagdiff.pipelines.few_step import load_start
from dagdiff.pipelines.fingerprint import fingerprint
from dagdiff.pipelines.lora import ATTENTION, lora_student
from dagdiff.policies.student import Student
from dagdiff.shapes import Condition, States
from dagdiff.tasks.base import Task
from dagdiff.tasks.pipeline import teacher_of


def pipeline_student(task: Task, gradient_checkpointing: bool = False, dtype: str = "float32") -> Student:
    """A copy of the pipeline's network, all of it trained.

    Args:
        task: the pipeline.
        gradient_checkpointing: keep fewer activations, and compute them again on the way back.
        dtype: of the weights that are trained; in less than float32 small updates are lost.
    """
    student = teacher_of(task).student()
    network, wanted = student.network, _DTYPES[check_in("dtype", dtype, _DTYPES)]
    if network.body.dtype != wanted:
        network.body.to(wanted)
        network.conditions = _Cast(network.conditions, wanted)
    return _checkpointed(student, gradient_checkpointing)


def adapted_student(
    task: Task,
    rank: int = 64,
    alpha: float | None = None,
    targets: list[str] | None = None,
    gradient_checkpointing: bool = False,
) -> Student:
    """The pipeline's own frozen network with low-rank adapters, which alone are trained, in float32.

    Args:
        task: the pipeline.
        rank: of the adapters.
        alpha: their weight, times 1 / rank; null takes the rank.
        targets: the ends of the names of the layers to adapt; null takes the attention's projections.
        gradient_checkpointing: keep fewer activations, and compute them again on the way back.
    """
    student = lora_student(teacher_of(task), rank, alpha, ATTENTION if targets is None else targets)
    return _checkpointed(student, gradient_checkpointing)


def few_step_student(
    task: Task,
    path: str,
    variant: str | None = None,
    allow_pickle: bool = False,
    gradient_checkpointing: bool = False,
) -> Student:
    """A few-step model that others have made, all of it trained further: it keeps its few steps under a new expert.

    Args:
        task: the pipeline that is its expert.
        path: a pipeline's folder (one of `dagdiff export` too) or a hub id.
        variant: of its weight files, such as fp16.
        allow_pickle: read its weights from pickles (.bin) where there are no safetensors; a pickle can run code.
        gradient_checkpointing: keep fewer activations, and compute them again on the way back.
    """
    teacher = teacher_of(task)
    start = load_start(teacher, path, "float32", variant, allow_pickle)
    start.network.hear_weights()
    if teacher.network.body.dtype != torch.float32:
        start.network.conditions = _Cast(start.network.conditions, torch.float32)
    student = Student(start.network.requires_grad_(True).train(), teacher.schedule, start.prediction)
    return _checkpointed(student, gradient_checkpointing)


def adapted_few_step_student(
    task: Task,
    path: str,
    rank: int = 64,
    alpha: float | None = None,
    targets: list[str] | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
    gradient_checkpointing: bool = False,
) -> Student:
    """A frozen few-step model that others have made with low-rank adapters, which alone are trained, in float32.

    Args:
        task: the pipeline that is its expert.
        path: a pipeline's folder (one of `dagdiff export` too) or a hub id.
        rank: of the adapters.
        alpha: their weight, times 1 / rank; null takes the rank.
        targets: the ends of the names of the layers to adapt; null takes the attention's projections.
        variant: of its weight files, such as fp16.
        allow_pickle: read its weights from pickles (.bin) where there are no safetensors; a pickle can run code.
        gradient_checkpointing: keep fewer activations, and compute them again on the way back.
    """
    teacher = teacher_of(task)
    kind = str(teacher.network.body.dtype).removeprefix("torch.")
    start = load_start(teacher, path, kind, variant, allow_pickle)
    stands_on = {"start": fingerprint(start.network.body)}
    student = lora_student(start, rank, alpha, ATTENTION if targets is None else targets)
    student.schedule, student.stands_on = teacher.schedule, stands_on
    return _checkpointed(student, gradient_checkpointing)


def _checkpointed(student: Student, wanted: bool) -> Student:
    """The student, which keeps fewer activations if that is wanted."""
    if wanted:
        try:
            student.network.body.enable_gradient_checkpointing()
        except ValueError as error:
            raise Refusal(f"{error} Leave --policy.gradient_checkpointing away.") from None
    return student


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class _Cast(nn.Module):
    """Conditions in another precision than that of the bank they share with the teacher."""

    def __init__(self, conditions: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.conditions, self.dtype = conditions, dtype

    def forward(self, condition: Condition, x_t: States) -> Any:
        """Return what the network is told, cast where it is text."""
        given = self.conditions(condition, x_t)
        return given.each(lambda part: part.to(self.dtype)) if isinstance(given, Text) else given

    def weights(self, condition: Condition) -> Tensor | None:
        """Return the weights of guidance that a condition holds, if it holds any."""
        weigh = getattr(self.conditions, "weights", None)
        return None if weigh is None else weigh(condition)
