"""One run in several processes: weights equal everywhere, noise different, counts summed, one writer."""

import copy
import csv
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pipelines
import pytest
import torch
from diffusers import DiffusionPipeline
from helpers import ROOT

from dagdiff import engine
from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.launch import joined, rank, world_size
from dagdiff.reading import read_json
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.identity import identity

LAWS = '''
"""What a user's folder holds: one program for each process, and a curriculum that looks into all of them."""
import sys
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from dagdiff import engine
from dagdiff.launch import joined, rank, world_size
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment


def everywhere(values):
    found = [torch.zeros_like(values) for _ in range(world_size())]
    dist.all_gather(found, values.contiguous())
    return found


def weights(*modules):
    return torch.cat([each.detach().flatten() for module in modules for each in engine.state_of(module).values()])


class Looking:
    def __call__(self, loop):
        for done in loop:
            one, other = everywhere(weights(loop.student, loop.objective.critic))
            assert torch.equal(one, other), "the same weights everywhere"
            one, other = everywhere(loop.aggregate.records("student")["x_t"])
            assert not (one == other).any(), "chains of its own in each"
            yield done


def as_on_gpus():
    """accelerate shards on GPUs alone; told that these are some, it does so here."""
    if PartialState._shared_state.get("distributed_type") is DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


class Sharded(Looking):
    def __init__(self):
        as_on_gpus()

    def __call__(self, loop):
        networks = (loop.student, loop.objective.critic, loop.learner.averaged.module, loop.expert.denoiser)
        assert all(map(engine.sharded, networks))
        for network in networks:
            for weight in network.parameters():
                assert weight.to_local().numel() < weight.numel() or weight.shape[0] < 2, "a part in each"
        yield from super().__call__(loop)


def still(objective, reals):
    """Draws that are the rows' own, so that the parts of a batch have what its rows have in the whole."""
    objective._noise = lambda x0: x0.detach().flip(-1).cos()
    objective._times = lambda batch: 0.1 + 0.8 * batch["x_t"].flatten(1).mean(1).sigmoid()
    objective.clean = lambda rows: (reals[:rows], None)


def updated(settings, batch, place, size):
    """Make an update, first of the critic, on a process's part of a batch; return the weights then."""
    it = Experiment.build(configure(settings))
    loop = it.loop(it.expert, it.settings.steps)
    objective, mine = loop.objective, batch.chunk(size)[place]
    found = {}
    if objective.critic_updates:
        still(objective, batch["x_t"].flip(0).chunk(size)[place])
        objective.improve_critic(loop.student, mine)
        found |= {f"critic.{name}": value for name, value in engine.state_of(objective.critic).items()}
        found |= gradients("critic.", objective.critic)
    loop.learner.learn(mine, lambda part: objective.loss(loop.learner.forward, part))
    return {**found, **gradients("", loop.student), **engine.state_of(loop.student)}, loop.learner


def gradients(prefix, network):
    return {f"{prefix}{name}.grad": engine.whole(weight.grad) for name, weight in network.named_parameters()}


def tools():
    network = torch.nn.Linear(2, 3)
    with torch.no_grad():
        for each in network.parameters():
            each.fill_(float(rank()))
    engine.share(network)
    assert not weights(network).any(), "process 0's"
    size = world_size()
    assert engine.totals([rank(), 10**15], torch.device("cpu")) == [size * (size - 1) // 2, size * 10**15]
    assert engine.mean({"loss": torch.tensor([float(rank())])})["loss"].tolist() == [(size - 1) / 2]
    assert engine.part("chains", 8) == 8 // size
    two = torch.nn.ModuleList([torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)])
    sgd = torch.optim.SGD(two.parameters())
    engine.prepare(two, sgd)
    two[0](torch.ones(1, 2)).backward()
    try:
        sgd.step()
    except ValueError as error:
        assert "does not reach 1.weight, 1.bias of ModuleList, which several processes would wait for" in str(error)
    else:
        raise AssertionError("a weight without gradient is refused")


if __name__ == "__main__":
    cases, path = eval(sys.argv[1]), sys.argv[2]
    with joined({"device": "cpu"}, lambda: None):
        as_on_gpus() if "sharded" in sys.argv else tools()
        for case, settings in cases.items():
            batch = torch.load(path + "/batch.pt", weights_only=False)
            state, learner = updated(settings, batch, rank(), world_size())
            torch.save(state, f"{path}/{case}-{rank()}.pt")
            kept = {name: part.state_dict() for name, part in learner.parts().items()}
            for name, part in learner.parts().items():
                part.load_state_dict(kept[name])
            again = {name: part.state_dict() for name, part in learner.parts().items()}
            torch.save((kept, again), f"{path}/{case}-{rank()}-kept.pt")
'''

SMALL: dict[str, Any] = {
    "task": "gaussians8-biased", "policy": "fresh", "updates": 8, "rounds": 2, "chains": 16, "batch_size": 32,
    "heldout": 8, "samples": 100, "device": "cpu", "substeps": 2,
}  # fmt: skip

SLOW = {**SMALL, "lr": 4e-7}
"""A low rate: Adam's first update makes as much of a gradient's last digit as of the gradient where that is near 0, and
two of them differ by twice the rate at most. The gradients themselves are compared beside the weights."""
GAN = {"objective": {"class": "distribution", "gan_weight": 0.1, "critic_lr": 4e-7}}
CASES: dict[str, dict[str, Any]] = {
    "student": SLOW,
    "parts": {**SLOW, "accumulate": 2},
    "critic": {**SLOW, **GAN},
    "critic-parts": {**SLOW, **GAN, "accumulate": 2, "ema": 0.9},
}

FSDP = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Linear", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}  # fmt: skip
"""What ``accelerate launch`` sets where its configuration asks for FSDP2."""


def together(*words: str, size: int = 2, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in several processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), *words]
    told = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(launch, capture_output=True, text=True, timeout=900, env=told)


def spelled(**changes: Any) -> list[str]:
    return [f"--{name}={value}" for name, value in {**SMALL, **changes}.items()]


def a_batch(folder: Path) -> Any:
    """Write the laws and a batch of records into a folder; return the batch and what an update makes of it."""
    from importlib import import_module

    Path("laws.py").write_text(LAWS)
    laws, configure = import_module("laws"), import_module("dagdiff.runs.config").configure
    it = import_module("dagdiff.runs.experiment").Experiment.build(configure(SMALL))
    loop = it.loop(it.expert, it.settings.steps)
    loop.gather(1, loop.shares)
    batch = loop.aggregate.draw(32, loop.shares)
    torch.save(batch, folder / "batch.pt")
    return batch, laws.updated


def test_a_lone_process_changes_nothing() -> None:
    network = torch.nn.Linear(2, 1)
    before, adam = copy.deepcopy(network.state_dict()), torch.optim.Adam(network.parameters())
    with joined({}, lambda: pytest.fail("there is nobody to wait")):
        engine.share(network)
        engine.shard(network)
        prepared = engine.prepare(network, adam)
    assert prepared.forward is network and prepared.accelerator is None and not adam._optimizer_step_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in engine.state_of(network).items())
    assert (world_size(), rank(), engine.part("chains", 7), engine.sharded(network)) == (1, 0, 7, False)
    assert engine.totals([3, 10**15], torch.device("cpu")) == [3, 10**15]
    assert engine.mean({"loss": torch.ones(2)})["loss"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("size", [2, 4])
def test_parts_of_a_batch_make_the_update_of_the_whole(own_folder: Path, size: int) -> None:
    """Of the student, and of critic and head; also where each part goes through in pieces."""
    batch, updated = a_batch(own_folder)
    done = together("laws.py", repr(CASES), ".", size=size)
    assert done.returncode == 0, done.stderr
    for case, settings in CASES.items():
        alone, _ = updated({**settings, "accumulate": 1}, batch, 0, 1)
        found = [torch.load(f"{case}-{place}.pt") for place in range(size)]
        for name, value in alone.items():
            assert all(torch.equal(found[0][name], other[name]) for other in found)
            torch.testing.assert_close(found[0][name], value, atol=1e-6, rtol=1e-5, msg=f"{case} {name}")


def test_sharded_weights_make_the_same_update_and_a_whole_state(own_folder: Path) -> None:
    batch, updated = a_batch(own_folder)
    case, settings = "critic-parts", CASES["critic-parts"]
    done = together("laws.py", repr({case: settings}), ".", "sharded", **FSDP)
    assert done.returncode == 0, done.stderr
    alone, learner = updated({**settings, "accumulate": 1}, batch, 0, 1)
    found = torch.load(f"{case}-0.pt")
    assert found.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5, msg=name)
    kept, again = torch.load(f"{case}-0-kept.pt", weights_only=False)
    for name, part in learner.parts().items():
        whole = part.state_dict()
        assert kept[name].keys() == whole.keys()
        part.load_state_dict(kept[name])  # what sharded processes keep a lone one takes
    for place, moments in kept["optimiser"]["state"].items():
        for name, value in moments.items():
            assert type(value) is torch.Tensor
            assert torch.equal(value, again["optimiser"]["state"][place][name])


def test_a_run_of_two_processes_is_one_run(own_folder: Path) -> None:
    """The same cost and the same folder as a lone process's, weights and a critic that are equal after every round."""
    Path("laws.py").write_text(LAWS)
    told = {"objective": "distribution", "objective.gan_weight": 1e-3}
    done = together("-m", "dagdiff", "distill", *spelled(**told, curriculum="laws.Looking"), "--out=pair")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the run is saved in pair") == 1
    assert main(["distill", *spelled(**told), "--out=lone"]) == 0
    assert {file.name for file in Path("pair").iterdir()} == {file.name for file in Path("lone").iterdir()}
    assert told_of(Path("pair")) == told_of(Path("lone"))


@pytest.mark.slow
def test_a_sharded_run_is_one_run(own_folder: Path) -> None:
    """Student, average, critic and a teacher's network in parts; the folder holds whole weights, and is opened."""
    Path("laws.py").write_text(LAWS)
    assert main(["teacher", "--task=gaussians8-biased", "--updates=20", "--device=cpu"]) == 0
    told = {"objective": "distribution", "expert": "learned", "expert.updates": 20, "ema": 0.9}
    done = together("-m", "dagdiff", "distill", *spelled(**told, curriculum="laws.Sharded"), "--out=pair", **FSDP)
    assert done.returncode == 0, done.stderr
    assert main(["distill", *spelled(**told), "--out=lone"]) == 0
    assert {file.name for file in Path("pair").iterdir()} == {file.name for file in Path("lone").iterdir()}
    assert told_of(Path("pair")) == told_of(Path("lone"))
    assert main(["sample", "pair", "--num=4", "--out=pair.npz", "--trust_code"]) == 0


def test_stages_are_refused_where_weights_are_sharded(own_folder: Path) -> None:
    done = together("-m", "dagdiff", "distill", *spelled(stages="4,2"), "--out=run", **FSDP)
    assert done.returncode != 0 and not Path("run").exists()
    assert "stages copy their students, and sharded ones (FSDP2) can't be." in done.stderr


def told_of(run: Path) -> tuple[Any, ...]:
    """What does not depend on a run's noise: its metrics' names, its cost, and the size of D after each round."""
    report, rounds = read_json(run / "metrics.json"), (run / "rounds.csv").read_text().splitlines()
    sizes = [row["size"] for row in csv.DictReader(rounds)]
    return report["metrics"].keys(), report["nfe_student"], report["nfe_expert"], sizes


@pytest.mark.slow
def test_the_recipe_in_two_processes_makes_a_pipeline(own_folder: Path) -> None:
    """Adapters in half precision, guided by prompts: trained by two, exported, and loaded by diffusers."""
    path = pipelines.save(pipelines.seeded(pipelines.stable_diffusion), own_folder / "sd")
    Path("prompts.txt").write_text("a cat\na dog\n")
    recipe = ROOT / "benchmarks/configs/sd15-ddil-lora.yaml"
    sizes = "--updates=2 --rounds=1 --batch_size=8 --accumulate=2 --chains=4 --samples=10 --device=cpu --policy.rank=2"
    own = f"--pipeline.path={path} --pipeline.prompts=prompts.txt --pipeline.own_samples=20 --pipeline.own_steps=2"
    done = together("-m", "dagdiff", "distill", f"--config={recipe}", *f"{own} {sizes}".split(), "--out=run")
    assert done.returncode == 0, done.stderr
    assert main(["export", "run", "--out", "student"]) == 0
    student: Any = DiffusionPipeline.from_pretrained("student")
    image = student("a cat", num_inference_steps=4, guidance_scale=1.0, output_type="np").images[0]
    assert image.shape == (16, 16, 3)


@pytest.mark.parametrize("name", ["nowhere", "cuda:99", "mps:7"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(Refusal, match=f"device '{name}' is not there .* Pass --device cpu or auto."):
        engine.find_device(name)


# -- Adam in 8 bits: the package needs a GPU, so a stand-in is given ---------------------------------------------------


class StandIn(torch.optim.Adam):
    """Takes what bitsandbytes' Adam8bit takes of us, and nothing more."""

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        super().__init__(params, lr=lr, betas=betas)


def test_without_a_gpu_or_the_package_adam_in_8_bits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refusal, match=r"needs a GPU, and this run is on 'cpu'\. Leave --adam8bit away"):
        engine.adam(torch.device("cpu"), eight_bits=True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(Refusal, match=r"package bitsandbytes, which can't be loaded .*pip install bitsandbytes"):
        engine.adam(torch.device("cuda"), eight_bits=True)
    with pytest.raises(Refusal, match="needs a GPU"):
        Experiment.build(configure({"adam8bit": True, "device": "cpu"}))


def test_a_run_learns_with_the_package_s_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made with the run's rate and betas; a run without the option has torch's, and the identity that it had."""
    stand_in = SimpleNamespace(optim=SimpleNamespace(Adam8bit=StandIn))
    monkeypatch.setitem(sys.modules, "bitsandbytes", stand_in)
    weights = [torch.nn.Parameter(torch.zeros(2))]
    made = engine.adam(torch.device("cuda"), eight_bits=True)(weights, lr=0.1, betas=(0.5, 0.9))
    assert type(made) is StandIn and made.defaults["lr"] == 0.1 and made.defaults["betas"] == (0.5, 0.9)
    usual = engine.adam(torch.device("cuda"))(weights, lr=0.1)
    assert type(usual) is torch.optim.Adam and usual.defaults["fused"]
    real = engine.adam
    monkeypatch.setattr(engine, "adam", lambda device, eight_bits=False: real(torch.device("cuda"), eight_bits))
    small = {"updates": 2, "rounds": 1, "chains": 4, "batch_size": 4, "heldout": 0, "samples": 10, "steps": 2}
    told = {"device": "cpu", "policy": "fresh", "substeps": 1, "adam8bit": True, "lr": 0.01, **small}
    it = Experiment.build(configure(told))
    before = [weight.clone() for weight in it.student.parameters()]
    (loop, _) = next(iter(it.rounds()))
    assert type(loop.learner.optimiser) is StandIn
    assert any(not torch.equal(*pair) for pair in zip(before, it.student.parameters(), strict=True))
    config = configure({"device": "cpu"})
    assert "adam8bit" not in identity(config)["settings"]
    assert identity({**config, "adam8bit": True})["settings"]["adam8bit"]


def test_weights_that_are_shared_out_keep_no_moments_in_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "sharding", lambda: True)
    with pytest.raises(Refusal, match="FSDP2"):
        engine.adam(torch.device("cuda"), eight_bits=True)
