"""Banks of many prompts that are not all in memory: one on the disk, and one that embeds what it is asked for."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dagdiff.jobs.pieces import stacked
from dagdiff.pipelines.conditions import PromptBank, Text


class StoredBank(PromptBank):
    """A bank in a memory-mapped file: the rows that are asked for are read, and go to the device.

    Args:
        text: the embeddings, N + 1 rows, memory-mapped.
        prompts: the N prompts.
        file: where they are.
    """

    def __init__(self, text: Text, prompts: Sequence[str], file: Path) -> None:
        super().__init__(text, prompts)
        self.file, self._like = file, torch.empty(0, dtype=text.hidden.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "StoredBank":
        """Remember where rows go and in what precision; the file stays where it is."""
        self._like = fn(self._like)
        return self

    def rows(self, condition: Tensor) -> Text:
        """Return the rows of a condition that has been checked."""
        place = condition.cpu() % len(self.hidden)
        return self.text.each(lambda part: self._sent(part[place]))

    def forward(self, condition: Tensor | None, x_t: Tensor) -> Text:
        """Return the rows that a condition names, as :class:`PromptBank` does."""
        if condition is None:
            condition = torch.full((len(x_t),), -1)
        return super().forward(condition, x_t)

    def _sent(self, part: Tensor) -> Tensor:
        kind = self._like.dtype if part.is_floating_point() else part.dtype
        return part.to(self._like.device, kind)


class AskedBank(PromptBank):
    """A bank that embeds a prompt when it is first asked for: for samples, which ask for few of a run's prompts.

    Args:
        null: the embedding of the null condition, one row.
        prompts: the N prompts.
        ask: embeds some of them; the null condition's row comes last.
    """

    def __init__(self, null: Text, prompts: Sequence[str], ask: Callable[[list[str]], Text]) -> None:
        super().__init__(null)
        self.prompts, self._ask = tuple(prompts), ask
        self._places: dict[int, int] = {-1: 0}

    def __len__(self) -> int:
        return len(self.prompts)

    def telling(self, time_ids: Tensor) -> PromptBank:
        """Return the same bank with other sizes, all alike."""
        twin: Any = super().telling(time_ids)
        twin._places = dict(self._places)
        return twin  # type: ignore[no-any-return]

    def rows(self, condition: Tensor) -> Text:
        """Return the rows of a condition that has been checked, embedded first where they are new."""
        numbers = condition.tolist()
        missing = sorted({*numbers} - {*self._places})
        if missing:
            self._append(self._ask([self.prompts[number] for number in missing]))
            first = len(self._places)
            self._places |= {number: first + place for place, number in enumerate(missing)}
        place = torch.tensor([self._places[number] for number in numbers], device=self.hidden.device)
        return self.text.each(lambda part: part[place])

    def forward(self, condition: Tensor | None, x_t: Tensor) -> Text:
        """Return the rows that a condition names, as :class:`PromptBank` does."""
        if condition is None:
            condition = torch.full((len(x_t),), -1, device=self.hidden.device)
        return super().forward(condition, x_t)

    def save(self, path: Path) -> None:
        """Write the whole bank: all prompts are embedded first."""
        whole = self.rows(torch.tensor([*range(len(self)), -1]))
        PromptBank(whole, self.prompts).save(path)

    def _append(self, new: Text) -> None:
        """Put new rows below those that there are, but for the null condition's; masks leave out what fills them."""
        for name, part in self.text._asdict().items():
            if part is None:
                continue
            found: Any = getattr(new, name)
            count = len(new.hidden) - 1
            rows = part[:1].expand(count, *part.shape[1:]) if found is None else found[:count].to(part)
            setattr(self, name, stacked([part, rows]))
