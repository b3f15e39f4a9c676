"""How one number a row carries a condition: a prompt, a class, or nothing.

dagdiff's condition is ``(B,)`` integers, with -1 for "none". Labelled networks read them as classes. For text, the
prompts are embedded once into a :class:`PromptBank`, and a condition is a prompt's number: records stay small, text
encoders are needed only to make the bank, and ``Expert(guidance=w)`` works unchanged, since its null condition -1 finds
the bank's last row, the empty prompt.
"""

import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dagdiff.checkpoint import write_atomically
from dagdiff.checks import Refusal, check_finite, first_line
from dagdiff.pipelines.prompt_files import TABLES, find_column, read_cell, read_lines, read_table, trimmed
from dagdiff.reading import check_kind, parse_json
from dagdiff.shapes import Condition, States


class Text(NamedTuple):
    """What networks are told of prompts, a row each: token embeddings, their pooled summary, sizes, and masks."""

    hidden: Tensor
    """``(N, L, F)``."""
    pooled: Tensor | None = None
    """``(N, P)``."""
    time_ids: Tensor | None = None
    """Sizes in pixels: ``(N, 6)`` of SDXL, the original, the crop and the target (Podell et al. 2023, arXiv
    2307.01952); others tell them in an order of their own."""
    mask: Tensor | None = None
    """``(N, L)``: which tokens count."""
    hidden_2: Tensor | None = None
    """``(N, M, G)``: the same prompts by a second encoder, where the network takes both apart."""
    mask_2: Tensor | None = None
    """``(N, M)``."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "Text":
        """Return the parts that there are, changed."""
        return Text(*(None if part is None else change(part) for part in self))  # type: ignore[arg-type]


class Unconditional(nn.Module):
    """For networks that are told nothing but the state and the time."""

    def forward(self, condition: Condition, x_t: States) -> None:
        """Return None; refuse a condition that would be forgotten."""
        if condition is not None:
            raise Refusal(f"this network takes no condition; got one of shape {tuple(condition.shape)}. Leave it out.")

    def draw(self, n: int, generator: torch.Generator | None = None) -> None:
        """Return None."""
        return None


class Labels(nn.Module):
    """For networks that are told a class.

    Args:
        classes: their number.
        null: the class that stands for "no class", if the network was trained with one.
        names: the numbers of classes by the names that the pipeline tells of them.
    """

    def __init__(self, classes: int, null: int | None = None, names: Mapping[str, int] | None = None) -> None:
        super().__init__()
        if null is not None and null < 0:
            raise Refusal(f"null_class must be a class of the network, 0 or above; got {null}.")
        self.classes, self.null, self.names = classes, null, dict(names or {})

    def forward(self, condition: Condition, x_t: States) -> Tensor:
        """Return the classes, ``(B,)``, the null class where the condition is -1 or None."""
        if condition is None and self.null is not None:
            return torch.full(x_t.shape[:1], self.null, device=x_t.device)
        if condition is None:
            raise Refusal(f"this network needs a class a row, 0 to {self.classes - 1}; got no condition. {_NO_NULL}")
        labels = _checked(condition, len(x_t), self.classes)
        if self.null is not None:
            return torch.where(labels < 0, self.null, labels)
        if not labels.is_meta and bool((labels < 0).any()):
            raise Refusal(f"condition holds -1, and this network has no null class. {_NO_NULL}")
        return labels

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return ``n`` classes, each as likely."""
        return _draw(self._shown, n, generator)

    @property
    def _shown(self) -> int:
        """How many classes show something."""
        return self.classes - (self.null == self.classes - 1)

    def numbers(self, kinds: Sequence[str]) -> list[int]:
        """Return the numbers of the classes that folders or labels name, in their order.

        They are the pipeline's names of classes, or numbers; or there are as many as the network has classes, and they
        stand in the order of those.

        Raises:
            Refusal: if they are none of these.
        """
        known = {name.lower(): number for name, number in self.names.items()}
        folded = [kind.replace("_", " ").lower() for kind in kinds]
        if all(kind in known for kind in folded):
            return [known[kind] for kind in folded]
        if all(re.fullmatch("[0-9]{1,9}", kind) and int(kind) < self.classes for kind in kinds):
            return [int(kind) for kind in kinds]
        if len(kinds) == self._shown:
            place = {kind: number for number, kind in enumerate(sorted(kinds))}
            return [place[kind] for kind in kinds]
        strange = next((kind for kind, name in zip(kinds, folded, strict=True) if name not in known), kinds[0])
        raise Refusal(
            f"the images have {len(kinds)} classes, such as {strange!r:.80}, and the network {self._shown}: which is "
            f"which? Name the folders by its classes' numbers, 0 to {self._shown - 1}, or put all pictures into one."
        )


class PromptBank(nn.Module):
    """N prompts, embedded once; a last row more holds the null condition.

    The null row is what the pipeline itself guides away from: the empty prompt, or zeros where the pipeline says so
    (SDXL's ``force_zeros_for_empty_prompt``). Copies share one bank: it is never trained.

    Args:
        text: the embeddings, N + 1 rows.
        prompts: the N prompts, for people to read.
    """

    hidden: Tensor
    pooled: Tensor | None
    time_ids: Tensor | None
    mask: Tensor | None
    hidden_2: Tensor | None
    mask_2: Tensor | None

    def __init__(self, text: Text, prompts: Sequence[str] = ()) -> None:
        super().__init__()
        self.prompts = tuple(prompts)
        self.file: Path | None = None  # of the cache, if it is kept there
        for name, values in text._asdict().items():
            self.register_buffer(name, values, persistent=False)
        rows = {name: len(values) for name, values in text._asdict().items() if values is not None}
        if len({*rows.values(), *([len(prompts) + 1] if prompts else [])}) != 1 or text.hidden.ndim != 3:
            raise Refusal(
                f"a prompt bank of {len(prompts)} prompts needs hidden (N + 1, L, F) and as many rows of all else, the "
                f"last one for the null condition; got {rows} rows, hidden of shape {tuple(text.hidden.shape)}."
            )

    @property
    def text(self) -> Text:
        """All rows, the null row last."""
        return Text(*(getattr(self, name) for name in Text._fields))

    def __len__(self) -> int:
        return len(self.hidden) - 1

    def __deepcopy__(self, memo: dict[int, object]) -> "PromptBank":
        return self

    def telling(self, time_ids: Tensor) -> "PromptBank":
        """Return the same bank with other sizes, a row each."""
        twin = copy.copy(self)
        twin._buffers = {**self._buffers, "time_ids": time_ids}
        return twin

    def forward(self, condition: Condition, x_t: States) -> Text:
        """Return the rows that a condition names, ``(B, ...)``; the null row where it is -1 or None."""
        if condition is None:
            return self.text.each(lambda part: part[-1:].expand(len(x_t), *part.shape[1:]))
        return self.rows(_checked(condition, len(x_t), len(self)))

    def rows(self, condition: Tensor) -> Text:
        """Return the rows of a condition that has been checked."""
        place = condition % len(self.hidden)
        return self.text.each(lambda part: part[place])

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return ``n`` prompts' numbers, each as likely; -1 where the bank holds the null row alone."""
        return _draw(len(self), n, generator) if len(self) else torch.full((n,), -1)

    def save(self, path: Path) -> None:
        """Write the bank as safetensors: the parts of :class:`Text` by name; the prompts as JSON in its metadata."""
        from safetensors.torch import save_file

        tensors = {name: part.contiguous() for name, part in self.named_buffers()}
        metadata = {"prompts": json.dumps(self.prompts)}
        write_atomically(path, lambda partial: save_file(tensors, str(partial), metadata))

    @classmethod
    def load(cls, path: Path) -> "PromptBank":
        """Read a bank that :meth:`save` wrote, or any safetensors file with its tensors."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                prompts = parse_json((file.metadata() or {}).get("prompts", "[]"), f"the prompts of {path}")
        except (OSError, SafetensorError) as error:
            raise Refusal(f"{path} can't be read as a prompt bank ({first_line(error)}). {_BANK}") from None
        check_kind(prompts, [str], f"the prompts of {path}")
        if "hidden" not in tensors or not set(tensors) <= set(Text._fields):
            raise Refusal(f"{path} holds {sorted(tensors)}, which is no prompt bank. {_BANK}")
        for name, values in tensors.items():
            check_finite(f"{name} in {path}", values)
        return cls(Text(**tensors), prompts)


def read_prompts(path: Path, column: str | None = None) -> list[str]:
    """Read prompts from a text file or a table; those that show nothing are left out.

    Args:
        path: the file; its suffix says what it is.
        column: of a table; None takes the one called prompt, caption or text.

    Raises:
        Refusal: for a file that can't be read, is not UTF-8, lacks the column, or holds no prompt.
    """
    if path.suffix.lower() in TABLES:
        records = read_table(path)
        column = find_column(path, records, column)
        found = [read_cell(path, number, record.get(column)) for number, record in enumerate(records, 1)]
    elif column is not None:
        raise Refusal(
            f"{path} is read as a prompt a line and has no column {column!r}. Name a .csv, .tsv or .jsonl file."
        )
    else:
        found = [trimmed(line) for line in read_lines(path)]
    prompts = [prompt for prompt in found if prompt]
    if not prompts:
        raise Refusal(f"{path} holds no prompt. Write one a line.")
    return prompts


def _checked(condition: Tensor, rows: int, count: int) -> Tensor:
    """Refuse a condition that is not ``(rows,)`` integers from -1 to count - 1; return it."""
    if condition.shape != (rows,) or condition.is_floating_point():
        got = f"{tuple(condition.shape)} {condition.dtype}"
        raise Refusal(f"a condition is one integer a row, ({rows},); got {got}. Pass a prompt's or class's number.")
    # The one wait for the device a call costs nothing beside the network; an index out of range would cost the device.
    if not condition.is_meta and bool(((condition < -1) | (condition >= count)).any()):
        values = f"{int(condition.min())} to {int(condition.max())}"
        raise Refusal(f"conditions must lie between -1 (none) and {count - 1}; got {values}. There are {count}.")
    return condition


def _draw(count: int, n: int, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else None
    return torch.randint(count, (n,), generator=generator, device=device)


_NO_NULL = "Pass null_class=... if it was trained with a class for none, else keep guidance at 1."
_BANK = "It takes a safetensors file with hidden (N + 1, L, F) and perhaps pooled, time_ids; PromptBank.save writes it."
