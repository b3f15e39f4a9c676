"""``dagdiff cache``: what a pipeline's runs read, made ahead of them: embeddings of prompts, states of pictures."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dagdiff.checks import Refusal
from dagdiff.runs.words import spell

EXAMPLE = """\
example:
  dagdiff cache --pipeline.path my/sd15 --pipeline.images photos

All options of `dagdiff distill --task pipeline` are options here too, as far as they say what is cached; `dagdiff
distill --task pipeline --help` names them. The folder is $DAGDIFF_CACHE, or ~/.cache/dagdiff."""


def cache(words: Sequence[str]) -> None:
    """Make ahead what runs of a pipeline read: embeddings of its prompts, and states of pictures.

    Pictures are read and encoded a few at a time, whatever their number; without pictures the teacher draws its own
    samples. A run with the same options finds all of it, and so does a second call. One that was stopped is resumed by
    the same command.
    """
    given = spell(words)
    if "help" in given:
        print(f"usage: dagdiff cache [options]\n\n{inspect.cleandoc(str(cache.__doc__))}\n\n{EXAMPLE}")
        return
    given.setdefault("task", "pipeline")
    if given["task"] != "pipeline":
        raise Refusal(
            f"dagdiff cache is for --task pipeline; got {given['task']!r}, whose data need none. Leave --task away; "
            "`dagdiff teacher` trains a teacher ahead."
        )
    from dagdiff.jobs.pieces import watched
    from dagdiff.runs.config import complete, typed

    settings = typed(complete(given))

    from dagdiff.tasks.names import make_task

    with watched() as made:
        task: Any = make_task("pipeline", None, settings)
        task.check_training()
        shown, held = task.world.splits
    bank = task.teacher.network.conditions
    prompts = len(task.prompts)
    if prompts:
        few = "few, so each run embeds them"
        print(f"prompts: {prompts}, {few if bank.file is None else _told(bank.file, made)}")
    count = f"{len(shown.points)} to train on, {len(held.points)} held out"
    of = settings.pipeline.images or "the teacher's own samples"
    print(f"states: {count}, of {of}, {_told(shown.file, made)}")


def _told(file: Path, made: Sequence[Path]) -> str:
    """Where a file is, how large, and whether it was there before."""
    size = file.stat().st_size / 1e6
    return f"{'made' if file in made else 'already there'}: {file} ({size:,.1f} MB)"
