r"""Worlds of images: real pictures ``(C, H, W)`` in [-1, 1], a training split, a held-out split, and class labels.

A data set is the law itself only as far as it reaches: the teacher learns :attr:`ImageWorld.train`, and samples are
compared with :attr:`ImageWorld.test`, which nobody was trained on. As in 2-D, a *set* says which part the student
is shown: all of the training split (:func:`matched`), a handful of images (:func:`scarce`), only some of the classes
(:func:`biased`). The teacher knows the whole training split in all three.

:func:`digits` (8 x 8, 1797 images) serve tests, in seconds; :func:`fashion_mnist` (28 x 28 or pooled to 14 x 14, 70 000
images) serves benchmarks, and :mod:`dagdiff.envs.avatars` draws faces in colour. :mod:`dagdiff.envs.image_files` reads
your own.
"""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import avg_pool2d

from dagdiff.checkpoint import cache_folder
from dagdiff.checks import Refusal, check_seed
from dagdiff.envs.sets import Points


@dataclass(frozen=True, eq=False)
class ImageWorld:
    """A data set of images in two splits, both ``(N, C, H, W)`` in [-1, 1]; ``classes`` names the labels, if any.

    ``hidden`` numbers the classes that the biased set lacks; None: the upper half.
    """

    name: str
    train: Points
    test: Points
    classes: tuple[str, ...] = ()
    hidden: tuple[int, ...] | None = None
    box: ClassVar[float] = 1.0
    mixture: ClassVar[None] = None

    def __post_init__(self) -> None:
        for part, split in {"train": self.train, "test": self.test}.items():
            images, labels = split.points, split.labels
            if images.ndim != 4 or images.shape[1:] != self.train.points.shape[1:]:
                shapes = f"{tuple(self.train.points.shape)} and {tuple(self.test.points.shape)}"
                raise Refusal(f"both splits must be (N, C, H, W) of one image shape; got {shapes}. Resize one of them.")
            if images.abs().max() > 1.0:
                low, high = float(images.min()), float(images.max())
                raise Refusal(f"images must lie in [-1, 1]; {part} reaches from {low:.3g} to {high:.3g}. Rescale them.")
            if (labels is None) != (not self.classes):
                raise Refusal(f"{part} labels and class names come together. Give both, or labels None and classes ().")
            if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
                reach = f"{int(labels.min())} to {int(labels.max())}"
                raise Refusal(f"labels must number {len(self.classes)} classes from 0; {part} has {reach}. Renumber.")

    @property
    def labels(self) -> int:
        """Number of classes; 0 for unlabelled images."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, ``(C, H, W)``."""
        return tuple(self.train.points.shape[1:])

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw ``n`` training images with replacement, ``(n, C, H, W)``."""
        return self.train.sample(n, generator)

    def sample_labelled(self, n: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw the images of :meth:`sample` with their labels, ``(n, C, H, W)`` and ``(n,)`` int64."""
        return self.train.sample_labelled(n, generator)

    def reference(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw ``n`` different held-out images, ``(n, C, H, W)``: a repeated one would look like a mode of the law."""
        held = self.test.points
        if not 1 <= n <= len(held):
            raise Refusal(
                f"{self.name!r} holds out {len(held)} images; asked for {n} different ones. "
                f"Ask for at most {len(held)}, or compare with the teacher's samples."
            )
        device = generator.device if generator else None
        rows = torch.randperm(len(held), generator=generator, device=device)[:n]
        return held[rows.to(held.device)].to(rows.device)


def matched(world: ImageWorld) -> Points:
    """The whole training split: the student is shown what the teacher knows."""
    return world.train


def biased(world: ImageWorld, missing: Sequence[int] | None = None) -> Points:
    """The training images of some classes only; ``missing`` numbers the others (None: those that the world hides)."""
    if world.train.labels is None:
        raise Refusal(f"{world.name!r} has no labels to be biased by. Take the matched or the scarce set.")
    upper = tuple(range(world.labels - world.labels // 2, world.labels))
    missing = (upper if world.hidden is None else world.hidden) if missing is None else missing
    wrong = [each for each in missing if not 0 <= each < world.labels]
    if wrong or not missing:
        raise Refusal(f"missing must number classes from 0 to {world.labels - 1}; got {list(missing)}. Pass e.g. [0].")
    kept = ~torch.isin(world.train.labels, torch.tensor(list(missing)))
    if not kept.any():
        raise Refusal(f"missing={list(missing)} leaves {world.name!r} no image. Leave one class at least.")
    return Points(world.train.points[kept], world.train.labels[kept])


def scarce(world: ImageWorld, images: int | None = None, seed: int = 0) -> Points:
    """A fixed handful of different training images, the same for the same ``seed``; None is 100, or half of fewer."""
    points, labels = world.train.points, world.train.labels
    if images is None:
        images = 100 if len(points) > 100 else max(1, len(points) // 2)
    if not 1 <= images <= len(points):
        raise Refusal(f"images must lie in [1, {len(points)}] for {world.name!r}; got {images}. Pass e.g. 1.")
    rows = torch.randperm(len(points), generator=Generator().manual_seed(check_seed("seed", seed)))[:images]
    return Points(points[rows], None if labels is None else labels[rows])


def digits(held_out: float = 0.5, seed: int = 0) -> ImageWorld:
    """Handwritten digits, 8 x 8 in 17 greys: scikit-learn's copy of the UCI set (Alpaydin & Kaynak 1998, CC BY 4.0).

    Of 1797 images a small part would be too few to compare with, so half is held out. https://doi.org/10.24432/C50P49.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise Refusal("the digits come with scikit-learn, which is not here. Run: pip install scikit-learn") from None
    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images).float().reshape(-1, 1, 8, 8).div(8.0).sub(1.0)
    return hold_out("digits", pixels, torch.from_numpy(labels).long(), tuple("0123456789"), held_out, seed)


def fashion_mnist(folder: Path | None = None, size: int = 28) -> ImageWorld:
    """Fashion-MNIST: 60 000 + 10 000 grey images of ten kinds of clothes (Xiao, Rasul & Vollgraf 2017, MIT licence).

    https://arxiv.org/abs/1708.07747. The four ``.gz`` files are looked for in ``folder``, else in
    ``$DAGDIFF_FASHION_MNIST``, else where the Debian package ``dataset-fashion-mnist`` puts them, else in the user's
    cache. ``size=14`` averages over squares of four pixels.
    """
    if size not in (14, 28):
        raise Refusal(f"size must be 28, or 14 for the mean of 2 x 2 pixels; got {size}. Pass size=14.")
    place = _fashion_folder(folder)
    train, test = (_fashion_split(place, part, n, size) for part, n in (("train", 60_000), ("t10k", 10_000)))
    return ImageWorld(f"fashion{size}", train, test, _CLOTHES)


def read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read a gzipped IDX file of bytes that must have this shape, uint8 (LeCun's format: magic, sizes, data)."""
    header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)  # 8 stands for unsigned bytes
    try:
        with gzip.open(path) as file:
            raw = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise Refusal(f"{path} can't be read ({error}). Fetch it again.") from None
    if not raw.startswith(header) or len(raw) != len(header) + math.prod(shape):
        raise Refusal(f"{path} is no IDX file of bytes with shape {shape}; it begins {raw[:16].hex()}. Fetch it again.")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=len(header)).reshape(shape)


class Collection(NamedTuple):
    """Images that were read from somewhere, those of the training split first."""

    images: Tensor
    """States, ``(N, C, H, W)``."""
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    first: int | None = None
    """How many rows are the training split; None where the source has no splits of its own."""
    note: str = ""
    """How they were read, in words."""

    def world(self, name: str, held_out: float, seed: int) -> ImageWorld:
        """Return the dataset of these images; without splits a share is held out as in :func:`hold_out`."""
        if self.first is None:
            return hold_out(name, self.images, self.labels, self.classes, held_out, seed)
        return split_at(name, self.images, self.labels, self.classes, self.first)


def hold_out(
    name: str, images: Tensor, labels: Tensor | None, classes: tuple[str, ...], held_out: float, seed: int
) -> ImageWorld:
    """Shuffle images ``(N, C, H, W)`` by ``seed`` and hold out the share ``held_out`` of them as the test split."""
    held = round(held_out * len(images))
    if labels is not None and len(labels) != len(images):
        raise Refusal(f"labels must be as many as images; got {len(labels)} and {len(images)}. Give one an image.")
    if not 0 < held < len(images):
        raise Refusal(f"held_out={held_out} of {len(images)} images leaves a split empty. Pass e.g. held_out=0.2.")
    order = torch.randperm(len(images), generator=Generator().manual_seed(check_seed("seed", seed)))
    return split_at(name, images[order], None if labels is None else labels[order], classes, len(images) - held)


def split_at(name: str, images: Tensor, labels: Tensor | None, classes: tuple[str, ...], first: int) -> ImageWorld:
    """Make a dataset of images whose ``first`` rows are the training split and whose others are the test split."""
    train, test = (
        Points(images[rows], None if labels is None else labels[rows]) for rows in (slice(first), slice(first, None))
    )
    return ImageWorld(name, train, test, classes)


def to_states(images: Tensor, value_range: tuple[float, float] | None = None) -> Tensor:
    """Scale images to float32 in [-1, 1]; their type, or the range that is declared, says what black and white are.

    Bytes reach from 0 to 255. Floats from about 0 to 1 are in [0, 1], those that reach below -0.5 are in [-1, 1]; what
    passes an end by less than a tenth, as bicubic resizing leaves it, is cut off. Floats between the two could be
    either, and must be declared.

    Args:
        images: ``(N, C, H, W)``.
        value_range: black and white, where the type does not say it.

    Raises:
        Refusal: for floats of no known range, and for values far outside the one declared.
    """
    if value_range is None and images.dtype == torch.uint8:
        return images.float().div_(127.5).sub_(1.0)
    black, white = range_of(images, value_range)
    scale = 2.0 / (white - black)
    return (images.float() * scale + (-1.0 - black * scale)).clamp_(-1.0, 1.0)


def range_of(images: Tensor, value_range: tuple[float, float] | None = None) -> tuple[float, float]:
    """Return what black and white are in images; arguments, rules and errors as in :func:`to_states`."""
    if value_range is None and images.dtype == torch.uint8:
        return 0.0, 255.0
    low, high = (float(end) for end in images.aminmax())
    found = f"{images.dtype} from {low:.4g} to {high:.4g}"
    if value_range is None:
        if not images.is_floating_point() or not -1.1 <= low <= high <= 1.1:
            raise Refusal(
                f"images must be uint8, or floats in [0, 1] or [-1, 1]; got {found}. Store bytes as uint8, divide, or "
                "declare black and white: --value_range BLACK,WHITE, or range=[black, white] in an .npz file."
            )
        if -0.5 < low < -0.1:
            raise Refusal(
                f"images could be floats in [0, 1] or in [-1, 1]; got {found}. Declare it: --value_range "
                "-1,1 (or 0,1), or range=[-1, 1] beside the images of an .npz file."
            )
        value_range = (0.0, 1.0) if low >= -0.1 else (-1.0, 1.0)
    black, white = value_range
    slack = 0.1 * (white - black)
    if not black < white or not black - slack <= low <= high <= white + slack:
        raise Refusal(f"images are declared to lie in [{black:g}, {white:g}]; got {found}. Declare another range.")
    return black, white


SETS: dict[str, Callable[[ImageWorld], Points]] = {"matched": matched, "scarce": scarce, "biased": biased}


def _fashion_folder(folder: Path | None) -> Path:
    """A folder that was named is the only one looked into."""
    named = folder or os.environ.get("DAGDIFF_FASHION_MNIST")
    cache = cache_folder() / "fashion-mnist"
    places = [Path(named)] if named else [Path("/usr/share/datasets/fashion-mnist"), cache]
    for place in places:
        if (place / "train-images-idx3-ubyte.gz").exists():
            return place
    raise Refusal(
        f"Fashion-MNIST is not in {' or '.join(map(str, places))}. Run: apt-get install dataset-fashion-mnist; or put "
        f"the four .gz files of https://github.com/zalandoresearch/fashion-mnist into {cache}; or name their folder "
        "in $DAGDIFF_FASHION_MNIST."
    )


def _fashion_split(place: Path, part: str, n: int, size: int) -> Points:
    images = to_states(read_idx(place / f"{part}-images-idx3-ubyte.gz", (n, 28, 28)))
    labels = read_idx(place / f"{part}-labels-idx1-ubyte.gz", (n,))
    return Points(avg_pool2d(images.unsqueeze(1), 28 // size), labels.long())


_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
