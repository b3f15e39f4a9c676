"""``dagdiff teacher``: the learned teacher of a task, trained once and cached."""

from collections.abc import Sequence
from itertools import pairwise

from tqdm import tqdm

from dagdiff.commands import make_parser
from dagdiff.engine import find_device
from dagdiff.runs import config
from dagdiff.schedule import CosineSchedule
from dagdiff.tasks.names import PLANE, make_task, read_name


def teacher(words: Sequence[str]) -> None:
    """Train the learned teacher of a task on its whole world; it is cached by the content of its configuration.

    A training that was stopped is resumed.
    """
    parser = make_parser("teacher", teacher)
    parser.add_argument("--task", required=True, help="a task; its distillation set does not matter")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    named = [word.partition("=")[2] or after for word, after in pairwise([*words, ""]) if word.startswith("--task")]
    kind = (read_name(named[-1]).kind if named and named[-1] else PLANE).teacher()
    parser.add_class_arguments(kind, None, skip={"task"})
    options = vars(config.read(parser, words))
    task, device = make_task(options.pop("task"), CosineSchedule()), find_device(options.pop("device"))
    learner = kind(task, **options)
    if learner.path.exists():
        print(f"already trained: {learner.path}")
        return
    updates = learner.training["updates"]
    with tqdm(learner.train(device), total=-(-updates // 100), unit="00 updates", disable=None) as bar:
        for loss in bar:
            bar.set_postfix(loss=f"{loss:.3f}")
    print(f"trained for {updates} updates, last loss {loss:.3f}: {learner.path}")
