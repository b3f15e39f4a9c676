"""``dagdiff bench distillbench``: the entries with which the bench begins, made and judged; and the tables of its page.

Each judgement is a file of its own in ``--out``, and one that is there is not made again. In the checkout ``python -m
dagdiff.benchmarks.measure.distillbench`` writes cards and entries of ``docs/distillbench.md`` from
``benchmarks/results/distillbench``; a judgement that somebody hands in is one more file there.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dagdiff.benchmarks.measure.entries import ENTRIES, Budget
from dagdiff.benchmarks.measure.overhead import one_thread
from dagdiff.benchmarks.pages import with_table
from dagdiff.checkpoint import check_writable, save_text
from dagdiff.checks import Refusal, check_at_least, check_in
from dagdiff.judging import terms
from dagdiff.judging.judgement import Judgement, read_judgement, save_judgement, table
from dagdiff.judging.terms import HEADLINE, SEEDS, VERSION, card, check_seeds, check_task

KEPT, PAGE = Path("benchmarks/results/distillbench"), Path("docs/distillbench.md")


@dataclass(frozen=True)
class Options:
    """What is made and judged.

    Args:
        tasks: comma-separated; `dagdiff list tasks` names them.
        entries: comma-separated beginnings of names, such as PD or DDIM; all by default.
        seeds: of the bench; of trained entries each has a student of its own.
        updates: of each trained student.
    """

    tasks: list[str] = field(default_factory=lambda: list(HEADLINE))
    entries: list[str] = field(default_factory=list)
    seeds: int = 2
    updates: int = 1200

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        check_at_least("updates", self.updates, 1)
        for task in self.tasks:
            check_task(task)
        for each in self.entries:
            if not any(name.startswith(each) for name in ENTRIES):
                check_in("entry", each, ENTRIES)


def measure(options: Options, out: Path) -> str:
    """Make and judge what ``out`` does not hold yet; return the table of each task."""
    check_writable("--out", out)
    wanted = [name for name in ENTRIES if not options.entries or any(map(name.startswith, options.entries))]
    with one_thread():
        for task in options.tasks:
            for name in wanted:
                file = out / task / f"{slug(name)}.json"
                if not file.exists():
                    save_judgement(ENTRIES[name](name, task, Budget(options.seeds, options.updates)), file)
    return "\n\n".join(f"{task}\n{table(found)}" for task, found in kept(out).items())


def slug(name: str) -> str:
    """A name as that of a file."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def kept(folder: Path) -> dict[str, list[Judgement]]:
    """Return the judgements in a folder by their task; refuse those of other terms than the bench's."""
    found: dict[str, list[Judgement]] = {}
    for file in sorted(folder.glob("*/*.json")):
        each = read_judgement(file)
        if (each.bench, each.points, each.task) != (VERSION, terms.POINTS, file.parent.name):
            raise Refusal(
                f"{file} is of version {each.bench} with {each.points} points on {each.task}. Judge the student again, "
                f"and keep it under {each.task}."
            )
        found.setdefault(each.task, []).append(each)
    return found


def tables(folder: Path) -> dict[str, str]:
    """The tables of the page, by name: the cards, and the entries of each task."""
    found = kept(folder)
    made = {"cards": cards(found)}
    for task, entries in found.items():
        told = {f"dagdiff {each.dagdiff} on {each.versions.get('system', '?')}" for each in entries}
        made[task] = f"{table(entries)}\n\nMade with {'; '.join(sorted(told))}."
    return made


def cards(tasks: Iterable[str]) -> str:
    """A card for each task."""
    lines = ["| task | dataset | a state | students are trained on | hidden from them | where the truth comes from |"]
    lines.append("|---" * 6 + "|")
    lines += [f"| `{each.task}` | {' | '.join(each[1:])} |" for each in map(card, tasks)]
    frozen = f"{SEEDS[0]} to {SEEDS[-1]}, taken in that order"
    return "\n".join(
        [*lines, "", f"Frozen in version {VERSION}: the seeds {frozen}, and {terms.POINTS:,} points a seed."]
    )


def filled(text: str, folder: Path) -> str:
    """Return the page's text with its tables made anew from what is kept."""
    for name, lines in tables(folder).items():
        text = with_table(text, name, lines)
    return text


if __name__ == "__main__":
    save_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), KEPT))
