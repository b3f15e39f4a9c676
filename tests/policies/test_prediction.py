"""What a network predicts: every parameterisation there and back, on every schedule."""

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from dagdiff.policies.prediction import EPSILON, FLOW, PREDICTIONS, X0, Prediction, V
from dagdiff.schedule import CosineSchedule, FlowSchedule, VPSchedule, perturb
from dagdiff.shapes import column

SCHEDULES = {"cosine": CosineSchedule(), "flow": FlowSchedule(), "vp": VPSchedule.linear()}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS)
every_shape = pytest.mark.parametrize("shape", [(2,), (3, 4, 4)], ids=str)


def point(shape: tuple[int, ...], schedule: Callable, rows: int = 7) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(2, rows, *shape, generator=generator)
    t = torch.linspace(0.1, 0.9, rows)
    alpha, sigma = (column(part, x0) for part in schedule(t))
    return x0, eps, t, alpha, sigma, perturb(x0, eps, t, schedule)


@every_shape
@every_schedule
@every_prediction
def test_there_and_back(prediction: Prediction, schedule: Callable, shape: tuple[int, ...]) -> None:
    x0, _, t, alpha, sigma, x_t = point(shape, schedule)
    output = prediction.from_x0(x_t, x0, alpha, sigma)
    torch.testing.assert_close(prediction.to_x0(x_t, output, alpha, sigma), x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prediction.guess(x_t, output, t, schedule), x0, atol=1e-4, rtol=1e-4)
    again = prediction.from_x0(x_t, prediction.to_x0(x_t, output, alpha, sigma), alpha, sigma)
    torch.testing.assert_close(again, output, atol=1e-4, rtol=1e-4)


@every_schedule
def test_each_is_what_its_name_says(schedule: Callable) -> None:
    x0, eps, _, alpha, sigma, x_t = point((2,), schedule)
    meant = {X0: x0, EPSILON: eps, V: alpha * eps - sigma * x0, FLOW: eps - x0}
    for prediction, output in meant.items():
        torch.testing.assert_close(prediction.from_x0(x_t, x0, alpha, sigma), output, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(prediction.to_x0(x_t, output, alpha, sigma), x0, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_epsilon_and_v_equal_diffusers(kind: str) -> None:
    diffusers = DDIMScheduler(prediction_type=kind, clip_sample=False)
    diffusers.set_timesteps(10)
    x_t, output = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    theirs = diffusers.step(output, 400, x_t).pred_original_sample
    ours = {"epsilon": EPSILON, "v_prediction": V}[kind].guess(
        x_t, output, torch.full((5,), 401 / 1000), VPSchedule(diffusers.alphas_cumprod)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.floats(0.05, 0.95),
    st.sampled_from(sorted(PREDICTIONS)),
    st.sampled_from(sorted(SCHEDULES)),
)
def test_there_and_back_in_any_shape(shape: list[int], t: float, name: str, law: str) -> None:
    prediction, schedule = PREDICTIONS[name], SCHEDULES[law]
    x_t, output = torch.randn(2, 3, *shape, dtype=torch.float64)
    alpha, sigma = (column(part, x_t) for part in schedule(torch.full((3,), t)))
    back = prediction.from_x0(x_t, prediction.to_x0(x_t, output, alpha, sigma), alpha, sigma)
    torch.testing.assert_close(back, output, atol=1e-4, rtol=1e-4)


def test_names_are_the_keys() -> None:
    assert sorted(PREDICTIONS) == ["epsilon", "flow", "v", "x0"]
    assert all(prediction.name == name for name, prediction in PREDICTIONS.items())
