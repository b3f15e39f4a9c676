"""DAgger for diffusion: gather the states the student really visits, let the expert label them, train on the mixture.

Dataset aggregation is Ross, Gordon and Bagnell (2011, https://arxiv.org/abs/1011.0686); its use for diffusion
distillation, with forward-diffused, student and expert states mixed, is DDIL (Garrepalli et al. 2024,
https://arxiv.org/abs/2410.11971).
"""

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.envs import EnvBase

from dagdiff import engine
from dagdiff.aggregate import ROUNDS_KEPT, Aggregate, rounds_to_keep
from dagdiff.blame import cure, faulty_source
from dagdiff.checks import Refusal, check_at_least, check_shares
from dagdiff.expert import Expert
from dagdiff.fit import check_fit
from dagdiff.gathering import Gathering, Sources, fresh_records
from dagdiff.heldout import HeldOut
from dagdiff.hooks import Hook
from dagdiff.learner import Learner, Learning, Loss, RowLoss
from dagdiff.ledger import Ledger
from dagdiff.mixture import SOURCES, Shares, as_ramp
from dagdiff.objectives.base import Objective
from dagdiff.points import as_data
from dagdiff.policy import StudentPolicy
from dagdiff.resuming import Resumable, stacked
from dagdiff.rollout import Data, draw
from dagdiff.round import NonFiniteLoss, NonFiniteSource, Round
from dagdiff.shapes import Condition, States


class DAgger(Resumable):
    """The loop: iterate over it, and it yields one :class:`Round` after another.

    Between two rounds ``shares``, ``learner.lr_ramp`` and what the objective lets be set may be changed, and
    :meth:`focus` be called; :mod:`dagdiff.strategies.curriculum` holds recipes that do so.

    >>> for round in DAgger(student, expert, Progressive(), env, data, rounds=20):  # doctest: +SKIP
    ...     print(round.number, round.losses, round.loss_own)

    Args:
        student: the network that learns, ``(x_t, t, condition) -> x0``; trained in place.
        expert: the teacher in its role.
        objective: what the student is asked to match.
        env: the denoising environment, B chains of the student's own sampler.
        data: clean points for forward states (and for a GAN head), or a tensor ``(N, *D)`` of them; ``sample`` is
            called with the generator below, and must answer on its device.
        shares: parts of a batch that are forward-diffused, from student chains, from expert chains; those that suit an
            objective stand in :mod:`dagdiff.runs.recipes`.
        rounds: of gathering and training.
        updates_per_round: of the student: a number, or one for each round.
        gathering: beta, driver and re-use of the states, and how long they stay.
        learning: optimiser, batch size, clipping and average of the student.
        heldout: chains and forward rows of the measurement that closes a round; 0 measures nothing.
        generator: of the loop's own draws (coins, forward states, shares, critics), on the env's device; seeded with 0,
            or the process's rank, if not given.
        hooks: see what happens inside a round (:class:`dagdiff.hooks.Hook`).

    Parts that do not fit together (:func:`dagdiff.fit.check_fit`) are rejected here, before anything is trained.

    In several processes (:mod:`dagdiff.engine`) sizes are each one's own, and a round counts those of all.
    """

    def __iter__(self) -> Iterator[Round]:
        """Run the rounds.

        Training that was stopped is resumed where its state (:meth:`load_state_dict`) was taken, after its earlier
        rounds have been yielded again.

        Raises:
            NonFiniteLoss: names the update, or the source of what is not finite; the student is back at the end of the
                last good round.
        """
        self._started, self._nfe_before = time.perf_counter(), self.expert.nfe
        self.expert.finite.clear()
        yield from self._replay()
        with self.ledger.counting("the student", self.student):
            for number in range(len(self.made) + 1, self.rounds + 1):
                shares = self.shares.ramped(self.shares_ramp(self.progress(number)))
                losses = self._attempt(number, shares)
                self.made.append(self.close(number, shares, losses))
                yield self.made[-1]
            self.watch()

    def _attempt(self, number: int, shares: Shares) -> dict[str, float]:
        """Gather and improve; where the loss is not finite, begin the round anew, if that is wanted.

        A round that is resumed within has been gathered.
        """
        for tried in range(_TRIES):
            if not self.logs:
                self.watch()
                self._remember()
                self.gather(number, shares)
            try:
                return self.improve(number, shares)
            except NonFiniteLoss as error:
                if self._good is None or tried == _TRIES - 1 or isinstance(error, NonFiniteSource):
                    raise
                warnings.warn(f"round {number} is made again: {error}", stacklevel=2)
                self.logs = []
                self.learner.load_state_dict(self._good["learner"])
                self.objective.load_state_dict(self._good["objective"])
        raise AssertionError("a round ends or raises")

    def _remember(self) -> None:
        """Keep what a round that goes wrong is set back to, if it is to be."""
        if self.learner.learning.on_nonfinite == "rollback":
            parts: dict[str, Any] = {"learner": self.learner, "objective": self.objective}
            self._good = copy.deepcopy({name: part.state_dict() for name, part in parts.items()})

    def gather(self, number: int, shares: Shares) -> None:
        """Make a round's fresh states of each source, let the expert label each once, and aggregate.

        Records that were made ahead come first.
        """
        self.student.eval()
        for source, share in zip(SOURCES, shares, strict=True):
            wanted = self._wanted(share, number)
            for records in self.gathering.ready.take(source, wanted) if self.gathering.ready else ():
                self._enter(source, records, number)
                wanted -= len(records)
            for states in self.sources.fresh(source, wanted, self.progress(number)):
                records = self.objective.annotate(self.expert, states)
                self._enter(source, records.exclude("action"), number)

    def _enter(self, source: str, records: TensorDict, number: int) -> None:
        """Let labelled states into the aggregate, and hooks see them."""
        self.aggregate.add(source, records, number)
        for hook in self.hooks:
            hook.gathered(self, source, records)

    def improve(self, number: int, shares: Shares) -> dict[str, float]:
        """Update the student (and first the objective's critic) on batches of the mixture; return the mean losses."""
        updates, critics = self.updates_by_round[number - 1], self.objective.critic_updates
        sizes = [self.learner.learning.rows] * critics + [self.learner.learning.batch_size]
        batches = self.aggregate.draws(sizes * updates, shares, skip=len(self.logs) * len(sizes))
        loss = self._loss_by_row if self.aggregate.by_priority else self._loss
        self.student.train()
        while len(self.logs) < updates:
            critic: dict[str, Tensor] = {}
            for _ in range(critics):
                critic.update(self.objective.improve_critic(self.student, next(batches)))
            batch = next(batches)
            losses = self.learner.learn(batch, loss)
            self.objective.follow(self.student)
            self.logs.append({**critic, **losses})
            for hook in self.hooks:
                hook.updated(self, batch, self.logs[-1])
            self.watch()
        self._check_sources(number)
        logs, self.logs = stacked(self.logs), []
        return self.learner.close(logs)

    @property
    def update(self) -> int:
        """How many updates of the student have been made, those of the present round with them."""
        return self.learner.updates + len(self.logs)

    def _loss(self, part: TensorDict) -> Loss:
        return self.objective.loss(self.learner.forward, part)

    def _loss_by_row(self, part: TensorDict) -> Loss:
        """The loss of rows that were drawn by priority: weighed, and told to their samplers."""
        found = self.objective.loss(self.learner.forward, part)
        if not isinstance(found, RowLoss):
            raise Refusal(
                f"{type(self.objective).__name__} tells no loss of each row, which sampling by loss needs. Return "
                "RowLoss.of(loss, parts, rows), or give a buffer with another sampler."
            )
        rows = found.rows()
        self.aggregate.weigh(part, rows.detach())
        return Loss((part["weight"] * rows).mean(), found.parts)

    def close(self, number: int, shares: Shares, losses: dict[str, float]) -> Round:
        """Say what the round did, and measure the student on held-out states."""
        counts = len(self.aggregate), self.ledger.nfe, self.expert.nfe - self._nfe_before
        size, nfe_student, nfe_expert = engine.totals(counts, self.generator.device)
        return Round(
            number=number,
            updates=self.learner.updates,
            beta=self.beta(self.progress(number)),
            shares=shares,
            losses=losses,
            size=size,
            nfe_student=nfe_student,
            nfe_expert=nfe_expert,
            seconds=time.perf_counter() - self._started,
            **self._measure(number),
        )

    def __init__(
        self,
        student: nn.Module,
        expert: Expert,
        objective: Objective,
        env: EnvBase,
        data: Data | Tensor,
        *,
        shares: Shares = Shares(),  # noqa: B008  (frozen)
        rounds: int = 20,
        updates_per_round: int | Sequence[int] = 30,
        gathering: Gathering = Gathering(),  # noqa: B008
        learning: Learning = Learning(),  # noqa: B008
        heldout: int = 0,
        generator: torch.Generator | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        super().__init__()
        check_shares(shares)
        check_at_least("rounds", rounds, 1)
        check_at_least("heldout", heldout, 0)
        data = as_data(data)
        check_fit(env, expert, objective, student, data, learning.batch_size)
        self.student, self.expert, self.objective = student, expert, objective
        self.env, self.data, self.conditional = env, data, env.conditions is not None
        self.shares, self.gathering, self.rounds = Shares(*shares), gathering, rounds
        self.beta, self.shares_ramp = as_ramp("beta", gathering.beta), as_ramp("shares_ramp", gathering.shares_ramp)
        self.updates_by_round = _updates(updates_per_round, rounds)
        self.generator = generator or torch.Generator(env.device).manual_seed(engine.rank())
        self.policy, self.ledger, self.hooks = StudentPolicy(student, expert.threshold), Ledger(), hooks
        self.best: tuple[int, float, dict[str, Tensor]] | None = None
        self.heldout = HeldOut(data, env.transition, env.times, heldout, self.conditional) if heldout else None
        self._started, self._nfe_before = time.perf_counter(), expert.nfe
        self.watch: Callable[[], object] = _nothing  # called before each round, after each update, and at the end

        engine.share(student)
        objective.begin(student, expert, self._clean, self.generator)
        self.learner = Learner(student, learning, sum(self.updates_by_round))
        self.learner.remember()
        shared = env.transition, gathering.per_chain, self.generator, self.conditional
        driver = gathering.driver(self.policy, expert, *shared)
        self.sources = Sources(
            env,
            driver,
            self.beta,
            data,
            objective,
            gathering.input_perturbation,
            self.generator,
            learning.batch_size,
        )
        self.aggregate = self._empty_aggregate()

    def progress(self, number: int) -> float:
        """How much of training lies before a round, from 0 in the first on."""
        return (number - 1) / self.rounds

    def focus(self, step: int) -> None:
        """From now on train on the states of one step alone, and forget those of the others; for a curriculum."""
        if self.gathering.ready is not None:
            raise Refusal("records made ahead are of all steps, and this curriculum trains one alone. Leave one away.")
        self.sources.focus(step)
        self.aggregate.clear()

    def _wanted(self, share: float, number: int) -> int:
        """Fresh records that a round needs of a source with this share."""
        learning, updates = self.learner.learning, self.updates_by_round[number - 1]
        drawn = updates * (learning.batch_size + self.objective.critic_updates * learning.rows)
        return fresh_records(share, drawn, learning.batch_size, self.gathering.reuse)

    def _empty_aggregate(self) -> Aggregate:
        """An aggregate with room for the records of this run."""
        chosen, size = self.gathering, self.sources.size
        window = rounds_to_keep(self.updates_by_round, chosen.rounds_kept, chosen.max_age)
        experts = max(window, ROUNDS_KEPT)
        longest = max(range(1, self.rounds + 1), key=lambda number: self.updates_by_round[number - 1])
        forward, student, expert = (self._wanted(share, longest) for share in self.shares)
        capacity = {
            "forward": forward,
            "student": window * size * -(-student // size),
            "expert": min(experts, self.rounds) * size * -(-expert // size),
        }
        host = torch.Generator().manual_seed(self.generator.initial_seed())
        made = Aggregate(capacity, window, host, chosen.folder, experts, chosen.buffer)
        made.device = self.env.device
        return made

    def _measure(self, number: int) -> dict[str, Any]:
        """Measure the student on held-out states, charged to nobody, and remember the best."""
        if self.heldout is None:
            return {}
        drawn = self.generator.get_state()
        self.generator.manual_seed(0)
        with self.ledger.free(), self.expert.ledger.free():
            measured: dict[str, Any] = dict(self.heldout.imitation(self.policy, self.expert))
            measured["heldout"] = self.heldout.objective(self.policy, self.expert, self.objective)
            self._check_heldout(number, measured)
        self.generator.set_state(drawn)
        if math.isfinite(measured["heldout"]) and (self.best is None or measured["heldout"] < self.best[1]):
            self.best = number, measured["heldout"], self.learner.last_good
        return measured

    def _check_heldout(self, number: int, measured: dict[str, Any]) -> None:
        """Stop where the expert's answers spoil the measurement; where the student's do, that is a finding."""
        numbers = torch.tensor([measured["heldout"], *measured["loss_forward"], *measured["loss_expert"]])
        source = None if numbers.isfinite().all() else self.heldout.faulty(self.expert)  # type: ignore[union-attr]
        if source is not None:
            raise self._stopped(source, number)

    def _check_sources(self, number: int) -> None:
        """Stop at data, labels or states that are not finite, before the loss is blamed for them."""
        source = faulty_source(self.aggregate, self.expert)
        if source is not None:
            self.learner.go_back()
            raise self._stopped(source, number)

    def _stopped(self, source: str, number: int) -> NonFiniteSource:
        return NonFiniteSource(
            f"{source} are not finite from round {number} on; the student is back at update {self.learner.updates}. "
            f"{cure(source)}"
        )

    def _clean(self, rows: int) -> tuple[States, Condition]:
        x0, condition = draw(self.data, rows, self.generator, self.conditional)
        self.aggregate.finite.see("states forward", x0)
        return x0, condition


_TRIES = 4
"""How often a round is made before its loss is given up."""


def _nothing() -> None:
    """What is called where nobody watches."""


def _updates(each: int | Sequence[int], rounds: int) -> list[int]:
    """The updates of every round."""
    updates = [each] * rounds if isinstance(each, int) else list(each)
    if len(updates) != rounds:
        raise Refusal(f"updates_per_round must be one number or {rounds}, one a round; got {len(updates)} of them.")
    check_at_least("updates_per_round", min(updates), 1)
    return updates
