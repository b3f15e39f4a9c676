"""Hooks: what a user's code sees inside a round, between its gathering and its end.

A round is seen from outside by whoever iterates over the loop. A hook sees the labelled states that enter, and each
update. It is called with tensors as they are, on their device: one that reads a number of a GPU waits for it.
"""

from typing import Any

from tensordict import TensorDict
from torch import Tensor


class Hook:
    """Sees what happens inside a round; override what you want to see.

    >>> class Norms(Hook):
    ...     def updated(self, loop, batch, losses):
    ...         print(loop.update, losses["loss"], losses["gradient_norm"])
    >>> loop = DAgger(student, expert, Progressive(), env, data, hooks=[Norms()])  # doctest: +SKIP

    What a hook remembers is no part of the loop's state; rounds that are replayed on resuming are not shown again.
    """

    def gathered(self, loop: Any, source: str, records: TensorDict) -> None:
        """Called for each batch of labelled states of one source as it enters the aggregate.

        Args:
            loop: the :class:`dagdiff.dagger.DAgger`.
            source: "forward", "student" or "expert".
            records: the states with their labels.
        """

    def updated(self, loop: Any, batch: TensorDict, losses: dict[str, Tensor]) -> None:
        """Called after each update of the student.

        Args:
            loop: the :class:`dagdiff.dagger.DAgger`; ``loop.update`` counts the updates made, this one with them.
            batch: the states that the update was made by.
            losses: what it told, scalars: ``loss``, its parts, ``gradient_norm``, and the critic's.
        """
