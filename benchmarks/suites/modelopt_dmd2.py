"""DMD2 by NVIDIA ModelOpt (``pip install 'dagdiff[peers]'``), trained with the objects of one of our experiments.

ModelOpt brings the losses and leaves the loop to its user; :func:`train` is that loop, as bare as can be. The networks,
both optimisers with clipping and ramp, the data, the batches and the number of updates are those of our own loop.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dagdiff.checks import Refusal
from dagdiff.runs.experiment import Experiment
from dagdiff.shapes import Denoiser


def train(it: Experiment, backward_simulation: bool) -> Iterator[tuple[int, int]]:
    """Train the experiment's student by ModelOpt's losses; yield after each round the NFE of student and expert so far.

    Yields as often as our loop does. ModelOpt draws its times and noise from torch's global stream.

    Raises:
        Refusal: if ModelOpt is not installed.
        NonFiniteLoss: as our loop.
    """
    loop = it.loop(it.expert, it.settings.steps)
    critic: Any = loop.objective  # begun: it holds the fake score and its optimiser
    networks = Asked(it.student), Asked(it.expert), Asked(critic.fake)
    pipeline = load_fastgen().DMDPipeline(*networks, configuration(it, backward_simulation))

    def batch() -> tuple[Tensor, Tensor]:
        x0 = loop.data.sample(loop.learner.learning.batch_size, loop.generator)
        return x0, torch.randn(x0.shape, generator=loop.generator)

    with loop.ledger.counting("the student", loop.student):
        for updates in loop.updates_by_round:
            losses = []
            for _ in range(updates):
                for _ in range(critic.critic_updates):
                    critic.learner.update(pipeline.compute_fake_score_loss(*batch())["total"])
                losses.append(pipeline.compute_student_loss(*batch())["total"])
                loop.learner.update(losses[-1])
            loop.learner.close({"loss": torch.stack(losses).detach()})
            yield loop.ledger.nfe, it.expert.nfe


def configuration(it: Experiment, backward_simulation: bool) -> Any:
    """Say the experiment's settings in ModelOpt's words; what it leaves open keeps ModelOpt's default."""
    fastgen, (low, high) = load_fastgen(), it.settings.objective.tau
    times = fastgen.SampleTimestepConfig(time_dist_type="uniform", min_t=low, max_t=high, t_list=it.times.tolist())
    return fastgen.DMDConfig(
        pred_type="x0",
        sample_t_cfg=times,
        student_sample_steps=len(it.times) - 1,
        student_sample_type="sde",
        backward_simulation=backward_simulation,
    )


class Asked(nn.Module):
    """A denoiser asked as ModelOpt asks: by keyword, with diffusers' names. It answers with x0 (``pred_type="x0"``)."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        """Return the guess of x0, ``(B, *D)``."""
        return self.denoiser(hidden_states, timestep)


def load_fastgen() -> Any:
    """Return ModelOpt's library of distillation losses; refuse if it is not there."""
    try:
        from modelopt.torch import fastgen
    except ImportError as error:
        raise Refusal(f"the suite peers needs nvidia-modelopt ({error}). Run pip install 'dagdiff[peers]'.") from None
    return fastgen
