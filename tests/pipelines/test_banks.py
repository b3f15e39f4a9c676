"""Banks of prompts that are not in memory answer as one that is."""

from pathlib import Path
from typing import Any

import pipelines
import pytest
import torch

from dagdiff.jobs import pieces
from dagdiff.pipelines import prompts as embedding
from dagdiff.pipelines.banks import AskedBank, StoredBank
from dagdiff.pipelines.conditions import PromptBank, Text
from dagdiff.pipelines.pretrained import DiffusersExpert

PROMPTS = [f"prompt {number}" for number in range(6)]


def texts(words: list[str], long: int = 3) -> Text:
    """Embeddings that say the prompts' numbers; the null condition's row last is zero."""
    values = torch.tensor([*(float(word.split()[1]) + 1 for word in words), 0.0])
    hidden = values[:, None, None].expand(-1, long, 2).clone()
    return Text(hidden, pooled=values[:, None].expand(-1, 4).clone(), mask=torch.ones(len(values), long) > 0)


@pytest.fixture
def asked() -> list[list[str]]:
    """What was embedded, call by call."""
    return []


@pytest.fixture
def bank(asked: list[list[str]]) -> AskedBank:
    def ask(words: list[str]) -> Text:
        asked.append(words)
        return texts(words, long=3 + len(asked))

    return AskedBank(texts([]), PROMPTS, ask)


def rows(bank: PromptBank, condition: list[int] | None) -> list[float]:
    """The first value of each row."""
    count = 2 if condition is None else len(condition)
    told = bank(None if condition is None else torch.tensor(condition), torch.zeros(count, 1))
    assert told.mask is not None and told.pooled is not None
    for row, (hidden, mask) in enumerate(zip(told.hidden, told.mask, strict=True)):
        assert (hidden[mask] == told.pooled[row, 0]).all() and (hidden[~mask] == 0).all()
    return [float(value) for value in told.pooled[:, 0]]


def test_a_prompt_is_embedded_when_it_is_first_asked_for(bank: AskedBank, asked: list[list[str]]) -> None:
    assert len(bank) == 6 and bank.prompts == tuple(PROMPTS) and asked == []
    assert rows(bank, None) == [0.0, 0.0] and rows(bank, [-1]) == [0.0] and asked == []
    assert rows(bank, [4, 1, 4]) == [5.0, 2.0, 5.0]
    assert rows(bank, [1, -1, 3, 4]) == [2.0, 0.0, 4.0, 5.0]
    assert asked == [["prompt 1", "prompt 4"], ["prompt 3"]]
    assert set(bank.draw(100).tolist()) == set(range(6))


def test_sizes_and_precision_are_those_of_the_bank(bank: AskedBank) -> None:
    sized = bank.telling(torch.tensor([[8.0, 8.0]])).to(torch.bfloat16)
    told = sized(torch.tensor([2, 0]), torch.zeros(2, 1))
    assert told.hidden.dtype == torch.bfloat16 and told.time_ids.tolist() == [[8.0, 8.0]] * 2
    assert rows(bank, [2, 5]) == [3.0, 6.0], "the first bank is as it was"


def test_a_saved_bank_is_whole(bank: AskedBank, tmp_path: Path) -> None:
    bank.save(tmp_path / "bank.safetensors")
    again = PromptBank.load(tmp_path / "bank.safetensors")
    assert again.prompts == tuple(PROMPTS) and rows(again, [0, 5, -1]) == [1.0, 6.0, 0.0]


def test_a_stored_bank_answers_as_one_in_memory_and_stays_where_it_is(tmp_path: Path) -> None:
    whole = texts(PROMPTS)
    stored = StoredBank(whole, PROMPTS, tmp_path)
    for condition in ([3, 0, -1], None):
        assert rows(stored, condition) == rows(PromptBank(whole, PROMPTS), condition)
    half = stored.to(torch.bfloat16)
    told = half(torch.tensor([2]), torch.zeros(1, 1))
    assert told.hidden.dtype == torch.bfloat16 and told.mask.dtype == torch.bool
    assert half.hidden.dtype == torch.float32 and half.hidden.data_ptr() == whole.hidden.data_ptr()
    assert stored.to("meta")(torch.tensor([1]), torch.zeros(1, 1)).hidden.is_meta


MANY = [f"a cat, {number} dogs" for number in range(70)]


@pytest.mark.parametrize("family", ["stable_diffusion", "sdxl"])
def test_a_network_answers_alike_whichever_bank_it_is_asked_with(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "cache"))
    path = pipelines.save(pipelines.seeded(getattr(pipelines, family)), tmp_path / "pipeline")
    x_t, t, condition = torch.randn(4, 4, 8, 8), torch.full((4,), 0.5), torch.tensor([3, 69, -1, 40])
    few = DiffusersExpert.from_pretrained(path, MANY, asked=True)
    want = few(x_t, t, condition)
    assert isinstance(few.network.conditions, AskedBank) and not (tmp_path / "cache").exists()
    whole = DiffusersExpert.from_pretrained(path, MANY)
    assert type(whole.network.conditions) is PromptBank and len(list((tmp_path / "cache" / "prompts").iterdir())) == 1
    torch.testing.assert_close(whole(x_t, t, condition), want, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(embedding, "_ON_DEVICE", 0)
    stored = DiffusersExpert.from_pretrained(path, MANY, asked=True)
    assert isinstance(stored.network.conditions, StoredBank), "what is in the cache is not embedded again"
    assert torch.equal(stored(x_t, t, condition), whole(x_t, t, condition))
    assert torch.equal(stored(x_t, t, None), whole(x_t, t, None))


def test_embedding_that_was_stopped_resumes_with_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 1)
    path = pipelines.save(pipelines.seeded(pipelines.stable_diffusion), tmp_path / "pipeline")
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "one"))
    whole: Any = DiffusersExpert.from_pretrained(path, MANY).network.conditions
    monkeypatch.setenv("DAGDIFF_CACHE", str(tmp_path / "two"))
    real, kept = embedding._named, list[int]()

    def stopped(text: Text) -> dict[str, torch.Tensor]:
        kept.append(len(text.hidden))
        if len(kept) == 3:
            raise KeyboardInterrupt
        return real(text)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(embedding, "_named", stopped)
        DiffusersExpert.from_pretrained(path, MANY)
    assert kept == [32, 32, 6] and list((tmp_path / "two" / "prompts").glob("*.safetensors")) == []
    again: Any = DiffusersExpert.from_pretrained(path, MANY).network.conditions
    assert torch.equal(again.hidden, whole.hidden) and len(again.hidden) == 71
