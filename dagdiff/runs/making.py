"""The parts that a configuration names, built from their options and checked for what they must be."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jsonargparse import Namespace
from torch import nn

from dagdiff.checks import Refusal, first_line
from dagdiff.metrics.base import Scorer
from dagdiff.objectives.base import Objective
from dagdiff.rollout import Data, MixturePolicy
from dagdiff.round import NonFiniteLoss
from dagdiff.runs.parts import resolve
from dagdiff.schedule import Schedule
from dagdiff.shapes import Denoiser
from dagdiff.tasks.base import Task
from dagdiff.tasks.names import make_task

_RAMP = Callable, "a callable progress -> height"

_KINDS: dict[str, tuple[Any, str]] = {
    "objective": (Objective, "a subclass of dagdiff.objectives.Objective"),
    "expert": (Callable, "a callable (x_t, t, condition) -> x0"),
    "policy": (nn.Module, "a torch.nn.Module"),
    "data": (Data, "anything with sample(n, generator)"),
    "threshold": (Callable, "a callable x0 -> x0"),
    "solver": (Callable, "a callable (ask, x_t, here, there, before) -> x_s, answer"),
    "schedule": (Callable, "a callable t -> (alpha_t, sigma_t)"),
    **dict.fromkeys(("beta", "shares_ramp", "lr_ramp"), _RAMP),
    "driver": (MixturePolicy, "a subclass of dagdiff.rollout.MixturePolicy"),
    "curriculum": (Callable, "a callable loop -> rounds"),
    "metric": (Callable, "a callable (samples, truth) -> numbers by name"),
}
"""What each part must be, by what it can do, and in words."""


def _checked(part: str, made: Any) -> Any:
    """Return what a part's constructor has returned; reject what can't be the part."""
    kind, wanted = _KINDS[part]
    if not isinstance(made, kind):
        raise Refusal(f"the {part} must be {wanted}; got a {type(made).__name__}. Name another with --{part}.")
    if part in _ASKED and not _takes(made, _ASKED[part]):
        name = getattr(made, "__name__", type(made).__name__)
        raise Refusal(f"the {part} must be {wanted}; {name} can't be called so. Name another with --{part}.")
    return made


_ASKED = {"metric": 2, "threshold": 1, "schedule": 1, "curriculum": 1, "beta": 1, "shares_ramp": 1, "lr_ramp": 1}
"""With how many arguments a part is called, where it is called with one number of them."""


def _takes(made: Callable[..., Any], count: int) -> bool:
    """Whether a callable takes so many arguments, as far as it says."""
    try:
        inspect.signature(made).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # it does not say
        pass
    return True


def make(part: str, chosen: Namespace, task: Task | None = None, expert: Denoiser | None = None) -> Any:
    """Build a part from its parsed arguments; give it the task, and the expert, if it asks for them."""
    arguments = dict(vars(chosen))
    kind = resolve(part, str(arguments.pop("class")))
    given = {"task": task, "expert": expert}
    wanted = inspect.signature(kind).parameters
    filled = {name: value for name, value in given.items() if name in wanted}
    try:
        return _checked(part, kind(**arguments, **filled))
    except (TypeError, ValueError, ArithmeticError, RuntimeError, LookupError) as error:
        if isinstance(error, Refusal | NonFiniteLoss) or not kind.__module__.startswith("dagdiff."):
            raise  # in a part of one's own it is a fault of the program, and its traceback is kept
        told = ", ".join(f"{name}={value!r:.40}" for name, value in arguments.items())
        raise Refusal(f"--{part} {chosen['class']} can't be made of {told} ({first_line(error):.150}).") from error


def make_metric(name: str, task: Task) -> Scorer:
    """Build the metric of that name: an object of a class, which may ask for ``task``, or a function as it is."""
    kind: Any = resolve("metric", name)
    given = {"task": task} if inspect.isclass(kind) and "task" in inspect.signature(kind).parameters else {}
    made: Scorer = _checked("metric", kind(**given) if inspect.isclass(kind) else kind)
    return made


def make_schedule(settings: Namespace) -> Schedule | None:
    """The noise schedule that a run names, if any; one that asks for the task is given it with its usual schedule."""
    if not settings.schedule["class"]:
        return None
    asks = "task" in inspect.signature(resolve("schedule", settings.schedule["class"])).parameters
    schedule: Schedule = make("schedule", settings.schedule, make_task(settings.task, None, settings) if asks else None)
    return schedule


def maker(part: str, chosen: Namespace, task: Task) -> Callable[..., Any]:
    """A part that the loop builds itself, with the options it was given, and the task if it asks for it."""
    options = dict(vars(chosen))
    kind = resolve(part, str(options.pop("class")))
    if "task" in inspect.signature(kind).parameters:
        options["task"] = task
    return partial(_made, part, kind, options)


def _made(part: str, kind: Callable[..., Any], options: Mapping[str, Any], *given: Any) -> Any:
    return _checked(part, kind(*given, **options))
