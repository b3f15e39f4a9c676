"""CLIP score: whether the pictures of a text-to-image pipeline show what their prompts ask for.

It knows nothing of the teacher, so it says what distances to the teacher can't: whether a student that ends elsewhere
still obeys its prompt. ``dagdiff distill --task pipeline --metric clip`` measures it.
"""

from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from dagdiff.checks import Refusal
from dagdiff.metrics.base import Metric, Number
from dagdiff.metrics.truth import Truth


class ClipScore(Metric):
    """100 times the cosine between CLIP's embeddings of a picture and of its prompt, or 0 if that is negative.

    Hessel et al. 2021, https://arxiv.org/abs/2104.08718. Scores of one CLIP compare; for another than the usual one, a
    folder or a hub id with safetensors, subclass with your own ``weights`` and pass the subclass's import path.

    Args:
        task: whose states are decoded, and whose prompts are read.

    Raises:
        Refusal: if it has no prompts, or if the weights, or the packages that read them, are missing.
    """

    name = "clip"
    weights: ClassVar[str] = "openai/clip-vit-large-patch14"
    numbers: ClassVar = {
        "clip": Number(
            "100 times the cosine between CLIP's embeddings of a picture and of its prompt.",
            larger_is_better=True,
            floor="the teacher's",
        ),
        "clip_gap": Number(
            "The mean change of that from what the teacher makes of the same noise and prompts.", larger_is_better=True
        ),
        "clip_gap_margin": Number("Half of the 95 % interval of that mean, over pictures; so many of them."),
    }

    def __init__(self, task: Any) -> None:
        if not getattr(task, "prompts", ()):
            raise Refusal(f"--metric clip reads prompts, and {task.name!r} has none. Leave the metric away.")
        self.task = task
        _load(self.weights)

    def __call__(self, samples: Tensor, truth: Truth) -> dict[str, float]:
        """Return ``clip``, and the gap where the teacher's samples of the same noise are known."""
        if truth.asked is None:
            return {}
        mine = self.scores(samples, truth.asked)
        if truth.paired is None:
            return {"clip": float(mine.mean())}
        change = mine[: len(truth.paired)] - self.scores(truth.paired.to(samples.device), truth.asked)
        margin = 1.96 * change.std() / len(change) ** 0.5
        return {"clip": float(mine.mean()), "clip_gap": float(change.mean()), "clip_gap_margin": float(margin)}

    @torch.no_grad()
    def scores(self, states: Tensor, asked: Tensor) -> Tensor:
        """Return the score of each state, ``(n,)`` float64; ``asked`` are the conditions of these rows, or of more."""
        model, processor = _load(self.weights)
        numbers = self.task.numbers(asked[: len(states)]).tolist()
        found = []
        for first in range(0, len(states), _AT_ONCE):
            rows = slice(first, first + _AT_ONCE)
            pictures = self.task.pictures(states[rows]).clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
            told = {
                "images": list(pictures.to("cpu", torch.uint8)),
                "text": [self.task.prompts[number] for number in numbers[rows]],
                "padding": True,
                "truncation": True,  # CLIP reads 77 tokens
            }
            out = model(**processor(**told, return_tensors="pt"))
            cosine = torch.nn.functional.cosine_similarity(out.image_embeds.double(), out.text_embeds.double())
            found.append(100.0 * cosine.clamp(min=0.0))
        return torch.cat(found)


@cache
def _load(weights: str) -> tuple[Any, Any]:
    """A CLIP and what prepares its input, on the CPU."""
    try:
        from transformers import CLIPModel, CLIPProcessor

        return CLIPModel.from_pretrained(weights, use_safetensors=True).eval(), CLIPProcessor.from_pretrained(weights)
    except (ImportError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise Refusal(
            f"--metric clip can't load {weights!r} ({reason}). Run: pip install 'dagdiff[hub]', once with a network "
            "connection; or subclass dagdiff.metrics.clip.ClipScore with a folder of weights."
        ) from None


_AT_ONCE = 16
"""Pictures that CLIP sees together."""
