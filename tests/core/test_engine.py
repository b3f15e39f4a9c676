"""One run in several processes: weights equal everywhere, noise different, counts summed, one writer."""

import copy
import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pipelines
import pytest
import torch
from diffusers import DiffusionPipeline
from helpers import ROOT

from dagdiff import engine
from dagdiff.checkpoint import load_json
from dagdiff.cli import main
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment

# What a user's folder holds: the same program in each of two processes, and a curriculum that looks into both.
LAWS = """
import sys
import torch
import torch.distributed as dist
from dagdiff import engine
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment

def everywhere(values):
    found = [torch.zeros_like(values) for _ in range(engine.world_size())]
    dist.all_gather(found, values.contiguous())
    return found

def weights(*modules):
    return torch.cat([each.detach().flatten() for module in modules for each in module.state_dict().values()])

class Looking:
    def __call__(self, loop):
        for done in loop:
            one, other = everywhere(weights(loop.student, loop.objective.critic))
            assert torch.equal(one, other), "the same weights everywhere"
            one, other = everywhere(loop.aggregate.records("student")["x_t"])
            assert not (one == other).any(), "chains of its own in each"
            yield done

def halves(settings, batch, out):
    it = Experiment.build(configure(settings))
    loop, rows = it.loop(it.expert, it.settings.steps), torch.load(batch, weights_only=False)
    mine = rows.chunk(engine.world_size())[engine.rank()]
    loop.learner.update(loop.objective.loss(loop.student, mine).loss)
    torch.save(loop.student.state_dict(), f"{out}{engine.rank()}.pt")

def sums():
    network = torch.nn.ModuleList([torch.nn.Linear(2, 1), torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)])
    with torch.no_grad():
        for each in network.parameters():
            each.fill_(float(engine.rank()))
    engine.broadcast(network)
    assert not weights(network).any()
    network[2].requires_grad_(False)
    network[engine.rank()](torch.ones(1, 2)).backward()
    engine.average_gradients(network.parameters())
    assert [each.grad.flatten().tolist() for each in network[:2].parameters()] == [[0.5, 0.5], [0.5]] * 2
    assert all(each.grad is None for each in network[2].parameters())
    assert engine.totals([engine.rank(), 10**15], torch.device("cpu")) == [1, 2 * 10**15]
    assert engine.part("chains", 8) == 4

if __name__ == "__main__":
    with engine.joined(lambda: None):
        sums()
        halves(eval(sys.argv[1]), *sys.argv[2:])
"""

SMALL: dict[str, Any] = {
    "task": "gaussians8-biased", "policy": "fresh", "updates": 8, "rounds": 2, "chains": 16, "batch_size": 32,
    "heldout": 8, "samples": 100, "device": "cpu", "substeps": 2,
}  # fmt: skip


def together(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a program in two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    return subprocess.run(
        launch, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def spelled(**changes: Any) -> list[str]:
    return [f"--{name}={value}" for name, value in {**SMALL, **changes}.items()]


def test_a_lone_process_changes_nothing() -> None:
    network = torch.nn.Linear(2, 1)
    before = copy.deepcopy(network.state_dict())
    with engine.joined(lambda: pytest.fail("there is nobody to wait")):
        engine.broadcast(network)
        engine.average(network.state_dict().values())
        engine.average_gradients(network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.weight.grad is None
    assert (engine.world_size(), engine.rank(), engine.part("chains", 7)) == (1, 0, 7)
    assert engine.totals([3, 10**15], torch.device("cpu")) == [3, 10**15]


def test_two_halves_of_a_batch_make_the_update_of_the_whole(own_folder: Path) -> None:
    Path("laws.py").write_text(LAWS)
    it = Experiment.build(configure(SMALL))
    loop = it.loop(it.expert, it.settings.steps)
    loop.gather(1, loop.shares)
    batch = loop.aggregate.draw(32, loop.shares)
    torch.save(batch, "batch.pt")
    done = together("laws.py", repr(SMALL), "batch.pt", "student")
    assert done.returncode == 0, done.stderr
    loop.learner.update(loop.objective.loss(loop.student, batch).loss)
    one, other = (torch.load(f"student{place}.pt") for place in (0, 1))
    for name, value in loop.student.state_dict().items():
        assert torch.equal(one[name], other[name])
        torch.testing.assert_close(one[name], value, atol=1e-6, rtol=1e-5)


def test_a_run_of_two_processes_is_one_run(own_folder: Path) -> None:
    """The same cost and the same folder as a lone process's, weights and a critic that are equal after every round."""
    Path("laws.py").write_text(LAWS)
    told = {"objective": "distribution", "objective.gan_weight": 1e-3}
    done = together("-m", "dagdiff.cli", "distill", *spelled(**told, curriculum="laws.Looking"), "--out=pair")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the run is kept in pair") == 1
    assert main(["distill", *spelled(**told), "--out=lone"]) == 0
    assert {file.name for file in Path("pair").iterdir()} == {file.name for file in Path("lone").iterdir()}
    assert told_of(Path("pair")) == told_of(Path("lone"))


def told_of(run: Path) -> tuple[Any, ...]:
    """What does not depend on a run's noise: its metrics' names, its cost, and the size of D after each round."""
    report, rounds = load_json(run / "metrics.json"), (run / "rounds.csv").read_text().splitlines()
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
    done = together("-m", "dagdiff.cli", "distill", f"--config={recipe}", *f"{own} {sizes}".split(), "--out=run")
    assert done.returncode == 0, done.stderr
    assert main(["export", "run", "--out", "student"]) == 0
    student: Any = DiffusionPipeline.from_pretrained("student")
    image = student("a cat", num_inference_steps=4, guidance_scale=1.0, output_type="np").images[0]
    assert image.shape == (16, 16, 3)


def test_what_does_not_split_evenly_is_refused(own_folder: Path) -> None:
    done = together("-m", "dagdiff.cli", "distill", *spelled(batch_size=31), "--out=run")
    assert done.returncode != 0 and not Path("run").exists()
    assert "batch_size must split evenly over 2 processes; got 31." in done.stderr
