"""The memory in which pictures become states does not grow with their number."""

import sys

import pytest
from helpers import ROOT

from dagdiff.benchmarks.measure.pictures import Peak, measure, table


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process is Linux's")
def test_ten_times_as_many_pictures_need_as_much_memory() -> None:
    _, few, many = measure((40, 400), side=128)
    floats = 12 * 128**2 * (many.pictures - few.pictures)
    assert few.bytes < many.bytes + 2**24 and many.bytes - few.bytes < floats / 4
    assert many.bytes / few.bytes < 1.05


def test_the_table_of_peaks() -> None:
    told = table([Peak(10, 500_000_000), Peak(2000, 510_000_000)])
    assert told.splitlines()[-1] == "| 2,000 | 510 | 10 | 1,573 |"


def test_the_page_has_the_measured_table() -> None:
    assert table([]).splitlines()[0] in (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
