"""A study's figures: what is drawn is what was given, and what can't be drawn is refused."""

import math

import numpy as np
import pytest

from dagdiff.checks import Refusal
from dagdiff.metrics.statistics import Interval
from dagdiff.report.study import growth_figure, overview_figure, shares_figure, thresholds_figure

CORNERS = {(1.0, 0.0, 0.0): 0.3, (0.0, 1.0, 0.0): 0.1, (0.0, 0.0, 1.0): 0.2, (0.25, 0.5, 0.25): 0.05}


def test_shares_stand_at_their_corners_and_the_best_is_ringed() -> None:
    axes = shares_figure({"PD": CORNERS}).axes[0]
    dots, ring = axes.collections[-2:]
    places = np.asarray(dots.get_offsets())
    assert np.allclose(places[:3], [[0, 0], [0.5, math.sqrt(3) / 2], [1, 0]])
    assert np.allclose(places[3], [0.5, math.sqrt(3) / 4])  # half student, the rest evenly
    assert np.allclose(ring.get_offsets(), places[3:])
    assert {"0.3", "0.05", "forward"} <= {text.get_text() for text in axes.texts}


def test_shares_may_have_no_logarithm() -> None:
    figure = shares_figure({"PD": {**CORNERS, (0.5, 0.5, 0.0): -0.001}})
    figure.canvas.draw()


def test_growth_draws_the_laws_with_each_variant_s_own_error() -> None:
    found = {2: (0.1, Interval(0.5, 0.4, 0.6)), 1: (0.2, Interval(0.2, 0.1, 0.3)), 4: (0.1, Interval(2.0, 1.0, 3.0))}
    axes = growth_figure({"PD": {"mixture": found}}).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert np.allclose(lines["mixture: e K"].get_data(), [[1, 2, 4], [0.2, 0.2, 0.4]])
    assert np.allclose(lines["mixture: e K²"].get_data(), [[1, 2, 4], [0.2, 0.4, 1.6]])
    assert axes.get_yscale() == "log"


def test_thresholds_stand_beside_the_first() -> None:
    found = {"none": Interval(0.2, 0.1, 0.3), "box": Interval(0.1, 0.1, 0.1)}
    axes = thresholds_figure({"PD": found}).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["none", "box"]
    assert np.allclose(axes.lines[-1].get_ydata(), 0.2)


def test_the_overview_has_a_line_a_task() -> None:
    found = {"a": {"mixture": Interval(0.1, 0.05, 0.2)}, "b": {"mixture": Interval(0.3, 0.2, 0.4)}}
    (axes,) = overview_figure({"PD": found}, {"PD": {"a": 0.01, "b": 0.02}}, "energy distance").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert np.allclose(axes.lines[0].get_data(), [[0.01, 0.02], [0, 1]])
    assert np.allclose(axes.lines[1].get_data(), [[0.1, 0.3], [0, 1]])


def test_the_overview_names_every_variant_and_leaves_out_what_was_not_run() -> None:
    one, two = Interval(0.1, 0.05, 0.2), Interval(0.3, 0.2, 0.4)
    panels = {"PD": {"a": {"mixture": one}, "b": {"mixture": two}}, "DMD2": {"b": {"mixture": one, "published": two}}}
    figure = overview_figure(panels, {title: {"a": 0.01, "b": 0.02} for title in panels}, "energy distance")
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"expert", "mixture", "published"}
    assert np.allclose(figure.axes[1].lines[1].get_data(), [[0.1], [1]])


def test_refusals() -> None:
    with pytest.raises(Refusal, match="three mixtures that are not on one line"):
        shares_figure({"PD": {(1.0, 0.0, 0.0): 1.0, (0.5, 0.5, 0.0): 1.0, (0.0, 1.0, 0.0): 1.0}})
    with pytest.raises(Refusal, match="shares must sum to 1"):
        shares_figure({"PD": {(1.0, 1.0, 0.0): 1.0}})
    with pytest.raises(Refusal, match="nothing to draw"):
        thresholds_figure({})
