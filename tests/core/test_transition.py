"""The law of the world: identities, diffusers' schedulers step by step, exact marginals, the sampler's loop."""

import itertools
from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, LCMScheduler
from hypothesis import given
from hypothesis import strategies as st

from dagdiff.checks import Refusal
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.schedule import CosineSchedule, FlowSchedule, Schedule, VPSchedule, perturb, step_grid
from dagdiff.transition import Ddim, EpsilonScaling, Renoise, Transition, chain, ddim, sample

ZERO_SNR = VPSchedule(DDIMScheduler(rescale_betas_zero_snr=True).alphas_cumprod)
SCHEDULES = {"cosine": CosineSchedule(), "flow": FlowSchedule(), "vp": VPSchedule.linear(), "vp-zero-snr": ZERO_SNR}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_shape = pytest.mark.parametrize("shape", [(2,), (3, 4, 4)], ids=str)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def times(*values: float, rows: int = 5) -> list[torch.Tensor]:
    return [torch.full((rows,), value) for value in values]


@every_shape
@every_schedule
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("t", [1.0, 0.6, 0.01, 0.0])
def test_a_step_to_where_one_is_changes_nothing(schedule: Callable, shape: tuple, eta: float, t: float) -> None:
    x_t, x0, noise = (normal(5, *shape, seed=seed) for seed in range(3))
    x_s = Ddim(schedule, eta)(x_t, x0, *times(t, t), noise)
    torch.testing.assert_close(x_s, x_t, atol=2e-4 if eta else 1e-5, rtol=1e-5)


@every_shape
@every_schedule
def test_two_steps_with_the_true_x0_equal_one_and_stay_on_its_path(schedule: Callable, shape: tuple) -> None:
    x0, eps = normal(5, *shape), normal(5, *shape, seed=1)
    t, middle, s = times(0.9, 0.5, 0.2)
    x_t = perturb(x0, eps, t, schedule)
    one = ddim(x_t, x0, t, s, schedule)
    two = ddim(ddim(x_t, x0, t, middle, schedule), x0, middle, s, schedule)
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one, perturb(x0, eps, s, schedule), atol=1e-5, rtol=1e-5)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.lists(st.floats(0.05, 0.99), min_size=2, max_size=6, unique=True),
    st.sampled_from(sorted(SCHEDULES)),
)
def test_any_number_of_steps_with_the_true_x0_equals_one(shape: list[int], stops: list[float], law: str) -> None:
    schedule, path = SCHEDULES[law], [torch.full((2,), stop) for stop in sorted(stops, reverse=True)]
    x0, x = normal(2, *shape), normal(2, *shape, seed=1)
    one = ddim(x, x0, path[0], path[-1], schedule)
    for t, s in itertools.pairwise(path):
        x = ddim(x, x0, t, s, schedule)
    torch.testing.assert_close(x, one, atol=1e-4, rtol=1e-4)


@every_schedule
@pytest.mark.parametrize("law", [Ddim, lambda schedule: Ddim(schedule, 1.0), Renoise], ids=["ddim", "eta 1", "renoise"])
def test_every_law_lands_on_the_guess_at_time_zero(schedule: Callable, law: Callable) -> None:
    x_t, x0, noise = (normal(5, 2, seed=seed) for seed in range(3))
    torch.testing.assert_close(law(schedule)(x_t, x0, *times(0.4, 0.0), noise), x0)


@every_schedule
def test_rows_step_at_their_own_times(schedule: Callable) -> None:
    x_t, x0, noise = (normal(3, 2, seed=seed) for seed in range(3))
    t, s = torch.tensor([0.9, 0.6, 0.3]), torch.tensor([0.5, 0.1, 0.0])
    for law in (Ddim(schedule), Ddim(schedule, 0.5), Renoise(schedule)):
        together = law(x_t, x0, t, s, noise)
        for row in range(3):
            one = slice(row, row + 1)
            torch.testing.assert_close(together[one], law(x_t[one], x0[one], t[one], s[one], noise[one]))


@pytest.mark.parametrize("steps", [4, 10])
@pytest.mark.parametrize("eta", [0.0, 0.7])
@every_shape
def test_ddim_equals_diffusers_step_by_step(shape: tuple[int, ...], eta: float, steps: int) -> None:
    theirs = DDIMScheduler(
        set_alpha_to_one=True, clip_sample=False, prediction_type="sample", timestep_spacing="trailing"
    )
    theirs.set_timesteps(steps)
    law, grid = Ddim(VPSchedule(theirs.alphas_cumprod), eta), step_grid(steps)
    assert [(int(at) + 1) / 1000 for at in theirs.timesteps] == pytest.approx(grid[:-1].tolist())
    x = normal(5, *shape)
    for number, at in enumerate(theirs.timesteps):
        x0, noise = normal(5, *shape, seed=10 + number), normal(5, *shape, seed=50 + number)
        expected = theirs.step(x0, int(at), x, eta=eta, variance_noise=noise if eta else None).prev_sample
        x_s = law(x, x0, grid[number].expand(5), grid[number + 1].expand(5), noise)
        torch.testing.assert_close(x_s, expected, atol=1e-5, rtol=1e-5)
        x = expected


@every_shape
def test_renoise_equals_lcm_schedulers_renoising(shape: tuple[int, ...]) -> None:
    theirs = LCMScheduler(prediction_type="sample", clip_sample=False)
    theirs.set_timesteps(4)
    law, x = Renoise(VPSchedule(theirs.alphas_cumprod)), normal(5, *shape)
    for number, at in enumerate(theirs.timesteps[:-1]):
        answer = theirs.step(normal(5, *shape, seed=number), at, x, generator=torch.Generator().manual_seed(number))
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(number))
        t, s = ((theirs.timesteps[place] + 1.0) / 1000 for place in (number, number + 1))
        # LCM's guess of x0 is what its boundary condition makes of the network's output.
        x_s = law(x, answer.denoised, t.expand(5), s.expand(5), noise)
        torch.testing.assert_close(x_s, answer.prev_sample, atol=1e-5, rtol=1e-5)
        x = answer.prev_sample


@every_shape
@pytest.mark.parametrize("at", [0, 17, 500, 999])
def test_renoise_equals_ddpm_add_noise(shape: tuple[int, ...], at: int) -> None:
    theirs = DDPMScheduler()
    x0, noise = normal(5, *shape), normal(5, *shape, seed=1)
    expected = theirs.add_noise(x0, noise, torch.full((5,), at))
    law = Renoise(VPSchedule(theirs.alphas_cumprod))
    x_s = law(normal(5, *shape, seed=2), x0, *times(1.0, (at + 1) / 1000), noise)
    torch.testing.assert_close(x_s, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("law", ["cosine", "flow", "vp"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_fine_chain_of_the_exact_expert_keeps_the_marginals(law: str, eta: float) -> None:
    """A single Gaussian's chain is affine in state and noise: probe both slopes, carry mean and variance along."""
    schedule, mean, std = SCHEDULES[law], 0.5, 0.6
    expert = GaussianMixtureExpert(torch.tensor([[mean]]), torch.tensor([std]), torch.ones(1), schedule)
    step, grid = Ddim(schedule, eta), step_grid(1000)
    x_t, noise = torch.tensor([[0.0], [1.0], [0.0]]), torch.tensor([[0.0], [0.0], [1.0]])
    centre, variance = 0.0, 1.0
    for number, (t, s) in enumerate(zip(grid[:-1].split(1), grid[1:].split(1), strict=True)):
        rest, moved, shaken = (
            step(x_t, expert(x_t, t.expand(3)), t.expand(3), s.expand(3), noise).flatten().double().tolist()
        )
        centre, variance = rest + (moved - rest) * centre, (moved - rest) ** 2 * variance + (shaken - rest) ** 2
        if number % 100 == 99:
            alpha, sigma = (float(part) for part in schedule(s))
            assert centre == pytest.approx(alpha * mean, abs=0.02)
            assert variance == pytest.approx(alpha**2 * std**2 + sigma**2, rel=0.02)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@every_schedule
def test_a_point_mass_has_the_forward_marginals_on_any_grid(
    schedule: Callable, eta: float, generator: torch.Generator
) -> None:
    x0, noise = torch.tensor([[0.5, -1.0]]), torch.randn(20_000, 2, generator=generator)

    def certain(x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        return x0.expand_as(x_t)

    start = perturb(x0.expand_as(noise), noise, torch.ones(20_000), schedule)
    for step in chain(certain, Ddim(schedule, eta), step_grid(4), start, generator=generator):
        alpha, sigma = (float(part[0]) for part in schedule(step.s))
        torch.testing.assert_close(step.x_s.mean(0), alpha * x0[0], atol=0.03, rtol=0)
        torch.testing.assert_close(step.x_s.std(0), torch.full((2,), sigma), atol=0.02, rtol=0)


def test_eta_one_spends_the_ddpm_posterior_variance() -> None:
    """Ho et al. 2020, eq. 7: Var(x_s | x_t, x0) = (1 - abar_s) / (1 - abar_t) * beta_t."""
    schedule, t, s = VPSchedule.linear(), 0.8, 0.6
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (schedule(torch.tensor([time])) for time in (t, s))
    beta = 1 - (alpha_t / alpha_s) ** 2
    spread = Ddim(schedule, 1.0)(torch.zeros(1, 2), torch.zeros(1, 2), *times(t, s, rows=1), torch.ones(1, 2))
    torch.testing.assert_close(spread.square(), (sigma_s**2 / sigma_t**2 * beta).expand(1, 2), rtol=1e-4, atol=0)


@every_shape
@every_schedule
@pytest.mark.parametrize("kind", ["ddim", "eta", "renoise"])
def test_sample_is_the_manual_loop(schedule: Callable, shape: tuple[int, ...], kind: str) -> None:
    law: Transition = {"ddim": Ddim(schedule), "eta": Ddim(schedule, 0.7), "renoise": Renoise(schedule)}[kind]
    asked = []

    def policy(x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        asked.append((t.clone(), condition))
        return torch.tanh(x_t + t.reshape(-1, *[1] * len(shape)))

    grid, noise, labels = torch.tensor([0.95, 0.7, 0.2, 0.0]), normal(6, *shape), torch.arange(6)
    ended = sample(policy, law, grid, noise, labels, torch.Generator().manual_seed(5))
    assert torch.equal(torch.stack([t for t, _ in asked]), grid[:-1, None].expand(3, 6))
    assert all(condition is labels for _, condition in asked)

    x, draws = noise, torch.Generator().manual_seed(5)
    for t, s in ((0.95, 0.7), (0.7, 0.2), (0.2, 0.0)):
        fresh = torch.randn(x.shape, generator=draws)
        x = law(x, policy(x, *times(t, rows=6), labels), *times(t, s, rows=6), fresh)
    assert torch.equal(ended, x)


def test_chain_tells_every_step_and_sample_carries_no_gradient() -> None:
    layer, schedule = torch.nn.Linear(2, 2), CosineSchedule()
    steps = list(chain(lambda x, t, c: layer(x), Ddim(schedule), step_grid(3), normal(4, 2)))
    assert [(round(float(at.t[0]), 4), round(float(at.s[0]), 4)) for at in steps] == [
        (1, 0.6667),
        (0.6667, 0.3333),
        (0.3333, 0),
    ]
    for before, after in itertools.pairwise(steps):
        assert after.x_t is before.x_s
    assert steps[-1].x_s.requires_grad
    assert not sample(lambda x, t, c: layer(x), Ddim(schedule), step_grid(3), normal(4, 2)).requires_grad


def test_fresh_noise_is_drawn_anew_at_every_step() -> None:
    schedule, seen = FlowSchedule(), []
    for step in chain(lambda x, t, c: torch.zeros_like(x), Renoise(schedule), step_grid(4), normal(4, 2)):
        seen.append(step.x_s / step.s.clamp(min=1e-9)[:, None])
    assert not torch.allclose(seen[0], seen[1])
    assert not torch.allclose(seen[1], seen[2])


def test_horizons() -> None:
    s = torch.tensor([0.5, 0.2])
    assert torch.equal(Ddim(CosineSchedule()).horizon(s), s)
    assert torch.equal(Renoise(CosineSchedule()).horizon(s), torch.zeros(2))


def test_refusals() -> None:
    with pytest.raises(Refusal, match=r"eta must lie in \[0, 1\]; got 1.5. Pass e.g. eta=0.5"):
        Ddim(CosineSchedule(), 1.5)
    with pytest.raises(Refusal, match=r"times\[1\]=1 after times\[0\]=0.5"):
        sample(lambda x, t, c: x, Ddim(CosineSchedule()), torch.tensor([0.5, 1.0, 0.0]), normal(2, 2))


# --- epsilon scaling --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [Ddim(SCHEDULES["cosine"]), Ddim(SCHEDULES["cosine"], 1.0), Renoise(SCHEDULES["flow"])])
def test_a_scale_of_one_changes_nothing(law: Transition, generator: torch.Generator) -> None:
    x, x0, noise = (torch.randn(4, 3, 2, generator=generator) for _ in range(3))
    t = torch.tensor([1.0, 0.9, 0.5, 0.1])
    assert torch.equal(EpsilonScaling(law, 1.0)(x, x0, t, 0.5 * t, noise), law(x, x0, t, 0.5 * t, noise))
    assert torch.equal(EpsilonScaling(law, 1.1).horizon(t), law.horizon(t))
    assert EpsilonScaling(law, 1.1).schedule is law.schedule


@pytest.mark.parametrize("scale", [0.9, 1.005, 1.2])
@pytest.mark.parametrize("schedule", [CosineSchedule(), FlowSchedule()], ids=["cosine", "flow"])
def test_epsilon_is_divided_by_the_scale(schedule: Schedule, scale: float, generator: torch.Generator) -> None:
    """The published formula under DDIM: eps / scale both in the guess and in the direction."""
    x, x0 = (torch.randn(3, 2, generator=generator) for _ in range(2))
    t, s = torch.tensor([0.8, 0.5, 0.25]), torch.tensor([0.5, 0.25, 0.0])
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ([part[:, None] for part in schedule(time)] for time in (t, s))
    eps = (x - alpha_t * x0) / sigma_t / scale
    expected = alpha_s * (x - sigma_t * eps) / alpha_t + sigma_s * eps
    found = EpsilonScaling(Ddim(schedule), scale)(x, x0, t, s, torch.zeros_like(x))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_where_alpha_is_tiny_the_guess_is_left_alone(generator: torch.Generator) -> None:
    """Unguarded, a scale of 1.005 would move the cosine schedule's first guess by five times the state."""
    law = Ddim(CosineSchedule())
    x, x0 = (torch.randn(2, 2, generator=generator) for _ in range(2))
    t, s = torch.tensor([1.0, 0.95]), torch.tensor([0.75, 0.7])
    assert float(law.schedule(t)[0].max()) < 0.1
    assert torch.equal(EpsilonScaling(law, 1.005)(x, x0, t, s, x), law(x, x0, t, s, x))
    unguarded = EpsilonScaling(law, 1.005, least_alpha=1e-6)(x, x0, t, s, x)
    assert float((unguarded - law(x, x0, t, s, x)).abs().max()) > 1.0


@pytest.mark.parametrize(
    ("options", "match"),
    [({"scale": 0.0}, "scale must be above 0"), ({"scale": 1.1, "least_alpha": 0.0}, "least_alpha must be above 0")],
)
def test_scales_that_cannot_be(options: dict[str, float], match: str) -> None:
    with pytest.raises(Refusal, match=match):
        EpsilonScaling(Ddim(CosineSchedule()), **options)


def test_epsilon_scaling_runs_on_meta() -> None:
    x, t = torch.empty(3, 2, device="meta"), torch.ones(3, device="meta")
    assert EpsilonScaling(Ddim(CosineSchedule()), 1.1)(x, x, t, 0.5 * t, x).is_meta
