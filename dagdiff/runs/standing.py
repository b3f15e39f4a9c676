"""What a folder holds of a run: nothing, one that is under way, or one that is finished; and whether it is the same.

``config.yaml`` is the first file of a run. ``manifest.json``, with the SHA-256 of the files that later commands read,
is the last: a run that has it is finished, and its files are known.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dagdiff.checkpoint import check_writable, file_hash, save_json
from dagdiff.checks import Refusal
from dagdiff.reading import read_json
from dagdiff.runs.config import Config
from dagdiff.runs.words import read_yaml
from dagdiff.tasks.names import PICTURES, read_name

NEW, BEGUN, FINISHED = range(3)

ANY = "device", "logger"
"""What may differ where a run is resumed."""

WRITTEN = (
    "manifest.json", "metrics.json", "rounds.csv", "looks.csv", "rounds.png", "samples.png", "best.safetensors",
    "student.safetensors", "student.json", "prompts.json", "prompts.safetensors", "base.json",
    "config.yaml",
)  # fmt: skip
"""The files of a run, in the order in which they are deleted."""


def standing(out: Path) -> int:
    """Return what a folder holds: ``NEW``, ``BEGUN`` or ``FINISHED``.

    Raises:
        Refusal: for a file, a folder that can't be written, or one that holds something else.
    """
    if os.path.isfile(out):  # unlike Path, at home with names that are too long
        raise Refusal(f"--out {out} is a file. Name a folder.")
    check_writable("--out", out)
    if not out.exists() or all(_ours(each.name) for each in out.iterdir()):
        return NEW
    held = {each.name for each in out.iterdir()}
    if "config.yaml" in held:
        _settings(out)
    if "config.yaml" in held and "manifest.json" in held:
        return FINISHED
    if "config.yaml" in held and ("checkpoints" in held or "metrics.json" not in held):  # older runs have no manifest
        return BEGUN
    raise Refusal(f"--out {out} is not empty. Name a new folder or an empty one.")


def _settings(out: Path) -> Config:
    """The settings of a run in a folder; reject what holds none."""
    try:
        return read_yaml(out / "config.yaml")
    except Refusal as error:
        raise Refusal(f"--out {out} holds no run that can be resumed: {error}") from None


def check_same(out: Path, config: Config) -> None:
    """Reject to resume a run with other settings than its own, by the first that differs."""
    kept, given = flat(_settings(out)), flat(config)
    for name in sorted({*kept, *given} - set(ANY)):
        if kept.get(name) != given.get(name):
            raise Refusal(
                f"--out {out} holds a run with other settings: {name} was {kept.get(name)} and is {given.get(name)} "
                "now. Resume it with its own (--resume), name another folder, or start over with --fresh."
            )


def clear(out: Path) -> None:
    """Delete a run from a folder, and nothing else; the file that makes it one goes last."""
    for name in ("checkpoints", "log", "looks"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in WRITTEN:
        (out / name).unlink(missing_ok=True)


def seal(out: Path) -> None:
    """Note the hashes of the files of a finished run."""
    held = [name for name in WRITTEN if name != "manifest.json" and not name.endswith(".png") and (out / name).exists()]
    save_json(out / "manifest.json", {"files": {name: file_hash(out / name) for name in sorted(held)}})


def check_whole(folder: Path, names: Iterable[str]) -> None:
    """Reject files of a finished run that are not as they were written."""
    if not (folder / "manifest.json").exists():
        return
    files = read_json(folder / "manifest.json").get("files")
    if not isinstance(files, dict):
        raise Refusal(f"{folder / 'manifest.json'} is not what a run writes. Delete it to open the run unchecked.")
    for name in names:
        if (folder / name).exists() and file_hash(folder / name) != files.get(name):
            raise Refusal(
                f"{folder / name} is damaged or was changed: its SHA-256 is not the one in manifest.json. Copy the run "
                "again, or delete manifest.json to open it as it is."
            )


def with_absolute_paths(config: Config) -> Config:
    """Return a configuration that means the same from every working folder."""
    name = read_name(config["task"])
    found = dict(config)
    if name.kind.recipe == "images" and name.world not in PICTURES and os.path.exists(name.world):
        found["task"] = os.path.abspath(name.world) + name.text[len(name.world) :]
    if isinstance(config.get("pipeline"), Mapping):
        chosen = dict(config["pipeline"])
        for option in ("path", "prompts", "images", "lora"):
            if isinstance(chosen.get(option), str) and os.path.exists(chosen[option]):
                chosen[option] = os.path.abspath(chosen[option])
        images = str(chosen.get("images") or "")
        prefix = "hf:" if images.startswith("hf:") and os.path.exists(images[3:]) else ""
        if prefix or "{" in images:  # a folder that is streamed, a pattern of shards
            chosen["images"] = prefix + os.path.abspath(images.removeprefix(prefix))
        found["pipeline"] = chosen
    policy = config.get("policy")
    if isinstance(policy, Mapping) and isinstance(policy.get("path"), str) and os.path.exists(policy["path"]):
        found["policy"] = {**policy, "path": os.path.abspath(policy["path"])}
    for option in ("memmap", "start"):
        if config.get(option):
            found[option] = os.path.abspath(config[option])
    return found


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level of dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return found


def _ours(name: str) -> bool:
    """Whether a name is that of a lock, or of what a run that was killed at its first file has left."""
    return name == ".lock" or name.startswith(".config.yaml.")
