"""A peer, side by side: DMD2 by NVIDIA ModelOpt (``pip install 'dagdiff[peers]'``) on our worlds, networks and updates.

================  ========  ==================================================================================
variant           losses    states that the student and the critic are trained on
================  ========  ==================================================================================
forward           dagdiff   forward-diffused
student           dagdiff   the student's own: what DMD2 calls backward simulation
ddil              dagdiff   both, and the expert's
modelopt-forward  ModelOpt  forward-diffused (``backward_simulation=False``)
modelopt-student  ModelOpt  the student's own (``backward_simulation=True``)
default           dagdiff   our objective as it comes: a critic that is told where an answer was made, fewer
                            updates of it, larger learning rates, and the objective's own shares
================  ========  ==================================================================================

The first five hold DMD2 as published: one fake score for all times, five updates of it to one of the student. So they
differ in states and in formulas alone; the last is what a user gets who names nothing.

*Alike* in the five, because the very same objects serve both: the world and the set that is shown, the schedule
(rectified flow, the only one that ModelOpt knows), the learned teacher, the student and fake score that start from it,
both optimisers with clipping and learning-rate ramp, batch, updates, critic updates, the range of tau (uniform), the
grid, and the law by which students are sampled (fresh noise each step, ModelOpt's "sde"). ModelOpt leaves the loop to
its user; :func:`modelopt` is that loop, as bare as can be.

*Different*, because it is what ModelOpt does (``tests/test_peers.py`` holds the formulas):

* Its fake score minimises the error of the guess of x0, unweighted (its default), ours the error in v, which is
  ((alpha^2 + sigma^2) / sigma)^2 times that and stresses small tau.
* It divides by mean|x - real| + 1e-6, we by the mean and skip a row without one. On these worlds nobody can tell.
* With backward simulation it walks a fresh chain for every batch, and one batch holds one time of the grid. We roll in
  once a round, keep what was visited, and a batch holds all times.
* It perturbs and converts in float64.

Times are CPU time of an update of the student together with its critic updates, roll-ins included. The columns of a
task and seed train in turns, a round each, on one thread, so that whatever else the machine does slows all alike.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dagdiff.benchmarks.suite import Cell, check_settings, open_results, refer
from dagdiff.benchmarks.tasks import Task, Teacher, task_names
from dagdiff.checkpoint import load_json, save_arrays, save_json, save_text
from dagdiff.checks import Refusal, check_at_least, check_in
from dagdiff.config import configure
from dagdiff.experiment import Experiment
from dagdiff.objectives.distribution import DistributionMatching
from dagdiff.results import Results, Row, summarise, write_summary
from dagdiff.shapes import Denoiser


def ours(it: Experiment) -> Iterator[tuple[int, int]]:
    """Train the experiment's student by our own loop; yield after each round what student and expert were asked."""
    for _, done in it.rounds():
        yield done.nfe_student, done.nfe_expert


def modelopt(it: Experiment, backward_simulation: bool) -> Iterator[tuple[int, int]]:
    """Train the experiment's student by ModelOpt's losses, with our loop's networks, optimisers and data.

    Yields as often as our loop does. ModelOpt draws its times and noise from torch's global stream.
    """
    loop = it._loop(it.expert, it.settings.steps)
    critic: Any = loop.objective  # begun: it holds the fake score and its optimiser
    networks = Asked(it.student), Asked(it.expert), Asked(critic.fake)
    pipeline = _fastgen().DMDPipeline(*networks, modelopt_config(it, backward_simulation))

    def batch() -> tuple[Tensor, Tensor]:
        x0 = loop.data.sample(loop.batch_size, loop.generator)
        return x0, torch.randn(x0.shape, generator=loop.generator)

    it.student.register_forward_hook(loop._count)
    for _ in range(loop.rounds):
        losses = []
        for _ in range(loop.updates_per_round):
            for _ in range(critic.critic_updates):
                critic.optimiser.zero_grad(set_to_none=True)
                pipeline.compute_fake_score_loss(*batch())["total"].backward()
                nn.utils.clip_grad_norm_(critic.critic.parameters(), 10.0)
                critic.optimiser.step()
            losses.append(pipeline.compute_student_loss(*batch())["total"])
            loop._step(losses[-1])
        loop._checked({"loss": torch.stack(losses).detach()})
        yield loop.nfe_student, it.expert.nfe


def modelopt_config(it: Experiment, backward_simulation: bool) -> Any:
    """Say the experiment's settings in ModelOpt's words; what it leaves open keeps ModelOpt's default."""
    fastgen, (low, high) = _fastgen(), it.settings.objective.tau
    times = fastgen.SampleTimestepConfig(time_dist_type="uniform", min_t=low, max_t=high, t_list=it.times.tolist())
    return fastgen.DMDConfig(
        pred_type="x0",
        sample_t_cfg=times,
        student_sample_steps=len(it.times) - 1,
        student_sample_type="sde",
        backward_simulation=backward_simulation,
    )


class Asked(nn.Module):
    """A denoiser asked as ModelOpt asks: by keyword, with diffusers' names. It answers with x0 (``pred_type="x0"``)."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        """Return the guess of x0, ``(B, *D)``."""
        return self.denoiser(hidden_states, timestep)


def flow_expert(task: Task) -> nn.Module:
    """A teacher that predicts the flow's velocity, as those of rectified flow do; our own default, v, is for cosine."""
    return Teacher(task, prediction="flow").load().requires_grad_(False).eval()


def flow_student(task: Task) -> nn.Module:
    """A student that starts from :func:`flow_expert`."""
    return Teacher(task, prediction="flow").load()


PUBLISHED: dict[str, Any] = {
    "objective": {"class": "distribution", "critic_updates": 5, "critic_lr": 5e-4, "tell_origin": False},
    "lr": 5e-4,
}


class Column(NamedTuple):
    """A variant: the shares (forward, student, expert) of its states, what trains it, and its settings."""

    shares: tuple[float, float, float]
    train: Callable[[Experiment], Iterator[tuple[int, int]]] = ours
    settings: dict[str, Any] = PUBLISHED
    peer: bool = False


VARIANTS = {
    "forward": Column((1.0, 0.0, 0.0)),
    "student": Column((0.0, 1.0, 0.0)),
    "ddil": Column((0.25, 0.5, 0.25)),
    "modelopt-forward": Column((1.0, 0.0, 0.0), partial(modelopt, backward_simulation=False), peer=True),
    "modelopt-student": Column((0.0, 1.0, 0.0), partial(modelopt, backward_simulation=True), peer=True),
    "default": Column(DistributionMatching.shares, settings={"objective": "distribution"}),
}


@dataclass
class Suite:
    """What is run: every task with every variant for every seed.

    Args:
        tasks: comma-separated, unlabelled; `dagdiff list tasks` names them.
        variants: comma-separated, of forward, student, ddil, modelopt-forward, modelopt-student, default; times are
            told as ratios to the first.
        steps: of the student, at least 2.
        seeds: how many seeds, 0 to seeds - 1.
        updates: of the student in each run.
        settings: more settings of every run, e.g. {"lr": 1e-3}.
    """

    tasks: list[str] = field(default_factory=lambda: ["gaussians8-matched", "gaussians8-biased", "imbalanced-biased"])
    variants: list[str] = field(default_factory=lambda: list(VARIANTS))
    steps: int = 4
    seeds: int = 3
    updates: int = 1200
    settings: dict[str, Any] = field(default_factory=dict)


QUICK = Suite(tasks=["gaussians8-matched", "gaussians8-biased"], seeds=2, updates=200)
"""Two tasks in a few minutes: ``--quick``."""

_OWN = {"task": "Use --tasks.", "steps": "Use --steps.", "seed": "Use --seeds.", "updates": "Use --updates."}
_OWN |= dict.fromkeys(("shares", "objective", "lr"), "Use --variants.")
_OWN |= {
    "schedule": "The peer knows rectified flow alone.",
    "threshold": "The peer has none.",
    "stages": "The peer has none.",
}


def cells(suite: Suite) -> Iterator[Cell]:
    """Yield the suite's runs, those of a task and seed together; the peer's stand under the settings they share."""
    check_at_least("seeds", suite.seeds, 1)
    check_at_least("steps", suite.steps, 2)
    check_settings(suite.settings, _OWN)
    for name, values, known in (("task", suite.tasks, task_names()), ("variant", suite.variants, VARIANTS)):
        if not values:
            raise Refusal(f"--{name}s is empty. Name at least one, or leave the option away.")
        for value in values:
            check_in(name, value, known)
    for task in suite.tasks:
        if task.endswith("-labelled"):
            raise Refusal(f"task {task!r} has labels, and the peer is asked without. Take {task[:-9]!r}.")
        chosen = {"task": task, "schedule": "flow", "steps": suite.steps}
        chosen |= {"expert": "dagdiff.benchmarks.peers.flow_expert", "policy": "dagdiff.benchmarks.peers.flow_student"}
        chosen |= {"updates": suite.updates, "heldout": 0, "device": "cpu", **suite.settings}
        columns = {name: VARIANTS[name] for name in suite.variants}
        configs = {
            name: configure({**chosen, **column.settings, "shares": list(column.shares)})
            for name, column in columns.items()
        }
        for seed in range(suite.seeds):
            for name, config in configs.items():
                yield Cell("distribution", name, {**config, "seed": seed}, free=("objective", "lr"))


def run(suite: Suite, out: Path, workers: int = 1) -> dict[str, Any]:
    """Run what ``out`` does not hold yet, on one thread; return all results, and keep them and their table there."""
    if workers != 1:
        raise Refusal(f"--workers must be 1, for this suite measures time; got {workers}. Leave the option away.")
    results, wanted = open_results(out, "peers"), list(cells(suite))
    if any(VARIANTS[name].peer for name in suite.variants):
        _fastgen()
    results |= {"settings": asdict(suite), "failures": {}}
    for (task, _), racers in groupby(wanted, lambda cell: (cell.config["task"], cell.config["seed"])):
        columns = list(racers)
        keys = {key(cell) for cell in columns}
        if results["references"].get(task, {}).get("yardstick") != columns[0].yardstick:
            results["references"][task] = refer(columns[0], out)
        if not keys <= {record["config"] for record in results["records"]}:
            others = [record for record in results["records"] if record["config"] not in keys]
            results["records"] = others + race(columns, out)
        save_json(out / "results.json", results)
    save_text(out / "table.txt", table(out))
    return results


def key(cell: Cell) -> str:
    """Content hash of a run: that of its configuration, and for the peer's its name and version."""
    return f"{cell.key}-modelopt-{version('nvidia-modelopt')}" if VARIANTS[cell.variant].peer else cell.key


def race(racers: Sequence[Cell], out: Path) -> list[dict[str, Any]]:
    """Train all columns in turns, a round each; return their records, times as ratios to the first column's too."""
    torch.set_num_threads(1)
    columns = [Racer(cell) for cell in racers]
    for number in range(racers[0].config["rounds"]):
        for place in range(len(columns)):
            columns[(number + place) % len(columns)].turn()  # nobody always comes after the same one
    records = [column.record(out) for column in columns]
    return [{**record, "ratio": record["milliseconds"] / records[0]["milliseconds"]} for record in records]


class Racer:
    """One column under way, with a global random stream of its own, so that the others' turns change nothing in it."""

    def __init__(self, cell: Cell) -> None:
        with torch.random.fork_rng(devices=[]):
            self.cell, self.it = cell, Experiment.build(cell.config)
        self.training = VARIANTS[cell.variant].train(self.it)
        self.nfe, self.wall, self.cpu = (0, 0), 0.0, list[float]()
        self.random = torch.Generator().manual_seed(self.it.settings.seed).get_state()

    def turn(self) -> None:
        """Train for a round."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.random)
            wall, cpu = time.perf_counter(), time.process_time()
            self.nfe = next(self.training)
            self.cpu.append(time.process_time() - cpu)
            self.wall += time.perf_counter() - wall
            self.random = torch.get_rng_state()

    def record(self, out: Path) -> dict[str, Any]:
        """End the training and score the student, as :func:`dagdiff.benchmarks.suite.run_cell` does.

        ``milliseconds`` of CPU an update are the median over rounds, but for the first, which also builds things.
        """
        with torch.random.fork_rng(devices=[]):
            list(self.training)
        chosen, file = self.it.settings, f"samples/{key(self.cell)}.npz"
        metrics, by_step = self.it.measure(chosen.seed)
        points, chains = self.it.sample(chosen.samples, chosen.seed), self.it.chains(64, chosen.seed)
        save_arrays(out / file, x=points, chains=chains)
        a_round = statistics.median(self.cpu[1:] or self.cpu)
        cost = {"nfe_student": self.nfe[0], "nfe_expert": self.nfe[1], "seconds": self.wall}
        cost |= {"milliseconds": 1e3 * a_round / (chosen.updates // chosen.rounds)}
        made = {"config": key(self.cell), "samples": file, "metrics": metrics, "by_step": by_step}
        return {**self.cell.labels, **cost, **made}


def table(out: Path) -> str:
    """A text table of a folder's results: means over seeds, for energy and W2 with their bootstrap intervals."""
    results, raw = Results.load(out), load_json(out / "results.json")["records"]
    names = ("coverage", "on_mode", "mode_kl", "spread")
    lines = [["variant", "seeds", "energy", "w2", *names, "ms/update", "time ratio"]]
    for task, rows in groupby(summarise(results), lambda row: row.task):
        lines.append([task, *[""] * (len(lines[0]) - 1)])
        for name in ("floor", "expert"):
            scores = results.references[task][name]
            lines.append([f"  ({name})", "", *(f"{scores[each]:.3g}" for each in ("energy", "w2", *names)), "", ""])
        lines += [_line(row, names, raw) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines) + "\n"


def _line(row: Row, names: Sequence[str], raw: Sequence[dict[str, Any]]) -> list[str]:
    told = [f"{interval:.3g}" if (interval := row.metrics[name]) else "–" for name in ("energy", "w2")]
    told += [f"{interval.mean:.3g}" if (interval := row.metrics[name]) else "–" for name in names]
    mine = [record for record in raw if record["config"] in row.runs]
    times = (statistics.mean(record[name] for record in mine) for name in ("milliseconds", "ratio"))
    return [f"  {row.variant}", str(len(row.records)), *told, *(f"{each:.2f}" for each in times)]


def _fastgen() -> Any:
    """ModelOpt's library of distillation losses; refuse if it is not there."""
    try:
        from modelopt.torch import fastgen
    except ImportError as error:
        raise Refusal(f"the suite peers needs nvidia-modelopt ({error}). Run pip install 'dagdiff[peers]'.") from None
    return fastgen


def main(words: Sequence[str]) -> None:
    """Run the suite into a folder and print its table."""
    folders = [Path(word) for word in words if word != "--quick"]
    if len(folders) != 1:
        raise Refusal(f"one folder is needed; got {list(words)}. Run python -m dagdiff.benchmarks.peers OUT [--quick].")
    run(QUICK if "--quick" in words else Suite(), folders[0])
    write_summary(Results.load(folders[0]), folders[0] / "summary.csv")
    print(table(folders[0]), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
