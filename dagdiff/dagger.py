"""DAgger for diffusion: gather the states the student really visits, let the expert label them, train on the mixture.

Dataset aggregation is Ross, Gordon and Bagnell (2011, https://arxiv.org/abs/1011.0686); its use for diffusion
distillation, with forward-diffused, student and expert states mixed, is DDIL (Garrepalli et al. 2024,
https://arxiv.org/abs/2410.11971).
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.envs import EnvBase

from dagdiff import engine
from dagdiff.aggregate import Aggregate, rounds_to_keep
from dagdiff.average import Average
from dagdiff.checks import Refusal, check_at_least, check_same_shape, check_share, check_shares
from dagdiff.expert import Expert
from dagdiff.fit import check_fit
from dagdiff.heldout import HeldOut
from dagdiff.mixture import Constant, Ramp, Shares
from dagdiff.objectives.base import Objective
from dagdiff.policy import StudentPolicy
from dagdiff.rollout import Data, Driver, MixturePolicy, Rollout, draw, forward_states
from dagdiff.round import NonFiniteLoss, Round
from dagdiff.shapes import Condition, States


class DAgger:
    """The loop: iterate over it, and it yields one :class:`Round` after another.

    Between two rounds ``shares``, ``lr_ramp`` and what the objective lets be set may be changed, and :meth:`focus` be
    called; :mod:`dagdiff.strategies.curriculum` holds recipes that do so.

    >>> for round in DAgger(student, expert, Progressive(), env, data, rounds=20):  # doctest: +SKIP
    ...     print(round.number, round.losses, round.loss_own)

    Args:
        student: the network that learns, ``(x_t, t, condition) -> x0``; trained in place.
        expert: the teacher in its role.
        objective: what the student is asked to match.
        env: the denoising environment, B chains of the student's own sampler.
        data: clean points for forward states (and for a GAN head); ``sample`` is called with the generator below, and
            must answer on its device.
        shares: parts of a batch that are forward-diffused, from student chains, from expert chains; those that suit an
            objective stand in :mod:`dagdiff.runs.recipes`.
        shares_ramp: scales the on-policy shares by progress; forward states take the rest.
        beta: by progress, the part of the student's chains' steps that the expert drives.
        per_chain: let one driver keep a chain to its end.
        driver: makes the behaviour policy of all roll-ins; :mod:`dagdiff.strategies.drivers` has others.
        input_perturbation: how much more noise forward states hold than they should (:func:`forward_states`).
        rounds: of gathering and training.
        updates_per_round: of the student: a number, or one for each round.
        batch_size: rows of an update.
        rounds_kept: how many rounds of student records stay in the aggregate; None keeps all, 1 the newest.
        max_age: drop student records older than this many updates.
        optimiser: makes the student's optimiser from its parameters.
        lr_ramp: scales the learning rate by progress.
        clip: the largest gradient norm.
        ema: decay an update of the averaged student in ``averaged`` (:class:`Average`); 0 averages nothing.
        heldout: chains and forward rows of the measurement that closes a round; 0 measures nothing.
        accumulate: parts of a batch that go through the student one after the other; a critic sees one part an update.
        folder: where the aggregate is kept, memory-mapped; None keeps it in memory.
        generator: of the loop's own draws (coins, forward states, shares, critics), on the env's device; seeded with 0,
            or the process's place, if not given.

    Parts that do not fit together (:func:`dagdiff.fit.check_fit`) are refused here, before anything is trained.

    In several processes (:mod:`dagdiff.engine`) sizes are each one's own, and a round tells the counts of all.
    """

    def __init__(
        self,
        student: nn.Module,
        expert: Expert,
        objective: Objective,
        env: EnvBase,
        data: Data,
        *,
        shares: Shares = Shares(),  # noqa: B008  (frozen)
        shares_ramp: Ramp = Constant(1.0),  # noqa: B008
        beta: Ramp = Constant(0.0),  # noqa: B008
        per_chain: bool = False,
        driver: Driver = MixturePolicy,
        input_perturbation: float = 0.0,
        rounds: int = 20,
        updates_per_round: int | Sequence[int] = 30,
        batch_size: int = 256,
        rounds_kept: int | None = None,
        max_age: int | None = None,
        optimiser: Callable[[Any], torch.optim.Optimizer] = torch.optim.Adam,
        lr_ramp: Ramp = Constant(1.0),  # noqa: B008
        clip: float = 1.0,
        ema: float = 0.0,
        heldout: int = 0,
        accumulate: int = 1,
        folder: Path | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_shares(shares)
        check_share("ema", ema)
        updates = [updates_per_round] * rounds if isinstance(updates_per_round, int) else list(updates_per_round)
        check_at_least("input_perturbation", input_perturbation, 0.0)
        for name, value in {"rounds": rounds, "batch_size": batch_size, "accumulate": accumulate}.items():
            check_at_least(name, value, 1)
        if len(updates) != rounds:
            raise Refusal(f"updates_per_round must be one number or {rounds}, one a round; got {len(updates)} of them.")
        check_at_least("updates_per_round", min(updates), 1)
        self.student, self.expert, self.objective = student, expert, objective
        self.env, self.data, self.conditional = env, data, env.conditions is not None
        self.shares, self.shares_ramp, self.beta, self.per_chain = Shares(*shares), shares_ramp, beta, per_chain
        self.driver, self.input_perturbation, self.lr_ramp = driver, input_perturbation, lr_ramp
        self.rounds, self.updates_by_round, self.batch_size = rounds, updates, batch_size
        self.rows = -(-batch_size // accumulate)
        self.focused: int | None = None
        self.clip, self.nfe_student, self._nfe_before, self._updates = clip, 0, 0, 0
        self.generator = generator or torch.Generator(env.device).manual_seed(engine.rank())
        self.policy = StudentPolicy(student, expert.threshold)
        self.best: tuple[int, float, dict[str, Tensor]] | None = None
        self.heldout = HeldOut(data, env.transition, env.times, heldout, self.conditional) if heldout else None

        check_fit(env, expert, objective, student, data, batch_size)
        engine.broadcast(student)
        objective.begin(student, expert, self._clean, self.generator)
        self.grid = objective.grid(env.times)
        self.optimiser = optimiser(student.parameters())
        whole = sum(updates)
        self._lr = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda update: self.lr_ramp(update / whole))
        self.averaged = Average(student, ema) if ema else None
        self._last_good = copy.deepcopy(student.state_dict())

        kept = rounds_to_keep(updates, rounds_kept, max_age)
        records = env.batch_size.numel() * (len(env.times) - 1)
        host = torch.Generator().manual_seed(self.generator.initial_seed())
        self.aggregate = Aggregate(
            self._forward_states, {"student": kept * records, "expert": rounds * records}, host, folder
        )

    def __iter__(self) -> Iterator[Round]:
        """Run the rounds.

        Raises:
            NonFiniteLoss: names the update; the student is back at the end of the last good round.
        """
        with self.counting():
            yield from self._rounds()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """While this lasts, charge every row shown to the student to ``nfe_student``; iterating does it by itself."""
        counter = self.student.register_forward_hook(self._count)
        try:
            yield
        finally:
            counter.remove()

    def _rounds(self) -> Iterator[Round]:
        started, self._nfe_before = time.perf_counter(), self.expert.nfe
        for number in range(1, self.rounds + 1):
            progress = (number - 1) / self.rounds
            beta, shares = self.beta(progress), self.shares.ramped(self.shares_ramp(progress))
            self.gather(number, beta, shares)
            losses = self.improve(shares, self.updates_by_round[number - 1])
            counts = len(self.aggregate), self.nfe_student, self.expert.nfe - self._nfe_before
            size, nfe_student, nfe_expert = engine.totals(counts, self.generator.device)
            yield Round(
                number=number,
                updates=self._updates,
                beta=beta,
                shares=shares,
                losses=losses,
                size=size,
                nfe_student=nfe_student,
                nfe_expert=nfe_expert,
                seconds=time.perf_counter() - started,
                **self._measure(number),
            )

    def gather(self, number: int, beta: float, shares: Shares) -> None:
        """Roll in, let the expert annotate every new record once, and aggregate."""
        for source, share, driver in (("student", shares.student, beta), ("expert", shares.expert, 1.0)):
            if share > 0.0:
                records = self.rollout(driver)
                if self.focused is not None:
                    records = records.reshape(-1, len(self.env.times) - 1)[:, self.focused]
                records = self.objective.annotate(self.expert, self.objective.settle(records, self.generator))
                self.aggregate.add(source, records.exclude("action"), number)

    def focus(self, step: int) -> None:
        """From now on train on the states of one step alone, and forget those of the others; for a curriculum."""
        self.focused, self.grid = step, self.env.times[step : step + 2]
        for buffer in self.aggregate.buffers.values():
            buffer.empty()

    def improve(self, shares: Shares, updates: int) -> dict[str, float]:
        """Update the student (and first the objective's critic) on batches of the mixture; return the mean losses."""
        logs: list[dict[str, Tensor]] = []
        self.student.train()
        for _ in range(updates):
            parts: dict[str, Tensor] = {}
            for _ in range(self.objective.critic_updates):
                parts.update(self.objective.improve_critic(self.student, self.aggregate.draw(self.rows, shares)))
            self.optimiser.zero_grad(set_to_none=True)
            losses = self._learn(self.aggregate.draw(self.batch_size, shares))
            logs.append({**parts, **losses, "gradient_norm": self._step()})
        return self.close_updates({name: torch.stack([log[name] for log in logs]) for name in logs[0]})

    def update(self, loss: Tensor) -> Tensor:
        """Make one update of the student, clipped, at the ramp's rate; return the gradient's norm before clipping."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        return self._step()

    def _learn(self, batch: TensorDict) -> dict[str, Tensor]:
        """Add the gradient of a batch's mean loss, part by part, to the student's; return the losses."""
        found: dict[str, Tensor] = {}
        for part in batch.split(self.rows):
            share, loss = len(part) / len(batch), self.objective.loss(self.student, part)
            (share * loss.loss).backward()
            for name, value in {**loss.parts, "loss": loss.loss.detach()}.items():
                found[name] = share * value + found.get(name, 0.0)
        return found

    def _step(self) -> Tensor:
        engine.average_gradients(self.student.parameters())
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), self.clip)
        self.optimiser.step()
        self._lr.step()
        self.objective.follow(self.student)
        if self.averaged is not None:
            self.averaged.update_parameters(self.student)
        return norm

    def close_updates(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """End a round's n updates, the losses of which are ``(n,)`` each; return their means.

        The student is the last good one from now on. This is the loop's one look at the device a round.

        Raises:
            NonFiniteLoss: if a loss is not finite; the student is back at the end of the last good round.
        """
        engine.average(losses.values())
        finite = torch.stack([values.isfinite() for values in losses.values()]).all(0)
        if not finite.all():
            first = self._updates + int((~finite).nonzero()[0]) + 1
            self.student.load_state_dict(self._last_good)
            raise NonFiniteLoss(
                f"the loss or its gradient is not finite at update {first}; the student is back at update "
                f"{self._updates}. Lower the learning rate, clip harder, or set a threshold."
            )
        self._updates += len(finite)
        self._last_good = copy.deepcopy(self.student.state_dict())
        return {name: float(values.mean()) for name, values in losses.items()}

    def _measure(self, number: int) -> dict[str, Any]:
        """Close a round with the held-out measurement, at nobody's cost, and remember the best student."""
        if self.heldout is None:
            return {}
        charged, drawn = (self.nfe_student, self.expert.nfe), self.generator.get_state()
        self.generator.manual_seed(0)
        measured: dict[str, Any] = dict(self.heldout.imitation(self.policy, self.expert))
        measured["heldout"] = self.heldout.objective(self.policy, self.expert, self.objective)
        self.generator.set_state(drawn)
        self.nfe_student, self.expert.nfe = charged
        if self.best is None or not measured["heldout"] >= self.best[1]:
            self.best = number, measured["heldout"], self._last_good
        return measured

    @cached_property
    def rollout(self) -> Rollout:
        """Chains of the student's own sampler, driven by the student, the expert, or both; built when first needed."""
        transition, per_chain = self.env.transition, self.per_chain
        driver = self.driver(self.policy, self.expert, transition, per_chain, self.generator, self.conditional)
        return Rollout(self.env, driver)

    def _clean(self, rows: int) -> tuple[States, Condition]:
        return draw(self.data, rows, self.generator, self.conditional)

    def _forward_states(self, rows: int) -> TensorDict:
        schedule = self.env.transition.schedule
        states = forward_states(
            self.data, schedule, self.grid, rows, self.generator, self.conditional, self.input_perturbation
        )
        return self.objective.annotate(self.expert, states)

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.nfe_student += len(check_same_shape("the student", output, inputs[0]))
