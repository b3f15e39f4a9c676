"""What a round gathers: fresh records by the re-use asked for, and never fewer than one batch's."""

import pytest

from dagdiff.checks import Refusal
from dagdiff.gathering import Gathering, fresh_records, rolls


@pytest.mark.parametrize(
    ("share", "reuse", "expected"),
    [(1.0, 1, 1000), (0.25, 1, 250), (0.25, 4, 63), (0.25, 2.5, 100), (0.25, 1000, 25), (0.0, 1, 0), (0.3, 3, 100)],
)
def test_fresh_records(share: float, reuse: float, expected: int) -> None:
    """Ten batches of 100 rows."""
    assert fresh_records(share, 1000, 100, reuse) == expected


@pytest.mark.parametrize("records", [1, 30, 64, 100, 129])
def test_roll_ins_make_what_is_needed_on_average_and_at_least_one_batch(records: int) -> None:
    made, owed, size = 0, 0.0, 64
    for number in range(1, 41):
        batches, owed = rolls(records, owed, size)
        assert batches >= 1
        made += batches * size
        assert made >= number * records
        if records >= size:
            assert made < number * records + size, "never a batch too many"
    assert records >= size or made == 40 * size


def test_no_records_no_roll_ins() -> None:
    assert rolls(0, -3.0, 64) == (0, -3.0)


def test_what_was_rolled_in_too_much_is_not_held_against_later_rounds() -> None:
    owed = 0.0
    for _ in range(10):
        _, owed = rolls(1, owed, 64)
    assert rolls(200, owed, 64)[0] == 3, "200 less the 64 of one batch"


@pytest.mark.parametrize(
    ("option", "value", "match"),
    [
        ("reuse", 0.5, "reuse must be at least 1; got 0.5"),
        ("input_perturbation", -1.0, "input_perturbation must be at least 0"),
        ("rounds_kept", 0, "rounds_kept must be at least 1; got 0"),
        ("max_age", 0, "max_age must be at least 1; got 0"),
    ],
)
def test_refusals(option: str, value: float, match: str) -> None:
    with pytest.raises(Refusal, match=match):
        Gathering(**{option: value})  # type: ignore[arg-type]
