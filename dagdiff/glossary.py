"""What is measured, in words: the metrics of every suite, and which of them are judged by.

Students of the plane are judged by the energy distance, students of images by the Frechet distance in the features of a
classifier; a run holds the metrics of its kind, the others are unknown.
"""

METRICS = {
    "energy": "Energy distance to the true law, in units of x: 0 for equal laws, by chance perhaps just below.",
    "w2": "Wasserstein distance: how far samples must be moved (root mean square) to become real ones; never quite 0.",
    "sliced_w2": "The same along random lines through the plane, averaged.",
    "mmd": "Maximum mean discrepancy, squared: how far averages of smooth bumps differ; 0 for equal laws.",
    "fd": "Frechet distance of Gaussians fitted to the features of a classifier of the same data (FD-cnn, not FID).",
    "kd": "Kernel distance of those features, squared: 0 in mean for equal laws.",
    "precision": "Share of samples that lie among real points.",
    "recall": "Share of real points that lie among samples.",
    "density": "How crowded with real points the places of the samples are; 1 for equal laws.",
    "coverage": "Share of real points that have a sample near by; about 0.97 for equal laws.",
    "on_mode": "Share of samples within 3 standard deviations of a mode of the true law; 0.989 for equal laws.",
    "mode_kl": "How far the shares of the modes are from the true ones, in nats: 0 when each gets its own.",
    "spread": "Width of the modes over their true width: 1 is right, 0 is collapse.",
    "class_tv": "Share of samples in the wrong class, by the classifier's counts: 0 when each class gets its own.",
    "missing": "Share of samples in the classes that the student was not shown, as the classifier sees them.",
    "agreement": "Share of samples that look like the class they were asked to show.",
    "diversity": "Mean distance between two samples' features.",
    "pixel_gap": "Mean squared distance, a pixel, to what the expert makes of the same noise.",
    "feature_gap": "The same in the classifier's features.",
    "loss_forward": "Imitation loss on forward states, noised data: the student's guess against the expert's, squared.",
    "loss_own": "Imitation loss on own states: the same, where the student's own chains have led it.",
    "loss_gap": "Loss on own states minus on forward states: what training on noised data alone does not see.",
}
"""Metric -> what it means, in a sentence."""

DISTANCES = {"energy": "energy distance", "fd": "FD-cnn"}
"""The metrics that students are judged by, the first where there is no other -> their names in a sentence."""

CHANCE = {"energy": 1.0, "fd": 0.2}
"""The part of the floor that is chance. All of it where equal laws score 0 in mean; a Frechet distance's floor is
mostly bias, and varied by a fifth of itself over splits of the digits."""

COMPARED = ("energy", "w2", "fd", "loss_gap", "coverage", "missing")
"""Metrics whose differences are taken seed by seed."""

EXCESSES = ("energy", "w2", "fd")
"""Metrics of which the expert's own is subtracted."""

LARGER_IS_BETTER = ("coverage", "missing")

BASELINES = {"forward": "forward-only", "base": "the base method"}
"""What every variant is compared with -> its name in a sentence."""
