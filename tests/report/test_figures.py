"""Figures: the right panels, and in them the numbers that were given."""

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from dagdiff.checks import Refusal
from dagdiff.metrics.shift import StepShift
from dagdiff.metrics.statistics import Interval
from dagdiff.report import curves, figures, plane
from dagdiff.report.shift import shift_figure

RNG = np.random.default_rng(0)
PNG = b"\x89PNG\r\n\x1a\n"


def lines(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.lines}


def shift_rows() -> list[StepShift]:
    return [StepShift(k, 1.0 - k / 4, 0.1, 0.1 + k, 0.2, 0.3 * k, 0.4, 0.5, 0.6) for k in range(4)]


def done(number: int, steps: int, beta: float = 0.0) -> dict[str, Any]:
    losses = {f"loss_{law}": [size * number] * steps for law, size in (("forward", 0.1), ("own", 0.2), ("expert", 0.3))}
    return {"number": number, "heldout": 1.0 / number, "beta": beta, **losses}


def test_scatter_draws_every_cloud_on_one_square() -> None:
    clouds = {"a": RNG.normal(size=(50, 2)), "b": 3.0 * RNG.normal(size=(40, 2)), "c": RNG.normal(size=(1, 2))}
    figure = plane.scatter_panels(clouds, columns=2, colours={"b": "#0072B2"})
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c"]
    for axes, cloud in zip(figure.axes, clouds.values(), strict=True):
        np.testing.assert_array_equal(axes.collections[0].get_offsets(), cloud)
        assert axes.get_xlim() == axes.get_ylim() == figure.axes[0].get_xlim() and axes.get_aspect() == 1.0
    assert same_color(figure.axes[1].collections[0].get_facecolor()[0][:3], "#0072B2")


def test_points_outside_the_square_are_counted() -> None:
    points = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, -3.0], [math.nan, 0.0]])
    (axes,) = plane.scatter_panels({"x": points}, half=1.0).axes
    assert axes.get_xlim() == (-1.0, 1.0) and [text.get_text() for text in axes.texts] == ["3 outside"]
    assert not plane.scatter_panels({"x": points[:1]}, half=1.0).axes[0].texts


def test_half_width_ignores_a_stray_point_and_what_is_not_finite() -> None:
    cloud = np.concatenate([RNG.uniform(-1, 1, size=(1000, 2)), [[100.0, 0.0], [math.inf, math.nan]]])
    assert 1.0 < plane.half_width([cloud]) < 1.3
    with pytest.raises(Refusal, match="no finite points"):
        plane.half_width([np.full((3, 2), math.nan)])


def test_scatter_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(Refusal, match=r"panel 'x' must be \(n, 2\) points; got shape \(5, 3\)"):
        plane.scatter_panels({"x": np.zeros((5, 3))})
    with pytest.raises(Refusal, match="no finite points"):
        plane.scatter_panels({})


def test_chains_run_from_ring_to_dot_beside_the_experts() -> None:
    student, expert, truth = RNG.normal(size=(7, 5, 2)), RNG.normal(size=(7, 3, 2)), RNG.normal(size=(20, 2))
    figure = plane.chain_panels({"mixture": student, "expert": expert}, truth)
    assert [axes.get_title() for axes in figure.axes] == ["mixture", "expert"]
    for axes, chains, colour in zip(
        figure.axes, (student, expert), (figures.VARIANTS["mixture"], figures.ROLES["expert"]), strict=True
    ):
        grey, paths, starts, ends = axes.collections
        np.testing.assert_array_equal(grey.get_offsets(), truth)
        np.testing.assert_array_equal([segment for segment in paths.get_segments()], chains)
        np.testing.assert_array_equal(starts.get_offsets(), chains[:, 0])
        np.testing.assert_array_equal(ends.get_offsets(), chains[:, -1])
        assert same_color(paths.get_color()[0][:3], colour)


def test_losses_by_step_are_means_over_seeds_from_noise_to_data() -> None:
    t = [1.0, 0.75, 0.5, 0.25]
    forward, own = RNG.uniform(0.1, 1, size=(3, 4)), RNG.uniform(0.1, 1, size=(3, 4))
    own[0, 2] = math.nan
    losses = curves.StepLosses(t, forward, own)
    figure = curves.loss_by_step(
        {"progressive": {"forward": losses}, "consistency": {"forward": losses, "mixture": losses}}
    )
    first, second = figure.axes
    drawn = lines(second)
    assert list(drawn) == [f"{name}: {law} states" for name in ("forward", "mixture") for law in ("forward", "student")]
    np.testing.assert_array_equal(drawn["mixture: forward states"].get_xdata(), t)
    np.testing.assert_allclose(drawn["mixture: forward states"].get_ydata(), forward.mean(axis=0))
    np.testing.assert_allclose(drawn["mixture: student states"].get_ydata(), np.nanmean(own, axis=0))
    assert drawn["mixture: student states"].get_linestyle() == "-" != drawn["mixture: forward states"].get_linestyle()
    assert first.get_xlim()[0] > first.get_xlim()[1] and first.get_yscale() == "log"
    assert len(first.lines) == 2 and first.get_ylim() == second.get_ylim()


def test_quality_stands_at_the_number_of_evaluations() -> None:
    students = {
        "forward": {4: Interval(0.02, 0.01, 0.04)},
        "mixture": {2: Interval(0.1, 0.1, 0.1), 4: Interval(0.01, 0.0, 0.02)},
    }
    figure = curves.quality_by_nfe({"consistency": students}, expert={1: 0.5, 2: 0.2, 4: -0.001}, floor=0.0003)
    (axes,) = figure.axes
    curve = lines(axes)["the expert"]
    assert curve.get_xdata().tolist() == [1, 2, 4] and curve.get_ydata().tolist() == [0.5, 0.2, -0.001]
    forward, mixture = axes.containers
    assert (forward.get_label(), mixture.get_label()) == ("forward", "mixture")
    assert mixture[0].get_ydata().tolist() == [0.1, 0.01]
    assert mixture[0].get_xdata().tolist() == pytest.approx([2, 4], rel=0.1)
    assert forward[0].get_xdata()[0] < mixture[0].get_xdata()[1]
    assert [float(y) for _, y in forward[2][0].get_segments()[0]] == pytest.approx([0.01, 0.04])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["the expert", "floor", "forward", "mixture"]


def test_shift_shows_three_losses_and_two_distances() -> None:
    rows = shift_rows()
    loss, energy, sliced = shift_figure(rows).axes
    for law in ("forward", "expert", "own"):
        assert lines(loss)[f"on {law} states"].get_ydata().tolist() == [getattr(row, f"loss_{law}") for row in rows]
    for axes, name in ((energy, "energy"), (sliced, "sliced_w2")):
        for law in ("forward", "expert"):
            drawn = lines(axes)[f"own to {law} states"]
            assert drawn.get_ydata().tolist() == [getattr(row, f"{name}_{law}") for row in rows]
            assert drawn.get_xdata().tolist() == [1.0, 0.75, 0.5, 0.25]


def test_rounds_are_counted_through_stages_of_unequal_steps() -> None:
    forward, own, expert, heldout = curves.rounds_figure([done(1, 4), done(2, 4), done(1, 2)]).axes
    assert len(forward.lines) == len(own.lines) == len(expert.lines) == 4
    assert [axes.get_title().split()[-2] for axes in (forward, own, expert)] == ["forward", "own", "expert"]
    for axes, size in ((forward, 0.1), (own, 0.2), (expert, 0.3)):
        assert axes.lines[0].get_ydata().tolist() == [size, 2 * size, size]
    assert own.lines[0].get_xdata().tolist() == [1, 2, 3] and own.lines[0].get_ydata().tolist() == [0.2, 0.4, 0.2]
    np.testing.assert_array_equal(own.lines[3].get_ydata(), [0.2, 0.4, math.nan])
    assert forward.get_ylim() == own.get_ylim() == expert.get_ylim() and own.get_yscale() == "log"
    assert own.get_ylim()[0] < 0.1 < 0.6 < own.get_ylim()[1]
    assert heldout.lines[0].get_ydata().tolist() == [1.0, 0.5, 1.0]


def test_beta_is_drawn_where_the_expert_ever_drives() -> None:
    *_, share = (figure := curves.rounds_figure([done(1, 2, 0.75), done(2, 2, 0.5)])).axes
    assert len(figure.axes) == 5 and share.get_ylim() == (0.0, 1.0)
    heights = share.collections[0].get_paths()[0].vertices[:, 1]
    assert set(heights) == {0.0, 0.75, 0.5}


def test_rounds_without_measurements_still_draw() -> None:
    empty = {"number": 1, "heldout": math.nan, "beta": 0.0, "loss_forward": [], "loss_own": [], "loss_expert": []}
    for rounds in ([empty], [empty, {**empty, "heldout": None, "loss_own": [None, 0.0]}], []):
        assert figures.to_data_uri(curves.rounds_figure(rounds)).startswith("data:image/png;base64,")


def test_a_loss_of_zero_or_none_does_not_stop_the_log_axis() -> None:
    nothing = curves.StepLosses([1.0, 0.5], [[0.0, 0.0]], [[None, None]])
    figure = curves.loss_by_step({"progressive": {"mixture": nothing}})
    assert figure.axes[0].get_yscale() == "linear" and figures.to_data_uri(figure)
    with pytest.raises(Refusal, match="nothing to draw"):
        curves.loss_by_step({})


@pytest.mark.parametrize(("name", "start"), [("a.png", PNG), ("b.svg", b"<?xml"), ("c.pdf", b"%PDF"), ("plain", PNG)])
def test_save_writes_whole_files_of_the_suffix(tmp_path: Path, name: str, start: bytes) -> None:
    figures.save(Figure(figsize=(1, 1)), tmp_path / "new" / name)
    assert (tmp_path / "new" / name).read_bytes().startswith(start)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_data_uri_holds_a_png() -> None:
    head, body = figures.to_data_uri(Figure(figsize=(1, 1))).split(",")
    assert head == "data:image/png;base64" and base64.b64decode(body).startswith(PNG)


def test_every_colour_is_its_own() -> None:
    colours = [*figures.VARIANTS.values(), *figures.ROLES.values()]
    assert len(set(colours)) == len(colours)


def test_no_figure_is_left_open_in_pyplot() -> None:
    before = Gcf.get_all_fig_managers()
    figures.to_data_uri(plane.scatter_panels({"x": RNG.normal(size=(5, 2))}))
    assert Gcf.get_all_fig_managers() == before == []
