"""A student most of whose weights are frozen: adapters on a large network.

Training keeps copies of a student: the last good state, the best, an average, DMD2's critic. Of an adapted student
they hold only what is trained; the frozen weights are there once.
"""

import copy
from typing import Any

from torch import Tensor, nn

from dagdiff.policies.prediction import Prediction
from dagdiff.policies.student import Student
from dagdiff.schedule import Schedule


class Adapted(Student):
    """A student whose state is that of its trained weights, and whose copies share its frozen ones.

    What is trained is what asks for a gradient when it is made. So ``state_dict``, and a file of weights, hold adapters
    alone; they are loaded into a student of the same build, on the same frozen network.

    Args:
        network: ``(x_t, t, condition) -> output``.
        schedule: the noise schedule of its states.
        prediction: what the output means.
    """

    stands_on: dict[str, str] = {}  # noqa: RUF012  (a student's own is set, never changed)
    """Hashes of frozen weights, by name, that are not those of the task's own teacher."""

    def __init__(self, network: nn.Module, schedule: Schedule, prediction: Prediction) -> None:
        super().__init__(network, schedule, prediction)
        self.trained = {name for name, weight in self.named_parameters() if weight.requires_grad}
        self.register_state_dict_post_hook(_without_frozen)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_frozen_may_miss)  # type: ignore[no-untyped-call]

    def requires_grad_(self, requires_grad: bool = True) -> "Adapted":
        """Freeze or unfreeze what is trained; the rest stays frozen."""
        for name, weight in self.named_parameters():
            weight.requires_grad_(requires_grad and name in self.trained)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Adapted":
        memo.update({id(weight): weight for name, weight in self.named_parameters() if name not in self.trained})
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


def _without_frozen(module: Adapted, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    """Drop the frozen weights from a state that is being made."""
    for name, _ in module.named_parameters():
        if name not in module.trained:
            state.pop(prefix + name, None)


def _frozen_may_miss(module: Adapted, keys: Any) -> None:
    """Miss no frozen weight in a state that was loaded, whatever this module is called in a larger one."""
    frozen = tuple(name for name, _ in module.named_parameters() if name not in module.trained)
    keys.missing_keys[:] = [key for key in keys.missing_keys if not key.endswith(frozen)]
