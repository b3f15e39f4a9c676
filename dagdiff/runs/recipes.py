"""Recipes: every tuned default of a run, by what is trained.

A recipe holds settings (:class:`dagdiff.runs.settings.Settings`) and options of parts (``"objective.critic_lr"``). It
is written out into the configuration before anything runs, so what a run *is* stands in its configuration alone, and
whoever changes a number here makes other runs. Objectives hold mathematics; from Python take their numbers from here:

>>> chosen = recipe("plane", "distribution")
>>> chosen["shares"], chosen["lr"]
((0.0, 0.5, 0.5), 0.002)
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dagdiff.checks import Refusal, check_in
from dagdiff.reading import parse_json, read_text
from dagdiff.runs.parts import DEFAULTS, PARTS, resolve, usual_parts
from dagdiff.tasks.names import PIPELINE, read_name

Values = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What runs of one kind take where their user says nothing.

    Args:
        settings: of every objective.
        objectives: what an objective takes beside them, or instead, by its short name; subclasses take it too.
    """

    settings: Values
    objectives: Mapping[str, Values] = field(default_factory=dict)


WHOLE_WALK: Values = {"objective.label_end": "data", "substeps": 16}
"""Labels for which the expert walks all the way to data."""

WHOLE_WALK_BESIDE: Values = {"objective.label_weight": 1.0, "substeps": 16}
"""The same as a second term beside what an objective compares."""

PLANE = Recipe(
    {
        "updates": 1200,
        "rounds": 20,
        "batch_size": 256,
        "chains": 256,
        "reuse": 4.0,  # docs/reuse.md
        "substeps": 8,
        "solver.class": "dpm",
        "heldout": 256,
        "samples": 2000,
        "shares": (0.25, 0.5, 0.25),
        "lr": 2e-3,
        "betas": (0.9, 0.999),
        "clip": 1.0,
    },
    {
        "consistency": WHOLE_WALK,
        "distribution": {**WHOLE_WALK_BESIDE, "shares": (0.0, 0.5, 0.5), "reuse": 24.0},
    },
)
"""Points in 2-D and small networks, tuned on the datasets gaussians8 and grid25. Labels walk to data where this
pays (docs/labels.md). DMD2 leaves forward states out: answers at states that are made from half of the data cannot
follow the whole distribution. Its states are re-used until a round needs about one batch of chains."""


IMAGES = Recipe(
    {**PLANE.settings, "updates": 400, "rounds": 10, "batch_size": 64, "chains": 64, "substeps": 4, "heldout": 32},
    {
        "progressive": {"lr": 1e-3},
        "consistency": {**WHOLE_WALK, "lr": 1e-3},
        "distribution": {**WHOLE_WALK_BESIDE, "lr": 2e-4, "shares": (0.0, 1.0, 0.0), "reuse": 24.0},
    },
)
"""Images of some 8 to 32 pixels a side and a U-Net of our own, tuned on digits. DMD2's student learns ten times slower
than its critic, and from student states alone."""


LATENTS = Recipe(
    {
        **PLANE.settings,
        "updates": 200,
        "rounds": 10,
        "batch_size": 4,
        "chains": 8,
        "substeps": 4,
        "solver.class": "ddim",
        "heldout": 8,
        "samples": 32,
        "lr": 1e-5,
        "threshold.points": 256,
    },
    {
        "distribution": {
            "shares": (0.0, 0.5, 0.5),
            "reuse": 24.0,
            "objective.critic_lr": 1e-5,
            "objective.critic_updates": 5,
            "objective.tell_origin": False,
        }
    },
)
"""A large pretrained network that is trained whole, such as Stable Diffusion's: published learning rates. Its teacher
is dear, so labels are the published ones: LCM's end one step on, DMD2 buys none."""


PIXELS = Recipe(
    {**LATENTS.settings, "batch_size": 32, "chains": 32, "lr": 1e-4},
    {
        "consistency": {"lr": 3e-4, "shares": (0.5, 0.25, 0.25)},
        "distribution": {
            **LATENTS.objectives["distribution"],
            "shares": (0.0, 1.0, 0.0),
            "objective.critic_lr": 1e-4,
        },
    },
)
"""A small pretrained pipeline of pixels. Measured on U-Nets of 8 x 8 digits that predict v and epsilon: students end
ahead of the teacher's own 4 steps with both. docs/pipeline.md has higher rates that suit one of the two better."""


LORA = Recipe({**LATENTS.settings, "lr": 1e-4}, LATENTS.objectives)
"""Low-rank adapters on a pretrained network: a published learning rate, ten times that of whole networks."""


RECIPES = {"plane": PLANE, "images": IMAGES, "pixels": PIXELS, "latents": LATENTS, "lora": LORA}
"""What is trained -> its recipe."""


LARGEST_PIXELS = 64
"""The side of images up to which a pipeline of pixels takes the recipe of small ones."""


def recipe(trained: str, objective: str) -> Values:
    """Return the settings and options of parts for what is trained and an objective.

    Args:
        trained: a key of :data:`RECIPES`.
        objective: a short name or an import path; a class takes what its nearest registered ancestor takes.

    Raises:
        Refusal: for an unknown recipe or objective.
    """
    chosen = RECIPES[check_in("recipe", trained, RECIPES)]
    nearest = objective if objective in PARTS["objective"] else _ancestor(objective, chosen.objectives)
    return {**chosen.settings, **chosen.objectives.get(nearest, {})}


def _ancestor(objective: str, known: Iterable[str]) -> str:
    """Return the short name of the nearest ancestor of a class that is among ``known``, or nothing."""
    kind = resolve("objective", objective)
    ancestors = inspect.getmro(kind) if inspect.isclass(kind) else (kind,)
    kinds = {resolve("objective", short): short for short in known}
    return next((kinds[each] for each in ancestors if each in kinds), "")


class Usual(NamedTuple):
    """What a run takes where its user says nothing: its parts by name (None: the task's own), and other values."""

    parts: dict[str, str | None]
    values: Values


def usual(given: Mapping[str, Any], task: str) -> Usual:
    """Return the parts of a run and its usual values, among them the options of these parts.

    Args:
        given: what the user says, by names such as ``objective.class``.
        task: its task.

    Raises:
        Refusal: for an unknown task or part, or a second teacher.
    """
    kind = read_name(str(given.get("task", task))).kind
    named: dict[str, str] = {part: name for part in PARTS if (name := given.get(f"{part}.class"))}
    own = usual_parts(str(given.get("task", task)), named.get("expert"))
    _refuse_second_teacher(given, named, own)
    parts = {part: named.get(part) or own.get(part) or DEFAULTS.get(part, {}).get("class") for part in PARTS}
    trained = kind.recipe
    if kind is PIPELINE:
        parts["schedule"] = named.get("schedule")
        trained = pipeline_kind(given.get("pipeline.path"), str(parts["policy"]))
    values: Values = {}
    for part, name in parts.items():
        values[f"{part}.class"] = name
        if name == DEFAULTS.get(part, {}).get("class"):
            values |= {f"{part}.{option}": value for option, value in DEFAULTS.get(part, {}).items()}
    return Usual(parts, values | recipe(trained, str(parts["objective"])))


def _refuse_second_teacher(given: Mapping[str, Any], named: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Reject a second teacher: where the expert is a learned network, a student that starts from one starts from it."""
    policy = named.get("policy", own["policy"])
    if own["policy"] == "expert" and policy in ("teacher", "unet"):
        raise Refusal(
            f"--policy {policy} describes a second teacher beside the expert {own['expert']!r}, from which the "
            "student starts. Leave --policy away, or pass fresh or fresh-unet."
        )
    options = [name for name in given if name.startswith("policy.") and name != "policy.class"]
    if policy == "expert" and options:
        raise Refusal(
            f"--{options[0]}: the student starts from the expert {own['expert']!r} and has no options of its own. "
            f"Pass --{options[0].replace('policy', 'expert')}, or name another --policy."
        )


def pipeline_kind(path: str | None, policy: str) -> str:
    """Return the name of the recipe that suits a pipeline, told from its policy and the files that describe it."""
    if policy in ("lora", "few-step-lora"):
        return "lora"
    if not path:
        return "latents"
    index, network = _described(path, "model_index.json"), _described(path, "unet/config.json", "config.json")
    encoded = {"vae", "vqvae", "movq"} & set(index)
    side = network.get("sample_size")
    return "pixels" if index and not encoded and isinstance(side, int) and side <= LARGEST_PIXELS else "latents"


def _described(path: str, *files: str) -> Values:
    """The first of a pipeline's JSON files that can be had, from a folder or from the hub; empty if there is none.

    A pipeline that can't be had at all is rejected where it is loaded, with the reason.
    """
    for file in files:
        try:
            content = parse_json(read_text(_found(path, file)), file, strict=False)
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            return content
    return {}


def _found(path: str, file: str) -> Path:
    if Path(path).is_dir():
        return Path(path) / file
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(path, file))
