"""Buffers and samplers of one's own: what is drawn, by which priority, through a whole loop, and after a stop."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, ReplayBuffer, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement

from dagdiff.aggregate import Aggregate
from dagdiff.buffers import ByLoss, LossSampler
from dagdiff.checkpoint import read_state, save_state
from dagdiff.checks import Refusal
from dagdiff.dagger import DAgger
from dagdiff.envs.denoising import DenoisingEnv
from dagdiff.envs.toy2d import world
from dagdiff.expert import Expert
from dagdiff.gathering import Gathering
from dagdiff.learner import Learning, Loss
from dagdiff.mixture import SOURCES, Shares
from dagdiff.objectives.base import Objective
from dagdiff.objectives.consistency import Consistency
from dagdiff.objectives.distribution import DistributionMatching
from dagdiff.objectives.gaussian import GaussianKL
from dagdiff.objectives.progressive import Progressive
from dagdiff.policies.gaussian import GaussianMixtureExpert
from dagdiff.policies.networks import MLP
from dagdiff.policies.student import Student
from dagdiff.schedule import CosineSchedule, step_grid

COSINE, RING = CosineSchedule(), world("gaussians8")
OBJECTIVES = {
    "PD": Progressive,
    "LCM": Consistency,
    "Gaussian KL": GaussianKL,
    "DMD2": DistributionMatching,
    "DMD2 with label and GAN": lambda: DistributionMatching(gan_weight=0.1, label_weight=0.3),
}
BUFFERS: dict[str, Callable[[str], ReplayBuffer]] = {
    "plain": lambda source: ReplayBuffer(storage=LazyTensorStorage(100)),
    "of dicts": lambda source: TensorDictReplayBuffer(storage=LazyTensorStorage(100)),
    "in passes": lambda source: ReplayBuffer(storage=LazyTensorStorage(100), sampler=SamplerWithoutReplacement()),
    "by loss": ByLoss(100),
    "by loss, dicts": lambda source: TensorDictReplayBuffer(storage=LazyTensorStorage(100), sampler=LossSampler(100)),
    "one by loss": lambda source: ByLoss(100)(source) if source == "student" else BUFFERS["plain"](source),
}


def loop(buffer: Any, objective: Any = None, rounds: int = 2, **learning: Any) -> DAgger:
    torch.manual_seed(0)
    objective = objective or Progressive()
    modes = RING.mixture
    expert = Expert(GaussianMixtureExpert(modes.means, modes.stds, modes.weights, COSINE), COSINE, 2)
    chains = torch.Generator().manual_seed(1)
    env = DenoisingEnv((2,), objective.sampler(COSINE), step_grid(2), 16, generator=chains)
    return DAgger(
        Student(MLP(width=8), COSINE), expert, objective, env, RING, shares=Shares(0.25, 0.5, 0.25), rounds=rounds,
        updates_per_round=4, gathering=Gathering(buffer=buffer), learning=Learning(batch_size=16, **learning),
    )  # fmt: skip


def records(rows: int, first: float = 0.0) -> TensorDict:
    """Rows that can be told apart."""
    x = first + torch.arange(float(rows))
    return TensorDict({"x_t": x[:, None], "t": torch.ones(rows), "s": torch.zeros(rows)}, [rows])


def filled(buffer: Any) -> Aggregate:
    made = Aggregate({}, generator=torch.Generator().manual_seed(0), buffer=buffer)
    for place, source in enumerate(SOURCES):
        made.add(source, records(10, 100.0 * place), 1)
    return made


@pytest.mark.parametrize("name", BUFFERS)
def test_batches_are_exact_in_their_shares_and_of_the_right_rows(name: str) -> None:
    made = filled(BUFFERS[name])
    for batch in made.draws([8, 16, 4], Shares(0.25, 0.5, 0.25)):
        counts = [int((batch["source"] == place).sum()) for place in range(3)]
        assert counts == [len(batch) // 4, len(batch) // 2, len(batch) // 4]
        torch.testing.assert_close(batch["x_t"].squeeze(-1), 100.0 * batch["source"] + batch["index"])
        assert (batch.get("weight", None) is not None) == name.startswith(("by", "one"))
    assert made.records("expert")["x_t"].squeeze(-1).tolist() == [200.0 + row for row in range(10)]
    assert len(made) == 30


def test_storage_keeps_the_newest() -> None:
    made = Aggregate({}, student_rounds=None, buffer=ByLoss(12))
    for number in (1, 2):
        made.add("student", records(8, 10.0 * number), number)
    kept = made.records("student")
    assert kept["round"].tolist() == [1] * 4 + [2] * 8
    assert sorted(kept["x_t"].squeeze(-1).tolist()) == [14, 15, 16, 17, 20, 21, 22, 23, 24, 25, 26, 27]
    made.clear()
    assert len(made) == 0


def test_rows_come_in_proportion_to_their_loss() -> None:
    """Three rows of losses 1, 2 and 5 come 1 : 2 : 5 with alpha 1; the weights undo it in the mean with beta 1."""
    buffer = ReplayBuffer(storage=LazyTensorStorage(3), sampler=LossSampler(3, alpha=1.0, beta=1.0))
    made = Aggregate({}, generator=torch.Generator().manual_seed(0), buffer=lambda source: buffer)
    made.add("student", records(3), 1)
    all_rows = TensorDict({"source": torch.ones(3, dtype=torch.int64), "index": torch.arange(3)}, [3])
    made.weigh(all_rows, torch.tensor([1.0, 2.0, 5.0]))
    batch = made.draw(16_000, Shares(0.0, 1.0, 0.0))
    found = torch.bincount(batch["index"], minlength=3) / 16_000
    torch.testing.assert_close(found, torch.tensor([0.125, 0.25, 0.625]), atol=0.02, rtol=0.0)
    torch.testing.assert_close(batch["weight"], torch.tensor([1.0, 0.5, 0.2])[batch["index"]], atol=1e-4, rtol=1e-4)
    mass = torch.zeros(3).index_add(0, batch["index"], batch["weight"])
    torch.testing.assert_close(mass / mass.sum(), torch.full((3,), 1 / 3), atol=0.02, rtol=0.0)


def test_new_rows_count_as_the_largest_loss_and_nan_as_none() -> None:
    sampler = LossSampler(4, alpha=1.0)
    buffer = ReplayBuffer(storage=LazyTensorStorage(4), sampler=sampler)
    buffer.extend(records(2))
    buffer.update_priority(torch.tensor([0, 1]), torch.tensor([7.0, float("nan")]))
    buffer.extend(records(1))
    torch.testing.assert_close(sampler.priorities[:3], torch.tensor([7.0, 1.0, 7.0]))
    buffer.empty()
    assert sampler.priorities.tolist() == [1.0] * 4


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_is_the_mean_of_its_rows(name: str) -> None:
    made = loop(None, OBJECTIVES[name](), rounds=1)
    made.gather(1, made.shares)
    batch = made.aggregate.draw(16, made.shares)
    told = made.objective.loss(made.student, batch)
    rows = told.rows()
    assert rows.shape == (16,)
    torch.testing.assert_close(rows.mean(), told.loss)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_loop_by_loss_updates_priorities_by_the_loss_of_each_row(name: str) -> None:
    made = loop(ByLoss(200, alpha=1.0, beta=0.0), OBJECTIVES[name](), rounds=1)
    seen: dict[tuple[int, int], float] = {}
    weigh = made.aggregate.weigh

    def watched(batch: TensorDict, losses: torch.Tensor) -> None:
        keys = zip(batch["source"].tolist(), batch["index"].tolist(), strict=True)
        seen.update(zip(keys, losses.tolist(), strict=True))
        weigh(batch, losses)

    made.aggregate.weigh = watched  # type: ignore[method-assign]
    (done,) = made
    assert done.losses["loss"] > 0.0 and len(seen) > 16
    for (place, index), loss in seen.items():
        sampler = made.aggregate.own[SOURCES[place]].buffer.sampler
        assert float(sampler.priorities[index]) == pytest.approx(abs(loss) + 1e-6, rel=1e-4)


def test_parts_of_a_batch_are_weighed_each() -> None:
    whole, parts = (loop(ByLoss(200), accumulate=accumulate) for accumulate in (1, 2))
    for one, two in zip(whole, parts, strict=True):
        assert one.losses["loss"] == pytest.approx(two.losses["loss"], rel=1e-4)


@pytest.mark.parametrize("name", BUFFERS)
def test_a_loop_learns_from_any_buffer(name: str) -> None:
    made = loop(BUFFERS[name])
    before = copy.deepcopy(made.student.state_dict())
    assert len(list(made)) == 2
    assert any((before[key] != value).any() for key, value in made.student.state_dict().items())


def test_a_loop_by_loss_pickles() -> None:
    made = loop(ByLoss(100), rounds=1)
    list(made)
    twin = pickle.loads(pickle.dumps(made))
    torch.testing.assert_close(twin.aggregate.everything()["x_t"], made.aggregate.everything()["x_t"])


@pytest.mark.parametrize("stop", [2, 4, 6])
@pytest.mark.parametrize("name", BUFFERS)
def test_a_stopped_loop_is_resumed_as_if_it_had_not_been(name: str, stop: int, tmp_path: Any) -> None:
    class Stop(Exception):
        pass

    def weights(made: DAgger) -> torch.Tensor:
        return torch.cat([weight.detach().flatten() for weight in made.student.parameters()])

    straight = loop(BUFFERS[name])
    list(straight)

    stopped = loop(BUFFERS[name])
    kept = tmp_path / "state.safetensors"
    shards: dict[str, Any] = {}

    def keep(shard: Any) -> str:
        shards[shard.name] = shard.make()
        return str(shard.name)

    def watch() -> None:
        if stopped.update == stop:
            save_state(kept, stopped.state_dict(), keep)
            raise Stop

    stopped.watch = watch
    with pytest.raises(Stop):
        list(stopped)
    again = loop(BUFFERS[name])
    torch.manual_seed(99)
    again.load_state_dict(read_state(kept, shards.__getitem__))
    list(again)
    torch.testing.assert_close(weights(again), weights(straight), rtol=0.0, atol=0.0)


class Silent(Objective):
    """Tells no loss of each row."""

    def loss(self, student: Any, batch: TensorDict) -> Loss:
        loss = student(batch["x_t"], batch["t"]).square().mean()
        return Loss(loss, {})


def test_an_objective_that_tells_no_rows_is_refused_only_where_they_are_needed() -> None:
    assert len(list(loop(BUFFERS["plain"], Silent()))) == 2
    with pytest.raises(Refusal, match=r"Silent tells no loss of each row, .*Return RowLoss\.of\(loss, parts, rows\)"):
        list(loop(ByLoss(100), Silent()))


@pytest.mark.parametrize(
    ("buffer", "match"),
    [
        (ReplayBuffer(storage=LazyTensorStorage(9)), "must be a function source -> ReplayBuffer"),
        (3, "got a int"),
        (lambda source: [], "must make an empty torchrl ReplayBuffer for a source; got a list"),
        (lambda source: BUFFERS["plain"](source).extend(records(2)), "got a Tensor"),
    ],
    ids=["instance", "number", "list", "no buffer"],
)
def test_what_is_no_buffer(buffer: Any, match: str) -> None:
    with pytest.raises(Refusal, match=match):
        Aggregate({}, buffer=buffer)


@pytest.mark.parametrize("options", [{"size": 0}, {"alpha": -1.0}, {"beta": 1.5}], ids=str)
def test_what_is_no_sampler(options: dict[str, float]) -> None:
    with pytest.raises(Refusal):
        ByLoss(**{"size": 5, **options})  # type: ignore[arg-type]
