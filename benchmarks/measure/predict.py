"""What a run of Stable Diffusion 1.5 is predicted to take, from counted operations; nobody has measured it here.

The recipe is ``benchmarks/configs/sd15-ddil-lora.yaml``. Its network evaluations are those of
:func:`dagdiff.benchmarks.running.nfe.predict_nfe`, those of the guided expert twice. One evaluation of a row costs F
floating-point operations, counted on the meta device. A row that trains costs 3 F where adapters learn and activations
are computed again: the way there twice, and the way back, which needs no gradients of frozen weights.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from dagdiff.benchmarks.measure.memory import SD15, adapters
from dagdiff.benchmarks.running.nfe import predict_nfe
from dagdiff.runs.config import configure

RECIPE = Path(__file__).resolve().parent.parent / "configs" / "sd15-ddil-lora.yaml"


class Card(NamedTuple):
    """A GPU: its dense bfloat16 operations a second, the part of them that is reached, bytes a second to others."""

    name: str = "A100"
    operations: float = 312e12
    reached: float = 0.35
    link: float = 100e9


class Prediction(NamedTuple):
    """Evaluations of expert and student outside updates, rows that train, operations of one, weights that learn."""

    expert: float
    student: float
    trained: float
    updates: int
    operations: float
    weights: int

    def hours(self, cards: int, card: Card = Card()) -> float:  # noqa: B008  (frozen)
        """Return the hours on so many GPUs: the rows shared out, and each update's gradients averaged in a ring."""
        rows = self.expert + self.student + 3.0 * self.trained
        compute = rows * self.operations / (cards * card.operations * card.reached)
        averaging = self.updates * 2.0 * (cards - 1) / cards * 4.0 * self.weights / card.link
        return (compute + averaging) / 3600.0


def row_operations(network: Any, shape: tuple[int, ...], text: tuple[int, ...]) -> int:
    """Return the floating-point operations of one evaluation of one row: two a multiply-add."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counted:
        network(torch.empty(1, *shape), torch.empty(1), encoder_hidden_states=torch.empty(1, *text))
    return int(counted.get_total_flops())


def predict(recipe: Path = RECIPE) -> Prediction:
    """Return what a recipe for Stable Diffusion 1.5 asks for."""
    told = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    kept = ("objective", "steps", "shares", "substeps", "rounds", "updates", "batch_size", "chains", "rounds_kept")
    sizes = configure({"task": "gaussians8-biased", **{name: told[name] for name in kept}})
    nfe = predict_nfe(sizes)  # rows are counted alike in the plane
    with torch.device("meta"):
        network: Any = UNet2DConditionModel(**SD15)
    trained = float(told["updates"] * told["batch_size"])
    guided = 2 if told["guidance"] != 1.0 else 1
    flops, weights = row_operations(network, (4, 64, 64), (77, 768)), adapters(network, told["policy"]["rank"])
    return Prediction(guided * nfe.expert, nfe.student - trained, trained, told["updates"], flops, weights)


def sentence(card: Card = Card()) -> str:  # noqa: B008
    """Return the prediction in words."""
    found = predict()
    one, eight = found.hours(1, card), found.hours(8, card)
    return (
        f"Predicted, not measured: the recipe `{RECIPE.name}` asks the teacher for {_thousands(found.expert)} thousand "
        f"evaluations, rolls in {_thousands(found.student)} thousand and trains on {_thousands(found.trained)} "
        f"thousand rows, of {found.operations / 1e12:.2f} TFLOP each; at {card.reached:.0%} of the "
        f"{card.operations / 1e12:.0f} TFLOP/s of an {card.name} that is {_duration(one)} on one and "
        f"{_duration(eight)} on 8 of them ({one / eight:.1f} times as fast), without held-out measurement and the "
        "pipeline's own samples."
    )


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1.0 else f"{60.0 * hours:.0f} minutes"


def _thousands(rows: float) -> str:
    return f"{math.ceil(rows / 1000.0):,}".replace(",", " ")
