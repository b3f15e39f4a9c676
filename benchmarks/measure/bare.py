"""PD, LCM and DMD2 on mixed states in plain torch: the loops that ``dagdiff bench overhead`` compares dagdiff with.

They are what a careful researcher writes for one experiment: tensors in dictionaries, indices for draws, no classes for
parts, nothing counted, checked or stored. They take dagdiff's networks, teacher and data, and do its mathematics: as
many states from each source, the same labels, losses, optimisers and clipping.
:mod:`dagdiff.benchmarks.measure.overhead` holds the counts equal, and a test holds the evaluations equal.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

Columns = dict[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """What both sides of a comparison are given.

    Args:
        batch: rows of an update.
        shares: parts of a batch from forward diffusion, own chains and the teacher's chains.
        chains: rolled in at once.
        substeps: of the teacher in one step of the student.
        updates: of the student in a round.
        rounds: in all.
        lr: of Adam; it falls linearly to 0.
        steps: of the student.
        clip: the largest gradient norm.
        solver_steps: of LCM's grid.
        ema: decay of LCM's target network.
        critic_updates, critic_lr: of DMD2's fake score.
    """

    batch: int
    shares: tuple[float, float, float]
    chains: int = 256
    substeps: int = 8
    updates: int = 30
    rounds: int = 20
    lr: float = 2e-3
    steps: int = 4
    clip: float = 1.0
    solver_steps: int = 50
    ema: float = 0.95
    critic_updates: int = 2
    critic_lr: float = 2e-3


def schedule(t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine: x_t = alpha x0 + sigma noise; both shaped to multiply states."""
    angle = t.view(-1, *[1] * (like.ndim - 1)) * math.acos(1e-3)
    return angle.cos(), angle.sin()


def ddim(x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """From t to s, keeping the noise that x and the guess imply."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t, x), schedule(s, x)
    return alpha_s * x0 + sigma_s / sigma_t * (x - alpha_t * x0)


def noised(x0: Tensor, t: Tensor, generator: Generator) -> Tensor:
    """Forward diffusion."""
    alpha, sigma = schedule(t, x0)
    return alpha * x0 + sigma * torch.randn(x0.shape, generator=generator)


class Bare:
    """What the three share: sources, D, and a round of updates.

    Args:
        network: answers v, ``(x, t, None) -> v``; trained in place.
        teacher: answers x0.
        sample: draws clean points.
        shape: of one of them.
        setting: sizes and rates.
    """

    def __init__(
        self,
        network: nn.Module,
        teacher: Callable[..., Tensor],
        sample: Callable[[int, Generator], Tensor],
        shape: tuple[int, ...],
        setting: Setting,
    ) -> None:
        self.network, self.teacher, self.sample, self.shape, self.setting = network, teacher, sample, shape, setting
        self.generator = Generator().manual_seed(0)
        self.grid = torch.linspace(1.0, 0.0, setting.steps + 1)
        self.optimiser = torch.optim.Adam(network.parameters(), setting.lr, fused=True)
        whole = setting.rounds * setting.updates
        self.rate = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda update: 1.0 - update / whole)
        self.counts = [round(share * setting.batch) for share in setting.shares]
        self.forward: Columns = {}
        self.own: Columns = {}
        self.led: Columns = {}

    def student(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the guess of x0."""
        alpha, sigma = schedule(t, x)
        guess: Tensor = alpha * x - sigma * self.network(x, t)
        return guess

    def round(self, forward: int, own: int, led: int) -> float:
        """Gather so many forward states and batches of chains, label them, make the updates; return the mean loss."""
        self.gather(forward, own, led)
        self.network.train()
        turn, losses = self.passes(forward), []
        for _ in range(self.setting.updates):
            losses.append(self.update(turn))
            self.rate.step()
        return float(torch.stack(losses).mean())

    @torch.no_grad()
    def gather(self, forward: int, own: int, led: int) -> None:
        """Fill D."""
        self.network.eval()
        if forward:
            self.forward = self.label(*self.forward_states(forward))
        for _ in range(own):
            self.own = joined(self.own, self.label(*self.visited(lambda x, t, s: self.student(x, t))))
        for _ in range(led):
            self.led = joined(self.led, self.label(*self.visited(self.lead)))

    def passes(self, rows: int) -> Tensor:
        """The forward states of all batches of a round, each once before any comes again."""
        wanted = self.counts[0] * self.setting.updates * (1 + self.critics)
        orders = [torch.arange(rows)]
        while rows and len(orders) * rows < wanted:
            orders.append(torch.randperm(rows, generator=self.generator))
        return torch.cat(orders)

    def batch(self, turn: Tensor, number: int) -> Columns:
        """Draw the batch of that number of a round."""
        first, *others = self.counts
        rows = [turn[number * first : (number + 1) * first]]
        for kept, count in zip((self.own, self.led), others, strict=True):
            rows.append(torch.randint(len(kept["x"]) if count else 1, (count,), generator=self.generator))
        drawn = [(kept, row) for kept, row in zip((self.forward, self.own, self.led), rows, strict=True) if len(row)]
        if len(drawn) == 1:
            return {name: column[drawn[0][1]] for name, column in drawn[0][0].items()}
        return {name: torch.cat([kept[name][row] for kept, row in drawn]) for name in drawn[0][0]}

    def step(self, loss: Tensor) -> Tensor:
        """One update of the student."""
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.setting.clip, foreach=True)
        self.optimiser.step()
        return loss.detach()

    critics = 0
    made = 0

    def update(self, turn: Tensor) -> Tensor:
        """Draw a batch and learn from it."""
        batch = self.batch(turn, self.made % self.setting.updates)
        self.made += 1
        return self.step(self.loss(batch))

    def forward_states(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noised data at the times of the grid, and where a step from there lands."""
        grid = self.times()
        place = torch.randint(len(grid) - 1, (n,), generator=self.generator)
        t = grid[place]
        return noised(self.sample(n, self.generator), t, self.generator), t, grid[place + 1]

    def visited(self, guess: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The states of a batch of chains, and the times of their steps."""
        chains, found = self.setting.chains, []
        x = torch.randn(chains, *self.shape, generator=self.generator)
        for t, s in zip(self.grid[:-1, None].expand(-1, chains), self.grid[1:, None].expand(-1, chains), strict=True):
            x0 = guess(x, t, s)
            found.append(self.settled(x, x0, t, s))
            x = self.move(x, x0, t, s)
        x, t, s = (torch.cat(column) for column in zip(*found, strict=True))
        return x, t, s

    def walk(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Where the teacher's own steps lead from t to s."""
        start, k = t, self.setting.substeps
        for i in range(1, k + 1):
            end = torch.lerp(t, s, i / k)
            x, start = ddim(x, self.teacher(x, start), start, end), end
        return x

    # What an objective decides. Answers are clean points at all times, unless it says otherwise.

    def times(self) -> Tensor:
        """The times of forward states."""
        return self.grid

    def move(self, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The next state of a chain."""
        return noised(x0, s, self.generator)

    def lead(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The teacher's guess where it drives."""
        return self.walk(x, t, torch.zeros_like(s))

    def settled(self, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The state that is kept of a step."""
        return x, t, s

    def label(self, x: Tensor, t: Tensor, s: Tensor) -> Columns:
        """What is kept of states."""
        return {"x": x, "t": t}

    def loss(self, batch: Columns) -> Tensor:
        """Of a batch."""
        raise NotImplementedError


class PD(Bare):
    """Progressive distillation."""

    def move(self, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:  # noqa: D102
        return ddim(x, x0, t, s)

    def lead(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:  # noqa: D102
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t, x), schedule(s, x)
        ratio = sigma_s / sigma_t
        return (self.walk(x, t, s) - ratio * x) / (alpha_s - ratio * alpha_t)

    def label(self, x: Tensor, t: Tensor, s: Tensor) -> Columns:  # noqa: D102
        return {"x": x, "t": t, "target": self.lead(x, t, s)}

    def loss(self, batch: Columns) -> Tensor:  # noqa: D102
        alpha, sigma = schedule(batch["t"], batch["x"])
        weight = (alpha / sigma).square().clamp(min=1.0)
        return (weight * (self.student(batch["x"], batch["t"]) - batch["target"]).square()).mean()


class LCM(Bare):
    """Consistency distillation."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.target = copy.deepcopy(self.network).requires_grad_(False)
        self.pairs = [list[Tensor](each.parameters()) for each in (self.target, self.network)]

    def times(self) -> Tensor:  # noqa: D102
        return torch.linspace(1.0, 0.0, self.setting.solver_steps + 1)

    def settled(self, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        solver = self.setting.solver_steps
        t = s + (t - s) * torch.rand(len(t), generator=self.generator)
        t = (t * solver).round().clamp(min=1.0) / solver
        return noised(x0, t, self.generator), t, t - 1.0 / solver

    def label(self, x: Tensor, t: Tensor, s: Tensor) -> Columns:  # noqa: D102
        s = s.clamp(min=0.0)
        return {"x": x, "t": t, "s": s, "next": ddim(x, self.teacher(x, t), t, s)}

    def loss(self, batch: Columns) -> Tensor:  # noqa: D102
        answer = self.boundary(batch["x"], self.student(batch["x"], batch["t"]), batch["t"])
        with torch.no_grad():
            x, s = batch["next"], batch["s"]
            alpha, sigma = schedule(s, x)
            goal = self.boundary(x, alpha * x - sigma * self.target(x, s), s)
        return (((answer - goal).square() + 1e-6).sqrt() - 1e-3).mean()

    def step(self, loss: Tensor) -> Tensor:  # noqa: D102
        loss = super().step(loss)
        with torch.no_grad():
            behind, ahead = self.pairs
            torch._foreach_lerp_(behind, ahead, 1.0 - self.setting.ema)
        return loss

    @staticmethod
    def boundary(x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The answer that is x itself at t = 0."""
        scaled = (10_000.0 * t).view(-1, *[1] * (x.ndim - 1))
        square = scaled.square() + 0.25
        return 0.25 / square * x + scaled / square.sqrt() * x0


class DMD2(Bare):
    """Distribution matching with a fake score that is told when an answer was made."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.critics = self.setting.critic_updates
        self.fake: Any = self.network.with_origin()  # type: ignore[operator]
        self.adam = torch.optim.AdamW(self.fake.parameters(), self.setting.critic_lr, weight_decay=0.01, fused=True)

    def update(self, turn: Tensor) -> Tensor:  # noqa: D102
        for _ in range(self.critics):
            self.improve(self.next(turn))
        return self.step(self.loss(self.next(turn)))

    def next(self, turn: Tensor) -> Columns:
        """Draw the next batch, for either network."""
        batch = self.batch(turn, self.made % (self.setting.updates * (1 + self.critics)))
        self.made += 1
        return batch

    def improve(self, batch: Columns) -> None:
        """One update of the fake score."""
        with torch.no_grad():
            answer = self.student(batch["x"], batch["t"])
        tau = self.tau(len(answer))
        alpha, sigma = schedule(tau, answer)
        x = alpha * answer + sigma * torch.randn(answer.shape, generator=self.generator)
        guess = alpha * x - sigma * self.fake(x, tau, None, batch["t"])
        loss = (((guess - answer) / sigma).square()).mean()
        self.adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.fake.parameters(), 10.0, foreach=True)
        self.adam.step()

    def loss(self, batch: Columns) -> Tensor:  # noqa: D102
        answer = self.student(batch["x"], batch["t"])
        with torch.no_grad():
            tau = self.tau(len(answer))
            alpha, sigma = schedule(tau, answer)
            x = alpha * answer + sigma * torch.randn(answer.shape, generator=self.generator)
            real, fake = self.teacher(x, tau), alpha * x - sigma * self.fake(x, tau, None, batch["t"])
            scale = (answer - real).abs().flatten(1).mean(1).view(-1, *[1] * (x.ndim - 1))
            goal = answer - torch.nan_to_num((fake - real) / scale, nan=0.0, posinf=0.0, neginf=0.0)
        return 0.5 * (answer - goal).square().mean()

    def tau(self, rows: int) -> Tensor:
        """Random times at which the scores are compared."""
        return 0.02 + 0.96 * torch.rand(rows, generator=self.generator)


BARE: dict[str, type[Bare]] = {"progressive": PD, "consistency": LCM, "distribution": DMD2}


def joined(kept: Columns, more: Columns) -> Columns:
    """D with more records."""
    return {name: torch.cat([kept[name], column]) for name, column in more.items()} if kept else more
