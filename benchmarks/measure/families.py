"""What works of each family of pipelines, tried on a small one with random weights: a row a family and precision.

Run: python -m dagdiff.benchmarks.measure.families [NAME ...]

Each pipeline is saved in a folder and goes the way of a user's: it is loaded; the expert's chain is compared with the
pipeline's own call from the same noise, prompts and guidance; a student of two steps is distilled and exported; the
program of its model card is run as it stands. ``families.csv`` in ``benchmarks/results/families`` holds a row each, and
the page docs/families.md shows them.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from dagdiff.benchmarks.pages import with_table
from dagdiff.benchmarks.small import classic, newer
from dagdiff.checkpoint import save_csv, save_json, save_text
from dagdiff.checks import check_in, first_line
from dagdiff.cli import main as command
from dagdiff.expert import Expert
from dagdiff.pipelines.grids import read_grid
from dagdiff.pipelines.loading import PRECISIONS
from dagdiff.pipelines.pretrained import DiffusersExpert
from dagdiff.reading import read_csv, read_json
from dagdiff.threshold import NoThreshold
from dagdiff.versions import versions

KEPT, PAGE = Path("benchmarks/results/families"), Path("docs/families.md")

MAKES: dict[str, Callable[[], Any]] = {
    "DDPM": classic.ddpm,
    "DDPM, classes": lambda: classic.ddpm(DDPMScheduler(clip_sample=False), num_class_embeds=4),
    "DiT": classic.dit,
    "Stable Diffusion 1.x": classic.stable_diffusion,
    "SDXL": classic.sdxl,
    "SDXL, projected text (Kolors)": newer.kolors,
    "Stable Diffusion 3": classic.sd3,
    "FLUX.1-dev": classic.flux,
    "FLUX.1, no embedded guidance": partial(classic.flux, distilled=False),
    "FLUX.2-dev": newer.flux2,
    "FLUX.2-klein (base)": newer.flux2_klein,
    "Qwen-Image": newer.qwen_image,
    "Z-Image": newer.z_image,
    "PixArt-alpha": newer.pixart_alpha,
    "PixArt-sigma": newer.pixart_sigma,
    "Sana": newer.sana,
    "Lumina 2": newer.lumina2,
    "HunyuanDiT": newer.hunyuan,
    "AuraFlow": newer.auraflow,
}
"""The families, each by a small pipeline of it."""

PROMPTS = ["a cat", "two dogs"]
SIDE = 8  # of the states

_GUIDED: dict[str, tuple[dict[str, Any], float]] = {
    "DDPM, classes": ({}, 1.0),
    "Qwen-Image": ({"negative_prompt": [" ", " "], "true_cfg_scale": 3.0}, 3.0),
    "Z-Image": ({"guidance_scale": 2.0}, 3.0),
    "FLUX.1-dev": ({"guidance_scale": 3.0}, 3.0),
    "FLUX.1, no embedded guidance": ({"negative_prompt": "", "true_cfg_scale": 3.0}, 3.0),
}
"""What a call is told of guidance, and the expert's weight for it; a weight of 3 where nothing else is said."""


@torch.no_grad()
def apart(name: str, pipeline: Any, teacher: DiffusersExpert) -> float:
    """Return how far the expert's chain ends from the pipeline's own, as a part of the sample's scale.

    Both take four deterministic steps from the same noise, with two prompts or classes and guidance.
    """
    family, law = teacher.network.family, teacher.network.law
    parts = pipeline.components
    if isinstance(pipeline, DDPMPipeline):  # its call knows neither classes nor deterministic steps after a threshold
        kind = DDIMPipeline if parts["unet"].config.num_class_embeds is None else ConsistencyModelPipeline
        pipeline = kind(**parts)
    pipeline.set_progress_bar_config(disable=True)
    flow = not hasattr(pipeline.scheduler, "alphas_cumprod") or pipeline.scheduler.config.get("use_flow_sigmas")
    if flow:
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    else:
        pipeline.scheduler = DDIMScheduler.from_config(
            pipeline.scheduler.config, set_alpha_to_one=True, clip_sample=not isinstance(teacher.threshold, NoThreshold)
        )
    known = _known(pipeline)
    if isinstance(pipeline, ConsistencyModelPipeline):
        known -= {"latents"}  # it takes those of three channels alone
    call, weight = _GUIDED.get(name, ({"guidance_scale": 3.0}, 3.0))
    network = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    told = family.calling(network.config) | call
    noise = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(7))
    condition: Tensor | None = torch.tensor([0, 1])
    if "prompt" in known:
        told |= {"prompt": list(PROMPTS), "output_type": "latent"}
    elif "class_labels" in known:
        told |= {"class_labels": [0, 1], "batch_size": 2, "output_type": "np"}
    else:
        condition, weight = None, 1.0
        told |= {"batch_size": 2, "use_clipped_model_output": True, "output_type": "np"}
    if "height" in known:
        told |= dict.fromkeys(("height", "width"), SIDE * family.cell(pipeline))
    start = noise if "FLUX.2" in name else family.pack(noise)
    with _first_noise(start) if "latents" not in known else contextlib.nullcontext():
        told |= {"latents": start.to(network.dtype)} if "latents" in known else {}
        end = _last_step(pipeline, {each: value for each, value in told.items() if each in known})[: len(noise)]
    expert = Expert(
        teacher, teacher.schedule, guidance=teacher.guided(weight), threshold=teacher.threshold, guide=teacher.guide
    )
    ours = family.pack(
        expert.walk(noise.to(network.dtype).float(), read_grid(pipeline.scheduler, law, 4), condition)[-1]
    )
    return float((ours.double() - end.double()).norm() / end.double().norm())


def tried(name: str, dtype: str, folder: Path) -> dict[str, Any]:
    """Return a row: what a user does with the pipeline, and how far it came."""
    row: dict[str, Any] = {"family": name, "precision": dtype}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = MAKES[name]()
    teacher = folder / "teacher"
    pipeline.save_pretrained(teacher)
    prompts, classes = folder / "prompts.txt", "encode_prompt" not in dir(pipeline)
    prompts.write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    try:
        asked = () if classes else PROMPTS
        loaded = DiffusersExpert.from_pretrained(str(teacher), asked, sample_size=SIDE, dtype=dtype)
        row["loads"] = "yes"
        row["equals"] = f"{apart(name, pipeline.to(PRECISIONS[dtype]), loaded):.1e}"
        words = ["distill", "--task", "pipeline", "--pipeline.path", str(teacher), "--pipeline.dtype", dtype]
        words += [] if classes else ["--pipeline.prompts", str(prompts)]
        words += ["--pipeline.sample_size", str(SIDE), "--pipeline.own_samples", "10", "--pipeline.own_steps", "2"]
        words += ["--steps", "2", "--updates", "4", "--rounds", "2", "--chains", "2", "--batch_size", "2"]
        words += ["--heldout", "0", "--samples", "10", "--device", "cpu", "--out", str(folder / "run")]
        _said(words)
        row["trains"] = "yes"
        _said(["export", str(folder / "run"), "--out", str(folder / "student")])
        chain = json.loads((folder / "student" / "chain.json").read_text())
        row["exports"] = f"{chain['difference_from_dagdiff']:.1e}"
        row["card"] = _card(folder / "student")
    except Exception as error:  # whatever a family may fail by belongs into its row
        row["fails"] = f"{type(error).__name__}: {first_line(error)}"
    return row


def _card(folder: Path) -> str:
    """Run the program of a model card as it stands; return the size of its picture."""
    program = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    made: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        exec(program.replace("path/to/this/folder", str(folder)), made)
    return "{} x {}".format(*made["image"].size)


def _said(words: Sequence[str]) -> None:
    """Give a command of dagdiff; an error where it does not end well, with what it said."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        status = command(words)
    if status != 0:
        raise RuntimeError(f"{words[0]} ended with {status}: {told.getvalue().strip().splitlines()[-1]}")


def _last_step(pipeline: Any, call: Mapping[str, Any]) -> Tensor:
    """Return where a pipeline's scheduler steps to last."""
    ends: list[Tensor] = []
    step = pipeline.scheduler.step

    def watched(*given: Any, **named: Any) -> Any:
        answer = step(*given, **named)
        ends.append(answer[0] if isinstance(answer, tuple) else answer.prev_sample)
        return answer

    pipeline.scheduler.step = watched
    try:
        pipeline(num_inference_steps=4, **call)
    except TypeError:  # NumPy has no bfloat16: pixels in it become no image, after the last step
        if len(ends) < 4:
            raise
    finally:
        del pipeline.scheduler.step
    return ends[-1]


@contextlib.contextmanager
def _first_noise(noise: Tensor) -> Iterator[None]:
    """Let diffusers draw this noise, for pipelines whose call takes none."""
    modules = [each for key, each in list(sys.modules.items()) if key.startswith("diffusers.")]
    usual = {each: vars(each)["randn_tensor"] for each in modules if "randn_tensor" in vars(each)}

    def draw(shape: Any, *given: Any, dtype: Any = None, **named: Any) -> Tensor:
        return noise.to(dtype)

    for module in usual:
        vars(module)["randn_tensor"] = draw
    try:
        yield
    finally:
        for module, own in usual.items():
            vars(module)["randn_tensor"] = own


def _known(pipeline: Any) -> set[str]:
    import inspect

    return set(inspect.signature(pipeline.__call__).parameters)


COLUMNS = {
    "family": "family", "precision": "precision", "loads": "loads", "equals": "differs from its own call",
    "trains": "trains", "exports": "exported, differs from its student", "card": "card's picture",
}  # fmt: skip


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the rows as a table of Markdown; what a family fails by stands in its last column."""
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = [str(row.get(name) or "") for name in COLUMNS]
        cells[-1] = cells[-1] or str(row.get("fails") or "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(words: Sequence[str]) -> None:
    """Try the families that are named, or all; write the rows and the page."""
    names = [check_in("family", name, MAKES) for name in words] or list(MAKES)
    rows = []
    for name in names:
        for dtype in ("float32", "bfloat16"):
            with tempfile.TemporaryDirectory() as place:
                os.environ["DAGDIFF_CACHE"] = f"{place}/cache"
                rows.append(tried(name, dtype, Path(place)))
            print(" | ".join(str(value) for value in rows[-1].values()), flush=True)
    if words:
        return
    save_csv(KEPT / "families.csv", rows)
    save_json(KEPT / "machine.json", versions(1) | {"diffusers": diffusers.__version__})
    save_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), KEPT))


def filled(text: str, folder: Path) -> str:
    """Return the page's text with the table of the rows that are kept in a folder."""
    machine = read_json(folder / "machine.json", {str: str})
    made = f"Made with diffusers {machine['diffusers']}, torch {machine['torch']} on {machine['system']}."
    return with_table(text, "families", f"{table(read_csv(folder / 'families.csv'))}\n\n{made}")


if __name__ == "__main__":
    main(sys.argv[1:])
