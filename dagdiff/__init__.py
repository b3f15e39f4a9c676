"""Diffusion distillation as imitation learning: DAgger for diffusion.

A few-step student is a policy, the reverse diffusion chain its environment, the many-step teacher the expert. dagdiff
gathers the states the student really visits, lets the expert label them, and trains the student with any distillation
objective.

The public names below are loaded when first asked for: ``import dagdiff`` alone loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_PUBLIC = {
    "CosineSchedule": "dagdiff.schedule",
    "Consistency": "dagdiff.objectives.consistency",
    "DAgger": "dagdiff.dagger",
    "Ddim": "dagdiff.transition",
    "DistributionMatching": "dagdiff.objectives.distribution",
    "Experiment": "dagdiff.runs.experiment",
    "Expert": "dagdiff.expert",
    "FlowSchedule": "dagdiff.schedule",
    "Progressive": "dagdiff.objectives.progressive",
    "Refusal": "dagdiff.checks",
    "Renoise": "dagdiff.transition",
    "Round": "dagdiff.round",
    "Shares": "dagdiff.mixture",
    "VPSchedule": "dagdiff.schedule",
    "configure": "dagdiff.runs.config",
    "judge": "dagdiff.judging.judge",
    "measure": "dagdiff.report.measured",
    "sample": "dagdiff.transition",
    "states": "dagdiff.labelled",
}
"""Public name -> the module that holds it. A name added here is added to the imports and to ``__all__`` below."""

if TYPE_CHECKING:
    from dagdiff.checks import Refusal
    from dagdiff.dagger import DAgger
    from dagdiff.expert import Expert
    from dagdiff.judging.judge import judge
    from dagdiff.labelled import states
    from dagdiff.mixture import Shares
    from dagdiff.objectives.consistency import Consistency
    from dagdiff.objectives.distribution import DistributionMatching
    from dagdiff.objectives.progressive import Progressive
    from dagdiff.report.measured import measure
    from dagdiff.round import Round
    from dagdiff.runs.config import configure
    from dagdiff.runs.experiment import Experiment
    from dagdiff.schedule import CosineSchedule, FlowSchedule, VPSchedule
    from dagdiff.transition import Ddim, Renoise, sample
else:  # hidden from type checkers, which would take any name for public

    def __getattr__(name: str) -> object:
        """Load a public name from its module, once."""
        if name not in _PUBLIC:
            raise AttributeError(f"module 'dagdiff' has no attribute {name!r}")
        value = getattr(import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


__all__ = [
    "Consistency",
    "CosineSchedule",
    "DAgger",
    "Ddim",
    "DistributionMatching",
    "Experiment",
    "Expert",
    "FlowSchedule",
    "Progressive",
    "Refusal",
    "Renoise",
    "Round",
    "Shares",
    "VPSchedule",
    "__version__",
    "configure",
    "judge",
    "measure",
    "sample",
    "states",
]
