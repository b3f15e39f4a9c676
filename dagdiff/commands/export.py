"""``dagdiff export``: a run's student as files that others load, with nothing of dagdiff installed."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dagdiff.checkpoint import file_hash, follow_umask, save_json, save_text
from dagdiff.checks import Refusal, check_in
from dagdiff.commands import add_trust, check_given, make_parser
from dagdiff.commands.card import base_of, of_folder, public, recipe, save_pictures, scores, teacher_of, weights_of
from dagdiff.jobs.aside import filled
from dagdiff.pipelines.agreement import Agreement, check_agreement
from dagdiff.pipelines.calling import call_arguments, loading_program, model_card
from dagdiff.pipelines.export import body_of, build_pipeline, chain_of, is_of_pixels
from dagdiff.pipelines.hub import check_hub, push
from dagdiff.pipelines.loading import PRECISIONS
from dagdiff.pipelines.lora import merged, save_adapters
from dagdiff.pipelines.schedulers import ChainRecord
from dagdiff.reading import read_json
from dagdiff.runs import config
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import open_run
from dagdiff.runs.rehearsal import check_folder

FORMATS = ("diffusers", "lora", "safetensors", "kohya", "onnx")


def export(words: Sequence[str]) -> None:
    """Write the student of a run as files that others load, with a model card; dagdiff is not needed to use them.

    A diffusers pipeline, its low-rank adapters alone, one .safetensors file as ComfyUI and kohya's tools read it, or
    the whole sampler as one ONNX graph. Before anything is written the pipeline (or the graph) runs its own loop
    against dagdiff's on a small sample of the same noise; one that ends elsewhere is refused. The folder appears when
    it is whole.
    """
    parser = make_parser("export", export)
    parser.add_argument("folder", type=Path, help="the folder of a run; of points in the plane only as an ONNX graph")
    told = (
        "diffusers: a whole pipeline; lora: the adapters alone; safetensors: one file of Stable Diffusion or SDXL in "
        "its first layout; kohya: the adapters in kohya's names; onnx: the sampler as a graph"
    )
    parser.add_argument("--format", default="diffusers", help=told)
    parser.add_argument("--onnx", action="store_true", help="the same as --format onnx")
    parser.add_argument("--out", type=Path | None, default=None, help="the folder to fill; it must be new or empty")
    parser.add_argument("--weights", default="student", help="student (the last round's) or best")
    parser.add_argument(
        "--dtype", type=str | None, default=None, help="of all weights: float32, bfloat16 or float16; the expert's"
    )
    shown = "of the student's samples in the card; null takes 16, of latents 4"
    parser.add_argument("--pictures", type=int | None, default=None, help=shown)
    parser.add_argument("--push_to_hub", type=str | None, default=None, help="OWNER/NAME on the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="make that repository a private one")
    add_trust(parser)
    given = config.read(parser, words)
    form = check_in("format", "onnx" if given.onnx else given.format, FORMATS)
    out = check_given(given.out, "--out")
    if given.push_to_hub is not None:
        check_hub(given.push_to_hub)
    source = _source(given, form)
    if _finished(out, source):
        print(f"the export in {out} is finished")
    else:
        check_folder(out)
        print(_exported(given, form, out, source))
    if given.push_to_hub is not None:
        print(f"pushed to {push(out, given.push_to_hub, given.private)}")


class Made(NamedTuple):
    """What an export is made of, before it is written."""

    write: Callable[[Path], object]
    """Fills an empty folder."""
    chain: dict[str, Any]
    program: str
    """That loads it."""
    tags: tuple[str, ...]
    what: str
    """It, in words."""


def _exported(given: Any, form: str, out: Path, source: dict[str, Any]) -> str:
    """Fill the folder; return what it holds, in words."""
    it = open_run(given.folder, "cpu", given.weights, given.trust_code)
    name = given.folder.resolve().name
    made = _graph(it) if form == "onnx" else _pipeline(it, form, given.dtype)
    with filled(out) as place:
        made.write(place)
        save_json(place / "chain.json", made.chain | {"source": source})
        beside = f"\n{save_pictures(it, given.pictures, place)}\n{recipe(it, place)}\n"
        language = "text" if form in ("safetensors", "kohya") else "python"
        told = name, teacher_of(it), len(it.times) - 1, made.program, scores(it, given.folder)
        card = model_card(*told, made.tags, beside, language, weights_of(it))
        save_text(place / "README.md", card)
        follow_umask(place)
    return made.what.format(out=out)


def _pipeline(it: Experiment, form: str, dtype: str | None) -> Made:
    """The student as a pipeline, whole or in parts, which has been run against it."""
    told = it.config.get("pipeline", {})
    base, steps = told.get("path"), len(it.times) - 1
    size = it.task.shape[1:] if told.get("sample_size") else None
    kind = PRECISIONS[check_in("dtype", dtype or _usual_dtype(told), PRECISIONS)]
    read = told.get("variant"), size, told.get("allow_pickle", False), kind
    record = chain_of(it.student, it.sampler, it.times, it.threshold)
    pipeline: Any = build_pipeline(it.student, it.sampler, it.times, it.threshold, base, *read)
    family = getattr(getattr(it.student, "network", None), "family", None)
    arguments = call_arguments(pipeline, steps, it.task.shape[1:], record.call, family)
    body = merged(body_of(it.student))
    check = partial(check_agreement, pipeline, it.student, body, record)
    agreed = max((check(each, it.sampler, it.threshold) for each in _calls(it, arguments)), key=_difference)
    chain, named = _chain(it, record, arguments, agreed), type(pipeline).__name__
    call = ", ".join(f"{name}={value}" for name, value in arguments.items())
    tags = ("library_name: diffusers", *base_of(it))

    def write_whole(place: Path) -> None:
        pipeline.save_pretrained(place)

    def write_adapters(place: Path) -> None:
        save_adapters(pipeline, body_of(it.student), place)
        pipeline.scheduler.save_pretrained(place / "scheduler")

    if form == "diffusers":
        program = loading_program(pipeline, arguments, None, told.get("variant"), agreed.seeded)
        return Made(write_whole, chain, program, tags, f"{named} in {{out}}; call it with {call}")
    if form == "lora":
        of = public(of_folder(it), "path/to/")
        program = loading_program(pipeline, arguments, of, told.get("variant"), agreed.seeded)
        return Made(write_adapters, chain, program, tags, f"adapters of a {named} in {{out}}; call it with {call}")
    return _one_file(it, form, pipeline, record, chain, tags)


def _calls(it: Experiment, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """The calls in which a pipeline must agree: the card's, and of a range of weights both its ends."""
    return [arguments, *(arguments | {"guidance_scale": weight} for weight in weights_of(it))]


def _difference(agreed: Agreement) -> float:
    return agreed.difference


def _one_file(
    it: Experiment, form: str, pipeline: Any, record: ChainRecord, chain: dict[str, Any], tags: tuple[str, ...]
) -> Made:
    """The whole pipeline, or the adapters, as one file of the layout of first checkpoints."""
    from dagdiff.pipelines.single_file import calling, kohya_adapters, save_state, single_file

    whole = form == "safetensors"
    state = single_file(pipeline) if whole else kohya_adapters(body_of(it.student))
    about = {"dagdiff": "a few-step student", "steps": str(record.steps), "prediction": record.prediction}

    def write(place: Path) -> None:
        save_state(state, place / "student.safetensors", about)
        pipeline.scheduler.save_pretrained(place / "scheduler")

    what = f"one file of a {type(pipeline).__name__}" if whole else "adapters in kohya's names"
    program = calling(pipeline, record, public(of_folder(it)), whole)
    return Made(write, chain, program, tags, f"{what} in {{out}}/student.safetensors")


def _graph(it: Experiment) -> Made:
    """The whole sampler as an ONNX graph, which is run against dagdiff's before the folder appears."""
    from dagdiff.pipelines.graph import calling_program, draw_graph

    labels = it.task.labels if it.task.conditional else 0
    graph = draw_graph(it.student, it.sampler, it.times, it.threshold, it.task.shape, labels)
    chain = {
        "steps": len(it.times) - 1,
        "times": it.times.tolist(),
        "law": type(it.sampler).__name__,
        "guidance_inside": it.settings.guidance,
        "inputs": {name: list(shape) for name, shape in graph.inputs.items()},
        "difference_from_dagdiff": graph.difference,
    }
    inputs = ", ".join(f"{name} {shape}".replace("'", "") for name, shape in graph.inputs.items())
    what = f"an ONNX graph in {{out}}/sampler.onnx; it takes {inputs} and returns x0"
    return Made(graph.save, chain, calling_program(graph), ("library_name: onnx", *base_of(it)), what)


def _source(given: Any, form: str) -> dict[str, Any]:
    """What an export is made from: the hash of the student's weights, and the options."""
    file = given.folder / f"{given.weights}.safetensors"
    weights = file_hash(file) if file.is_file() else None
    return {"weights": weights, "format": form, "dtype": given.dtype}


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
