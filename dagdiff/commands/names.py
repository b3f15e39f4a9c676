"""``dagdiff list``: what there is to be named."""

from collections.abc import Sequence

from dagdiff.checks import check_in
from dagdiff.commands import make_parser
from dagdiff.runs import config
from dagdiff.runs.described import describe_part
from dagdiff.runs.parts import names
from dagdiff.tasks.names import task_names


def list_names(words: Sequence[str]) -> None:
    """Name the tasks, objectives, experts, policies, drivers, curricula, ... that there are, a line each."""
    kinds = {f"{part}s": [part] for part in ("objective", "expert", "threshold", "driver", "executor")}
    kinds |= {"tasks": [], "policies": ["policy"], "curricula": ["curriculum"]}
    kinds |= {"metrics": ["metric"], "schedules": ["schedule", "beta", "shares_ramp", "lr_ramp"]}
    parser = make_parser("list", list_names)
    parser.add_argument("kind", help=", ".join(kinds))
    kind = check_in("kind", config.read(parser, words).kind, kinds)
    if kind == "tasks":
        print("\n".join(task_names()))
    for part in kinds[kind]:
        for name, path in names(part).items():
            print(f"--{part} {name:<13} {describe_part(part, name).summary}  [{path}]")
