"""``dagdiff gather``: the expert's answers, made ahead of the runs that train on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dagdiff.checks import check_at_least, check_at_most
from dagdiff.commands import MOST, USUAL, add_executor, check_given, help_of, make_executor, make_parser
from dagdiff.runs import config
from dagdiff.runs.words import spell

_OWN = ("out", "runs", "shard_rows", "workers", "minari", "episodes", "help")


def gather(words: Sequence[str]) -> None:
    """Let the expert answer ahead of many runs, and keep labelled records in shards.

    What does not depend on the student is made once for a whole study: forward states, and the expert's own chains. A
    run takes them with --gathered FOLDER. All options of `dagdiff distill` are options here too, as far as they say
    what the records are. Shards that the folder holds are kept, and several commands, here or on other machines, may
    fill it. With --minari whole chains of the expert become a Minari data set instead, for other imitation libraries.
    """
    given = spell(words)
    task = given.pop("", None) or given.get("task")
    executor = {
        "executor.class" if name == "executor" else name: given.pop(name)
        for name in list(given)
        if name.partition(".")[0] == "executor"
    }
    own = {name: given.pop(name) for name in _OWN if name in given}
    parser = make_parser("gather", gather)
    parser.add_argument("task", help="as in distill")
    parser.add_argument("--out", type=Path | None, default=None, help="the folder; one that holds records is continued")
    parser.add_argument("--runs", type=int, default=1, help="how many runs' worth of records to make")
    parser.add_argument("--shard_rows", type=int, default=4096, help="records of a shard, at least")
    parser.add_argument("--workers", type=int, default=1, help="shards made at once: here processes, one a core")
    parser.add_argument(
        "--minari", type=str | None, default=None, help="name of a Minari data set of expert chains, e.g. mine/grid-v0"
    )
    parser.add_argument("--episodes", type=int, default=1000, help="chains of that data set")
    kind = add_executor(parser, executor.get("executor.class", USUAL))
    if "help" in own:
        print(help_of(parser), end="")
        return
    found = vars(config.read(parser, {**own, **executor, **({"task": task} if task else {})}))
    given["task"] = found.pop("task")
    if found["minari"] is None:
        _gather(given, found, kind)
    else:
        _episodes(given, found)


def _episodes(given: dict[str, Any], own: dict[str, Any]) -> None:
    """Keep chains of the expert as a Minari data set."""
    out, name, count = check_given(own["out"], "--out"), own["minari"], own["episodes"]
    check_at_least("episodes", count, 1)
    check_at_most("episodes", count, MOST)
    chosen = config.complete(given)

    from dagdiff.envs.episodes import check_episodes, save_episodes
    from dagdiff.runs.experiment import Experiment

    check_episodes(out, name)
    it = Experiment.build(chosen)
    noise, condition, generator = it.start(count, it.settings.seed)
    told = f"Chains of the expert of {it.task.name} in {len(it.times) - 1} steps, from noise to data."
    parts = it.expert, it.sampler, it.times, noise, condition, it.task.labels, generator
    save_episodes(out, name, *parts, told)
    print(f"{count} episodes of {len(it.times) - 1} steps: {out / name}")
    print(f'read them with MINARI_DATASETS_PATH={out} and minari.load_dataset("{name}")')


def _gather(given: dict[str, Any], own: dict[str, Any], kind: Any) -> None:
    """Make the records, and print what they came to."""
    out = check_given(own["out"], "--out")
    chosen = config.complete(given)

    from dagdiff.jobs.shared import opened
    from dagdiff.jobs.stops import Stopped, stoppable
    from dagdiff.runs.gather import check_gatherable
    from dagdiff.runs.gather import gather as fill

    check_gatherable(chosen)
    told = {**vars(own["executor"]), "workers": own["workers"], "out": out}
    with stoppable():
        try:
            with opened(make_executor(kind, told)) as pool:
                manifest = fill(chosen, out, pool, own["workers"], own["runs"], own["shard_rows"])
        except KeyboardInterrupt as stop:
            raise Stopped(
                f"stopped; finished shards are saved in {out}. Run the same command again to resume.",
                getattr(stop, "status", 130),
            ) from None
    shards = manifest["shards"].values()
    rows, nfe = sum(each["rows"] for each in shards), sum(each["nfe"] for each in shards)
    print(f"{len(shards)} shards with {rows:,} records, {nfe:,} evaluations of the expert: {out}")
    print(f"use them with --gathered {out}")
