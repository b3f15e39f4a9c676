"""A learned teacher: a network trained by denoising score matching on clean data."""

import copy
from collections.abc import Iterator

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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
) -> Iterator[float]:
    """Train a denoising network in place and yield the loss every 100 updates; in the end it holds the EMA weights.

    The learning rate falls to 0 along half a cosine. Conditional teachers see no label in a part ``unlabelled`` of the
    rows, so that guidance can ask them without one (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598).
    """
    device = next(network.parameters()).device
    optimiser = torch.optim.Adam(network.parameters(), lr=lr)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True)
    for update in range(1, updates + 1):
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
            yield float(loss.detach())
    network.load_state_dict(copy.deepcopy(averaged.module.state_dict()))
