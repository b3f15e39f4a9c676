"""The reflected operators: idempotent where they should be, their formulas, their shapes, their refusals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dagdiff.checks import Refusal
from dagdiff.threshold import (
    DynamicThreshold,
    Fold,
    NoThreshold,
    QuantileBox,
    StaticThreshold,
    Threshold,
    row_quantiles,
)

BOX2 = QuantileBox(torch.tensor([-1.0, -0.5]), torch.tensor([0.5, 2.0]))
BOX3 = QuantileBox(torch.tensor([-1.0, -0.5, 0.0]), torch.tensor([0.5, 2.0, 0.1]))
every_shape = pytest.mark.parametrize("shape", [(2,), (3, 4, 4)], ids=str)


def wide(*shape: int) -> torch.Tensor:
    return 4.0 * torch.randn(shape, generator=torch.Generator().manual_seed(3))


@every_shape
@pytest.mark.parametrize("kind", ["none", "static", "fold", "box"])
def test_twice_is_once(kind: str, shape: tuple[int, ...]) -> None:
    box = BOX2 if shape[0] == 2 else BOX3
    operators: dict[str, Threshold] = {"none": NoThreshold(), "static": StaticThreshold(-1, 2), "fold": Fold(-1, 2)}
    operator = {**operators, "box": box}[kind]
    once = operator(wide(50, *shape))
    assert once.shape == (50, *shape)
    torch.testing.assert_close(operator(once), once, atol=1e-6, rtol=0)


@every_shape
@pytest.mark.parametrize("operator", [StaticThreshold(-2, 1), Fold(-2, 1), DynamicThreshold(0.9, 1.5)], ids=str)
def test_results_lie_in_the_box_and_insiders_stay(operator: Threshold, shape: tuple[int, ...]) -> None:
    low, high = (-2.0, 1.0) if not isinstance(operator, DynamicThreshold) else (-1.5, 1.5)
    bounded = operator(wide(200, *shape))
    assert bounded.min() >= low - 1e-6
    assert bounded.max() <= high + 1e-6
    inside = low + (high - low) * torch.rand(20, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(operator(inside), inside, atol=1e-6, rtol=0)


def reflect(x: float, low: float, high: float) -> float:
    while not low <= x <= high:
        x = 2 * high - x if x > high else 2 * low - x
    return x


@given(st.floats(-20, 20), st.floats(-2, 2), st.floats(0.25, 3))
def test_fold_is_reflection_at_the_walls_as_often_as_needed(x: float, low: float, width: float) -> None:
    folded = Fold(low, low + width)(torch.tensor([x], dtype=torch.float64))
    assert float(folded) == pytest.approx(reflect(x, low, low + width), abs=1e-9)


def test_static_is_a_clamp() -> None:
    assert StaticThreshold(-1, 2)(torch.tensor([[-3.0, -1.0, 0.5, 2.0, 9.0]])).tolist() == [[-1.0, -1.0, 0.5, 2.0, 2.0]]


@every_shape
@pytest.mark.parametrize("quantile", [0.5, 0.9, 1.0])
def test_dynamic_is_imagens_formula_row_by_row(shape: tuple[int, ...], quantile: float) -> None:
    x0 = wide(20, *shape) * torch.linspace(0.05, 2, 20).reshape(-1, *[1] * len(shape))
    found = DynamicThreshold(quantile, bound=1.5)(x0)
    clipped = 0
    for row, got in zip(x0, found, strict=True):
        m = max(float(torch.quantile(row.abs().flatten(), quantile)), 1.5)
        clipped += m > 1.5
        torch.testing.assert_close(got, row.clamp(-m, m) / m * 1.5)
    assert 0 < clipped < 20, "both branches are meant to be met"


def test_dynamic_rows_do_not_touch_each_other() -> None:
    x0 = torch.stack([torch.full((4,), 0.3), torch.full((4,), 30.0)])
    assert torch.equal(DynamicThreshold()(x0)[0], x0[0])


@every_shape
def test_the_box_clamps_channel_by_channel(shape: tuple[int, ...]) -> None:
    box = BOX2 if shape[0] == 2 else BOX3
    x0 = wide(30, *shape)
    for channel in range(shape[0]):
        low, high = float(box.low[channel]), float(box.high[channel])
        assert torch.equal(box(x0)[:, channel], x0[:, channel].clamp(low, high))


@every_shape
def test_the_estimated_box_holds_the_central_quantile(shape: tuple[int, ...]) -> None:
    data = wide(4000, *shape) * torch.arange(1.0, shape[0] + 1).reshape(-1, *[1] * (len(shape) - 1))
    box = QuantileBox.estimate(data, 0.9)
    for channel in range(shape[0]):
        values = data[:, channel].flatten()
        inside = ((values >= box.low[channel]) & (values <= box.high[channel])).double().mean()
        below = (values < box.low[channel]).double().mean()
        assert float(inside) == pytest.approx(0.9, abs=2e-3)
        assert float(below) == pytest.approx(0.05, abs=2e-3)


def test_the_whole_box_is_the_range() -> None:
    data = wide(100, 2)
    box = QuantileBox.estimate(data, 1.0)
    torch.testing.assert_close((box.low, box.high), (data.min(0).values, data.max(0).values))


@every_shape
def test_all_keep_dtype_and_run_on_meta(shape: tuple[int, ...]) -> None:
    box = BOX2 if shape[0] == 2 else BOX3
    for operator in (NoThreshold(), StaticThreshold(), DynamicThreshold(), Fold(), box):
        found = operator(torch.empty(5, *shape, device="meta"))
        assert found.is_meta
        assert found.shape == (5, *shape)
        assert operator(torch.zeros(5, *shape)).dtype == torch.float32


@pytest.mark.parametrize("kind", [StaticThreshold, Fold])
@pytest.mark.parametrize(("low", "high"), [(1.0, -1.0), (0.5, 0.5), (float("nan"), 1.0)])
def test_a_box_inside_out_is_refused(kind: type, low: float, high: float) -> None:
    with pytest.raises(
        Refusal, match=rf"low must lie below high; got low={low}, high={high}\. Pass e\.g\. low=-1, high=1"
    ):
        kind(low, high)


def test_other_refusals() -> None:
    with pytest.raises(Refusal, match=r"quantile must lie in \[0, 1\]; got 1.5. Pass e.g."):
        DynamicThreshold(1.5)
    with pytest.raises(Refusal, match=r"must lie below high; got low=0.0, high=0.0"):
        DynamicThreshold(bound=0.0)
    with pytest.raises(Refusal, match=r"in every channel; got low=\[0.0, 1.0\], high=\[1.0, 1.0\].*estimate"):
        QuantileBox(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]))
    with pytest.raises(Refusal, match="data holds 1 values that are NaN or infinite, of 4"):
        QuantileBox.estimate(torch.tensor([[0.0, 1.0], [float("inf"), 2.0]]))
    with pytest.raises(Refusal, match=r"quantile must lie in \[0, 1\]; got -0.1"):
        QuantileBox.estimate(torch.randn(9, 2), -0.1)


@pytest.mark.parametrize("share", [0.0, 0.005, 0.5, 0.9, 0.99999, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_a_quantile_is_torchs(n: int, share: float) -> None:
    rows = wide(3, n)
    torch.testing.assert_close(row_quantiles(rows, share)[0], torch.quantile(rows.double(), share, dim=1))


def test_quantiles_of_more_values_than_torch_takes() -> None:
    """2^24 + 2 values in two channels: the whole numbers up to 2^23, and twice them."""
    ramp = torch.arange(2.0**23 + 1).flip(0)
    box = QuantileBox.estimate(torch.stack([ramp, 2.0 * ramp], dim=1), 0.5)
    assert box.low.tolist() == [2.0**21, 2.0**22] and box.high.tolist() == [3 * 2.0**21, 3 * 2.0**22]
    clamped = DynamicThreshold(0.5)(torch.stack([ramp, -ramp]))
    assert clamped.aminmax() == (-1.0, 1.0) and float((clamped[0] == 1.0).double().mean()) == pytest.approx(0.5)
