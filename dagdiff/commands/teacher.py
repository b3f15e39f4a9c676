"""``dagdiff teacher``: the learned teacher of a task, trained once and cached."""

from collections.abc import Sequence
from itertools import pairwise

from tqdm import tqdm

from dagdiff import config
from dagdiff.benchmarks.tasks import make_task, teacher_of
from dagdiff.commands import make_parser
from dagdiff.schedule import CosineSchedule


def teacher(words: Sequence[str]) -> None:
    """Train the learned teacher of a task on its whole world; it is cached by the content of its configuration.

    A teacher of images that was stopped is gone on with.
    """
    parser = make_parser("teacher", teacher)
    parser.add_argument("--task", required=True, help="a task; its distillation set does not matter")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    named = [word.partition("=")[2] or after for word, after in pairwise([*words, ""]) if word.startswith("--task")]
    kind = teacher_of(named[-1] if named else "")
    parser.add_class_arguments(kind, None, skip={"task"})
    options = vars(config.read(parser, words))
    task, device = make_task(options.pop("task"), CosineSchedule()), config.find_device(options.pop("device"))
    learner = kind(task, **options)
    if learner.path.exists():
        print(f"already trained: {learner.path}")
        return
    with tqdm(learner.train(device), total=-(-learner.updates // 100), unit="00 updates", disable=None) as bar:
        for loss in bar:
            bar.set_postfix(loss=f"{loss:.3f}")
    print(f"trained for {learner.updates} updates, last loss {loss:.3f}: {learner.path}")
