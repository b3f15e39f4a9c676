"""A learned teacher: a network trained by denoising score matching on clean data."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dagdiff.average import Average
from dagdiff.checkpoint import load_state, save_state
from dagdiff.objectives.base import denoising_loss
from dagdiff.rollout import Data, draw
from dagdiff.schedule import Schedule


def train_teacher(
    network: nn.Module,
    data: Data,
    schedule: Schedule,
    updates: int = 4000,
    batch_size: int = 512,
    lr: float = 2e-3,
    ema: float = 0.995,
    unlabelled: float = 0.1,
    conditional: bool = False,
    generator: torch.Generator | None = None,
    keep: Path | None = None,
) -> Iterator[float]:
    """Train a denoising network in place and yield the loss every 100 updates; in the end it holds the EMA weights.

    The learning rate falls to 0 along half a cosine. Conditional teachers see no label in a part ``unlabelled`` of the
    rows, so that guidance can ask them without one (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598).

    With a file to ``keep`` its state in, training that was stopped goes on from its last kept hundred, bit for bit as
    if it had not been stopped; the file is the caller's to delete.

    Raises:
        Refusal: if the file is broken, or was kept by the training of another network.
    """
    device = next(network.parameters()).device
    generator = generator or torch.Generator(device).manual_seed(0)
    optimiser = torch.optim.Adam(network.parameters(), lr=lr)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    averaged = Average(network, ema)
    parts: dict[str, Any] = {"network": network, "averaged": averaged, "optimiser": optimiser, "falling": falling}
    done = _resume(keep, parts, generator) if keep and keep.exists() else 0
    for update in range(done + 1, updates + 1):
        x0, condition = draw(data, batch_size, generator, conditional)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        t = torch.rand(batch_size, generator=generator, device=device).clamp(min=1e-3)
        if condition is not None:
            dropped = torch.rand(batch_size, generator=generator, device=device) < unlabelled
            condition = torch.where(dropped, -1, condition)
        loss = denoising_loss(network, x0, noise, t, schedule, condition)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        falling.step()
        averaged.update_parameters(network)
        if update % 100 == 0 or update == updates:
            if keep:
                states = {name: part.state_dict() for name, part in parts.items()}
                save_state(keep, {**states, "generator": generator.get_state(), "update": update})
            yield float(loss.detach())
    network.load_state_dict(copy.deepcopy(averaged.module.state_dict()))


def _resume(keep: Path, parts: dict[str, Any], generator: torch.Generator) -> int:
    """Put all parts back to where they were kept; return how many updates had been made."""
    kept = load_state(keep, parts)
    generator.set_state(kept["generator"])
    return int(kept["update"])
