"""``dagdiff list``: what there is to be named."""

from collections.abc import Sequence

from dagdiff.checks import check_in
from dagdiff.commands import make_parser
from dagdiff.runs import config
from dagdiff.runs.parts import registered, resolve
from dagdiff.tasks.names import task_names


def list_names(words: Sequence[str]) -> None:
    """Name the tasks, objectives, experts, policies, drivers, curricula, ... that there are, a line each."""
    kinds = {f"{part}s": [part] for part in ("objective", "expert", "threshold", "driver")}
    kinds |= {"tasks": [], "policies": ["policy"], "curricula": ["curriculum"]}
    kinds |= {"metrics": ["metric"], "schedules": ["schedule", "beta", "shares_ramp", "lr_ramp"]}
    parser = make_parser("list", list_names)
    parser.add_argument("kind", help=", ".join(kinds))
    kind = check_in("kind", config.read(parser, words).kind, kinds)
    if kind == "tasks":
        print("\n".join(task_names()))
    for part in kinds[kind]:
        for name, path in registered(part).items():
            summary = (resolve(part, name).__doc__ or "").split("\n")[0]
            print(f"--{part} {name:<13} {summary}  [{path}]")
