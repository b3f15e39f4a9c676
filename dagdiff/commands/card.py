"""What the card of an exported student tells: its teacher, its scores, its recipe, and pictures that it has made."""

from pathlib import Path
from typing import Any

from dagdiff import __version__
from dagdiff.checkpoint import save_text
from dagdiff.checks import check_at_least, check_at_most
from dagdiff.reading import read_json, to_yaml
from dagdiff.report import figures
from dagdiff.report.images import sample_panels, save_grid
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.standing import check_whole


def teacher_of(it: Experiment) -> str:
    """What the student was distilled from, in words."""
    chosen = it.config.get("pipeline", {})
    if chosen.get("path") is None:
        return f"a teacher of {it.task.world.name}"
    lora = f" with the adapters `{public(chosen['lora'])}`" if chosen.get("lora") else ""
    return f"`{public(chosen['path'])}`{lora}"


def of_folder(it: Experiment) -> str:
    """The pipeline on whose network a student's adapters stand."""
    policy = it.config["policy"]
    return str(policy["path"] if policy["class"] == "few-step-lora" else it.config.get("pipeline", {}).get("path"))


def base_of(it: Experiment) -> tuple[str, ...]:
    """The line by which the hub finds the teacher of a student, where it is there."""
    path = it.config.get("pipeline", {}).get("path")
    return () if path is None or Path(path).exists() else (f"base_model: {path}",)


def public(path: str, before: str = "") -> str:
    """A pipeline's name as others know it: of a folder here, nothing of where it lies."""
    return before + Path(path).resolve().name if Path(path).exists() else path


def scores(it: Experiment, folder: Path) -> dict[str, Any]:
    """How the student was trained, and its scores where they were measured."""
    chosen, file = it.settings, folder / "metrics.json"
    check_whole(folder, [file.name])
    metrics = read_json(file, {"metrics": {str: (float, None)}})["metrics"] if file.exists() else {}
    found = {name: f"{value:.4g}" for name, value in metrics.items() if isinstance(value, float)}
    shares = " / ".join(f"{share:g}" for share in chosen.shares)
    return {
        "objective": it.config["objective"]["class"],
        "shares of forward / student / expert states": shares,
        "updates": f"{chosen.updates} of {chosen.batch_size} rows",
        "guidance inside": " to ".join(f"{each:g}" for each in weights_of(it)) or chosen.guidance,
        "seed": chosen.seed,
        **found,
        "dagdiff": __version__,
    }


def weights_of(it: Experiment) -> tuple[float, ...]:
    """The least and the greatest weight of guidance that a student can be told; none of one trained with one."""
    told = it.settings.guidance
    return told if isinstance(told, tuple) else ()


def recipe(it: Experiment, place: Path) -> str:
    """Write the settings of the run as recipe.yaml, without places of this machine; return what the card says of it."""
    chosen = {name: value for name, value in it.config.items() if name not in ("device", "memmap")}
    save_text(place / "recipe.yaml", to_yaml(_without_places(chosen)))
    return "The recipe is in `recipe.yaml`: `dagdiff distill --config recipe.yaml --out runs/again`."


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_places(each) for name, each in value.items()}
    if isinstance(value, str) and "/" in value:
        return public(value)
    return value


def save_pictures(it: Experiment, count: int | None, place: Path) -> str:
    """Draw samples of the student as samples.png; return what the card shows of them."""
    images = len(it.task.shape) == 3
    latent = images and getattr(getattr(it.task, "world", None), "latent", False)
    usual = 4 if latent else 16 if images else 1000
    n = usual if count is None else count
    check_at_least("pictures", n, 0)
    check_at_most("pictures", n, 1000)
    if n == 0:
        return ""
    points = it.task.pictures(it.sample(n, seed=0)).numpy(force=True)
    if images:
        save_grid(points, place / "samples.png")
    else:
        figures.save(sample_panels({"student": points}), place / "samples.png")
    _, asked, _ = it.start(n, seed=0)
    shown = it.task.numbers(asked).tolist() if it.task.prompts and asked is not None else []
    prompts = [it.task.prompts[each] for each in shown]
    told = "".join(f"\n{number}. {prompt}" for number, prompt in enumerate(prompts, 1))
    return f"![Samples of the student, not selected](samples.png)\n{told}\n"
