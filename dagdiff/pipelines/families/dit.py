"""DiT, the transformer of ImageNet's classes."""

from typing import Any

from torch import Tensor, nn

from dagdiff.pipelines.families.base import Family, Wanted
from dagdiff.pipelines.families.classes import labels
from dagdiff.shapes import States


class DiT(Family):
    """``DiTTransformer2DModel`` (Peebles and Xie 2022, https://arxiv.org/abs/2212.09748): the last class is none."""

    def conditions(self, network: Any, pipeline: Any, wanted: Wanted) -> nn.Module:
        """Labels, with a null class of its own."""
        classes = network.config.num_embeds_ada_norm
        null = classes if wanted.null_class is None else wanted.null_class
        return labels(network, classes, classes + 1, null, wanted, getattr(pipeline, "labels", None))

    def __call__(self, network: Any, x_t: States, timestep: Tensor, given: Any) -> Tensor:
        """Ask with classes."""
        output: Tensor = network(x_t, timestep, class_labels=given).sample
        return output
