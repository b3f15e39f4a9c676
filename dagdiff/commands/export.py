"""``dagdiff export``: a run's student as a folder that diffusers loads, with nothing of dagdiff installed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dagdiff import __version__, config, run
from dagdiff.checkpoint import load_json, save_text
from dagdiff.checks import check_in
from dagdiff.commands import check_given, make_parser
from dagdiff.experiment import Experiment
from dagdiff.policies.export import build_pipeline, call_arguments, model_card
from dagdiff.policies.lora import save_adapters

FORMATS = ("diffusers", "lora")


def export(words: Sequence[str]) -> None:
    """Write the student of a run as a diffusers pipeline, or its low-rank adapters alone, with a model card.

    DiffusionPipeline.from_pretrained(FOLDER) loads it, or pipeline.load_lora_weights(FOLDER) the adapters; dagdiff is
    not needed for that.
    """
    parser = make_parser("export", export)
    parser.add_argument("folder", type=Path, help="the folder of a run of images or of a pipeline")
    parser.add_argument("--format", default="diffusers", help="diffusers: a whole pipeline; lora: the adapters alone")
    parser.add_argument("--out", type=Path | None, default=None, help="the folder to fill; it must be new or empty")
    parser.add_argument("--weights", default="student", help="student (the last round's) or best")
    given = config.read(parser, words)
    check_in("format", given.format, FORMATS)
    out = check_given(given.out, "--out")
    run.check_folder(out)
    it = run.load(given.folder, "cpu", given.weights)
    base = it.config.get("pipeline", {}).get("path")
    pipeline: Any = build_pipeline(it.student, it.transition, it.times, it.threshold, base)
    arguments = call_arguments(pipeline, len(it.times) - 1)
    if given.format == "lora":
        save_adapters(pipeline, it.student.network.body, out)  # type: ignore[union-attr,arg-type]
        pipeline.scheduler.save_pretrained(out / "scheduler")
    else:
        pipeline.save_pretrained(out)
    save_text(out / "README.md", model_card(given.folder.name, _teacher(it), arguments, _facts(it, given.folder)))
    told = ", ".join(f"{name}={value}" for name, value in arguments.items())
    print(f"{type(pipeline).__name__} in {out}; call it with {told}")


def _teacher(it: Experiment) -> str:
    path = it.config.get("pipeline", {}).get("path")
    if path is None:
        return f"a U-Net trained on {it.task.world.name}"
    return f"`{Path(path).name if Path(path).is_dir() else path}`"


def _facts(it: Experiment, folder: Path) -> dict[str, Any]:
    """What the card tells beside the rest: how the student was trained, and its scores where they were measured."""
    chosen, file = it.settings, folder / "metrics.json"
    metrics = load_json(file)["metrics"] if file.exists() else {}
    scores = {name: f"{value:.4g}" for name, value in metrics.items() if isinstance(value, float)}
    shares = " / ".join(f"{share:g}" for share in (chosen.shares or it.objective.shares))
    return {
        "objective": it.config["objective"]["class"],
        "shares of forward / student / expert states": shares,
        "updates": f"{chosen.updates} of {chosen.batch_size} rows",
        "guidance inside": chosen.guidance,
        "seed": chosen.seed,
        **scores,
        "dagdiff": __version__,
    }
