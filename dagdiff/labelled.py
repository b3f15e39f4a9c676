"""Labelled states for somebody else's training loop: an iterator over batches of DAgger's aggregate.

The student stays its owner's, and so do its loss and its optimiser. Whenever a round's batches are used up, the student
as it is then is rolled out anew, the expert labels the new states once, and they enter the aggregate.

>>> for x_t, t, condition, label, source in states(student, expert, data, Ddim(schedule), times):  # doctest: +SKIP
...     loss = (student(x_t, t, condition) - label).square().mean()
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from dagdiff.aggregate import ROUNDS_KEPT, Aggregate
from dagdiff.checks import Refusal, check_at_least, check_shares
from dagdiff.envs.denoising import Conditions, DenoisingEnv
from dagdiff.expert import Expert
from dagdiff.fit import check_fit
from dagdiff.gathering import Sources, fresh_records
from dagdiff.mixture import SOURCES, Ramp, Shares, as_ramp
from dagdiff.objectives.base import Objective
from dagdiff.points import as_data
from dagdiff.policy import Foreign, StudentPolicy
from dagdiff.rollout import Data, MixturePolicy
from dagdiff.shapes import Condition, States, Times
from dagdiff.transition import Transition


class Labelled(NamedTuple):
    """A batch of states with the expert's labels.

    Args:
        x_t: the states, ``(B, *D)``.
        t: their times, ``(B,)``.
        condition: what their chains are conditioned on, ``(B,)``; None for unconditional chains.
        label: what the expert does there in the student's place, a prediction of x0, ``(B, *D)``.
        source: where each comes from, ``(B,)``: an index into :data:`dagdiff.mixture.SOURCES` (0 forward, 1 student,
            2 expert).
    """

    x_t: States
    t: Times
    condition: Condition
    label: States
    source: Tensor


def states(
    student: Callable[..., Any],
    expert: Expert,
    data: Data | Tensor,
    transition: Transition,
    times: Times,
    *,
    shares: Shares = Shares(),  # noqa: B008  (frozen)
    batch_size: int = 256,
    batches: int = 30,
    reuse: float = 4.0,
    beta: Ramp | float = 0.0,
    rounds_kept: int = ROUNDS_KEPT,
    chains: int = 256,
    conditions: Conditions | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Labelled]:
    """Return an endless iterator over batches of labelled states.

    Args:
        student: any callable ``(x_t, t, condition) -> x0``; a module is rolled out in eval mode, and its mode restored.
        expert: the teacher in its role.
        data: clean points, as for :class:`dagdiff.dagger.DAgger`.
        transition: the law by which the student is sampled. It says up to where a label is right: under ``Ddim`` to
            where the step lands, under ``Renoise`` to data.
        times: the student's grid, ``(K + 1,)``, falling to 0.
        shares: parts of a batch that are forward-diffused, from student chains, from expert chains.
        batch_size: rows of a batch.
        batches: of a round; the student is rolled out anew before each round.
        reuse: how many batches a state serves on average.
        beta: the part of the steps of the student's chains that the expert drives; a ramp is asked at 0.
        rounds_kept: how many rounds of chain states stay.
        chains: that move at once.
        conditions: draws what new chains are conditioned on; None for unconditional chains.
        generator: of all draws, on the device of the times; seeded with 0 if not given.

    Raises:
        Refusal: for parts that do not fit, before anything is drawn; while it runs, for answers of another shape than
            the states', or that are not finite.
    """
    check_shares(shares)
    for name, value in {"batch_size": batch_size, "batches": batches, "rounds_kept": rounds_kept}.items():
        check_at_least(name, value, 1)
    check_at_least("reuse", reuse, 1)
    network = student if isinstance(student, nn.Module) else Foreign(student)
    draws = generator or torch.Generator(times.device).manual_seed(0)
    shape = tuple(as_data(data).sample(1, draws).shape[1:])
    env = DenoisingEnv(shape, transition, times, chains, conditions, generator=draws, device=times.device)
    labels = _Labels(transition)
    check_fit(env, expert, labels, network, as_data(data), batch_size)
    policy = StudentPolicy(network, expert.threshold)
    driver = MixturePolicy(policy, expert, transition, False, draws, conditions is not None)
    sources = Sources(env, driver, as_ramp("beta", beta), as_data(data), labels, 0.0, draws, batch_size)
    host = torch.Generator().manual_seed(draws.initial_seed())
    aggregate = Aggregate({}, rounds_kept, host, expert_rounds=rounds_kept)
    fresh = [fresh_records(share, batches * batch_size, batch_size, reuse) for share in shares]
    return _batches(sources, expert, labels, aggregate, fresh, Shares(*shares), [batch_size] * batches)


class _Labels(Objective):
    """What the expert would do in the student's place, as an objective that only annotates."""

    def __init__(self, transition: Transition) -> None:
        self.sampler, self.law = lambda schedule: transition, transition

    def horizon(self, s: Times) -> Times:
        """Where the law needs a prediction to be right."""
        return self.law.horizon(s)

    def annotate(self, expert: Expert, states: TensorDict) -> TensorDict:
        """Add ``label``."""
        end = self.horizon(states["s"])
        return states.set("label", expert.target(states["x_t"], states["t"], end, states.get("condition")))


def _batches(
    sources: Sources,
    expert: Expert,
    labels: _Labels,
    aggregate: Aggregate,
    fresh: list[int],
    shares: Shares,
    sizes: list[int],
) -> Iterator[Labelled]:
    """Gather a round of so many fresh records of each source, then yield its batches; and so on."""
    number = 0
    while True:
        number += 1
        for source, wanted in zip(SOURCES, fresh, strict=True):
            for records in sources.fresh(source, wanted, 0.0):
                records = labels.annotate(expert, records).exclude("action")
                _check(source, records, number)
                aggregate.add(source, records, number)
        for batch in aggregate.draws(sizes, shares):
            yield Labelled(batch["x_t"], batch["t"], batch.get("condition"), batch["label"], batch["source"])


def _check(source: str, records: TensorDict, number: int) -> None:
    """Reject states or labels that are not finite, by the name of whoever made them."""
    for name, maker in {"x_t": "data" if source == "forward" else source, "label": "expert"}.items():
        if not bool(records[name].isfinite().all()):
            what = "labels" if name == "label" else f"states of the source {source!r}"
            raise Refusal(
                f"{what} hold NaN or infinity in round {number}: the {maker} made them. Lower the learning rate, or "
                f"look at what the {maker} answers."
            )
