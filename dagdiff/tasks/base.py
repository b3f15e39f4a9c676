"""A task: a named problem to distil in, and how its students are scored."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dagdiff.checks import Refusal
from dagdiff.envs.images import ImageWorld
from dagdiff.envs.toy2d import World
from dagdiff.expert import Expert, Guide, classifier_free
from dagdiff.metrics.base import Metric
from dagdiff.metrics.samples import Energy, Mmd, ModeCounts, Neighbours, SlicedWasserstein, Wasserstein
from dagdiff.metrics.standing import Standing, compare
from dagdiff.metrics.truth import Truth
from dagdiff.rollout import Data
from dagdiff.schedule import Schedule, step_grid
from dagdiff.shapes import Condition, Times
from dagdiff.transition import Transition

if TYPE_CHECKING:  # it needs diffusers
    from dagdiff.tasks.pipeline_data import PipelineWorld


@dataclass(frozen=True)
class Task:
    """A dataset, the data the student is shown, the noise schedule, and whether chains are conditioned on labels."""

    name: str
    world: "World | ImageWorld | PipelineWorld"
    data: Data
    schedule: Schedule
    conditional: bool = False
    shape: tuple[int, ...] = (2,)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Energy(), Wasserstein(), SlicedWasserstein(), Mmd(), Neighbours(), ModeCounts()
    )  # fmt: skip
    """What samples are always scored by; :func:`dagdiff.metrics.base.score` does it."""
    looked: ClassVar[tuple[Metric, ...]] = (Energy(), ModeCounts())
    """What they are scored by while a run trains: a few of these, and quick."""
    nfes: ClassVar[tuple[int, ...]] = (1, 2, 4, 8, 16, 32, 64)
    """The numbers of steps at which a suite scores the expert's own chain."""
    saved: ClassVar[int | None] = None
    """How many of a run's samples a suite keeps on disk; None for all."""

    @property
    def labels(self) -> int:
        """Number of classes that condition a chain; 0 for unconditional tasks."""
        return self.world.labels if self.conditional else 0

    @property
    def conditions(self) -> Callable[[int, torch.Generator | None], Tensor] | None:
        """Draws the labels of new chains by the dataset's own weights; None for unconditional tasks."""
        return self._label if self.conditional else None

    def _label(self, n: int, generator: torch.Generator | None) -> Tensor:
        labels: Tensor = self.world.sample_labelled(n, generator)[1]
        return labels

    def reference(self, n: int, generator: torch.Generator) -> Tensor:
        """Clean points of the whole law that samples are compared with, ``(n, *D)``, or fewer if there are no more."""
        return self.world.reference(n, generator)

    def truth(
        self,
        n: int,
        generator: torch.Generator,
        chance: torch.Generator | None = None,
        asked: Tensor | None = None,
        paired: Tensor | None = None,
    ) -> Truth:
        """Return what ``n`` samples are scored against.

        Args:
            n: their number.
            generator: draws the reference.
            chance: of what metrics draw themselves.
            asked: the classes that the samples were to show, ``(n,)``.
            paired: the expert's samples from the same noise, ``(p, *D)`` with p at most n, of the first rows.
        """
        return Truth(self.reference(n, generator), self.world.mixture, None, asked, paired, generator=chance)

    def stand(self, student: Tensor, teacher: Tensor, truth: Truth) -> Standing:
        """Compare a student's samples with its teacher's in as many steps, by the distance that counts for such tasks.

        Both are ``(n, *D)``, from the same noise.
        """
        return compare(Energy(), student, teacher, truth)

    def real(self, n: int, generator: torch.Generator) -> Tensor:
        """Return real points to be scored as if they were samples, ``(n, *D)``: the floor."""
        return self.world.sample(n, generator)

    def pair(self, expert: Expert, noise: Tensor, times: Times, condition: Condition) -> Tensor | None:
        """What the expert makes of the same noise, if samples are compared one by one; in 2-D they are not."""
        return None

    def check_training(self) -> None:
        """Refuse what no student can be trained on, though samples can be drawn of it."""

    @property
    def real_data(self) -> bool:
        """Whether data are more than samples of the teacher."""
        return True

    @property
    def guide(self) -> Guide:
        """What guidance makes of the expert's guesses with and without a condition."""
        return classifier_free

    def unmet(self, guidance: float | tuple[float, float]) -> float | Callable[[Tensor], Tensor]:
        """Return the weight of classifier-free guidance that the expert has to add to reach the one asked for.

        Of a range that is what tells the weights of conditions.
        """
        if isinstance(guidance, tuple):
            raise Refusal(
                f"--guidance {','.join(f'{each:g}' for each in guidance)} is a range, which students of pipelines "
                f"alone are told. Pass one weight for {self.name!r}."
            )
        return guidance

    def numbers(self, condition: Tensor) -> Tensor:
        """Return the classes or prompts that conditions ask for, ``(n,)``."""
        return condition

    def weights(self, condition: Tensor) -> Tensor | None:
        """Return the weights of guidance that the student is told beside, ``(n,)``; None where it is told none."""
        return None

    def weighted(self, condition: Condition, weight: float) -> Condition:
        """Return conditions that ask for the same at one weight of guidance.

        Raises:
            Refusal: where the student is told no weight, or one outside the range of its training.
        """
        raise Refusal(
            f"--guidance {weight:g}: this student was trained with one weight of guidance and is told none. Leave it "
            "away, or train a student with a range, such as --guidance 3,8."
        )

    def probes(self, samples: int) -> int:
        """How many chains measure the held-out losses, where so many samples are scored."""
        return samples // 2

    def grid(self, steps: int, transition: Transition) -> Times:
        """Return the times that a student of K steps and of that law visits, ``(K + 1,)``: the uniform grid."""
        return step_grid(steps)

    @property
    def base(self) -> dict[str, str]:
        """Hashes of the weights, by name, that a student of the task stands on and its own file does not hold."""
        return {}

    @property
    def prompts(self) -> tuple[str, ...]:
        """What conditions ask for, in words, by their numbers; none where they are not prompts."""
        return ()

    def pictures(self, points: Tensor) -> Tensor:
        """Return what points look like, for figures: themselves, unless they are latents."""
        return points
