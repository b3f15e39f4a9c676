"""What is handed in: a callable, a file of samples or chains, the folder of a run, or a diffusers folder."""

import importlib.util
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dagdiff.checks import Refusal, check_finite, check_times, first_line
from dagdiff.envs.array_files import Array, open_arrays
from dagdiff.importing import imported, reach_working_folder
from dagdiff.policy import Foreign, StudentPolicy
from dagdiff.runs.folder import open_run
from dagdiff.shapes import Denoiser, Times
from dagdiff.tasks.base import Task
from dagdiff.transition import Transition

Given = str | Path | Callable[..., Any]
"""What a student is named by, or the callable itself."""


class Student(NamedTuple):
    """A student that was handed in: who acts, or what was made.

    Args:
        name: in its row.
        kind: callable, run, pipeline, samples or chains.
        policy: who acts; None where only a file of points is known.
        law: by which it moves, where it brings that along.
        times: its grid, ``(K + 1,)``, where it brings that along.
        schedule: of its states, where it brings that along: settings of a run.
        points: ``(n, *D)`` of samples, or ``(n, K + 1, *D)`` of chains.
        labels: what each point was asked to show, ``(n,)`` int64, where a file tells it.
    """

    name: str
    kind: str
    policy: Denoiser | None = None
    law: Transition | None = None
    times: Times | None = None
    schedule: Any = None
    points: Tensor | None = None
    labels: Tensor | None = None


def read_student(given: Given, task: str, steps: int | None, device: str, trust_code: bool = False) -> Student:
    """Return the student that is named, or that a callable is.

    Args:
        given: an import path, a .npz file, the folder of a run, a diffusers folder, or a callable.
        task: that it is judged on.
        steps: of a pipeline's sampler; None takes 4.
        device: of networks that are loaded.
        trust_code: run the code that the folder of a run names by import path.

    Raises:
        Refusal: for what is none of these, or can't be read.
    """
    if not isinstance(given, str | Path):
        return _callable(given, getattr(given, "__name__", type(given).__name__))
    path = Path(given)
    if os.path.isdir(given):  # unlike Path, at home with names that are too long
        if (path / "config.yaml").exists():
            return _run(path, task, device, trust_code)
        if (path / "model_index.json").exists():
            return _pipeline(path, steps or 4, device)
        raise Refusal(
            f"{path} holds neither a run (config.yaml) nor a diffusers pipeline (model_index.json). Name the --out "
            "folder of `dagdiff distill`, or one that save_pretrained wrote."
        )
    if path.suffix in (".npz", ".npy"):
        return _file(path)
    if isinstance(given, Path) or "/" in given or not re.fullmatch(r"[^\W\d]\w*([.:][^\W\d]\w*)+", given):
        raise Refusal(
            f"student {str(given)!r:.100} is no folder, no .npz file and no import path. Write e.g. mypkg.mine:student."
        )
    return _callable(_imported(given), given)


def _callable(student: Any, name: str) -> Student:
    """A callable in the student's role."""
    if inspect.isclass(student):
        try:
            student = student()
        except TypeError as error:
            raise Refusal(
                f"student {name!r} is a class that can't be made without arguments ({first_line(error)}). Name a "
                "function, or an object."
            ) from None
    return Student(name, "callable", StudentPolicy(Foreign(student, f"student {name!r}")))


def _imported(path: str) -> Any:
    """What an import path names, whatever its module raises."""
    dotted = path.replace(":", ".")
    reach_working_folder()
    try:
        if _is_module(dotted):
            raise Refusal(f"student {path!r} is a module. Name a function or a class in it: {dotted}:NAME.")
        return imported("student", dotted)
    except Refusal:
        raise
    except Exception as error:  # a module of somebody's own may raise anything
        raise _broken(path, error) from None


def _is_module(dotted: str) -> bool:
    """Whether a dotted path leads to a module; where its parent is no package, its last name is an attribute."""
    try:
        return importlib.util.find_spec(dotted) is not None
    except ModuleNotFoundError:
        return False


def _broken(path: str, error: Exception) -> Refusal:
    return Refusal(
        f"student {path!r} can't be imported ({type(error).__name__}: {first_line(error):.200}). Mend its module; "
        f"python -c 'import {re.split('[.:]', path)[0]}' shows where."
    )


def _run(folder: Path, task: str, device: str, trust_code: bool) -> Student:
    """The student of a run, which brings its grid, its law and its schedule along."""
    it = open_run(folder, device, "student", trust_code)
    if it.task.name != task:
        raise Refusal(f"{folder} is a run of the task {it.task.name!r}; got --task {task}. Judge it on its own task.")
    return Student(str(folder), "run", it.policy, it.sampler, it.times, it.config["schedule"])


def _pipeline(folder: Path, steps: int, device: str) -> Student:
    """The student of a diffusers pipeline, sampled as its own scheduler says."""
    from dagdiff.engine import find_device
    from dagdiff.expert import Expert
    from dagdiff.pipelines.few_step import read_sampler, read_scheduler
    from dagdiff.pipelines.pretrained import DiffusersExpert

    found = DiffusersExpert.from_pretrained(str(folder), device=str(find_device(device)))
    sampler = read_sampler(read_scheduler(str(folder)), found.network.law, steps)
    policy = Expert(found, found.schedule, threshold=found.threshold)
    return Student(str(folder), "pipeline", policy, sampler.transition, sampler.times)


def _file(path: Path) -> Student:
    """Samples or chains in a .npz file."""
    arrays = open_arrays(path)
    name = next((each for each in ("chains", "x", "samples") if each in arrays), None)
    if name is None:
        held = ", ".join(f"{each} {array.shape}" for each, array in arrays.items())
        raise Refusal(
            f"{path} holds no array 'x' (n, *D) of samples and no array 'chains' (n, K + 1, *D); it holds {held}. "
            "Write numpy.savez(path, x=samples)."
        )
    points = _points(path, name, arrays[name])
    times = None
    if name == "chains" and "times" in arrays:
        try:
            times = check_times(_points(path, "times", arrays["times"]))
        except Refusal as error:
            raise Refusal(f"{path}: {error}") from None
    labels = _labels(path, arrays["labels"], len(points)) if "labels" in arrays else None
    return Student(path.name, "chains" if name == "chains" else "samples", points=points, times=times, labels=labels)


def _labels(path: Path, array: Array, points: int) -> Tensor:
    """What points were asked to show, ``(n,)`` int64."""
    if array.dtype.kind not in "iu" or array.shape != (points,):
        raise Refusal(
            f"'labels' in {path} must be whole numbers, one for each of {points} points; got {array.dtype} of shape "
            f"{tuple(array.shape)}. Save the class that each was asked to show."
        )
    return torch.from_numpy(array.read().astype(np.int64))


def _points(path: Path, name: str, array: Array) -> Tensor:
    """An array as float32; reject what is no finite numbers."""
    if array.dtype.kind not in "fiu":
        raise Refusal(f"{name!r} in {path} must be numbers; got {array.dtype}. Save it as float32.")
    values = torch.from_numpy(np.ascontiguousarray(array.read(), dtype=np.float32))
    return check_finite(f"{name!r} in {path}", values)


def fitted(student: Student, task: Task, steps: int, seeds: int, count: int) -> Student:
    """Return the student with its points as they are needed; reject what does not fit the task.

    Args:
        student: that was handed in.
        task: that it is judged on.
        steps: of its chain.
        seeds: how many there are.
        count: points of a seed.
    """
    policy = student.policy
    if student.kind == "pipeline":
        shape = tuple(getattr(getattr(policy, "denoiser", None), "shape", task.shape))
        if shape != task.shape:
            raise Refusal(
                f"the states of {student.name} are {shape}, those of {task.name} {task.shape}. Take its task."
            )
    if student.points is None:
        return student
    found, chains = student.points, student.kind == "chains"
    wanted = ("n", *(("K + 1",) if chains else ()), *task.shape)
    told = f"({', '.join(map(str, wanted))})"
    if found.ndim != len(wanted) or tuple(found.shape[1 + chains :]) != task.shape:
        raise Refusal(f"{student.name} holds an array {tuple(found.shape)}; points of {task.name} are {told}.")
    if chains and found.shape[1] != steps + 1:
        raise Refusal(
            f"{student.name} holds chains of {found.shape[1] - 1} steps; got --steps {steps}. Make them equal."
        )
    if student.labels is not None:
        _check_labels(student, student.labels, task)
    if len(found) < seeds * count:
        enough = len(found) // count
        cure = f"Save {seeds * count}" + (f", or pass --seeds {enough}." if enough else ".")
        raise Refusal(f"{student.name} holds {len(found)} points, and each of {seeds} seeds takes {count}. {cure}")
    return student


def _check_labels(student: Student, labels: Tensor, task: Task) -> None:
    """Reject labels of a task that asks for none, and those that are no class of its dataset."""
    if not task.labels:
        raise Refusal(
            f"{student.name} holds labels, and students of {task.name} are not asked for classes. Judge it on "
            f"{task.name}-labelled, or leave them away."
        )
    low, high = int(labels.min()), int(labels.max())
    if not 0 <= low <= high < task.labels:
        raise Refusal(
            f"'labels' in {student.name} reach from {low} to {high}; {task.name} has classes from 0 to "
            f"{task.labels - 1}. Number them so."
        )


def moved(student: Student, device: torch.device) -> Student:
    """Put a callable's network, and points, on a device; return the student."""
    if isinstance(student.policy, StudentPolicy) and isinstance(student.policy.student, nn.Module):
        student.policy.student.to(device)
    points, labels = (None if each is None else each.to(device) for each in (student.points, student.labels))
    return student._replace(points=points, labels=labels)
