"""How samples compare with the teacher's own, where no labelled test set exists: pretrained pipelines."""

from typing import ClassVar

from torch import Tensor

from dagdiff.metrics.base import Metric, Number
from dagdiff.metrics.samples import energy_distance
from dagdiff.metrics.truth import Truth


class TeacherSamples(Metric):
    """Energy distance to the teacher's samples from other noise, and the gap to those from the same noise.

    The first p samples are paired with the teacher's; the rest meet those p as strangers. Without pairs the energy
    distance is that to the reference.
    """

    name = "teacher"
    numbers: ClassVar = {
        "state_gap": Number("Mean squared distance, an entry, to what the teacher makes of the same noise.", floor="0")
    }

    def __call__(self, samples: Tensor, truth: Truth) -> dict[str, float]:
        """Return ``energy``, and ``state_gap`` where there are pairs."""
        if truth.paired is None:
            return {"energy": energy_distance(samples, truth.reference)}
        paired, p = truth.paired.to(samples.device), len(truth.paired)
        gap = (samples[:p].double() - paired.double()).square().mean()
        return {"energy": energy_distance(samples[p:], paired), "state_gap": float(gap)}
