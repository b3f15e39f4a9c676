"""A small classifier of the data itself: the eye that image samples are looked at with.

Inception knows photographs; on digits and clothes a network trained on the same data sees more, and its features need
no download. The authors of FID advise it for such data (https://github.com/bioinf-jku/TTUR/issues/24). Scores are
comparable for *one* set of weights only: so the seed is fixed, the weights are kept, and their
:attr:`Classifier.fingerprint` stands beside every score.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dagdiff.checkpoint import content_hash, load_state, load_weights, save_state, save_weights
from dagdiff.checks import Refusal, check_at_least, check_seed
from dagdiff.progress import Progress


class Classifier(nn.Module):
    """Three convolutions and two linear layers, each but the last normalised; 28 x 28 and above get the wider one.

    It is built in eval mode, where rows don't depend on each other.

    Args:
        shape: of one image, ``(C, H, W)``.
        classes: their number K.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        if len(shape) != 3 or min(shape[1:]) < 8:
            raise Refusal(f"the classifier needs images (C, H, W) of 8 x 8 at least; got {tuple(shape)}. Enlarge them.")
        check_at_least("classes", classes, 2)
        self.classes = classes
        large = min(shape[1:]) >= 28
        first, second, third, self.feature_size = (32, 64, 64, 128) if large else (16, 32, 32, 64)
        convolutions = nn.Sequential(
            _convolution(shape[0], first, stride=2 if large else 1),
            _convolution(first, second, stride=1),
            _convolution(second, third, stride=2),
            nn.Flatten(),
        )
        with torch.no_grad():
            flat = convolutions.eval()(torch.zeros(1, *shape)).shape[1]
        norm = nn.BatchNorm1d(self.feature_size)
        self.body = nn.Sequential(convolutions, nn.Linear(flat, self.feature_size, bias=False), norm, nn.ReLU())
        self.head = nn.Linear(self.feature_size, classes)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images in [-1, 1], ``(n, K)``."""
        logits: Tensor = self.head(self.body(images))
        return logits

    @torch.no_grad()
    def see(self, images: Tensor, batch_size: int = 500) -> tuple[Tensor, Tensor]:
        """Return the features of images, ``(n, F)``, and the classes they look like, ``(n,)`` int64."""
        device = self.head.weight.device
        features = torch.cat([self.body(part.to(device)) for part in images.split(batch_size)])
        return features, self.head(features).argmax(1)

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Return the share of images that look like the class their label names."""
        return float((self.see(images)[1] == labels.to(self.head.weight.device)).double().mean())

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with any weight."""
        return content_hash(*(value for _, value in sorted(self.state_dict().items())))[:12]


def train_classifier(
    images: Tensor,
    labels: Tensor,
    updates: int = 700,
    batch_size: int = 256,
    lr: float = 5e-3,
    seed: int = 0,
    keep: Path | None = None,
) -> Classifier:
    """Train a classifier of images ``(N, C, H, W)`` in [-1, 1] with labels ``(N,)`` from 0; ``seed`` decides all.

    AdamW; the rate climbs to ``lr`` and falls again in one cycle (Smith & Topin 2017, https://arxiv.org/abs/1708.07120).
    700 updates are three passes over 60 000 images. With a file to ``keep`` its state in, every 100 updates, training
    that was stopped is resumed; the file is the caller's to delete.
    """
    check_at_least("updates", updates, 1)
    check_seed("seed", seed)
    if len(images) < batch_size or labels.shape != (len(images),):
        raise Refusal(
            f"training needs one label an image and {batch_size} images at least; got {len(images)} images and labels "
            f"{tuple(labels.shape)}. Pass a smaller batch_size."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(tuple(images.shape[1:]), int(labels.max()) + 1).to(images.device)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(classifier.parameters(), lr)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=updates)
    classifier.train()
    parts: dict[str, Any] = {"all": classifier, "optimiser": optimiser, "rate": rate}
    rows, done = torch.empty(0, dtype=torch.int64), 0
    if keep is not None and keep.exists():
        state = load_state(keep, parts)
        rows, done = state["rows"], state["done"]
        generator.set_state(state["generator"])
    bar = Progress("the classifier of the scores", updates, "update", done)
    for update in bar.over(range(done, updates)):
        if keep is not None and update > done and update % 100 == 0:
            states = {name: part.state_dict() for name, part in parts.items()}
            save_state(keep, {**states, "generator": generator.get_state(), "rows": rows, "done": update})
        if len(rows) < batch_size:
            rows = torch.randperm(len(images), generator=generator)
        batch, rows = rows[:batch_size].to(images.device), rows[batch_size:]
        loss = cross_entropy(classifier(images[batch]), labels[batch])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        rate.step()
    return classifier.eval()


def kept_classifier(folder: Path, images: Tensor, labels: Tensor, updates: int = 700, seed: int = 0) -> Classifier:
    """Return the classifier of these images, from ``folder`` if it is there, else trained and saved there.

    The file is named by a hash of images, labels and settings, so other data can't be judged by it unawares.
    """
    settings = torch.tensor([_VERSION, updates, seed])
    path = Path(folder) / f"classifier-{content_hash(images, labels, settings)[:16]}.safetensors"
    if not path.exists():
        part = path.with_suffix(".part")
        save_weights(path, train_classifier(images, labels, updates, min(256, len(images)), seed=seed, keep=part))
        part.unlink(missing_ok=True)
    classifier = Classifier(tuple(images.shape[1:]), int(labels.max()) + 1)
    load_weights(path, classifier)
    return classifier


def _convolution(before: int, after: int, stride: int) -> nn.Sequential:
    layers = nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
    return nn.Sequential(*layers)


_VERSION = 1  # raise it when the classifier or its training changes
