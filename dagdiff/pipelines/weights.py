"""A range of weights of guidance: each chain has a weight of its own, and the student is told it.

The expert is guided by the weight that its row carries, so the student learns what guidance does and is sampled at any
weight of the range in one evaluation a step (Meng et al. 2023, https://arxiv.org/abs/2210.03142; Luo et al. 2023,
https://arxiv.org/abs/2310.04378). A condition is one integer a row wherever it goes: environment, aggregate, records on
a disk. Here it holds the prompt's number *and* the weight,

    condition = number + N * w * 2^23

with N prompts. Multiples of 2^-23 are all float32 numbers from 1 on, so no weight is rounded, and a label that is used
again belongs to the weight that its row holds.
"""

from pathlib import Path

import torch
from torch import Tensor

from dagdiff.checks import Refusal, check_weights
from dagdiff.pipelines.conditions import PromptBank, Text
from dagdiff.pipelines.pretrained import DiffusersExpert
from dagdiff.shapes import Condition, States

Range = tuple[float, float]
"""The least and the greatest weight."""


class WeightedBank(PromptBank):
    """A prompt bank whose conditions hold a weight of guidance beside the prompt's number.

    Args:
        bank: of the prompts, in memory, on the disk or still to be embedded; it is asked for every row.
        weights: the range.
    """

    def __init__(self, bank: PromptBank, weights: Range) -> None:
        super().__init__(bank.text.each(lambda part: part[-1:]))
        self.bank, self.prompts, self.file = bank, bank.prompts, bank.file
        self.range = float(torch.tensor(weights[0])), float(torch.tensor(weights[1]))  # as rows hold them

    def __len__(self) -> int:
        return len(self.bank)

    @property
    def text(self) -> Text:
        """All rows of the bank, the null row last."""
        return self.bank.text

    def telling(self, time_ids: Tensor) -> "WeightedBank":
        """Return the same bank with other sizes, a row each."""
        return WeightedBank(self.bank.telling(time_ids), self.range)

    def save(self, path: Path) -> None:
        """Write the bank of the prompts; weights are of the chains, not of the prompts."""
        self.bank.save(path)

    @property
    def usual(self) -> float:
        """The middle of the range, which networks are told where a row holds no weight."""
        return sum(self.range) / 2

    def forward(self, condition: Condition, x_t: States) -> Text:
        """Return the rows of the prompts that a condition names, whatever weights it holds."""
        text: Text = self.bank(None if condition is None else self.numbers(condition), x_t)
        return text

    def numbers(self, condition: Tensor) -> Tensor:
        """Return the numbers of the prompts, ``(B,)``; -1 stays."""
        return torch.where(condition < 0, condition, condition % max(len(self), 1))

    def weights(self, condition: Condition) -> Tensor | None:
        """Return the weights that a condition holds, ``(B,)`` float32, the usual one where there is none."""
        if condition is None:
            return None
        steps = torch.div(condition, max(len(self), 1), rounding_mode="floor")
        return torch.where(steps > 0, (steps.double() / _STEPS).float(), self.usual)

    def at(self, numbers: Tensor, weight: Tensor | float) -> Tensor:
        """Return the condition of prompts, ``(B,)``, at one weight, or at one a row."""
        told = torch.as_tensor(weight, dtype=torch.float32, device=numbers.device).expand(numbers.shape)
        steps = (told.double() * _STEPS).round().long()
        return torch.where(numbers < 0, numbers, numbers + max(len(self), 1) * steps)

    def told(self, condition: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return a condition in which each row that has none is given a weight, uniform in the range."""
        drawn = torch.rand(condition.shape, generator=generator, device=condition.device)
        low, high = self.range
        return torch.where(condition >= len(self), condition, self.at(condition, low + (high - low) * drawn))

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return ``n`` prompts' numbers, each as likely, with weights drawn uniformly from the range."""
        return self.told(super().draw(n, generator), generator)


def guided_in(teacher: DiffusersExpert, weights: Range, path: str) -> DiffusersExpert:
    """Let a teacher's conditions hold weights of a range; return it.

    A network that is told a weight, as FLUX.1-dev is, is told the one of each row. All others are guided by it
    (:attr:`WeightedBank.weights` as the guidance of :class:`~dagdiff.expert.Expert`).

    Raises:
        Refusal: if it is asked without prompts, or its students can't be told a weight.
    """
    check_weights(*weights)
    network = teacher.network
    kind, bank = type(network.body).__name__, network.conditions
    if not isinstance(bank, PromptBank) or not network.family.hears(network.body.config):
        raise Refusal(
            f"{path!r} has a {kind}, which can't be told a weight of guidance, so --guidance takes one weight there. "
            "Pass e.g. --guidance 5, or distil a text-to-image U-Net (Stable Diffusion, SDXL), FLUX.1-dev or "
            "FLUX.2-dev."
        )
    network.conditions = WeightedBank(bank, weights)
    if network.family.embedded(network.body.config) is not None:
        network.family = network.family.telling(network.conditions.usual)
    return teacher


_STEPS = 2.0**23
