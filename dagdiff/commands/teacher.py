"""``dagdiff teacher``: the learned teacher of a task, trained once and cached."""

from collections.abc import Sequence

from tqdm import tqdm

from dagdiff import config
from dagdiff.benchmarks.tasks import Teacher, make_task
from dagdiff.commands import make_parser
from dagdiff.schedule import CosineSchedule


def teacher(words: Sequence[str]) -> None:
    """Train the learned teacher of a task on its whole world; it is cached by the content of its configuration."""
    parser = make_parser("teacher", teacher)
    parser.add_argument("--task", required=True, help="a task; its distillation set does not matter")
    parser.add_class_arguments(Teacher, None, skip={"task"})
    options = vars(config.read(parser, words))
    learner = Teacher(make_task(options.pop("task"), CosineSchedule()), **options)
    if learner.path.exists():
        print(f"already trained: {learner.path}")
        return
    with tqdm(learner.train(), total=-(-learner.updates // 100), unit="00 updates", disable=None) as bar:
        for loss in bar:
            bar.set_postfix(loss=f"{loss:.3f}")
    print(f"trained for {learner.updates} updates, last loss {loss:.3f}: {learner.path}")
