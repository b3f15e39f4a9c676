"""The report: words that follow from the numbers, numbers that are numpy's, and a page that needs nothing beside it."""

import csv
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reports import GAIN, PLANE, TASK, Energies, content, folder

from dagdiff.checks import Refusal
from dagdiff.metrics.statistics import Interval
from dagdiff.report.forest import forest_figure
from dagdiff.report.glossary import variant_name
from dagdiff.report.overview import overview
from dagdiff.report.page import write_report
from dagdiff.report.results import IDENTITY, Results
from dagdiff.report.rows import distinct
from dagdiff.report.summary import write_summary
from dagdiff.report.terminal import students, table
from dagdiff.report.verdict import caveat, change, counts, findings, level, number, spell


def loaded(path: Path, energies: Energies, **changes: Any) -> Results:
    return Results.load(folder(path, content(energies, **changes)))


def sentences(results: Results) -> list[str]:
    return [finding.text for finding in findings(results.rows)]


def summary(results: Results, path: Path, metric: str) -> dict[str, dict[str, str]]:
    """The lines of the summary on one number, by variant."""
    write_summary(results, path / "summary.csv")
    lines = csv.DictReader((path / "summary.csv").read_text().splitlines())
    return {line["variant"]: line for line in lines if line["metric"] == metric}


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    return {**parts[0], "records": [record for part in parts for record in part["records"]]}


def test_a_clear_gain_is_claimed_with_its_size_and_levels(tmp_path: Path) -> None:
    (words,) = sentences(loaded(tmp_path, GAIN))
    assert words.startswith(f"{TASK}, LCM: the mixture lowers the energy distance x 1000 by 4.7 [4.3, 5.0] against")
    assert "forward (2.3 for 7.0, 3 seeds); the interval excludes 0" in words
    assert words.endswith("over that on forward states: 4.0 after forward training, 1.1 after the mixture.")


def test_a_loss_is_called_a_loss(tmp_path: Path) -> None:
    results = loaded(tmp_path, {"forward": GAIN["mixture"], "mixture": GAIN["forward"]})
    (words,) = sentences(results)
    assert "the mixture raises the energy distance x 1000 by 4.7 [4.3, 5.0] against forward" in words
    assert "the interval excludes 0" in words and "lowers" not in words
    assert counts(results.rows) == ["Mixture against forward: worse in 1 of 1."]


def test_nothing_is_claimed_where_the_interval_includes_zero(tmp_path: Path) -> None:
    results = loaded(tmp_path, {"forward": [0.001, 0.003, 0.002], "mixture": [0.002, 0.001, 0.002]})
    (words,) = sentences(results)
    assert "inconclusive against forward" in words and "the interval includes 0" in words
    assert "lowers" not in words and "raises" not in words
    assert counts(results.rows) == ["Mixture against forward: inconclusive in 1 of 1."]


MATCHES = [0.0006, 0.0004, 0.0005]  # the expert scores 0.0005


def test_a_row_without_a_gap_is_never_counted_as_better(tmp_path: Path) -> None:
    """Its mean is lower and its interval excludes 0; but forward matches the expert already."""
    results = loaded(tmp_path, {"forward": MATCHES, "mixture": [0.0003, 0.0001, 0.0002]})
    row = results.rows[1]
    assert row.against["forward"]["energy"].interval.high < 0
    (found,) = findings(results.rows)
    assert found.way == "no gap" and "no gap: forward matches the expert already" in found.text
    assert "lowers" not in found.text
    assert counts(results.rows) == ["Mixture against forward: no gap in 1 of 1."]


def test_without_a_gap_a_loss_is_still_a_loss(tmp_path: Path) -> None:
    (found,) = findings(loaded(tmp_path, {"forward": MATCHES, "mixture": GAIN["mixture"]}).rows)
    assert found.way == "worse" and "Forward itself matches the expert." in found.text


def test_comparisons_are_counted_once_by_baseline(tmp_path: Path) -> None:
    """Six rows: better, worse, no gap, inconclusive, and DMD2 twice, whose published method is another."""
    plans: dict[str, Energies] = {
        "progressive": {"forward": GAIN["forward"], "mixture": GAIN["mixture"]},
        "consistency": {"forward": GAIN["mixture"], "mixture": GAIN["forward"]},
        "gaussian-kl": {"forward": MATCHES, "mixture": [0.0003, 0.0001, 0.0002]},
        "mine": {"forward": [0.001, 0.003, 0.002], "mixture": [0.002, 0.001, 0.002]},
        "distribution": {
            "forward": [0.7, 0.8, 0.75],
            "published": [0.004, 0.003, 0.0035],
            "mixture": [0.003, 0.0036, 0.004],
        },
    }
    parts = [content(energies, objective=name) for name, energies in plans.items()]
    parts.append(
        content({"forward": [0.7], "published": [0.004], "mixture": [0.003]}, objective="distribution", steps=2)
    )
    results = Results.load(folder(tmp_path, merged(*parts)))
    assert counts(results.rows) == [
        "Mixture against forward: better in 2 of 6, worse in 1, no gap in 1, inconclusive in 2.",
        "Mixture against published (DMD2 only): inconclusive in 2 of 2.",
    ]
    page, text = write_report(tmp_path).read_text(), " ".join(table(results).split())
    assert all(told in page and told in text for told in counts(results.rows))


def test_one_seed_gives_no_interval_and_no_claim(tmp_path: Path) -> None:
    results = loaded(tmp_path, {"forward": [0.007], "mixture": [0.002]})
    (words,) = sentences(results)
    assert "inconclusive" in words and "no interval exists" in words and "lowers" not in words
    assert counts(results.rows) == ["Mixture against forward: inconclusive in 1 of 1."]
    assert "[" not in words and "one seed" in caveat(results.rows)


def test_the_caveat_counts_the_coin_and_goes_away_with_seeds(tmp_path: Path) -> None:
    assert "once in 4 comparisons" in caveat(loaded(tmp_path, GAIN).rows)
    many = {name: np.random.default_rng(0).normal(size=6).tolist() for name in GAIN}
    assert caveat(loaded(tmp_path, many).rows) == ""


def test_published_is_spoken_of_only_where_it_is_another_run(tmp_path: Path) -> None:
    found = content({"forward": GAIN["forward"], "published": [0.004, 0.004, 0.0041], "mixture": GAIN["mixture"]})
    first, second = sentences(Results.load(folder(tmp_path, found)))
    assert "against forward" in first and "against published" in second
    for record in found["records"]:
        record["config"] = record["config"].replace("published", "forward")
    results = Results.load(folder(tmp_path, found))
    assert len(sentences(results)) == 1
    assert [label for label, _ in distinct(results.rows)] == ["forward = published", "mixture"]
    assert "published" not in results.rows[0].against


def test_several_numbers_of_steps_are_told_apart(tmp_path: Path) -> None:
    found = merged(content(GAIN, steps=2), content({**GAIN, "mixture": GAIN["forward"]}, steps=4))
    two, four = sentences(Results.load(folder(tmp_path, found)))
    assert "LCM, 2 steps: the mixture lowers" in two and "LCM, 4 steps: inconclusive" in four
    page = write_report(tmp_path).read_text()
    assert "mixture, 2 steps" in page and "mixture, 4 steps" in page


def test_without_a_common_seed_nothing_is_compared(tmp_path: Path) -> None:
    for energies in ({"mixture": [0.1, 0.2]}, {"forward": [0.1, None], "mixture": [None, 0.1]}):
        (words,) = sentences(loaded(tmp_path, energies))
        assert "nothing can be compared" in words


def test_pairs_are_common_seeds_only(tmp_path: Path) -> None:
    results = loaded(tmp_path, {"forward": [0.5, 0.1, 0.2], "mixture": [None, 0.05, 0.1, 9.0]})
    found = next(row for row in results.rows if row.variant == "mixture").against["forward"]["energy"]
    assert found.seeds == 2 and found.interval.mean == pytest.approx(-0.075)
    assert (found.ours, found.theirs) == pytest.approx((0.075, 0.15))
    assert found.improvement == 0.875  # of (0.05, 0.1) x (0.1, 0.2) three pairs are won, one is tied


def test_larger_coverage_is_an_improvement(tmp_path: Path) -> None:
    found = content(GAIN)
    for record in found["records"]:
        record["metrics"]["coverage"] = 0.9 if record["variant"] == "mixture" else 0.8
    row = Results.load(folder(tmp_path, found)).rows[1]
    assert row.against["forward"]["coverage"].improvement == 1.0
    assert row.against["forward"]["energy"].improvement == 1.0


def test_summary_holds_numpys_numbers(tmp_path: Path) -> None:
    results = loaded(tmp_path, GAIN)
    found = summary(results, tmp_path, "energy")
    forward, mixture = found["forward"], found["mixture"]
    a, b = np.array(GAIN["mixture"]), np.array(GAIN["forward"])
    assert float(mixture["mean"]) == pytest.approx(a.mean(), rel=1e-5)
    assert float(forward["mean"]) == pytest.approx(b.mean(), rel=1e-5)
    assert float(mixture["low"]) == pytest.approx(a.min()) and float(mixture["high"]) == pytest.approx(a.max())
    assert float(mixture["minus_forward_mean"]) == pytest.approx((a - b).mean(), rel=1e-5)
    assert float(mixture["minus_forward_low"]) == pytest.approx((a - b).min(), rel=1e-5)
    assert float(mixture["expert"]) == 0.0005 and mixture["shares"] == "25/50/25"
    assert float(mixture["excess"]) == pytest.approx(a.mean() - 0.0005, rel=1e-5)
    assert (mixture["beats_forward"], mixture["pairs_forward"], mixture["seeds"]) == ("1", "3", "3")
    assert forward["minus_forward_mean"] == ""
    assert float(summary(results, tmp_path, "w2")["mixture"]["mean"]) == pytest.approx(0.11)
    assert float(summary(results, tmp_path, "seconds")["mixture"]["mean"]) == 3.0


def test_numbers_that_nobody_knows_are_kept_summed_up_and_shown(tmp_path: Path) -> None:
    """One is described by the file, as a suite writes it; of the other not even that is known."""
    found = content(GAIN)
    for record in found["records"]:
        record["metrics"] |= {"roundness": record["seed"] + 0.25, "bare": 7.0}
    found["numbers"] = {"roundness": {"meaning": "How round.", "larger_is_better": True, "compared": True, "new": 1}}
    results = Results.load(folder(tmp_path, found))
    assert results.records[1].metrics["roundness"] == 1.25 and results.judged_by == "energy"
    line = summary(results, tmp_path, "roundness")["mixture"]
    assert (line["mean"], line["seeds"], line["beats_forward"]) == ("1.25", "3", "0.5") and line["expert"] == ""
    assert summary(results, tmp_path, "bare")["forward"]["mean"] == "7"
    page = write_report(tmp_path).read_text()
    assert "<b>roundness</b></td><td>How round." in page and "<b>bare</b></td><td></td>" in page


def test_a_summary_has_a_line_for_what_was_measured_alone(tmp_path: Path) -> None:
    """So a new metric changes no summary of results that lack it."""
    write_summary(loaded(tmp_path, GAIN), tmp_path / "summary.csv")
    lines = csv.DictReader((tmp_path / "summary.csv").read_text().splitlines())
    assert {line["metric"] for line in lines} == {*PLANE, "nfe_student", "nfe_expert", "seconds"}


def test_older_results_are_read_under_the_names_of_today(tmp_path: Path) -> None:
    old = {"forward": "forward", "base": "published", "ddil": "mixture", "reflected-ddil": "mixture-box"}
    old |= {"reflected-forward": "forward-box", "fold-ddil": "mixture-fold", "mix 50/0/50": "mixture-50/0/50"}
    old |= {"forward-training": "forward-training", "beta 0.5": "beta 0.5", "modelopt-forward": "modelopt-forward"}
    found = content({name: [0.1] for name in old}) | {"identity": 1}
    found["settings"]["variants"] = ["forward", "base", "ddil"]
    results = Results.load(folder(tmp_path, found))
    assert [record.variant for record in results.records] == list(old.values())
    assert results.settings["variants"] == ["forward", "published", "mixture"]
    for identity in (IDENTITY, IDENTITY - 1):
        kept = Results.load(folder(tmp_path, content({"ddil": [0.1]}) | {"identity": identity}))
        assert kept.records[0].variant == ("ddil" if identity == IDENTITY else "mixture")
    peers = Results.load(folder(tmp_path, content({"ddil": [0.1]}) | {"identity": 1, "suite": "peers"}))
    assert peers.records[0].variant == "mixture-25/50/25", "whose shares are not DMD2's usual ones"
    assert (
        variant_name("mixture-25/50/25") == "mixture 25/50/25" and variant_name("mixture-box") == "mixture + threshold"
    )


def test_numbers_are_spelled_for_readers() -> None:
    values = {
        0.0070001: "0.00700",
        12.0: "12.0",
        123.4: "123",
        1234567.0: "1,234,567",
        -4e-5: "-0.0000400",
        4e-9: "4e-09",
    }
    assert {value: number(value) for value in values} == values
    assert number(float("nan")) == spell(None) == "–" and number(0.0) == "0.00"


def test_intervals_have_equal_decimals_and_show_which_side_of_zero() -> None:
    assert spell(Interval(0.00014, -0.000024, 0.000338), 2) == "0.00014 [-0.00002, 0.00034]"
    assert spell(Interval(0.0015, 0.00001, 0.0025), 2) == "0.00150 [0.00001, 0.00250]"
    assert spell(Interval(0.0078, 0.0056, 0.0109), 2) == "0.0078 [0.0056, 0.0109]"
    assert spell(Interval(0.5, 0.0, 1.0), 2) == "0.50 [0.00, 1.00]"
    assert spell(Interval(0.5, 0.5, 0.5), 2) == "0.50"


def test_table_names_every_run_once_with_its_yardsticks(tmp_path: Path) -> None:
    results = loaded(tmp_path, GAIN)
    text = students(results)
    head, rule, task, floor, expert, forward, mixture, *_ = text.splitlines()
    assert set(rule) == {"-"} and head.split()[:3] == ["objective", "trained", "on"] and task == TASK
    assert "(floor)" in floor and " 0.1 " in floor and "(expert)" in expert and " 0.5 " in expert
    assert "2.3 [2.1, 2.6]" in mixture and "-4.7 [-5.0, -4.3]" in mixture and " better " in mixture
    assert forward.index("7.0 [") == mixture.index("2.3 [") == head.index("energy distance x 1000")
    assert all(words in " ".join(table(results).split()) for words in sentences(results))


def cells(page: str) -> list[list[str]]:
    """The cells of the page's first table, its head with them."""
    first = page[page.index("<table") : page.index("</table>")]
    lines = re.findall(r"<tr>.*?</tr>", first, re.DOTALL)
    return [[unescape(re.sub("<.*?>", "", each)) for each in re.findall(r"<t[hd].*?</t[hd]>", line)] for line in lines]


def test_the_terminal_shows_the_first_table_of_the_page(tmp_path: Path) -> None:
    plain = content({**GAIN, "published": [0.004, 0.004, 0.0041]}, objective="distribution")
    same = content({**GAIN, "published": GAIN["forward"]})
    for record in same["records"]:
        record["config"] = record["config"].replace("published", "forward")
    found = folder(tmp_path, merged(plain, same))
    text, shown = table(Results.load(found)), cells(write_report(found).read_text())
    assert [len(line) for line in shown] == [8, 8, 8]
    head, rule, *lines = text[text.index("\ntask ") + 1 :].splitlines()
    assert set(rule) == {"-"}
    printed = [[each for each in re.split(r"\s{2,}", line) if each] for line in (head, *lines[:2])]
    assert printed == shown and "= forward" in shown[2] and shown[1][-1] == "better"
    assert "(floor)" not in text and "(floor)" in table(
        Results.load(folder(tmp_path, content({**GAIN, "student": [1.0]})))
    )


def test_the_page_shows_before_it_tells(tmp_path: Path) -> None:
    """First the samples of the comparison with the largest gap and the effects, then a sentence, then the table."""
    small = content({"forward": [0.0008, 0.0009], "mixture": [0.0007, 0.0008]})
    large = content({"forward": [0.70, 0.75], "mixture": [0.002, 0.003]}, objective="progressive")
    page = write_report(folder(tmp_path, merged(small, large))).read_text()
    order = ["<h1>", f"<b>Samples: {TASK}, PD.", "<b>Effects.", "Mixture against forward:", "<table", "<details"]
    places = [page.index(each) for each in order]
    assert places == sorted(places) and "<details open" not in page and " open " not in page
    assert page.index("<b>Loss by step:") < page.index("<details")
    assert page.index("write_report(Path('FOLDER'))") > page.rindex("</details>")
    tables, frames = page.count("<table"), len(re.findall(r'<div class="scroll" tabindex="0">\s*<table', page))
    assert tables == frames, "every table scrolls inside its frame"


def test_results_without_a_mixture_show_their_students_first(tmp_path: Path) -> None:
    page = write_report(folder(tmp_path, content({"bc": [0.1, 0.2], "dagger": [0.1, 0.1]}))).read_text()
    assert page.index(f"<b>Samples: {TASK}, LCM.") < page.index('class="answer"')
    assert "<b>Effects." not in page and "largest gap" not in page


def test_effects_are_drawn_with_their_intervals(tmp_path: Path) -> None:
    large = content({"forward": [0.70, 0.75], "mixture": [0.002, 0.003]}, objective="progressive")
    results = Results.load(folder(tmp_path, merged(content(GAIN), large)))
    figure = forest_figure(overview(results.rows))
    assert figure is not None
    (axes,) = figure.axes
    assert [each.get_text() for each in axes.texts] == [f"{TASK}, LCM", f"{TASK}, PD"]
    phone = 350 / figure.get_figwidth()  # pixels an inch on a phone 390 pixels wide
    assert all(each.get_fontsize() / 72 * phone > 10 for each in axes.texts), "letters of 10 pixels can be read"
    bars = [segment for each in axes.containers for segment in each[2][0].get_segments()]
    found = [row.against["forward"]["energy"].interval for row in results.rows if row.variant == "mixture"]
    for bar, interval in zip(bars, found, strict=True):
        assert sorted(bar[:, 0]) == pytest.approx([1000 * interval.low, 1000 * interval.high])
    assert axes.get_xscale() == "symlog"
    assert forest_figure(overview(loaded(tmp_path, {"mixture": [0.1]}).rows)) is None


def test_the_page_is_complete_and_asks_for_nothing(tmp_path: Path) -> None:
    found = content({**GAIN, "student": GAIN["mixture"]})
    found["records"] += content({"forward": [None], "mixture": [None]}, objective="progressive")["records"]
    path = write_report(folder(tmp_path, found))
    page = path.read_text()
    results = Results.load(tmp_path)
    assert path == tmp_path / "report.html" and len(page) < 3e6
    assert not re.search(r"https?://|src=\"(?!data:)|href=\"(?!#)|@import|url\(", page)
    assert not re.search(r"/home/|/tmp/", page) and str(tmp_path) not in page
    assert all(words in unescape(re.sub(r"</?b>", "", page)) for words in sentences(results))
    assert "Mixture against forward (LCM only): better in 1 of 1." in page  # PD was run, and never measured
    assert (
        page.count("<table") == 4 and page.count("<img") == 9
    )  # 3 first; yardsticks, 2 objectives, chains, losses, quality
    assert all(f"<b>{metric}</b>" in page for metric in PLANE)
    for row in results.rows:
        assert level(row.metrics["energy"], "energy") in page
    assert "dagdiff 0.0.9" in page and not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", page))


def test_excess_is_over_the_expert_on_the_student_s_own_grid(tmp_path: Path) -> None:
    """With 2 steps of 2 sub-steps it is the expert's score at 4; a record that does not say takes the plain one."""
    found = content(GAIN, steps=2)
    plain = Results.load(folder(tmp_path, found)).rows[1]
    for record in found["records"]:
        record["substeps"] = 2
    own = Results.load(folder(tmp_path, found)).rows[1]
    mean = np.mean(GAIN["mixture"])
    assert plain.excess["energy"] == pytest.approx(mean - 0.0005)
    assert own.excess["energy"] == pytest.approx(mean - 0.125)
    assert plain.excess["w2"] == pytest.approx(0.11 - 0.9)


def test_the_remaining_gap_is_shown_everywhere(tmp_path: Path) -> None:
    results = loaded(tmp_path, {**GAIN, "published": [0.0006, 0.0005, 0.0005]})
    forward, mixture, published = results.rows
    assert forward.left is None and mixture.left is not None and mixture.left.ratio is not None
    assert mixture.left.ratio.mean == pytest.approx((0.0023 - 0.0005) / (0.0070 - 0.0005))
    assert published.left is not None and published.left.words == "matches the expert"
    assert "Of forward's gap to the expert 0.28 [0.24, 0.33] remains." in sentences(results)[0]
    assert "0.28 [0.24, 0.33]" in " ".join(table(results).split()) and "matches the expert" in students(results)
    page = write_report(tmp_path).read_text()
    assert "0.28 [0.24, 0.33]" in page and "matches the expert" in page
    lines = summary(results, tmp_path, "energy")
    assert float(lines["mixture"]["remaining_gap_mean"]) == pytest.approx(mixture.left.ratio.mean, rel=1e-5)
    assert lines["published"]["remaining_gap_mean"] == "" and lines["published"]["remaining"] == "matches the expert"


@pytest.mark.parametrize("identity", [1, 2, IDENTITY])
def test_results_say_under_which_identity_they_were_made(tmp_path: Path, identity: int) -> None:
    found = content(GAIN) | {"versions": {"torch": "2.13.0+cpu", "system": "Linux, x86_64, AVX2"}}
    found["identity"] = identity
    if identity == 1:
        del found["identity"]
    results = Results.load(folder(tmp_path, found))
    assert results.identity == identity
    assert results.made_with == "dagdiff 0.0.9 on Linux, x86_64, AVX2 (torch 2.13.0), 3 seeds"


def test_distances_are_shown_with_their_scale_and_without_a_negative_zero() -> None:
    assert level(Interval(0.0173, 0.0102, 0.025), "energy") == "17.3 [10.2, 25.0]"
    assert level(-0.00002, "energy") == "0.0" and level(float("nan"), "energy") == level(None, "energy") == "–"
    assert level(1.7631, "fd") == "1.76"
    assert change(Interval(-0.00022, -0.0005, -0.000005), "energy") == "-0.220 [-0.500, -0.005]"
    assert change(Interval(0.0, -0.00002, 0.0008), "energy") == "0.0 [0.0, 0.8]"


def test_cases_stand_apart_with_yardsticks_of_their_own(tmp_path: Path) -> None:
    """The same runs' task with another expert: another section, another excess, the same words for both."""
    other = content(GAIN, about="learned expert", case=f"{TASK}, learned expert", setup="x")
    for record in other["records"]:
        record["config"] += "-learned"
    found = merged(content(GAIN), other)
    yardsticks = found["references"][TASK]
    found["references"][f"{TASK}, learned expert"] = {**yardsticks, "expert": yardsticks["expert"] | {"energy": 0.002}}
    results = Results.load(folder(tmp_path, found))
    plain, learned = (row for row in results.rows if row.variant == "mixture")
    assert (plain.excess["energy"], learned.excess["energy"]) == pytest.approx((0.0018, 0.0003))
    first, second = sentences(results)
    assert first.startswith(f"{TASK}, LCM:") and second.startswith(f"{TASK}, learned expert, LCM:")
    page = write_report(tmp_path).read_text()
    assert f'id="{TASK}, learned expert"' in page and page.count(f'<a href="#{TASK}">') == 1


def test_a_study_s_figures_are_drawn_where_something_varies(tmp_path: Path) -> None:
    mixes = {"forward": (1, 0, 0), "student": (0, 1, 0), "expert": (0, 0, 1), "mixture": (0.25, 0.5, 0.25)}
    mixes |= {"mixture-50/50/0": (0.5, 0.5, 0), "mixture-0/50/50": (0, 0.5, 0.5)}
    parts = [content({name: [0.01, 0.02]}, shares=list(shares)) for name, shares in mixes.items()]
    operators = {f"mixture-{name}": [0.01, 0.02] for name in ("box", "fold")}
    parts += [
        content(operators),
        *(content({"forward": [0.01, 0.02], "mixture": [0.01, 0.02]}, steps=k) for k in (2, 8)),
    ]
    page = write_report(folder(tmp_path, merged(*parts))).read_text()
    assert all(f"<b>{title}." in page for title in ("The triangle of shares", "Error growth", "Thresholds"))
    page = write_report(folder(tmp_path, content(GAIN))).read_text()
    assert not any(f"<b>{title}." in page for title in ("The triangle of shares", "Error growth", "Thresholds"))


def test_failed_runs_and_versions_are_told(tmp_path: Path) -> None:
    found = content(GAIN) | {"failures": {"abc": "progressive seed 7: not finite"}, "versions": {"torch": "9.9"}}
    page = write_report(folder(tmp_path, found)).read_text()
    assert "1 run failed" in page and "progressive seed 7: not finite" in page and "torch 9.9" in page


def test_names_are_escaped(tmp_path: Path) -> None:
    page = write_report(folder(tmp_path, content(GAIN, objective="<script>alert(1)</script>"))).read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_nothing_measured_still_makes_a_page(tmp_path: Path) -> None:
    found = content({"forward": [None, None], "mixture": [None, None]})
    for record in found["records"]:
        record["metrics"] = dict.fromkeys(PLANE)
        record["by_step"] = {"t": [1.0, 0.5], "loss_forward": [None, None], "loss_own": [None, None]}
    page = write_report(folder(tmp_path, found)).read_text()
    assert "nothing can be compared" in page and page.count("<img") == 7
    assert [line["mean"] for line in summary(Results.load(tmp_path), tmp_path, "energy").values()] == ["", ""]


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"holds no results.json. Name the --out folder"):
        Results.load(tmp_path / "nowhere")


@pytest.mark.parametrize("spoil", ["records", "references", "suite", "settings", "metrics", "by_step", "expert"])
def test_results_that_lack_a_part_are_refused(tmp_path: Path, spoil: str) -> None:
    found = content(GAIN)
    for holder in (found, found["records"][0], found["references"][TASK]):
        holder.pop(spoil, None)
    with pytest.raises(Refusal, match=f"does not hold results .*{spoil}.*into a new folder"):
        Results.load(folder(tmp_path, found))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"records": 3}', "null"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(Refusal, match="does not hold results"):
        Results.load(tmp_path)


def test_no_run_and_missing_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no finished run"):
        Results.load(folder(tmp_path, content({})))
    folder(tmp_path, content(GAIN))
    (tmp_path / "samples" / "run.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(Refusal, match=r"run.npz is missing or broken"):
        write_report(tmp_path)
    (tmp_path / "samples" / "run.npz").unlink()
    with pytest.raises(Refusal, match=r"run.npz is missing or broken"):
        write_report(tmp_path)
