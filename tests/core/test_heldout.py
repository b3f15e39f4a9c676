"""The held-out measurement: fixed states, each law's losses by hand, and nothing charged."""

import pytest
import torch

from dagdiff.envs.toy2d import world
from dagdiff.expert import Expert
from dagdiff.heldout import HeldOut
from dagdiff.objectives.progressive import Progressive
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Student
from dagdiff.policy import ExpertPolicy, StudentPolicy
from dagdiff.schedule import CosineSchedule, perturb, step_grid
from dagdiff.transition import Ddim, Renoise, Transition, chain

SCHEDULE, DATA, TIMES, ROWS = CosineSchedule(), world("gaussians8"), step_grid(4), 32
every_law = pytest.mark.parametrize("law", [Ddim(SCHEDULE), Renoise(SCHEDULE)], ids=["ddim", "renoise"])


def parts(law: Transition) -> tuple[HeldOut, StudentPolicy, Expert]:
    mixture = DATA.mixture
    assert mixture is not None
    expert = Expert(GaussianMixtureExpert(mixture.means, mixture.stds, mixture.weights, SCHEDULE), SCHEDULE, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = Student(MLP(width=16), SCHEDULE)
    return HeldOut(DATA, law, TIMES, ROWS), StudentPolicy(student), expert


@every_law
def test_imitation_is_at_no_charge_and_repeats(law: Transition) -> None:
    heldout, policy, expert = parts(law)
    first = heldout.imitation(policy, expert)
    assert expert.nfe == 0
    assert heldout.imitation(policy, expert) == first
    assert {name: len(losses) for name, losses in first.items()} == dict.fromkeys(first, 4)


@every_law
def test_forward_states_stand_where_the_step_starts(law: Transition) -> None:
    """By hand: the held-out points, perturbed to the start of each step, and the expert's guess for its horizon."""
    heldout, policy, expert = parts(law)
    generator, expected = torch.Generator().manual_seed(heldout.seed), []
    for t, s in zip(TIMES[:-1].tolist(), TIMES[1:].tolist(), strict=True):
        start, end = torch.full((ROWS,), t), torch.full((ROWS,), s)
        x_t = perturb(heldout.x0, torch.randn(heldout.x0.shape, generator=generator), start, SCHEDULE)
        target = expert.target(x_t, start, law.horizon(end))
        with torch.no_grad():
            expected.append(float((policy(x_t, start) - target).square().mean()))
    assert heldout.imitation(policy, expert)["loss_forward"] == pytest.approx(expected, rel=1e-4)


def test_the_objective_is_measured_on_the_students_own_states() -> None:
    heldout, policy, expert = parts(Ddim(SCHEDULE))
    objective = Progressive(weight=lambda alpha, sigma: torch.ones_like(alpha))
    objective.begin(policy.student, expert, lambda rows: (torch.zeros(rows, 2), None), None)
    own = heldout.imitation(policy, expert)["loss_own"]
    assert heldout.objective(policy, expert, objective) == pytest.approx(sum(own) / 4, rel=1e-4)


@every_law
def test_the_displacement_is_that_of_chains_from_the_same_noise(law: Transition) -> None:
    heldout, policy, expert = parts(law)
    fresh = [torch.Generator().manual_seed(heldout.seed) for _ in range(2)]
    own = list(chain(policy, law, TIMES, heldout.noise, generator=fresh[0]))
    led = list(chain(ExpertPolicy(expert, law, TIMES), law, TIMES, heldout.noise, generator=fresh[1]))
    expected = [float((a.x_s - b.x_s).square().mean().sqrt()) for a, b in zip(own, led, strict=True)]
    nfe = expert.nfe
    assert heldout.displacement(policy, expert) == pytest.approx(expected, rel=1e-4)
    assert expert.nfe == nfe
