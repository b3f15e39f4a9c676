"""Your own pictures as the states of a pipeline: read, cropped and encoded a few at a time, once, and kept on the disk.

Memory does not grow with their number: pictures are read one by one, states are written as they are made, and a run
reads them memory-mapped. What is kept is found again by the hash of the pictures and of the autoencoder. A fifth is
held out, the same for the same pictures: chosen at random, or, of a source that can only be read in order, one of each
five in a row.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from dagdiff.checkpoint import cache_folder, content_hash
from dagdiff.checks import Refusal, check_finite
from dagdiff.envs.image_files import scaled, tell
from dagdiff.envs.streams import Stream, read_state
from dagdiff.jobs.pieces import Piece, kept_rows
from dagdiff.pipelines.captions import in_words
from dagdiff.pipelines.conditions import Labels as Classes
from dagdiff.pipelines.conditions import PromptBank
from dagdiff.pipelines.latents import Pixels
from dagdiff.pipelines.pictures import is_arrays, open_pictures
from dagdiff.pipelines.pretrained import DiffusersExpert
from dagdiff.progress import Progress
from dagdiff.tasks.pipeline_data import HELD_OUT, Kept, Splits

PARTS = ("shown", "held")
"""The tables of a file of states: those that are shown, and those that are held out."""


def encoded_images(
    teacher: DiffusersExpert,
    source: str,
    column: str | None = None,
    skip_broken: bool = False,
    value_range: tuple[float, float] | None = None,
) -> Splits:
    """Return the states of pictures, shown and held out; encoded once, cached, and read memory-mapped.

    Captions become their conditions, by their numbers among the teacher's prompts; where there are none, their classes
    do: as prompts, if these are among the teacher's, or as the classes of its network.

    Args:
        teacher: whose states they become.
        source: see :func:`dagdiff.pipelines.pictures.open_pictures`; pictures are cropped in their middle to the
            pipeline's size.
        column: of captions, where they stand in columns; None takes the one called prompt, caption or text.
        skip_broken: leave out pictures that can't be read.
        value_range: black and white of a file of arrays, where its numbers leave it open.

    Raises:
        Refusal: if there are none, arrays are of another size than the pipeline's, a caption is not among the prompts,
            or their classes can't be told to be the network's.
        Stopped: after INT or TERM; the states made so far are kept.
    """
    conditions = teacher.network.conditions
    prompts = conditions.prompts if isinstance(conditions, PromptBank) else ()
    stream = open_pictures(source, column, bool(prompts), value_range)
    numbers = _conditions(conditions, stream)
    path = cache_folder() / "latents" / f"{_key(teacher, stream, skip_broken)}.safetensors"
    found = kept_rows(path, partial(_pieces, teacher, stream, skip_broken), f"states of {source}")
    about = [found[f"{part}_about"] for part in PARTS]
    labels = [None if numbers is None else numbers[each[:, 0]] for each in about]
    _tell(stream, teacher, about, labels)
    shown, held = (Kept(found[part], label, path) for part, label in zip(PARTS, labels, strict=True))
    return shown, held


class _Item(NamedTuple):
    """A picture that has been read."""

    row: int
    image: Tensor
    cropped: bool


_Chunk = tuple[dict[str, list[_Item]], list[int]]
"""Pictures of each part, and where the source resumes after them."""


class _Reader:
    """Reads pictures of a stream in the size of a pipeline; those that can't be read are refused or left out."""

    def __init__(self, stream: Stream, size: tuple[int, int], skip_broken: bool) -> None:
        self.stream, self.size, self.skip_broken = stream, size, skip_broken

    def __call__(self, row: int, name: str, source: Any) -> _Item | None:
        """Return a picture; None for one that is left out."""
        try:
            return _Item(row, *read_state(name, source, self.size))
        except Refusal:
            if not self.skip_broken:
                raise
            return None

    def open(self, row: int) -> _Item | None:
        """Return the picture of a number."""
        assert self.stream.open is not None
        return self(row, *self.stream.open(row))

    def readable(self) -> list[int]:
        """Return the numbers of the pictures that can be read; where broken ones are left out, each is tried."""
        count = self.stream.count or 0
        if not self.skip_broken:
            return list(range(count))
        with Progress("looking for broken pictures", count, "picture") as bar:
            return [row for row in bar.over(range(count)) if self.open(row) is not None]


def _pieces(teacher: DiffusersExpert, stream: Stream, skip_broken: bool, state: Any) -> Iterator[Piece]:
    """The states of a stream, from where they were stopped; each part draws from the posterior with its own numbers."""
    generators = {part: Generator().manual_seed(0) for part in PARTS}
    for part in PARTS if state else ():
        generators[part].set_state(state["random"][part])
    made = dict(state["made"]) if state else dict.fromkeys(PARTS, 0)
    height, width = teacher.autoencoder.image_shape[1:]
    reader = _Reader(stream, (height, width), skip_broken)
    chunks = (_in_turn if stream.open is None else _chosen)(reader, state["done"] if state else None)
    with Progress("encoding", stream.count or 0, "picture", sum(made.values())) as bar:
        for chunk, done in chunks:
            rows: dict[str, Tensor] = {}
            for part, items in chunk.items():
                images = torch.stack([_in_channels(item.image, teacher) for item in items])
                rows[part] = check_finite("states of pictures", _encoded(teacher, images, generators[part]))
                rows[f"{part}_about"] = torch.tensor([[item.row, item.cropped] for item in items])
                made[part] += len(items)
                bar.advance(len(items))
            random = {part: generator.get_state() for part, generator in generators.items()}
            yield Piece(rows, {"done": done, "random": random, "made": dict(made)})
    if not all(made.values()):
        raise Refusal(
            f"{stream.source} has {sum(made.values())} pictures that can be read, and a fifth is held out. Give ten or "
            "more."
        )


def _chosen(reader: _Reader, done: list[int] | None) -> Iterator[_Chunk]:
    """The pictures of a stream that can be opened anywhere, a few at a time: all that are shown, then the others."""
    kept, first = reader.readable(), reader.stream.first
    if first is None:
        order = [kept[place] for place in torch.randperm(len(kept), generator=Generator().manual_seed(0)).tolist()]
        first = len(order) - round(HELD_OUT * len(order))
    else:
        order, first = kept, sum(row < first for row in kept)
    plan = [
        (part, rows[at : at + _AT_ONCE])
        for part, rows in zip(PARTS, (order[:first], order[first:]), strict=True)
        for at in range(0, len(rows), _AT_ONCE)
    ]
    begun = done[0] if done else 0
    for number, (part, rows) in enumerate(plan[begun:], begun + 1):
        items = [item for row in rows if (item := reader.open(row)) is not None]
        yield {part: items}, [number]


def _in_turn(reader: _Reader, done: list[int] | None) -> Iterator[_Chunk]:
    """The pictures of a stream in its order, some fives at a time; of each five one is held out."""
    assert reader.stream.flow is not None
    begun, fives = done or (0, 0)
    waiting: list[_Item] = []
    row = begun - 1
    for row, (name, source) in enumerate(reader.stream.flow(begun), begun):
        item = reader(row, name, source)
        waiting += [] if item is None else [item]
        if len(waiting) == _FIVES * 5:
            yield _parted(waiting, fives), [row + 1, fives + _FIVES]
            waiting, fives = [], fives + _FIVES
    if waiting:
        yield _parted(waiting, fives), [row + 1, fives + _FIVES]


def _parted(items: Sequence[_Item], fives: int) -> dict[str, list[_Item]]:
    """Pictures by their parts: of each five one is held out, by the number of the five; of fewer none."""
    found: dict[str, list[_Item]] = {part: [] for part in PARTS}
    for place, item in enumerate(items):
        chance = Generator().manual_seed(fives + place // 5)
        held = int(torch.randint(5, (1,), generator=chance)) == place % 5
        found["held" if held and place // 5 < len(items) // 5 else "shown"].append(item)
    return {part: there for part, there in found.items() if there}


def _in_channels(image: Tensor, teacher: DiffusersExpert) -> Tensor:
    """An image in as many channels as the pipeline has; colours become greys where it has one."""
    channels = teacher.autoencoder.image_shape[0]
    if len(image) == 1:
        return image.expand(channels, -1, -1)
    if channels == 1 and len(image) == 3:  # luma of ITU-R BT.601, as Pillow takes it
        return (image * image.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True).clamp(-1, 1)
    return image


def _encoded(teacher: DiffusersExpert, images: Tensor, generator: Generator) -> Tensor:
    """Images as states, on the CPU."""
    return teacher.autoencoder.encode(images, generator).cpu()


def _key(teacher: DiffusersExpert, stream: Stream, skip_broken: bool) -> str:
    """The hash of all on which states depend."""
    autoencoder = teacher.autoencoder
    told = f"states {_VERSION} {stream.key} {tuple(autoencoder.image_shape)} {skip_broken} {stream.open is None}"
    if isinstance(autoencoder, Pixels):
        return content_hash(told)
    kind = type(autoencoder.vae).__name__
    return content_hash(told, kind, autoencoder.scale, autoencoder.shift, *autoencoder.vae.state_dict().values())


def _conditions(conditions: nn.Module, stream: Stream) -> Tensor | None:
    """The condition of each picture, ``(N,)``; None where nothing is known of them that says anything to the teacher.

    Raises:
        Refusal: if captions are not among its prompts.
    """
    kinds = list(dict.fromkeys(stream.told))
    if not any(kinds):
        return None
    if stream.kind == "caption":
        known = {prompt: number for number, prompt in enumerate(getattr(conditions, "prompts", ()))}
        strange = [text for text in stream.told if text not in known]
        if strange:
            raise Refusal(
                f"{len(strange)} captions in {stream.source} are not among the prompts, such as {strange[0][:80]!r}. "
                "Embed them with the others, or take the captions away."
            )
        return torch.tensor([known[text] for text in stream.told])
    numbers = _numbers(conditions, kinds)
    place = dict(zip(kinds, numbers or (), strict=False))
    return None if numbers is None else torch.tensor([place[kind] for kind in stream.told])


def _numbers(conditions: nn.Module, kinds: Sequence[str]) -> list[int] | None:
    """The conditions that classes stand for; None where they say nothing to the teacher."""
    if isinstance(conditions, Classes):
        return conditions.numbers(kinds)
    numbers = {prompt: number for number, prompt in enumerate(getattr(conditions, "prompts", ()))}
    words = kinds if set(kinds) <= set(numbers) else [in_words(kind) for kind in kinds]
    return [numbers[word] for word in words] if set(words) <= set(numbers) else None


def _tell(stream: Stream, teacher: DiffusersExpert, about: list[Tensor], labels: list[Tensor | None]) -> None:
    """Tell in one line what was read."""
    height, width = teacher.autoencoder.image_shape[1:]
    made = sum(map(len, about))
    skipped = stream.skipped + Counter(broken=(stream.count or made) - made)
    known = [each for each in labels if each is not None]
    kinds = len(torch.cat(known).unique()) if known else 0
    cropped = int(torch.cat(about)[:, 1].sum())
    note = stream.note if is_arrays(stream.source) else f"{stream.note}{scaled((height, width), cropped)}"
    tell(stream.source, (len(about[0]), len(about[1])), kinds, stream.kind, skipped, note)


_VERSION = 1  # of how pictures become states
_AT_ONCE = 8
"""Pictures that are decoded and encoded together: as many as an autoencoder takes at once."""
_FIVES = 8
"""Fives of pictures that are decoded together where a source is read in its order."""
