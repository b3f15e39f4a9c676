"""What a run takes from outside its folder: prompts, which are kept inside, and a base pipeline, named by hashes."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dagdiff.checkpoint import file_hash, save_json, save_text, write_atomically
from dagdiff.checks import Refusal
from dagdiff.reading import check_kind, parse_json, read_json, read_text
from dagdiff.runs.config import Config
from dagdiff.tasks.base import Task

KEPT = ("prompts.json", "prompts.safetensors", "base.json")
"""The files in the folder of a run that this module writes."""


def keep_outside(task: Task, config: Config, out: Path, student: Any = None) -> None:
    """Keep the prompts of a run in its folder, and the hashes of its base pipeline.

    Raises:
        Refusal: if the run was begun on another base pipeline.
    """
    base = _base(task, student)
    if (out / "base.json").exists():
        check_base(task, config, out, student)
    elif base:
        save_json(out / "base.json", base)
    chosen = config.get("pipeline") or {}
    bank = getattr(getattr(task, "teacher", None), "network", None)
    prompts = list(getattr(getattr(bank, "conditions", None), "prompts", ()))
    given = chosen.get("prompts")
    if given and Path(given).suffix == ".safetensors":
        if not (out / "prompts.safetensors").exists():
            write_atomically(out / "prompts.safetensors", lambda partial: _copy(Path(given), partial))
    elif prompts:
        save_text(out / "prompts.json", json.dumps(prompts, ensure_ascii=False, indent=1) + "\n")


def with_kept_prompts(config: Config, folder: Path) -> Config:
    """Return a configuration that takes its prompts from the folder of its run, where they are kept there.

    Where the file that the run was given is there too and holds other prompts by now, a line says so.
    """
    kept = [file for name in KEPT[:2] if (file := folder / name).exists()]
    if not kept or not isinstance(config.get("pipeline"), dict):
        return config
    given = config["pipeline"].get("prompts")
    if isinstance(given, str) and Path(given).is_file() and _differ(kept[0], Path(given), config["pipeline"]):
        told = f"{given} has changed since the run in {folder} was trained; its own prompts are used, from {kept[0]}"
        print(f"dagdiff: warning: {told}", file=sys.stderr)
    return _asking(config, kept[0])


def with_prompts(config: Config, file: Path, column: str | None) -> Config:
    """Return a configuration with the prompts of a file in the place of its own.

    Raises:
        Refusal: if it is none of a pipeline, or there is no such file.
    """
    if not isinstance(config.get("pipeline"), dict):
        raise Refusal(f"prompts are for runs of pipelines, and this is one of {config.get('task')!r}. Leave them away.")
    return _asking(config, file, column)


def ask_in_turn(task: Task, file: Path, column: str | None) -> None:
    """Let chains of a pipeline's task ask for the prompts of a file one after the other, and for nothing else."""
    from dagdiff.pipelines.pretrained import as_prompts

    world: Any = task.world
    count = len(as_prompts(file, column))

    def in_turn(n: int, generator: torch.Generator | None) -> Tensor:
        asked = torch.arange(n, device=None if generator is None else generator.device) % count
        return asked if world.told is None else world.told(asked, generator)

    world.conditions = in_turn


def check_base(task: Task, config: Config, folder: Path, student: Any = None) -> None:
    """Reject a base pipeline that is not the one that the run in a folder was trained from.

    Its network and its autoencoder are compared, by some values of each of their tensors; so is the few-step network
    on which a student's adapters stand.
    """
    if not (folder / "base.json").exists():  # older runs don't tell it
        return
    kept, found = read_json(folder / "base.json", {str: str}), _base(task, student)
    other = [name for name in {**kept, **found} if kept.get(name) != found.get(name)]
    if other:
        path = ((config.get("policy") if other[0] == "start" else config.get("pipeline")) or {}).get("path")
        raise Refusal(
            f"the {other[0]} of {path!r} is not the one that the run in {folder} was trained from: its hash is "
            f"{str(found.get(other[0]))[:12]}, not {str(kept.get(other[0]))[:12]}. Bring back that pipeline."
        )


def _base(task: Task, student: Any) -> dict[str, str]:
    """Hashes of all weights that a run stands on, by name."""
    return {**task.base, **getattr(student, "stands_on", {})}


def _asking(config: Config, prompts: Path, column: str | None = None) -> Config:
    """The configuration of a pipeline with other prompts, and without images that are there no more."""
    chosen = {**config["pipeline"], "prompts": str(prompts), "prompt_column": column}
    if chosen.get("images"):
        from dagdiff.pipelines.pictures import is_there

        chosen["images"] = chosen["images"] if is_there(str(chosen["images"])) else None
    return {**config, "pipeline": chosen}


def _differ(kept: Path, given: Path, chosen: Mapping[str, Any]) -> bool:
    """Whether a file of prompts holds others than those kept; these end with captions, if there were pictures."""
    from dagdiff.pipelines.conditions import read_prompts

    if ".safetensors" in (kept.suffix, given.suffix):
        return file_hash(kept) != file_hash(given)
    prompts = parse_json(read_text(kept), str(kept))
    check_kind(prompts, [str], str(kept))
    try:
        now = read_prompts(given, chosen.get("prompt_column"))
    except Refusal:
        return True
    before: list[str] = prompts[: len(now)] if chosen.get("images") else prompts
    return now != before


def _copy(file: Path, place: Path) -> None:
    shutil.copyfile(file, place)
