"""``dagdiff export``: a run's student as a folder that diffusers loads, with nothing of dagdiff installed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dagdiff import __version__
from dagdiff.checkpoint import file_hash, follow_umask, save_json, save_text
from dagdiff.checks import Refusal, check_in
from dagdiff.commands import add_trust, check_given, make_parser
from dagdiff.jobs.aside import filled
from dagdiff.pipelines.agreement import Agreement, check_agreement
from dagdiff.pipelines.export import (
    body_of,
    build_pipeline,
    call_arguments,
    chain_of,
    is_of_pixels,
    loading_program,
    model_card,
)
from dagdiff.pipelines.lora import merged, save_adapters
from dagdiff.pipelines.pretrained import PRECISIONS
from dagdiff.pipelines.schedulers import ChainRecord
from dagdiff.reading import read_json
from dagdiff.runs import config
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import open_run
from dagdiff.runs.rehearsal import check_folder
from dagdiff.runs.standing import check_whole

FORMATS = ("diffusers", "lora")


def export(words: Sequence[str]) -> None:
    """Write the student of a run as a diffusers pipeline, or its low-rank adapters alone, with a model card.

    DiffusionPipeline.from_pretrained(FOLDER) loads it, or pipeline.load_lora_weights(FOLDER) the adapters; dagdiff is
    not needed for that. Before anything is written the pipeline runs its own loop against dagdiff's on a small sample
    of the same noise; one that ends elsewhere is refused. The folder appears when it is whole.
    """
    parser = make_parser("export", export)
    parser.add_argument("folder", type=Path, help="the folder of a run of images or of a pipeline")
    parser.add_argument("--format", default="diffusers", help="diffusers: a whole pipeline; lora: the adapters alone")
    parser.add_argument("--out", type=Path | None, default=None, help="the folder to fill; it must be new or empty")
    parser.add_argument("--weights", default="student", help="student (the last round's) or best")
    parser.add_argument(
        "--dtype", type=str | None, default=None, help="of all weights: float32, bfloat16 or float16; the expert's"
    )
    add_trust(parser)
    given = config.read(parser, words)
    check_in("format", given.format, FORMATS)
    out = check_given(given.out, "--out")
    source = _source(given)
    if _finished(out, source):
        print(f"the export in {out} is finished")
        return
    check_folder(out)
    it = open_run(given.folder, "cpu", given.weights, given.trust_code)
    told = it.config.get("pipeline", {})
    base, steps, whole = told.get("path"), len(it.times) - 1, given.format == "diffusers"
    size = it.task.shape[1:] if told.get("sample_size") else None
    dtype = PRECISIONS[check_in("dtype", given.dtype or _usual_dtype(told), PRECISIONS)]
    read = told.get("variant"), size, told.get("allow_pickle", False), dtype
    record = chain_of(it.student, it.sampler, it.times, it.threshold)
    pipeline: Any = build_pipeline(it.student, it.sampler, it.times, it.threshold, base, *read)
    family = getattr(getattr(it.student, "network", None), "family", None)
    arguments = call_arguments(pipeline, steps, it.task.shape[1:], record.call, family)
    body = merged(body_of(it.student))
    agreed = check_agreement(pipeline, it.student, body, record, arguments, it.sampler, it.threshold)
    of = None if whole else _public(str(base), "path/to/")
    program = loading_program(pipeline, arguments, of, told.get("variant"), agreed.seeded)
    card = model_card(given.folder.resolve().name, _teacher(it), steps, program, _facts(it, given.folder))
    with filled(out) as place:
        if whole:
            pipeline.save_pretrained(place)
        else:
            save_adapters(pipeline, body_of(it.student), place)
            pipeline.scheduler.save_pretrained(place / "scheduler")
        save_json(place / "chain.json", _chain(it, record, arguments, agreed) | {"source": source})
        save_text(place / "README.md", card)
        follow_umask(place)
    call = ", ".join(f"{name}={value}" for name, value in arguments.items())
    what = type(pipeline).__name__ if whole else f"adapters of a {type(pipeline).__name__}"
    print(f"{what} in {out}; call it with {call}")


def _source(given: Any) -> dict[str, Any]:
    """What an export is made from: the hash of the student's weights, and the options."""
    file = given.folder / f"{given.weights}.safetensors"
    weights = file_hash(file) if file.is_file() else None
    return {"weights": weights, "format": given.format, "dtype": given.dtype}


def _finished(out: Path, source: dict[str, Any]) -> bool:
    """Whether a folder holds that very export, whole: its folder was moved to its place in one step."""
    file = out / "chain.json"
    try:
        return file.is_file() and bool(read_json(file).get("source") == source)
    except (OSError, Refusal):
        return False


def _usual_dtype(told: dict[str, Any]) -> str:
    """The expert's own, but where pipelines of pixels make no images in it."""
    dtype: str = told.get("dtype", "float32")
    return "float32" if dtype == "bfloat16" and is_of_pixels(told["path"]) else dtype


def _chain(it: Experiment, record: ChainRecord, arguments: dict[str, Any], agreed: Agreement) -> dict[str, Any]:
    """The record of the chain, as it lies beside the pipeline."""
    return {
        "steps": record.steps,
        "timesteps": list(record.timesteps),
        "times": record.times.tolist(),
        "clock": record.entries,
        "law": type(it.sampler).__name__,
        "prediction": record.prediction,
        "guidance_inside": it.settings.guidance,
        "call": arguments,
        "difference_from_dagdiff": agreed.difference,
    }


def _teacher(it: Experiment) -> str:
    path = it.config.get("pipeline", {}).get("path")
    return f"a U-Net trained on {it.task.world.name}" if path is None else f"`{_public(path)}`"


def _public(path: str, before: str = "") -> str:
    """A pipeline's name as others know it: of a folder here, nothing of where it lies."""
    return before + Path(path).resolve().name if Path(path).is_dir() else path


def _facts(it: Experiment, folder: Path) -> dict[str, Any]:
    """What the card tells beside the rest: how the student was trained, and its scores where they were measured."""
    chosen, file = it.settings, folder / "metrics.json"
    check_whole(folder, [file.name])
    metrics = read_json(file, {"metrics": {str: (float, None)}})["metrics"] if file.exists() else {}
    scores = {name: f"{value:.4g}" for name, value in metrics.items() if isinstance(value, float)}
    shares = " / ".join(f"{share:g}" for share in chosen.shares)
    return {
        "objective": it.config["objective"]["class"],
        "shares of forward / student / expert states": shares,
        "updates": f"{chosen.updates} of {chosen.batch_size} rows",
        "guidance inside": chosen.guidance,
        "seed": chosen.seed,
        **scores,
        "dagdiff": __version__,
    }
