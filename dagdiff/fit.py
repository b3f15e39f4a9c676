"""Whether the parts of a loop fit together, told before anything is trained.

Parts are compared by what they do, not by their classes: schedules at a grid of times, the time at which a label ends
with the time that the transition asks for, and a few answers of expert and student on the data's own states. What a
part says of itself (``schedule``, ``labels``, an objective's ``horizon``) is believed; what it does not say is not
asked for, so that parts of one's own need declare nothing.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchrl.envs import EnvBase

from dagdiff.checks import Refusal, check_finite, check_times, first_line
from dagdiff.expert import Expert
from dagdiff.objectives.base import Objective
from dagdiff.policy import StudentPolicy
from dagdiff.rollout import Data, draw
from dagdiff.schedule import perturb
from dagdiff.shapes import Condition, States, Times
from dagdiff.transition import Transition


def check_fit(
    env: EnvBase, expert: Expert, objective: Objective, student: nn.Module, data: Data, rows: int = 256
) -> None:
    """Reject parts that can't be trained together.

    Expert and student are asked about two rows (four where there are conditions), charged to nobody; no generator of
    the loop, nor torch's own, is moved.

    Args:
        env: the chains, with ``times``, ``transition`` and ``conditions``.
        expert: the teacher in its role.
        objective: what the student is asked to match.
        student: the network that learns.
        data: clean points.
        rows: how many of them are looked at.

    Raises:
        Refusal: names the two parts, where they differ, and the cure.
    """
    _check_env(env)
    parts = {"the expert": expert, "the expert's denoiser": expert.denoiser, "the student": student}
    for name, part in parts.items():
        _check_schedule(name, getattr(part, "schedule", None), env)
    _check_label_end(objective, env)
    if objective.own_law_alone:
        _check_law(objective, env)
    _check_device(student, env.device)
    devices = [env.device] if env.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), expert.ledger.free():
        objective.check_student(student)
        _check_answers(env, expert, student, data, rows)


def _check_env(env: Any) -> None:
    """Reject an environment that is no batch of chains, or without device, grid, law or word of its conditions."""
    rows = tuple(getattr(env, "batch_size", ()))
    if len(rows) != 1:
        raise Refusal(
            f"the environment must be one batch of chains; got a {type(env).__name__} with batch_size={rows}. Give one "
            "DenoisingEnv that holds all chains."
        )
    missing = [name for name in ("times", "transition", "conditions") if not hasattr(env, name)]
    law = getattr(env, "transition", None)
    missing += [f"transition.{name}" for name in ("schedule", "horizon") if law is not None and not hasattr(law, name)]
    if missing or env.device is None:
        raise Refusal(
            f"the environment has no {', no '.join(missing or ['device'])}. Give it one, as DenoisingEnv has it."
        )
    if check_times(env.times).device != env.device:
        raise Refusal(
            f"the environment is on {env.device}, its times on {env.times.device}. Move them: times.to(env.device)."
        )


def _check_schedule(name: str, own: Any, env: Any) -> None:
    """Reject a part that reads its states by another noise schedule; what is no schedule is left alone."""
    t = torch.linspace(0.0, 1.0, _PLACES, device=env.device)
    found, wanted = _read(own, t), torch.stack(env.transition.schedule(t)).float()
    if found is None:
        return
    apart = (found - wanted).abs().amax(0)
    if not bool((apart <= _SAME).all()):
        worst = int(apart.nan_to_num(nan=torch.inf).argmax())
        (a, s), (b, z) = found[:, worst].tolist(), wanted[:, worst].tolist()
        raise Refusal(
            f"{name} has another noise schedule than the environment's law: at t={float(t[worst]):.2f} alpha and sigma "
            f"are {a:.3g} and {s:.3g}, there {b:.3g} and {z:.3g}. Build both with one schedule."
        )


def _read(schedule: Any, t: Times) -> Tensor | None:
    """Alpha and sigma, ``(2, T)``, of what may be a schedule; None if it is none."""
    if not callable(schedule):
        return None
    try:
        alpha, sigma = schedule(t)
        return torch.stack([alpha.expand_as(t), sigma.expand_as(t)]).float()
    except Exception:  # something else of that name, in a part of somebody's own
        return None


def _check_label_end(objective: Objective, env: Any) -> None:
    """Reject an objective whose labels end elsewhere than where the law needs a prediction to be right."""
    s = env.times[1:]
    taught, needed = objective.horizon(s), env.transition.horizon(s)
    if taught is None or bool(((taught - needed).abs() <= _SAME).all()):
        return
    step = int((taught - needed).abs().argmax())
    name, law = type(objective).__name__, type(env.transition).__name__
    usual = _named(objective.sampler(env.transition.schedule))
    raise Refusal(
        f"{name} teaches predictions that are right at t={float(taught[step]):.2f}, and a {law} step to "
        f"t={float(s[step]):.2f} needs them right at t={float(needed[step]):.2f}. Give the environment the transition "
        f"{usual}, or override {name}.horizon(s)."
    )


def _check_law(objective: Objective, env: Any) -> None:
    """Reject a law that steps otherwise than the one that the objective's loss is made for."""
    own, law, shape = objective.sampler(env.transition.schedule), env.transition, _shape(env)
    t, s, draws = env.times[:-1], env.times[1:], torch.Generator(env.device).manual_seed(0)
    x_t, x0, noise = torch.randn((3, len(t), *shape), generator=draws, device=env.device)
    apart = float((own(x_t, x0, t, s, noise) - law(x_t, x0, t, s, noise)).abs().max())
    if not apart <= _SAME:
        raise Refusal(
            f"{type(objective).__name__} weighs its loss by steps of {_named(own)}, and the environment's are those of "
            f"{_named(law)}: they land up to {apart:.2g} apart. Give the environment the transition {_named(own)}."
        )


def _check_device(student: nn.Module, device: torch.device) -> None:
    """Reject a student elsewhere than its chains."""
    weight = next(student.parameters(), None)
    if weight is not None and weight.device != device:
        raise Refusal(
            f"the student is on {weight.device}, the environment on {device}. Move one: student.to({str(device)!r})."
        )


def _check_answers(env: Any, expert: Expert, student: nn.Module, data: Data, rows: int) -> None:
    """Reject data of another shape, labels out of reach, and answers that are no predictions of x0."""
    generator, shape = torch.Generator(env.device).manual_seed(0), _shape(env)
    x0, condition = draw(data, rows, generator, env.conditions is not None)
    _check_data(x0, shape, env.device)
    chosen = [0, rows - 1]
    conditions = None
    if condition is not None:
        asked = env.conditions(rows, generator)
        _check_conditions(condition, asked)
        for name, part in {"the expert": expert.denoiser, "the student": student}.items():
            _check_labels(name, getattr(part, "labels", None), torch.cat([condition, asked]))
        chosen = [*_extremes(condition), *_extremes(asked)]
        conditions = torch.cat([condition[chosen[:2]], asked[chosen[2:]]])
    t = env.times[[0, -2]].repeat(len(chosen) // 2)
    noise = torch.randn((len(chosen), *shape), generator=generator, device=env.device, dtype=x0.dtype)
    x_t = perturb(x0[chosen], noise, t, env.transition.schedule)
    parts: dict[str, Callable[..., Tensor]] = {"the expert": expert, "the student": StudentPolicy(student)}
    for name, part in parts.items():
        _check_finite(name, _asked(name, part, x_t, t, conditions), t)


def _check_data(x0: Any, shape: tuple[int, ...], device: torch.device) -> None:
    """Reject data that are no finite states of the environment."""
    if not isinstance(x0, Tensor) or not x0.is_floating_point() or tuple(x0.shape[1:]) != shape:
        got = f"{tuple(x0.shape)} {x0.dtype}" if isinstance(x0, Tensor) else f"a {type(x0).__name__}"
        raise Refusal(
            f"the data must be floats (n, *D) of the environment's states, D = {shape}; got {got}. Give the "
            "environment the shape of the data, or other data."
        )
    if x0.device != device:
        raise Refusal(
            f"the data are on {x0.device}, the environment on {device}. Answer on the device of the generator given."
        )
    check_finite("the data", x0)


def _check_conditions(data: Tensor, env: Tensor) -> None:
    """Reject conditions of data and of chains that are not of one kind."""
    if data.shape != env.shape or data.is_floating_point() != env.is_floating_point():
        kinds = [f"{tuple(part.shape)} {part.dtype}" for part in (data, env)]
        raise Refusal(
            f"the data's conditions are {kinds[0]}, and the environment's {kinds[1]}. Answer with one integer a row "
            "from both."
        )


def _check_labels(name: str, known: Any, conditions: Tensor) -> None:
    """Reject conditions that a part does not know, where it says how many ``labels`` it knows."""
    if not isinstance(known, int) or conditions.is_floating_point():
        return
    if known == 0:
        raise Refusal(
            f"the environment has conditions, and {name} takes none (labels=0). Give {name} labels, or the environment "
            "no conditions."
        )
    most = int(conditions.max())
    if most >= known:
        raise Refusal(
            f"conditions reach {most}, and {name} knows 0 to {known - 1}. Give {name} labels={most + 1}, or other data "
            "and conditions."
        )


def _extremes(conditions: Tensor) -> list[int]:
    """The rows of the least and the greatest condition, or any two."""
    if conditions.ndim != 1:
        return [0, len(conditions) - 1]
    return [int(conditions.argmin()), int(conditions.argmax())]


def _asked(name: str, part: Callable[..., Any], x_t: States, t: Times, condition: Condition) -> Tensor:
    """What a part answers; what it raises becomes an error, with the cause kept."""
    try:
        answer: Tensor = part(x_t, t, condition)
    except (Refusal, torch.OutOfMemoryError):
        raise
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        beside = "" if condition is None else " with conditions"
        reason = first_line(error)
        raise Refusal(
            f"{name} can't answer states {tuple(x_t.shape)}{beside} ({reason}). Give one that answers "
            "(x_t, t, condition) with a prediction of x0."
        ) from error
    return answer


def _check_finite(name: str, answer: Tensor, t: Times) -> None:
    """Reject a part that answers with NaN."""
    bad = ~answer.isfinite().flatten(1).all(1)
    if bool(bad.any()):
        raise Refusal(
            f"{name} answers with NaN or infinity at t={float(t[bad][0]):.2f}. Check its weights, its precision, and "
            "whether what it predicts tells x0 there."
        )


def _shape(env: Any) -> tuple[int, ...]:
    """The shape of one state, ``(*D,)``."""
    return tuple(env.action_spec.shape[len(env.batch_size) :])


def _named(law: Transition) -> str:
    eta = getattr(law, "eta", 0.0)
    return f"{type(law).__name__}(schedule{f', eta={eta:g}' if eta else ''})"


_PLACES = 65  # times at which schedules are compared
_SAME = 1e-3
"""How far alpha, sigma, times and steps may differ: far above any rounding, far below any other schedule."""
