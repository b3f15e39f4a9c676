"""What is measured and compared, in words: metrics, which of them are judged by, and the names on display.

Students in 2-D are judged by the energy distance, students of images by the Frechet distance in the features of a
classifier; a run holds the metrics of its kind, the others are unknown. Results hold ids (``ddil``, ``progressive``);
tables, figures, the report and the terminal show the names made here.
"""

METRICS = {
    "energy": "Energy distance to the target distribution, in units of x: 0 is best; chance may bring it just below.",
    "w2": "Wasserstein distance: how far samples must be moved (root mean square) to become real ones; never quite 0.",
    "sliced_w2": "The same along random lines, averaged.",
    "mmd": "Maximum mean discrepancy, squared: how far averages of smooth bumps differ; 0 for equal distributions.",
    "fd": "Frechet distance of Gaussians fitted to the features of a classifier of the same data (FD-cnn, not FID).",
    "kd": "Kernel distance of those features, squared: 0 in mean for equal distributions.",
    "precision": "Share of samples that lie among real points.",
    "recall": "Share of real points that lie among samples.",
    "density": "How crowded with real points the places of the samples are; 1 for equal distributions.",
    "coverage": "Share of real points that have a sample near by; about 0.97 for equal distributions.",
    "on_mode": "Share of samples within 3 standard deviations of a mode of the target; 0.989 for equal distributions.",
    "mode_kl": "How far the shares of the modes are from the true ones, in nats: 0 when each gets its own.",
    "spread": "Width of the modes over their true width: 1 is right, 0 is collapse.",
    "class_tv": "Share of samples in the wrong class, by the classifier's counts: 0 when each class gets its own.",
    "missing": "Share of samples in the classes that the training data lack, as the classifier sees them.",
    "agreement": "Share of samples that look like the class they were asked to show.",
    "diversity": "Mean distance between two samples' features.",
    "pixel_gap": "Mean squared distance, a pixel, to what the expert makes of the same noise.",
    "feature_gap": "The same in the classifier's features.",
    "loss_forward": "Imitation loss on forward states (noised data): squared difference of the two predictions.",
    "loss_own": "Imitation loss on student states: the same, at the states of the student's own chains.",
    "loss_gap": "Loss on student states minus on forward states: what training on noised data alone does not see.",
}
"""Metric -> what it means, in a sentence."""

DISTANCES = {"energy": "energy distance", "fd": "FD-cnn"}
"""The metrics that students are judged by, the first where there is no other -> their names in a sentence."""

SCALES = {"energy": 1000.0}
"""Metric -> the factor by which it is shown, with one decimal; the others are shown as they are."""

CHANCE = {"energy": 1.0, "fd": 0.2}
"""The part of the floor that is chance. All of it where equal laws score 0 in mean; a Frechet distance's floor is
mostly bias, and varied by a fifth of itself over splits of the digits."""

COMPARED = ("energy", "w2", "fd", "loss_gap", "coverage", "missing")
"""Metrics whose differences are taken seed by seed."""

EXCESSES = ("energy", "w2", "fd")
"""Metrics of which the expert's own is subtracted."""

LARGER_IS_BETTER = ("coverage", "missing")

BASELINES = ("forward", "base")
"""What every variant is compared with."""

OBJECTIVES = {"progressive": "PD", "consistency": "LCM", "distribution": "DMD2"}
"""Objective -> its name on display; see :func:`objective_name`."""

VARIANTS = {"base": "published", "ddil": "mixture"}
"""What a student was trained on -> its name on display; see :func:`variant_name`."""

OPERATORS = {"reflected": "threshold", "dynamic": "dynamic", "quantile": "quantile", "fold": "fold"}
"""The threshold that a variant adds to another -> its name on display."""


def objective_name(objective: str) -> str:
    """Return the name of an objective on display: its own where it has no other."""
    return OBJECTIVES.get(objective, objective)


def variant_name(variant: str) -> str:
    """Return the name on display of what a student was trained on: ``reflected-ddil`` is "mixture + threshold"."""
    operator, _, states = variant.partition("-")
    if operator in OPERATORS:
        return f"{variant_name(states)} + {OPERATORS[operator]}"
    return VARIANTS.get(variant, variant)


def quantity(metric: str) -> str:
    """Return the name of a metric that students are judged by, with the factor by which it is shown."""
    return f"{DISTANCES[metric]} x {SCALES[metric]:.0f}" if metric in SCALES else DISTANCES[metric]
