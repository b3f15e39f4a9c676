"""DAgger for diffusion, in one file of plain torch.

A teacher walks from noise to data in 32 steps. A student learns to do it in 4: one step of it must land where 8 steps
of the teacher land (progressive distillation, Salimans and Ho 2022). It learns on the states that it visits itself,
beside noised data and the teacher's own chains; the teacher labels each state once, and a label serves several batches
(DAgger, Ross, Gordon and Bagnell 2011; for diffusion, DDIL, Garrepalli et al. 2024).

The target is a ring of eight Gaussians, the teacher its exact denoiser. The data at hand are the right half of the
ring: noised data hardly come near the left modes, the student's own chains do. Run it: it takes 10 s.
dagdiff makes the same student, number for number (tests/examples/test_minimal.py).
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn

STEPS, SUBSTEPS = 4, 8  # of the student; of the teacher in one of them
ROUNDS, UPDATES, BATCH = 60, 16, 256  # an update sees one batch
SHARES = {"forward": 0.25, "student": 0.5, "teacher": 0.25}  # parts of a batch
REUSE = 4  # batches that a record serves, on average
CHAINS = int(SHARES["student"] * UPDATES * BATCH / REUSE / STEPS)  # rolled in a round
GRID = torch.linspace(1.0, 0.0, STEPS + 1)  # the student's times, from noise to data
ANGLES = torch.arange(8) * math.pi / 4
MODES, WIDTH = 2.0 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1), 0.1


def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
    """A state is x_t = alpha_t x0 + sigma_t noise; return alpha_t and sigma_t."""
    angle = t[:, None] * math.acos(1e-3)
    return angle.cos(), angle.sin()


def step(x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """From t to s, given a guess of x0: keep the noise that both imply (DDIM, Song et al. 2020)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    return alpha_s * x0 + sigma_s / sigma_t * (x - alpha_t * x0)


def teacher(x: Tensor, t: Tensor) -> Tensor:
    """E[x0 | x_t] on the ring, in closed form."""
    alpha, sigma = schedule(t)
    variance = (alpha * WIDTH) ** 2 + sigma**2
    nearness = torch.softmax(-0.5 * (x[:, None] - alpha[:, None] * MODES).square().sum(2) / variance, dim=1)
    gain = alpha * WIDTH**2 / variance
    return (1.0 - gain * alpha) * (nearness @ MODES) + gain * x


def label(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The guess with which one step from t to s lands where the teacher's own steps lead."""
    y, start = x, t
    for i in range(1, SUBSTEPS + 1):
        end = torch.lerp(t, s, i / SUBSTEPS)
        y, start = step(y, teacher(y, start), start, end), end
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    return (y - sigma_s / sigma_t * x) / (alpha_s - sigma_s / sigma_t * alpha_t)


class Student(nn.Module):
    """Guesses x0 by an MLP that sees the state and waves of the time, and answers v = alpha noise - sigma x0."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        sizes = [14, width, width, width]
        layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.SiLU())]
        self.network = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor, condition: None = None) -> Tensor:  # noqa: D102
        angles = t[:, None] * math.pi / 2 * 2.0 ** torch.arange(6)
        alpha, sigma = schedule(t)
        return alpha * x - sigma * self.network(torch.cat([x, angles.sin(), angles.cos()], dim=1))


class RightHalf:
    """The data: points of the three modes on the right."""

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:  # noqa: D102
        mode = MODES[[0, 1, 7]][torch.randint(3, (n,), generator=generator)]
        return mode + WIDTH * torch.randn(n, 2, generator=generator)


def forward_states(n: int, generator: Generator) -> list[Tensor]:
    """Noised data: states x_t, the times t at which a step starts, and s at which it lands."""
    x0, k = RightHalf().sample(n, generator), torch.randint(STEPS, (n,), generator=generator)
    alpha, sigma = schedule(GRID[k])
    return [alpha * x0 + sigma * torch.randn(n, 2, generator=generator), GRID[k], GRID[k + 1]]


@torch.no_grad()
def chains(n: int, guess: Callable[[Tensor, Tensor, Tensor], Tensor], generator: Generator) -> list[Tensor]:
    """The states that n chains from noise visit, chain by chain, and the times of their steps."""
    x, visited = torch.randn(n, 2, generator=generator), []
    for t, s in zip(GRID[:-1, None].expand(-1, n), GRID[1:, None].expand(-1, n), strict=True):
        visited.append((x, t, s))
        x = step(x, guess(x, t, s), t, s)
    return [torch.stack(column, dim=1).flatten(0, 1) for column in zip(*visited, strict=True)]


def passes(rows: int, wanted: int, picks: Generator) -> Tensor:
    """Each row once, in order; then all again and again, in random orders, until there are as many as wanted."""
    again = range(rows, wanted, rows)
    return torch.cat([torch.arange(rows), *(torch.randperm(rows, generator=picks) for _ in again)])[:wanted]


def train(student: Student, rounds: int = ROUNDS, seed: int = 0) -> Iterator[float]:
    """Gather, label, aggregate, improve; yield each round's mean loss."""
    noise, states, picks = (Generator().manual_seed(seed) for _ in range(3))
    optimiser = torch.optim.Adam(student.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda update: 1.0 - update / (rounds * UPDATES))
    counts = [int(share * BATCH) for share in SHARES.values()]
    own, led = ([torch.empty(0, 2), torch.empty(0), torch.empty(0), torch.empty(0, 2)] for _ in range(2))
    for _ in range(rounds):
        forward = forward_states(counts[0] * UPDATES // REUSE, states)
        forward = [*forward, label(*forward)]
        for kept, guess in ((own, lambda x, t, s: student(x, t)), (led, label)):
            visited = chains(CHAINS, guess, noise)
            kept[:] = [torch.cat(pair) for pair in zip(kept, [*visited, label(*visited)], strict=True)]
        chosen = [passes(len(forward[0]), UPDATES * counts[0], picks)]
        chosen += [torch.randint(len(own[0]), (UPDATES * count,), generator=picks) for count in counts[1:]]
        total = 0.0
        for rows in zip(*(each.split(count) for each, count in zip(chosen, counts, strict=True)), strict=True):
            drawn = [[column[row] for column in kept] for kept, row in zip((forward, own, led), rows, strict=True)]
            x, t, _, target = (torch.cat(column) for column in zip(*drawn, strict=True))
            alpha, sigma = schedule(t)
            loss = ((alpha / sigma).square().clamp(min=1.0) * (student(x, t) - target).square()).mean()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimiser.step()
            rate.step()
            total += loss.item() / UPDATES
        yield total


def main() -> None:
    """Train a student and say how its samples are shared among the modes."""
    torch.manual_seed(0)
    student = Student()
    for number, loss in enumerate(train(student), 1):
        print(f"round {number:2d}  loss {loss:.5f}")
    x, t, _ = (column[STEPS - 1 :: STEPS] for column in chains(4000, lambda x, t, s: student(x, t), Generator()))
    nearest = torch.cdist(student(x, t), MODES).argmin(dim=1)  # the last guess is the sample
    print("samples at each mode:", nearest.bincount(minlength=8).tolist())


if __name__ == "__main__":
    main()
