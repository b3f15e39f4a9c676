"""Is a pipeline's folder whole? What a broken download or copy lacks is named before anything is loaded.

Importing this module imports neither torch nor diffusers.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from dagdiff.checks import Refusal, first_line
from dagdiff.reading import parse_json, read_text

AGAIN = "Download or save it again, whole."


def check_whole(folder: Path, index: Mapping[str, Any], unused: Collection[str], variant: str | None = None) -> None:
    """Refuse a pipeline's folder of which a part, or a piece of a part's weights, is missing or cut off.

    Args:
        folder: what ``save_pretrained`` wrote; or, as older ones are, a folder with all files in its root.
        index: the content of its ``model_index.json``.
        unused: parts that are not loaded.
        variant: of the weight files that are loaded, such as fp16.
    """
    parts = [part for part, kind in index.items() if isinstance(kind, list) and any(kind) and part not in unused]
    flat = any((folder / name).is_file() for name in ("config.json", "scheduler_config.json"))
    for part in parts:
        place = folder / part
        if not place.is_dir():
            if not flat:
                raise Refusal(f"{str(folder)!r} is incomplete: it has no folder {part}. {AGAIN}")
            place = folder
        names = {file.name for file in place.iterdir()}
        if not names - _ABOUT:
            held = f"holds only {', '.join(sorted(names))}" if names else "is empty"
            raise Refusal(f"{str(folder)!r} is incomplete: its folder {part} {held}. {AGAIN}")
        for file in _weights(place, variant):
            _check_weights(file)


def _weights(place: Path, variant: str | None) -> Iterator[Path]:
    """The safetensors files of a part that are loaded; refuse a list of pieces of which one is not there."""
    for file in sorted(place.glob("*.safetensors")):
        if file.name.count(".") == 1 or (variant is not None and f".{variant}" in file.name):
            yield file
    for listing in place.glob("*.safetensors.index.json"):
        if variant is None and listing.name.count(".") > 3:
            continue
        try:
            pieces = sorted(set(parse_json(read_text(listing), str(listing), strict=False)["weight_map"].values()))
        except (OSError, ValueError, LookupError, AttributeError) as error:
            raise Refusal(f"{listing} can't be read ({first_line(error)}). {AGAIN}") from None
        missing = [piece for piece in pieces if not (place / piece).is_file()]
        if missing:
            raise Refusal(f"{str(place)!r} is incomplete: {missing[0]} of {len(pieces)} pieces is missing. {AGAIN}")


def _check_weights(file: Path) -> None:
    """Refuse a safetensors file that is not as long as its own header says."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        if start == b"version ":
            raise Refusal(f"{file} is a Git LFS pointer, not the weights. Run git lfs pull in its folder.")
        length = int.from_bytes(start, "little")
        if length > _HEADER and 8 + length <= size:
            raise Refusal(f"{file} is no safetensors file (a header of {length:,} bytes). {AGAIN}")
        if size < 8 or 8 + length > size:
            raise Refusal(f"{file} is cut off: its {size:,} bytes end within the header. {AGAIN}")
        try:
            header = parse_json(opened.read(length).decode(), str(file))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Refusal(f"{file} is no safetensors file ({first_line(error)}). {AGAIN}") from None
    whole = 8 + length + max(ends, default=0)
    if size != whole:
        raise Refusal(f"{file} is cut off: it has {size:,} bytes of {whole:,}. {AGAIN}")


_HEADER = 100_000_000  # bytes that safetensors itself reads of one
_ABOUT = frozenset({"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", ".gitattributes"})
"""Files that say how a tokenizer is used, and are no vocabulary."""
