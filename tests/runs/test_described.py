"""What is said of parts without importing them is what they are."""

import pytest

from dagdiff.checks import Refusal
from dagdiff.runs.described import Described, describe, describe_part, describe_source
from dagdiff.runs.parts import GIVEN, PARTS, resolve
from dagdiff.tasks.names import PIPELINE

NAMED = [(part, name) for part in PARTS for name in PARTS[part]]


def plain(found: Described) -> Described:
    """Without types, which may be written in several ways; numbers as they are."""
    return Described(found.summary, [option._replace(type="") for option in found.options])


@pytest.mark.parametrize(("part", "name"), NAMED, ids=[f"{part} {name}" for part, name in NAMED])
def test_the_source_says_what_the_import_says(part: str, name: str) -> None:
    given = ("task", *GIVEN.get(part, ()))
    real = plain(describe(resolve(part, name)))
    wanted = Described(real.summary, [option for option in real.options if option.name not in given])
    assert plain(describe_part(part, name)) == wanted
    assert wanted.summary


def test_the_options_of_pipelines_are_read_from_their_source() -> None:
    found = describe_source(f"{PIPELINE.module}.{PIPELINE.settings}")
    assert plain(found) == plain(describe(getattr(PIPELINE.imported(), PIPELINE.settings)))
    assert all(option.meaning for option in found.options)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(Refusal, match="Did you mean 'progressive'"):
        describe_part("objective", "progresive")
    with pytest.raises(LookupError, match="defines no Nothing"):
        describe_source("dagdiff.threshold.Nothing")
