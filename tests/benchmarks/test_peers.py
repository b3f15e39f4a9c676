"""ModelOpt's DMD2 and ours: equal losses on the same tensors, the differences in formulas, and the benchmark itself.

ModelOpt draws from torch's global stream, ours from a generator. Both are the same engine, so one seed gives both the
same time on the grid, then tau, then noise.
"""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import seeded
from tensordict import TensorDict
from torch import Tensor, nn

from dagdiff.benchmarks.running import executor
from dagdiff.benchmarks.running.race import race
from dagdiff.benchmarks.suites import modelopt_dmd2, peers
from dagdiff.checks import Refusal
from dagdiff.envs.toy2d import world
from dagdiff.expert import Expert
from dagdiff.metrics.base import score
from dagdiff.objectives.base import denoising_loss
from dagdiff.objectives.distribution import DistributionMatching, score_difference
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policies.networks import MLP
from dagdiff.policies.prediction import FLOW, PREDICTIONS, V
from dagdiff.policies.student import Student
from dagdiff.report.results import Results
from dagdiff.report.summary import write_summary
from dagdiff.runs.experiment import Experiment
from dagdiff.schedule import FlowSchedule, perturb, step_grid
from dagdiff.shapes import Denoiser, column
from dagdiff.transition import Renoise, chain

RF, WORLD, ROWS, GRID = FlowSchedule(), world("gaussians8"), 64, step_grid(4)


@pytest.fixture(scope="module")
def fastgen() -> Any:
    """The peer; its tests are skipped where it is not installed. Importing it takes seconds."""
    return pytest.importorskip("modelopt.torch.fastgen", exc_type=ImportError)


def normal(seed: int) -> Tensor:
    return torch.randn(ROWS, 2, generator=seeded(seed))


def student(seed: int) -> Student:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Student(MLP(width=16), RF, FLOW)


def expert() -> Expert:
    assert WORLD.mixture is not None
    return Expert(GaussianMixtureExpert(WORLD.mixture.means, WORLD.mixture.stds, WORLD.mixture.weights, RF), RF)


class Speaking(nn.Module):
    """A denoiser in the peer's role: asked by keyword, it answers in the peer's language, x0 or u = (x - x0) / t."""

    def __init__(self, denoiser: Denoiser, language: str) -> None:
        super().__init__()
        self.denoiser, self.language = denoiser, PREDICTIONS[language]

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        alpha, sigma = (column(values, hidden_states) for values in RF(timestep))
        return self.language.from_x0(hidden_states, self.denoiser(hidden_states, timestep), alpha, sigma)


def pipeline(
    fastgen: Any, ours: DistributionMatching, net: Student, language: str, loss_space: str, simulated: bool = False
) -> Any:
    low, high = ours.tau
    times = fastgen.SampleTimestepConfig(time_dist_type="uniform", min_t=low, max_t=high, t_list=GRID.tolist())
    config = fastgen.DMDConfig(
        pred_type=language,
        fake_score_pred_type=loss_space,
        sample_t_cfg=times,
        student_sample_steps=4,
        student_sample_type="sde",
        backward_simulation=simulated,
    )
    nets = (Speaking(denoiser, language) for denoiser in (net, ours.expert, ours.fake))
    return fastgen.DMDPipeline(*nets, config)


def asked(call: Any, seed: int) -> dict[str, Tensor]:
    """The peer's losses on the same clean points and noise, its global draws fixed by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        losses: dict[str, Tensor] = call(WORLD.sample(ROWS, seeded(1)), normal(2))
    return losses


def same_question(net: Student, seed: int, **options: Any) -> tuple[DistributionMatching, TensorDict]:
    """Our objective and the batch on which it will draw what the peer draws: place on the grid, tau, noise."""
    generator, ours = seeded(seed), DistributionMatching(tell_origin=False, **options)  # the published critic
    ours.begin(net, expert(), lambda n: (WORLD.sample(n, generator), None), generator)
    place = torch.randint(0, 4, (ROWS,), generator=generator.manual_seed(seed))
    x_t = perturb(WORLD.sample(ROWS, seeded(1)), normal(2), GRID[place], RF)
    ours.fake.load_state_dict(student(9).state_dict())  # a fake score that differs from the student
    return ours, TensorDict({"x_t": x_t, "t": GRID[place], "s": GRID[place + 1]}, [ROWS])


# The losses


def test_the_matching_gradient_is_ours_but_for_the_normaliser(fastgen: Any) -> None:
    """Ours is (fake - real) / m, m a row's mean|x - real|; the peer's (fake - real) / (m + 1e-6)."""
    answer, real, fake = normal(1).requires_grad_(), normal(2), normal(3)
    loss = fastgen.losses.vsd_loss(answer, real, fake)
    (theirs,) = torch.autograd.grad(loss, answer)
    g = score_difference(answer.detach(), real, fake)
    torch.testing.assert_close(theirs * answer.numel(), g, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, 0.5 * g.square().mean(), atol=1e-5, rtol=1e-5)

    near = real + 1e-6 * normal(4)  # where m is as small as 1e-6 the two part, exactly so
    m = (near - real).abs().mean(1, keepdim=True)
    (theirs,) = torch.autograd.grad(fastgen.losses.vsd_loss(near.requires_grad_(), real, fake), near)
    expected = score_difference(near.detach(), real, fake) * m / (m + 1e-6)
    torch.testing.assert_close(theirs * near.numel(), expected, atol=0, rtol=1e-4)

    # A row without scale: we skip it, the peer gives it the difference a million times over.
    (theirs,) = torch.autograd.grad(fastgen.losses.vsd_loss(level := real.clone().requires_grad_(), real, fake), level)
    torch.testing.assert_close(theirs * level.numel(), (fake - real) * 1e6, atol=0, rtol=1e-5)
    assert not score_difference(real, real, fake).any()


@pytest.mark.parametrize("language", ["x0", "flow"])
def test_a_whole_update_of_the_student_is_ours(fastgen: Any, language: str) -> None:
    """From tau = 0.5 up; at 0.02 a row's m is as small, and the peer's 1e-6 beside it shows in the fourth digit."""
    net = student(0)
    ours, batch = same_question(net, seed=5, tau=(0.5, 0.98))
    theirs = asked(pipeline(fastgen, ours, net, language, "flow").compute_student_loss, seed=5)["total"]
    mine = ours.loss(net, batch).loss
    torch.testing.assert_close(theirs, mine, atol=1e-5, rtol=1e-5)
    weights = list(net.parameters())
    for their, my in zip(torch.autograd.grad(theirs, weights), torch.autograd.grad(mine, weights), strict=True):
        torch.testing.assert_close(their, my, atol=1e-5, rtol=1e-4)
    assert float(mine.detach()) > 0.01


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("language", ["x0", "flow"])
@pytest.mark.parametrize("loss_space", ["x0", "flow"])
def test_the_fake_scores_loss_is_ours_but_for_its_weight(
    fastgen: Any, language: str, loss_space: str, tau: float
) -> None:
    """The weight of the guess's squared error is ((alpha^2 + sigma^2) / sigma)^2 with us, 1 in the peer's "x0".

    That is its default. In its "flow" it is 1 / sigma^2, for the velocity's error is that of the guess over t.
    """
    net = student(0)
    ours, batch = same_question(net, seed=5, tau=(tau, tau + 1e-6))
    theirs = asked(pipeline(fastgen, ours, net, language, loss_space).compute_fake_score_loss, seed=5)["total"]
    generator = ours.generator  # it stands where the peer draws tau, then the noise
    times = tau + 1e-6 * torch.rand(ROWS, generator=generator)
    noise, answer = torch.randn(ROWS, 2, generator=generator), net(batch["x_t"], batch["t"]).detach()
    mine = denoising_loss(ours.fake, answer, noise, times, RF)
    alpha, sigma = RF(torch.tensor(tau))
    weight = (alpha**2 + sigma**2) / (sigma if loss_space == "x0" else 1.0)
    torch.testing.assert_close(theirs * weight**2, mine, atol=1e-5, rtol=1e-4)
    gradients = (torch.autograd.grad(loss, list(ours.fake.parameters())) for loss in (theirs * weight**2, mine))
    for their, my in zip(*gradients, strict=True):
        torch.testing.assert_close(their, my, atol=1e-4, rtol=1e-3)
    assert float(mine.detach()) > 0.01


def test_the_fake_scores_loss_in_v_is_ours(fastgen: Any) -> None:
    """The loss function; the peer's pipeline, asked for "v", converts guesses as for "flow", which is another v."""
    x0, eps, tau, net = normal(1), normal(2), torch.rand(ROWS, generator=seeded(3)) * 0.9 + 0.05, student(0)
    x_tau, (alpha, sigma) = perturb(x0, eps, tau, RF), RF(tau)
    v = V.from_x0(x_tau, net(x_tau, tau), column(alpha, x0), column(sigma, x0))
    laws = {"alpha_fn": lambda t: 1 - t, "sigma_fn": lambda t: t}
    theirs = fastgen.losses.dsm_loss("v", v, x0=x0, eps=eps, t=tau, **laws)
    torch.testing.assert_close(theirs, denoising_loss(net, x0, eps, tau, RF), atol=1e-5, rtol=1e-5)


def test_the_gan_losses_are_ours(fastgen: Any) -> None:
    """On the same logits. (The peer's judge sees the frozen teacher's features, ours the fake score's, as in DMD2.)"""
    net = student(0)
    ours, batch = same_question(net, seed=5, gan_weight=0.1)
    logits: list[Tensor] = []
    assert ours.head is not None
    ours.head.register_forward_hook(lambda module, inputs, logit: logits.append(logit.detach()))
    gan = ours.loss(net, batch).parts["gan"]
    torch.testing.assert_close(fastgen.losses.gan_gen_loss(logits.pop()), gan, atol=1e-5, rtol=1e-5)
    verdict = ours.improve_critic(net, batch)["head"]
    made, real = logits
    torch.testing.assert_close(fastgen.losses.gan_disc_loss(real, made), verdict, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_backward_simulation_visits_the_states_of_our_chain(fastgen: Any, seed: int) -> None:
    """One time of the grid for the whole batch, where our batches hold them all; else the chain of Renoise."""
    net = student(0)
    ours, _ = same_question(net, seed)
    seen: list[tuple[Tensor, Tensor]] = []
    peer = pipeline(fastgen, ours, net, "x0", "x0", simulated=True)
    peer.student.register_forward_pre_hook(
        lambda module, inputs, named: seen.append((named["hidden_states"], named["timestep"])), with_kwargs=True
    )
    asked(peer.compute_student_loss, seed)

    generator = seeded(seed)
    place = int(torch.randint(0, 4, (1,), generator=generator))
    start = torch.randn(ROWS, 2, generator=generator) if place else normal(2)
    steps = list(chain(net, Renoise(RF), GRID, start, generator=generator))
    assert len(seen) == place + 1
    for (x_t, t), step in zip(seen[:place], steps, strict=False):
        torch.testing.assert_close(x_t, step.x_t, atol=1e-5, rtol=1e-5)
        assert torch.equal(t, step.t)
    expected = perturb(steps[place - 1].x0, normal(2), steps[place].t, RF) if place else start
    torch.testing.assert_close(seen[-1][0], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(seen[-1][1], steps[place].t)


# The benchmark

SMALL: dict[str, Any] = {
    "policy": {"class": "fresh", "width": 16, "prediction": "flow"},
    "expert": "exact",
    "samples": 100,
    "rounds": 2,
    "chains": 8,
    "batch_size": 16,
}


def small(*variants: str, **options: Any) -> peers.Suite:
    return peers.Suite(
        ["gaussians8-biased"], list(variants), **{"seeds": 1, "updates": 4, "settings": SMALL, **options}
    )


def test_quick_holds_every_variant() -> None:
    chosen = peers.QUICK
    found = list(peers.cells(chosen))
    assert {cell.variant for cell in found} == set(peers.VARIANTS)
    assert len(found) == len(chosen.tasks) * len(peers.VARIANTS) * chosen.seeds
    assert {"gaussians8-matched", "gaussians8-biased"} == {cell.config["task"] for cell in found}


def test_variants_of_the_published_method_differ_in_their_states_alone() -> None:
    """So results compare them, and a peer's run stands under the settings of ours."""
    found = {cell.variant: cell for cell in peers.cells(small(*peers.VARIANTS))}
    assert len({cell.setup for cell in found.values()}) == 1
    assert found["modelopt-forward"].config == found["forward"].config
    assert found["modelopt-student"].config == found["student"].config
    assert found["forward"].config["schedule"]["class"] == "flow"
    published = [found[name].config for name in ("forward", "student", "mixture-25/50/25")]
    rest = [{key: value for key, value in config.items() if key != "shares"} for config in published]
    assert rest[0] == rest[1] == rest[2] and not rest[0]["objective"]["tell_origin"]
    assert found["default"].config["objective"]["tell_origin"]


def test_training_in_turns_is_training_alone(tmp_path: Path) -> None:
    wanted = list(peers.cells(small("forward", "default")))
    before = torch.get_rng_state()
    raced = race([peers.racer(cell) for cell in wanted], tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    for cell, record in zip(wanted, raced, strict=True):
        alone = executor.run_cell(cell, tmp_path)
        assert set(alone) <= set(record)
        del alone["seconds"]
        assert json.dumps({name: record[name] for name in alone}) == json.dumps(alone)  # a nan equals a nan
    assert min(record["milliseconds"] for record in raced) > 0


def test_the_race(fastgen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = small(*peers.VARIANTS)
    peers.run(chosen, tmp_path / "out")
    content = json.loads((tmp_path / "out/results.json").read_text())
    records = {record["variant"]: record for record in content["records"]}
    assert list(records) == list(peers.VARIANTS) and content["suite"] == "peers"
    assert len({record["config"] for record in content["records"]}) == 6
    asked_rows = 4 * (5 + 1) * 16  # updates x (critic's and student's) x rows
    for name in ("forward", "modelopt-forward"):
        assert (records[name]["nfe_student"], records[name]["nfe_expert"]) == (asked_rows, 4 * 16)
    walked = records["modelopt-student"]["nfe_student"] - asked_rows  # up to three steps before each batch
    assert 0 < walked <= 3 * asked_rows and walked % 16 == 0
    results = Results.load(tmp_path / "out")
    write_summary(results, tmp_path / "out/summary.csv")
    told = (tmp_path / "out/table.txt").read_text()
    for name in peers.VARIANTS:
        assert f"  {name} " in told and f",{name}," in (tmp_path / "out/summary.csv").read_text()

    truth, drawn = Experiment.build(next(peers.cells(chosen)).config), results.arrays(results.records[-2].samples)
    known = truth.task.truth(100, truth.generator(4, 0), truth.generator(5, 0))
    again = score(truth.task.metrics, torch.as_tensor(drawn["x"]), known)
    assert records["modelopt-student"]["metrics"]["energy"] == pytest.approx(again["energy"])

    monkeypatch.setattr(peers, "race", lambda *_: pytest.fail("a run was done twice"))
    assert peers.run(chosen, tmp_path / "out")["records"] == content["records"]


@pytest.mark.parametrize("simulated", [False, True])
def test_the_peers_loop_trains_student_and_fake_score_alone(fastgen: Any, simulated: bool) -> None:
    it = Experiment.build(next(peers.cells(small("modelopt-student"))).config)
    first = copy.deepcopy(it.student.state_dict())
    losses = []
    for nfe in modelopt_dmd2.train(it, simulated):
        losses.append(nfe)
    assert len(losses) == 2 and losses[0] < losses[1]
    assert any(not torch.equal(value, first[name]) for name, value in it.student.state_dict().items())
    assert not any(weight.requires_grad for weight in modelopt_dmd2.Asked(it.expert).parameters())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tasks": []}, "--tasks is empty"),
        ({"tasks": ["gaussians8-matchd"]}, "Did you mean 'gaussians8-matched'"),
        ({"tasks": ["gaussians8-matched-labelled"]}, "has labels.*Take 'gaussians8-matched'"),
        ({"tasks": ["digits-biased"]}, "'digits-biased' is not of the plane"),
        ({"variants": ["modelopt"]}, "unknown variant 'modelopt'"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"steps": 1}, "steps must be at least 2"),
        ({"settings": {"schedule": "cosine"}}, "rectified flow alone"),
    ],
    ids=str,
)
def test_refusals(change: dict[str, Any], match: str) -> None:
    with pytest.raises(Refusal, match=match):
        list(peers.cells(peers.Suite(**{**vars(peers.QUICK), **change})))


def test_times_are_not_taken_side_by_side(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"--workers must be 1.*got 2"):
        peers.run(small("forward"), tmp_path / "out", workers=2)
    assert not (tmp_path / "out").exists()


def test_without_the_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelopt", None)
    monkeypatch.setitem(sys.modules, "modelopt.torch", None)
    with pytest.raises(Refusal, match=r"needs nvidia-modelopt.*pip install 'dagdiff\[peers\]'"):
        peers.run(small("modelopt-forward"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_wants_one_folder() -> None:
    with pytest.raises(Refusal, match="one folder is needed"):
        peers.main(["--quick"])
