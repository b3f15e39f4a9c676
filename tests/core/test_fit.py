"""Parts that do not fit together are refused before anything is trained, and those that fit are not."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchrl.envs import GymEnv, SerialEnv

from dagdiff.checks import Refusal
from dagdiff.dagger import DAgger
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.envs.sets import Points
from dagdiff.envs.toy2d import world
from dagdiff.expert import Expert
from dagdiff.fit import check_fit
from dagdiff.gathering import Gathering
from dagdiff.learner import Learning
from dagdiff.objectives import Consistency, DistributionMatching, GaussianKL, Loss, Objective, Progressive
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policies.networks import MLP
from dagdiff.policies.prediction import EPSILON
from dagdiff.policies.student import Stepwise, Student
from dagdiff.policy import StudentPolicy
from dagdiff.schedule import CosineSchedule, FlowSchedule, VPSchedule, step_grid
from dagdiff.strategies.drivers import Dart, Gate
from dagdiff.threshold import QuantileBox
from dagdiff.transition import Ddim, EpsilonScaling, Renoise

COSINE, FLOW, RING = CosineSchedule(), FlowSchedule(), world("gaussians8")
SHAPED = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


class Own(Objective):
    """An objective of somebody's own, which declares nothing."""

    def annotate(self, expert: Expert, states: Any) -> Any:
        return states.set("guess", expert(states["x_t"], states["t"], states.get("condition")))

    def loss(self, student: nn.Module, batch: Any) -> Loss:
        loss = (student(batch["x_t"], batch["t"], batch.get("condition")) - batch["guess"]).square().mean()
        return Loss(loss, {})


class Narrow(nn.Module):
    """Answers with half of the point."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.layer(x_t)


class Plain(nn.Module):
    """A student who says nothing of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.layer(x_t)


def exact(schedule: Any = COSINE) -> GaussianMixtureExpert:
    mixture = RING.mixture
    assert mixture is not None
    return GaussianMixtureExpert(mixture.means, mixture.stds, mixture.weights, schedule)


def student(schedule: Any = COSINE, size: int = 2, labels: int = 0) -> Student:
    return Student(MLP(size=size, width=8, labels=labels), schedule)


def labels(most: int = 8) -> Callable[[int, torch.Generator | None], Tensor]:
    return lambda n, generator=None: torch.arange(n) % most


def parts(**changes: Any) -> dict[str, Any]:
    """Parts of a loop that fit, but for the changes; ``law``, ``shape``, ``steps``, ``conditions`` are the env's."""
    law, shape = changes.pop("law", Ddim(COSINE)), changes.pop("shape", (2,))
    times, conditions = step_grid(changes.pop("steps", 4)), changes.pop("conditions", None)
    return {
        "env": DenoisingEnv(shape, law, times, 8, conditions),
        "expert": Expert(exact(), COSINE, 2),
        "objective": Progressive(),
        "student": student(),
        "data": RING,
        **changes,
    }


LABELLED: dict[str, Any] = {"conditions": labels(), "student": student(labels=8)}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        # schedules
        ({"expert": Expert(exact(FLOW), FLOW)}, "the expert has another noise schedule than the environment's law: at"),
        ({"expert": Expert(exact(FLOW), COSINE)}, "the expert's denoiser has another noise schedule"),
        ({"student": student(FLOW)}, "the student has another noise schedule .* Build both with one schedule"),
        ({"student": Stepwise(student(FLOW), step_grid(4))}, "the student has another noise schedule"),
        ({"law": Ddim(VPSchedule.linear())}, "the expert has another noise schedule"),
        # where a label ends
        ({"objective": Consistency()}, r"Consistency teaches predictions that are right at t=0.00, and a Ddim step to "
                                       r"t=0.75 needs them right at t=0.75. .*transition Renoise\(schedule\)"),
        ({"objective": DistributionMatching()}, r"DistributionMatching teaches .* transition Renoise\(schedule\)"),
        ({"law": Renoise(COSINE)}, r"Progressive teaches predictions that are right at t=0.75, and a Renoise step to "
                                   r"t=0.75 needs them right at t=0.00. .*transition Ddim\(schedule\)"),
        ({"law": Renoise(COSINE), "objective": GaussianKL()}, r"GaussianKL teaches .*transition Ddim\(schedule, eta=1"),
        # the width of the fresh noise
        ({"objective": GaussianKL()}, r"weighs its loss by steps of Ddim\(schedule, eta=1\), and the environment's are "
                                      r"those of Ddim\(schedule\): .* Give the environment the transition"),
        ({"objective": GaussianKL(0.5), "law": Ddim(COSINE, 1.0)}, r"of Ddim\(schedule, eta=0.5\), and .*eta=1\)"),
        # shapes
        ({"data": Points(SHAPED)}, r"the data must be floats .* D = \(2,\); got \(32, 3\) torch.float32. Give the envir"),  # noqa: E501
        ({"data": Points(torch.ones(9, 2, dtype=torch.int64))}, r"the data must be floats .* torch.int64"),
        ({"student": student(size=3)}, r"the student can't answer states \(2, 2\) \(mat1 and mat2.*Give one that"),
        ({"student": Narrow()}, r"the student must answer with the shape of the states, \(2, 2\); got \(2, 1\)"),
        ({"shape": (3,), "data": Points(SHAPED), "student": student(size=3)}, "the expert can't answer states .2, 3."),
        ({"expert": Expert(lambda x_t, t, condition=None: x_t[:, :1], COSINE)}, "the expert must answer with the shape"),  # noqa: E501
        ({"expert": Expert(lambda x_t, t: x_t, COSINE)}, "the expert can't answer .* positional arguments"),
        ({"expert": Expert(exact(), COSINE, threshold=QuantileBox(-torch.ones(3), torch.ones(3)))},
         "the expert can't answer"),
        # conditions
        ({**LABELLED, "data": Points(SHAPED[:, :2])}, "these points have no labels. Sample without labels, or"),
        ({**LABELLED, "student": student()}, "the environment has conditions, and the student takes none .labels=0."),
        ({**LABELLED, "student": student(labels=5)}, "conditions reach 7, and the student knows 0 to 4. Give the stude"),  # noqa: E501
        ({**LABELLED, "conditions": labels(9), "student": student(labels=9)},
         "conditions reach 8, and the expert knows 0 to 7"),
        ({**LABELLED, "expert": Expert(Student(MLP(width=8), COSINE), COSINE)}, "and the expert takes none"),
        ({**LABELLED, "conditions": lambda n, generator: torch.zeros(n, 3)}, r"conditions are \(32,\) torch.int64, and"),  # noqa: E501
        ({**LABELLED, "conditions": labels(8000), "data": Points(SHAPED[:, :2], torch.arange(40) + 5),
          "expert": Expert(lambda x, t, condition: x, COSINE)}, "conditions reach 4., and the student knows 0 to 7"),
        # answers
        ({"expert": Expert(lambda x_t, t, condition=None: x_t * torch.nan, COSINE)},
         "the expert answers with NaN or infinity at t=1.00. Check its weights"),
        ({"student": Student(MLP(width=8), FLOW, EPSILON), "law": Ddim(FLOW), "expert": Expert(exact(FLOW), FLOW)},
         "the student answers with NaN or infinity at t=1.00"),
        ({"data": Points(SHAPED[:, :2]), "student": student().to("meta")}, "the student is on meta, the environment on"),  # noqa: E501
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(Refusal, match=match) as refused:
        check_fit(**parts(**changes), rows=32)
    assert "\n" not in str(refused.value)


def test_the_loop_refuses_them_before_it_begins() -> None:
    """README's snippet with the objective swapped, and nothing else."""
    told = parts(objective=Consistency())
    with pytest.raises(Refusal, match="Give the environment the transition Renoise"):
        DAgger(told["student"], told["expert"], told["objective"], told["env"], told["data"])
    assert told["objective"].target is None, "no copy of the student has been made"


def test_environments_that_are_no_batch_of_chains() -> None:
    """TorchRL's SerialEnv has two batch dimensions and GymEnv none."""
    told = parts()
    one = told["env"]
    for env, rows in ((SerialEnv(2, lambda: one), "(2, 8)"), (GymEnv("dagdiff/Denoising-v0"), "()")):
        told["env"] = env
        message = f"the environment must be one batch of chains; got a {type(env).__name__} with batch_size={rows}"
        with pytest.raises(Refusal, match=re.escape(message)):
            DAgger(**told)


@pytest.mark.parametrize("name", ["times", "transition", "conditions", "transition.horizon"])
def test_environments_that_lack_something(name: str) -> None:
    told = parts()
    if name == "transition.horizon":
        told["env"].transition = partial(Ddim(COSINE))
        told["env"].transition.schedule = COSINE
    else:
        delattr(told["env"], name)
    with pytest.raises(Refusal, match=f"the environment has no {name}. Give it one"):
        check_fit(**told)


def test_times_on_another_device_than_the_chains() -> None:
    told = parts()
    told["env"].times = told["env"].times.to("meta")
    with pytest.raises(Refusal, match="the environment is on cpu, its times on meta. Move them"):  # noqa: RUF043
        check_fit(**told)


VP = VPSchedule.linear()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"law": Renoise(COSINE), "steps": 1},  # one step ends at clean data under any law
        {"objective": Consistency(), "steps": 1},
        {"objective": DistributionMatching(), "steps": 1},
        {"objective": Consistency(), "law": Renoise(COSINE)},
        {"objective": DistributionMatching(), "law": Renoise(COSINE)},
        {"objective": GaussianKL(), "law": Ddim(COSINE, 1.0)},
        {"objective": GaussianKL(0.5), "law": Ddim(COSINE, 0.5)},
        {"law": Ddim(COSINE, 0.3)},
        {"law": EpsilonScaling(Ddim(COSINE), 1.01)},
        {"law": Ddim(CosineSchedule(1e-3 + 1e-5))},
        {"law": Ddim(VP), "student": student(VPSchedule(VP.alphas_cumprod)), "expert": Expert(exact(VP), VP)},
        {"objective": Own()},
        {"objective": Own(), "law": Renoise(COSINE)},
        {"student": Stepwise(student(), step_grid(4))},
        {"student": Plain()},
        {"expert": Expert(StudentPolicy(student()), COSINE, 2)},  # as halving has it
        {"expert": Expert(lambda x_t, t, condition=None: x_t, COSINE)},
        {"student": student(labels=8)},  # asked without a label
        LABELLED,
        {**LABELLED, "expert": Expert(exact(), COSINE, 2, 3.0)},
        {**LABELLED, "expert": Expert(lambda x_t, t, condition: x_t, COSINE), "student": Plain()},
    ],
)
def test_parts_that_fit(changes: dict[str, Any]) -> None:
    check_fit(**parts(**changes))


@pytest.mark.parametrize("driver", [Dart, Gate])
def test_an_objective_that_declares_nothing_trains_under_every_law(driver: Any) -> None:
    for law in (Ddim(COSINE), Renoise(COSINE)):
        told = parts(objective=Own(), law=law)
        loop = DAgger(
            told["student"], told["expert"], told["objective"], told["env"], told["data"],
            rounds=1, updates_per_round=1, shares=(0.0, 0.5, 0.5),
            gathering=Gathering(driver=driver), learning=Learning(batch_size=8),
        )  # fmt: skip
        assert len(list(loop)) == 1


def test_the_check_is_charged_to_nobody_and_moves_no_generator() -> None:
    rows = 0

    def counted(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        nonlocal rows
        rows += len(x_t)
        return x_t + torch.randn_like(x_t)  # draws from torch's own stream

    told = parts(expert=Expert(counted, COSINE), **LABELLED)
    told["env"].set_seed(3)
    told["student"].train()
    drawn, chains = torch.get_rng_state(), told["env"].generator.get_state()
    before = [weight.clone() for weight in told["student"].parameters()]
    check_fit(**told)
    assert 0 < rows <= 4 and told["expert"].nfe == 0
    assert torch.equal(drawn, torch.get_rng_state()) and torch.equal(chains, told["env"].generator.get_state())
    assert told["student"].training and all(map(torch.equal, before, told["student"].parameters()))
    assert all(weight.grad is None for weight in told["student"].parameters())
