"""What is measured and compared, in words: metrics, which of them are judged by, and the names on display.

What a number means is said by its metric. Students in 2-D are judged by the energy distance, students of images by the
Frechet distance in the features of a classifier. Results hold ids (``mixture-box``, ``progressive``); tables, figures,
the report and the terminal show the names made here.
"""

from dagdiff.metrics.names import all_numbers

METRICS = all_numbers()
"""Id of a number -> what it means: :class:`dagdiff.metrics.base.Number`."""

DISTANCES = {name: number.title for name, number in METRICS.items() if number.chance is not None}
"""The numbers that students may be judged by -> their names in a sentence."""

BASELINES = ("forward", "published")
"""What every variant is compared with."""

OBJECTIVES = {"progressive": "PD", "consistency": "LCM", "distribution": "DMD2"}
"""Objective -> its name on display; see :func:`objective_name`."""

OPERATORS = {"box": "threshold", "dynamic": "dynamic", "quantile": "quantile", "fold": "fold"}
"""The threshold that a variant adds to its states -> its name on display."""


def objective_name(objective: str) -> str:
    """Return the name of an objective on display: its own where it has no other."""
    return OBJECTIVES.get(objective, objective)


def variant_name(variant: str) -> str:
    """Return the name on display of what a student was trained on.

    ``mixture-box`` is "mixture + threshold", and ``mixture-25/50/25``, whose shares are not the usual ones, "mixture
    25/50/25".
    """
    states, _, rest = variant.partition("-")
    if rest in OPERATORS:
        return f"{states} + {OPERATORS[rest]}"
    return f"{states} {rest}" if rest[:1].isdigit() else variant


def scale_of(metric: str) -> float | None:
    """Return the factor by which a metric is shown, with one decimal; None for those that are shown as they are."""
    return METRICS[metric].scale if metric in METRICS else None


def quantity(metric: str) -> str:
    """Return the name of a metric that students are judged by, with the factor by which it is shown."""
    scale = scale_of(metric)
    return f"{DISTANCES[metric]} x {scale:.0f}" if scale else DISTANCES[metric]
