"""Kinds of training: what a student's states are, under one name in every suite.

=============  =====================================================================================================
states         a batch holds
=============  =====================================================================================================
forward        forward-diffused states only, the usual off-policy training
published      what the published method trains on, forward states for PD and LCM and student states for DMD2, and its
               labels: one solver step for LCM, none for DMD2
mixture        what suits the objective: all three sources; for DMD2 student and expert states
student        student states only
expert         expert states only: behaviour cloning
=============  =====================================================================================================

A variant is the name of its states. After a hyphen stands what else sets it apart: ``mixture-box`` adds a threshold,
``mixture-25/50/25`` has shares (in per cent, forward / student / expert) in place of the usual ones.
"""

from dagdiff.runs.config import Config
from dagdiff.runs.parts import resolve
from dagdiff.runs.recipes import recipe

SHARES = {
    "forward": (1.0, 0.0, 0.0),
    "student": (0.0, 1.0, 0.0),
    "expert": (0.0, 0.0, 1.0),
}
"""Shares (forward, student, expert) of the states that do not depend on the objective."""

PUBLISHED: dict[str, Config] = {
    "consistency": {"label_end": "step"},
    "distribution": {"label_weight": 0.0},
}
"""The labels of the published methods, as options of the objectives whose usual labels are others."""

LABELS = ("objective",)
"""The settings in which published cells differ from the others of their comparison."""

MIXES = {
    "mixture-25/50/25": (0.25, 0.5, 0.25),
    "mixture-50/25/25": (0.5, 0.25, 0.25),
    "mixture-25/25/50": (0.25, 0.25, 0.5),
    "mixture-50/50/0": (0.5, 0.5, 0.0),
    "mixture-50/0/50": (0.5, 0.0, 0.5),
    "mixture-0/50/50": (0.0, 0.5, 0.5),
    "mixture-33/33/33": (1 / 3, 1 / 3, 1 / 3),
}
"""Points of the triangle of shares beside its corners; the usual mixture of an objective is one of them."""

THRESHOLDS = {"": "none", "box": "box", "dynamic": "dynamic-box", "quantile": "quantile", "fold": "fold-box"}
"""What stands after the hyphen -> the threshold's short name, at the scale of the data."""


def shares_of(variant: str, objective: str, trained: str = "plane") -> list[float]:
    """Return the shares (forward, student, expert) of a variant.

    Args:
        variant: its name.
        objective: short name or import path; published states and the usual mixture depend on it.
        trained: the recipe that knows the usual mixture. Where it takes one source alone, that of the plane is taken.
    """
    if variant in MIXES:
        return list(MIXES[variant])
    states = variant.partition("-")[0]
    if states == "mixture":
        usual = recipe(trained, objective)["shares"]
        return list(usual if max(usual) < 1.0 else recipe("plane", objective)["shares"])
    if states == "published":
        states = "student" if getattr(resolve("objective", objective), "backward_simulation", False) else "forward"
    return list(SHARES[states])


def labelled(config: Config, variant: str) -> Config:
    """Return a run's configuration with the labels of its variant: the usual ones, but for ``published``."""
    objective = config["objective"]
    own = PUBLISHED.get(objective["class"], {}) if variant == "published" else {}
    return {**config, "objective": {**objective, **own}}


def threshold_of(variant: str) -> str:
    """Return the short name of a variant's threshold."""
    return THRESHOLDS.get(variant.partition("-")[2], "none")
