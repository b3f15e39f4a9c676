"""The identity of a run: what it is, apart from where it stands.

That is its resolved configuration, in which every default is written out, and the versions of the code that makes
labels, losses and scores. Equal identities are one run, whatever the processor, the versions of Python and of packages,
or the spelling. No number in it comes from a computation: parts that need one, such as the box of a dataset, are given
the task when they are built.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagdiff.checkpoint import content_hash
from dagdiff.checks import Refusal
from dagdiff.gathered import read_manifest
from dagdiff.runs.parts import resolve
from dagdiff.versions import CODE

_PLACES = ("memmap", "gathered")
"""Settings that say where things are kept. The records in ``gathered`` change the result and count themselves."""

_LABELS = (
    "task", "data", "size", "skip_broken", "value_range", "pipeline", "schedule", "expert", "guidance", "substeps",
    "threshold", "bf16", "steps", "input_perturbation", "driver",
)  # fmt: skip
"""Settings on which labelled forward states and expert chains depend, beside the objective's kind of label."""

_LATER: dict[str, Any] = {
    "on_nonfinite": "stop", "start": None, "compile": False, "value_range": None, "adam8bit": False,
}  # fmt: skip
"""Settings with the value that leaves a run what it was before they were there."""

_LATER_OF_PIPELINES: dict[str, Any] = {"family": None, "few_step": False, "lora": None}
"""The same for what is told of a pipeline."""


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run is: its configuration, without places, and the versions of the code that defines it.

    Args:
        config: as :func:`dagdiff.runs.config.configure` returns it, or some of its settings.
    """
    parts = {
        part: chosen["class"] for part, chosen in config.items() if isinstance(chosen, Mapping) and "class" in chosen
    }
    own = {part: getattr(resolve(part, name), "version", 1) for part, name in parts.items() if name is not None}
    own |= {f"metric {name}": getattr(resolve("metric", name), "version", 1) for name in config.get("metric") or []}
    settings = {
        name: value for name, value in config.items() if name not in _PLACES and (name, value) not in _LATER.items()
    }
    if isinstance(settings.get("pipeline"), Mapping):
        told = settings["pipeline"].items()
        settings["pipeline"] = {each: value for each, value in told if (each, value) not in _LATER_OF_PIPELINES.items()}
    found = {"settings": settings, "code": CODE, "parts": own}
    return found | ({"gathered": gathered(Path(config["gathered"]))} if config.get("gathered") else {})


def label_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the records depend on that are made ahead of a run: settings, and versions of code, by name.

    Of the objective that is what its labels depend on: runs that differ in the rest share records.
    """
    whole, objective = identity(config), dict(config["objective"])
    kept = getattr(resolve("objective", objective["class"]), "label_options", None)
    label = objective if kept is None else {name: objective[name] for name in ("class", *kept) if name in objective}
    settings = {name: whole["settings"][name] for name in _LABELS if name in whole["settings"]}
    code = {name: CODE[name] for name in ("chain", "expert", "teacher")}
    parts = {name: version for name, version in whole["parts"].items() if name in (*_LABELS, "objective")}
    return {"settings": {**settings, "objective": label}, "code": {**code, **parts}}


def gathered(folder: Path) -> str:
    """Return the content hash of the records in a folder: what they depend on, their seed and their number.

    Not their bytes, which differ from machine to machine as any result does; nor the place.
    """
    manifest = read_manifest(folder)
    shards = {name: shard["rows"] for name, shard in manifest["shards"].items()}
    told = {name: manifest.get(name) for name in ("settings", "code", "seed")}
    return content_hash(json.dumps({**told, "shards": shards}, sort_keys=True))[:16]


def check_labels(config: Mapping[str, Any], folder: Path) -> None:
    """Reject records made ahead that are not those that a run would make; name the first setting that differs."""
    manifest, wanted = read_manifest(folder), label_identity(config)
    if config.get("stages"):
        raise Refusal("--gathered holds answers of one expert, and --stages change it. Leave one of them away.")
    for part in ("settings", "code"):
        for name in sorted({*wanted[part], *manifest[part]}):
            made, mine = manifest[part].get(name), wanted[part].get(name)
            if made != mine:
                what = name if part == "settings" else f"version of {name}"
                raise Refusal(
                    f"--gathered {folder} was made with {what} {_told(made)}, and this run has {_told(mine)}. Make "
                    "them equal, or gather into a new folder."
                )


def _told(value: Any) -> str:
    """A setting in a message."""
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def digest(config: Mapping[str, Any]) -> str:
    """Return the content hash of a configuration's identity: the key under which a run's result is kept."""
    return content_hash(json.dumps(identity(config), sort_keys=True))[:16]
