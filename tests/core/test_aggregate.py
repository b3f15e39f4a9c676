"""The aggregate D: exact counts a batch, the source column, empty sources, and what is kept for how long."""

import pytest
import torch
from tensordict import TensorDict

from dagdiff.aggregate import Aggregate, rounds_to_keep
from dagdiff.mixture import SOURCES, Shares

PER_ROUND = 12


def records(value: float, n: int = PER_ROUND) -> TensorDict:
    return TensorDict({"x_t": torch.full((n, 2), value), "t": torch.rand(n), "s": torch.zeros(n)}, [n])


def aggregate(student: int = 100, expert: int = 100, seed: int = 0) -> Aggregate:
    capacity = {"student": student, "expert": expert}
    return Aggregate(lambda n: records(-1.0, n), capacity, torch.Generator().manual_seed(seed))


def filled(**capacity: int) -> Aggregate:
    it = aggregate(**capacity)
    it.add("student", records(1.0), 1)
    it.add("expert", records(2.0), 1)
    return it


@pytest.mark.parametrize(
    ("shares", "rows", "counts"),
    [
        (Shares(0.5, 0.25, 0.25), 64, [32, 16, 16]),
        (Shares(1, 0, 0), 9, [9, 0, 0]),
        (Shares(0, 1, 0), 9, [0, 9, 0]),
        (Shares(0, 0, 1), 9, [0, 0, 9]),
        (Shares(0.7, 0.0, 0.3), 10, [7, 0, 3]),
    ],
)
def test_each_batch_has_exact_counts_and_says_where_each_row_comes_from(shares, rows, counts) -> None:
    it = filled()
    for _ in range(5):
        batch = it.draw(rows, shares)
        assert batch.batch_size == torch.Size([rows])
        assert torch.bincount(batch["source"], minlength=3).tolist() == counts
        value_of_source = torch.tensor([-1.0, 1.0, 2.0])[batch["source"]]
        assert torch.equal(batch["x_t"], value_of_source[:, None].expand(-1, 2)), "the column tells the truth"
        assert (batch["round"][batch["source"] == 0] == -1).all()
        assert (batch["round"][batch["source"] != 0] == 1).all()


def test_odd_batches_are_split_to_the_row() -> None:
    it = filled()
    for _ in range(20):
        counts = torch.bincount(it.draw(7, Shares(0.4, 0.3, 0.3))["source"], minlength=3).tolist()
        assert sum(counts) == 7
        assert counts[0] in (2, 3) and counts[1] in (2, 3) and counts[2] in (2, 3)


def test_an_empty_source_drops_out_and_the_others_share_its_part() -> None:
    it = aggregate()
    assert torch.bincount(it.draw(8, Shares(0.25, 0.5, 0.25))["source"], minlength=3).tolist() == [8, 0, 0]
    it.add("expert", records(2.0), 1)
    assert torch.bincount(it.draw(8, Shares(0.25, 0.5, 0.25))["source"], minlength=3).tolist() == [4, 0, 4]


def test_with_every_wanted_source_empty_forward_states_stand_in() -> None:
    assert (aggregate().draw(8, Shares(0, 1, 0))["source"] == 0).all()


def test_forward_states_are_fresh_for_every_batch() -> None:
    made = []
    it = Aggregate(lambda n: made.append(n) or records(float(len(made)), n), {"student": 4, "expert": 4})
    first, second = it.draw(6, Shares(1, 0, 0)), it.draw(5, Shares(1, 0, 0))
    assert made == [6, 5]
    assert (float(first["x_t"].unique()), float(second["x_t"].unique())) == (1.0, 2.0)


def kept_rounds(it: Aggregate, source: str, shares: Shares) -> set[int]:
    return set(it.draw(4000, shares)["round"].tolist())


@pytest.mark.parametrize(
    ("rounds_kept", "expected"), [(None, {1, 2, 3, 4, 5}), (1, {5}), (2, {4, 5}), (99, {1, 2, 3, 4, 5})]
)
def test_the_window_of_student_rounds(rounds_kept: int | None, expected: set[int]) -> None:
    window = rounds_to_keep([30] * 5, rounds_kept, None)
    it = aggregate(student=window * PER_ROUND, expert=5 * PER_ROUND)
    for number in range(1, 6):
        it.add("student", records(1.0), number)
        it.add("expert", records(2.0), number)
    assert kept_rounds(it, "student", Shares(0, 1, 0)) == expected
    assert kept_rounds(it, "expert", Shares(0, 0, 1)) == {1, 2, 3, 4, 5}, "the expert's records are never dropped"
    assert len(it) == (len(expected) + 5) * PER_ROUND


@pytest.mark.parametrize(
    ("rounds_kept", "max_age", "expected"),
    [
        (None, None, 20),
        (3, None, 3),
        (None, 90, 3),
        (None, 89, 2),
        (None, 10, 1),
        (2, 90, 2),
        (5, 90, 3),
        (None, 10_000, 20),
    ],
)
def test_the_two_limits_together(rounds_kept: int | None, max_age: int | None, expected: int) -> None:
    assert rounds_to_keep([30] * 20, rounds_kept, max_age) == expected


@pytest.mark.parametrize(
    ("updates", "max_age", "expected"),
    [
        ([4, 3, 3], 10, 3),
        ([4, 3, 3], 9, 2),
        ([4, 3, 3], 7, 2),
        ([4, 3, 3], 6, 1),
        ([4, 3, 3], 3, 1),
        ([1, 5, 1, 1], 5, 1),
        ([1, 5, 1, 1], 6, 2),
        ([1, 5, 1, 1], 7, 3),
    ],
)
def test_an_age_in_uneven_rounds(updates: list[int], max_age: int, expected: int) -> None:
    """Records that n rounds train on are as old, at the end of the last, as the updates of these rounds."""
    kept = rounds_to_keep(updates, None, max_age)
    assert kept == expected
    windows = [sum(updates[start : start + kept]) for start in range(len(updates) + 1 - kept)]
    assert kept == 1 or max(windows) <= max_age


def test_the_same_generator_draws_the_same_batches() -> None:
    def batches(seed: int) -> torch.Tensor:
        it = aggregate(seed=seed)
        it.add("student", records(1.0).set("t", torch.arange(float(PER_ROUND))), 1)
        return torch.cat([it.draw(5, Shares(0.3, 0.7, 0.0))["t"][-2:] for _ in range(6)])

    assert torch.equal(batches(0), batches(0))
    assert not torch.equal(batches(0), batches(1))


def test_every_record_is_drawn_about_equally_often() -> None:
    it = aggregate()
    for number in (1, 2):
        it.add("student", records(1.0).set("t", number * 100 + torch.arange(float(PER_ROUND))), number)
    drawn = it.draw(24_000, Shares(0, 1, 0))["t"].unique(return_counts=True)[1]
    assert len(drawn) == 2 * PER_ROUND
    assert (drawn - 1000).abs().max() < 150


def test_what_was_stored_does_not_change_when_its_maker_does() -> None:
    it, mine = aggregate(), records(1.0)
    it.add("student", mine, 1)
    mine["x_t"].fill_(9.0)
    batch = it.draw(6, Shares(0, 1, 0))
    assert (batch["x_t"] == 1.0).all()
    batch["x_t"].fill_(7.0)
    assert (it.draw(6, Shares(0, 1, 0))["x_t"] == 1.0).all()


def test_sources_have_the_index_of_their_name() -> None:
    assert [SOURCES[i] for i in filled().draw(4, Shares(0.25, 0.25, 0.5))["source"].tolist()] == [
        "forward",
        "student",
        "expert",
        "expert",
    ]
