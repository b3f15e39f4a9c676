"""The whole sampler of a student as one graph: noise in, clean states out, all K steps and the law between them.

An ONNX file of it runs where neither torch nor dagdiff is: ``onnxruntime`` in a browser, a phone, a server. Inputs are
``noise`` ``(B, *D)``; for laws that draw fresh noise on the way ``fresh`` ``(K - 1, B, *D)``; for students that show a
class ``condition`` ``(B,)``. The output is ``x0`` ``(B, *D)``. B is free.

Before it is handed out the graph is run by onnxruntime beside dagdiff's own sampler, on the same noise.
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dagdiff.checks import Refusal, first_line
from dagdiff.pipelines.conditions import PromptBank
from dagdiff.pipelines.lora import has_adapters, merged
from dagdiff.pipelines.pretrained import PretrainedNetwork
from dagdiff.policy import StudentPolicy
from dagdiff.shapes import Condition, States, Times
from dagdiff.threshold import Threshold
from dagdiff.transition import Transition, sample

_ROWS = (1, 65)
"""Batches that are compared."""

EXACT = 1e-4
"""What the graph's samples may differ by from dagdiff's, as a part of their scale."""


class Sampler(nn.Module):
    """A student's chain as one module.

    Args:
        student: ``(x_t, t, condition) -> x0``.
        transition: its law of motion.
        times: its grid, ``(K + 1,)``.
        threshold: of its guesses.
    """

    times: Tensor

    def __init__(self, student: nn.Module, transition: Transition, times: Times, threshold: Threshold) -> None:
        super().__init__()
        self.student, self.transition, self.threshold = student.eval(), transition, threshold
        self.register_buffer("times", times.clone())

    @property
    def draws(self) -> int:
        """How many fresh noises a chain takes; the last step, to clean data, takes none."""
        return len(self.times) - 2 if getattr(self.transition, "stochastic", True) else 0

    def forward(self, noise: States, fresh: Tensor | None = None, condition: Condition = None) -> States:
        """Return clean states, ``(B, *D)``."""
        x_t = noise
        for step, (t, s) in enumerate(pairwise(self.times.unbind())):
            t, s = t.expand(noise.shape[0]), s.expand(noise.shape[0])  # len() would fix the number of rows
            guess = self.threshold(self.student(x_t, t, condition))
            drawn = torch.zeros_like(noise) if fresh is None or step >= self.draws else fresh[step]
            x_t = self.transition(x_t, guess, t, s, drawn)
        return x_t


class Graph(NamedTuple):
    """An exported graph, and how far its samples are from dagdiff's."""

    inputs: dict[str, tuple[Any, ...]]
    """Name -> shape, with names for what is free."""
    difference: float
    content: bytes
    """Of the file."""

    def save(self, folder: Path) -> None:
        """Write it to a folder, as ``sampler.onnx``."""
        (folder / "sampler.onnx").write_bytes(self.content)


def draw_graph(
    student: nn.Module,
    transition: Transition,
    times: Times,
    threshold: Threshold,
    shape: tuple[int, ...],
    labels: int,
) -> Graph:
    """Draw a student's sampler as an ONNX graph, and check it against dagdiff's.

    Args:
        student: any; the graph is in float32.
        transition: its law of motion.
        times: its grid, ``(K + 1,)``.
        threshold: of its guesses.
        shape: of one state.
        labels: how many classes its chains may show; 0 for none.

    Raises:
        Refusal: if a package is missing, the student can't be drawn as a graph, or the graph samples otherwise.
    """
    runtime = _packages()
    whole = Sampler(_plain(student), transition, times.cpu(), threshold).eval()
    wanted = {rows: _sampled(whole, shape, labels, rows) for rows in _ROWS}
    sampler = copy.deepcopy(whole)  # what schedules remember is not to be what the exporter has in its hands
    given = _inputs(sampler, shape, labels, rows=2)
    batch = torch.export.Dim("batch", max=63)  # of the example: diffusers' upsampling asks whether it is below 64
    free = {"noise": {0: batch}, "fresh": {1: batch}, "condition": {0: batch}}
    try:
        with torch.no_grad(), _quiet(), TemporaryDirectory() as folder:
            torch.onnx.export(
                sampler,
                (),
                str(Path(folder) / "sampler.onnx"),
                kwargs=given,
                input_names=list(given),
                output_names=["x0"],
                dynamic_shapes={name: free[name] for name in given},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            content = (Path(folder) / "sampler.onnx").read_bytes()
    except Exception as error:  # what the exporter can't draw raises many kinds
        raise Refusal(
            f"the sampler of this student can't be drawn as an ONNX graph ({type(error).__name__}: "
            f"{first_line(error):.200}). Export it as a pipeline, or train it without --threshold."
        ) from None
    named = {name: _named(name, values) for name, values in given.items()}
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    apart = max(_apart(session, *wanted[rows]) for rows in _ROWS)
    found = Graph(named, apart, content)
    if not found.difference <= EXACT:
        raise Refusal(
            f"the graph does not sample as this student does: its ends differ by {found.difference:.2g} of their "
            f"scale, where {EXACT:g} is allowed. Report it, with the run's config.yaml."
        )
    return found


def calling_program(graph: Graph) -> str:
    """Return the few lines of Python that draw samples with an exported graph."""
    lines = ["import numpy as np", "import onnxruntime", "", 'sampler = onnxruntime.InferenceSession("sampler.onnx")']
    lines.append("rng, batch = np.random.default_rng(0), 16")
    told = []
    for name, shape in graph.inputs.items():
        shown = ", ".join(map(str, shape))
        made = f"rng.standard_normal(({shown},), dtype=np.float32)"
        told.append(f'"{name}": ' + ("np.zeros(batch, dtype=np.int64)" if name == "condition" else made))
    lines += ["given = {", *(f"    {each}," for each in told), "}", '(x0,) = sampler.run(["x0"], given)']
    return "\n".join(lines)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what the exporter says of packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _plain(student: nn.Module) -> nn.Module:
    """A copy of a student in float32 with adapters merged; one that asks for prompts is refused."""
    network: Any = getattr(student, "network", None)
    if isinstance(network, PretrainedNetwork) and isinstance(network.conditions, PromptBank):
        raise Refusal(
            "a graph takes noise and classes, and this student is asked with prompts. Export it as a pipeline."
        )
    twin: Any = copy.deepcopy(student)
    if isinstance(network, PretrainedNetwork) and has_adapters(network.body):
        twin.network.body = merged(network.body)
    for weight in twin.parameters():
        weight.requires_grad_(False)
    return twin.float().cpu()  # type: ignore[no-any-return]


def _inputs(sampler: Sampler, shape: tuple[int, ...], labels: int, rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of so many rows, by name; those that the sampler does not take are left out."""
    generator = torch.Generator().manual_seed(seed)
    given = {"noise": torch.randn((rows, *shape), generator=generator)}
    if sampler.draws:
        given["fresh"] = torch.randn((sampler.draws, rows, *shape), generator=generator)
    if labels:
        given["condition"] = torch.randint(labels, (rows,), generator=generator)
    return given


def _sampled(sampler: Sampler, shape: tuple[int, ...], labels: int, rows: int) -> tuple[dict[str, Tensor], States]:
    """Inputs of so many rows, and what dagdiff's own sampler makes of them."""
    given = _inputs(sampler, shape, labels, rows, seed=rows)
    fresh = [*given.get("fresh", ()), torch.zeros_like(given["noise"])] if sampler.draws else []
    policy = StudentPolicy(sampler.student, sampler.threshold)
    told = given.get("condition"), None, fresh
    return given, sample(policy, sampler.transition, sampler.times, given["noise"], *told)


def _apart(session: Any, given: dict[str, Tensor], wanted: States) -> float:
    """How far a graph's samples are from those, as a part of their scale."""
    (found,) = session.run(["x0"], {name: values.numpy() for name, values in given.items()})
    return float((torch.from_numpy(found) - wanted).norm() / wanted.norm())


def _named(name: str, values: Tensor) -> tuple[Any, ...]:
    place = 1 if name == "fresh" else 0
    return tuple("batch" if each == place else size for each, size in enumerate(values.shape))


def _packages() -> Any:
    """Return onnxruntime; refuse where it, or what writes graphs, is missing."""
    try:
        return [import_module(name) for name in ("onnx", "onnxscript", "onnxruntime")][-1]
    except ImportError as error:
        raise Refusal(
            f"--onnx needs the package {error.name}, which is not installed. Run pip install 'dagdiff[onnx]'."
        ) from None
