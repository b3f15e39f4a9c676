"""``dagdiff teacher``: the learned teacher of a task, trained once and cached."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from dagdiff.commands import make_parser, read_range
from dagdiff.runs import config
from dagdiff.runs.words import spell
from dagdiff.tasks.names import PLANE, make_task, read_name


def teacher(words: Sequence[str]) -> None:
    """Train the learned teacher of a task on its whole dataset; it is cached by the content of its configuration.

    A training that was stopped is resumed.
    """
    given = spell(words)
    parser = make_parser("teacher", teacher)
    parser.add_argument("--task", required=True, help="a task; its distillation set does not matter")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    kind = (read_name(given["task"]).kind if given.get("task") else PLANE).teacher()
    parser.add_argument("--size", type=int | None, default=None, help="of your own pictures, as in distill")
    parser.add_argument("--skip_broken", type=bool, default=False, help="train without pictures that can't be read")
    parser.add_argument("--value_range", type=str | None, default=None, help="black and white of arrays, as in distill")
    parser.add_class_arguments(kind, None, skip={"task"})
    if "help" in given:
        print(parser.format_help(), end="")
        return
    _train(kind, vars(config.read(parser, given)))


def _train(kind: Any, options: dict[str, Any]) -> None:
    """Train a teacher, unless the cache holds it."""
    from dagdiff.engine import find_device
    from dagdiff.schedule import CosineSchedule

    reading = SimpleNamespace(**{name: options.pop(name) for name in ("size", "skip_broken", "value_range")})
    reading.value_range = read_range(reading.value_range)
    task, device = make_task(options.pop("task"), CosineSchedule(), reading), find_device(options.pop("device"))
    learner = kind(task, **options)
    if learner.path.exists():
        print(f"already trained: {learner.path}")
        return
    updates, losses = learner.training["updates"], list(learner.train(device))
    told = f", last loss {losses[-1]:.3f}" if losses else ""  # another process, or one that was stopped, has trained it
    print(f"trained for {updates} updates{told}: {learner.path}")
