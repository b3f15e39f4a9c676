"""A range of guidance: a row holds its own weight, the expert is guided by it, the student and its export hear it."""

import io
import json
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pipelines
import pytest
import torch
from diffusers import LCMScheduler

from dagdiff.aggregate import Aggregate
from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.expert import Expert
from dagdiff.pipelines.agreement import _called, _case, check_agreement
from dagdiff.pipelines.calling import call_arguments
from dagdiff.pipelines.conditions import PromptBank, Text
from dagdiff.pipelines.export import body_of, build_pipeline, chain_of
from dagdiff.pipelines.lora import merged
from dagdiff.pipelines.weights import WeightedBank
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.folder import open_run
from dagdiff.runs.identity import identity

pytestmark = pytest.mark.usefixtures("offline")
FEW = "--updates 2 --rounds 1 --chains 4 --batch_size 4 --heldout 2 --samples 10 --steps 2 --substeps 1 --device cpu"
WEIGHTS = (3.0, 8.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("weights")
    (folder / "prompts.txt").write_text("a cat\ntwo dogs\na red house\n")
    for name in MAKES:
        pipelines.save(pipelines.seeded(MAKES[name]), folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGDIFF_CACHE", str(folder / "cache"))
        yield folder


def few_step() -> Any:
    """A latent consistency model: it is told a weight already."""
    scheduler = LCMScheduler(**pipelines.SD_BETAS, steps_offset=1)
    made = pipelines.stable_diffusion(scheduler)
    made.register_modules(unet=pipelines.text_unet(time_cond_proj_dim=32))
    return made


MAKES = {
    "sd": pipelines.stable_diffusion,
    "sdxl": pipelines.sdxl,
    "flux": pipelines.flux,
    "sd3": pipelines.sd3,
    "schnell": lambda: pipelines.flux(distilled=False),
    "lcm": few_step,
}


def settings(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """Of a small run on the pipeline of that name."""
    size = {} if name.startswith(("sd", "lcm")) and name != "sd3" else {"sample_size": 8}
    chosen = {"path": str(folder / name), "prompts": str(folder / "prompts.txt"), "own_samples": 20, "own_steps": 2}
    usual = {"task": "pipeline", "guidance": list(WEIGHTS), "pipeline": chosen | size, "device": "cpu", "steps": 2}
    few = {"chains": 4, "batch_size": 4, "heldout": 2, "samples": 10, "substeps": 1, "updates": 2, "rounds": 1}
    return usual | few | changes


def built(folder: Path, name: str, **changes: Any) -> Experiment:
    return Experiment.build(configure(settings(folder, name, **changes)))


def run(words: str, folder: Path) -> tuple[int, str]:
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        status = main(shlex.split(words.format(folder=folder, few=f"{FEW} --pipeline.own_samples 20")))
    return status, out.getvalue()


def bank(prompts: int = 3) -> WeightedBank:
    hidden = torch.arange(prompts + 1.0).reshape(-1, 1, 1)
    return WeightedBank(PromptBank(Text(hidden), [f"prompt {each}" for each in range(prompts)]), WEIGHTS)


def test_a_condition_holds_prompt_and_weight_exactly() -> None:
    """Every float32 weight comes back bit for bit, whatever the number of prompts."""
    for prompts in (1, 3, 10_000_000):
        known = bank(3)
        known.__class__ = type("Large", (WeightedBank,), {"__len__": lambda self, n=prompts: n})
        numbers = torch.randint(prompts, (1000,), generator=torch.Generator().manual_seed(0))
        weights = 1.0 + 999.0 * torch.rand(1000, generator=torch.Generator().manual_seed(1))
        told = known.at(numbers, weights)
        assert told.dtype == torch.int64 and torch.equal(known.numbers(told), numbers)
        assert torch.equal(known.weights(told), weights)


def test_draws_are_uniform_and_given_weights_stay() -> None:
    known, draws = bank(), torch.Generator().manual_seed(0)
    drawn = known.draw(4000, draws)
    weights = known.weights(drawn)
    assert weights is not None and float(weights.min()) >= 3.0 and float(weights.max()) <= 8.0
    assert abs(float(weights.mean()) - 5.5) < 0.1 and abs(float(weights.std()) - 5 / 12**0.5) < 0.1
    assert torch.equal(known.numbers(drawn).bincount(minlength=3) > 1200, torch.ones(3, dtype=torch.bool))
    assert torch.equal(known.told(drawn, draws), drawn)
    assert torch.equal(known.numbers(known.told(torch.tensor([0, 2, -1]), draws)), torch.tensor([0, 2, -1]))
    assert torch.equal(known(drawn, drawn).hidden, known.bank(known.numbers(drawn), drawn).hidden)
    assert known.weights(torch.tensor([-1, 2])).tolist() == [5.5, 5.5] and known.weights(None) is None


def test_each_row_s_label_is_that_of_its_own_weight(folder: Path) -> None:
    """The expert at the weights of rows answers as experts of these weights do, row by row."""
    it = built(folder, "sd")
    noise, condition, _ = it.start(4, seed=0)
    weights = it.task.weights(condition)
    assert weights is not None and len(set(weights.tolist())) == 4
    t = torch.full((4,), 0.7)
    found = it.expert(noise, t, condition)
    for row in range(4):
        alone = Expert(it.expert.denoiser, it.task.schedule, guidance=float(weights[row]), threshold=it.threshold)
        wanted = alone(noise[row : row + 1], t[:1], condition[row : row + 1])
        assert torch.allclose(found[row : row + 1], wanted, rtol=1e-3, atol=1e-4)
    other = it.task.weighted(condition, 3.0)
    assert not torch.allclose(it.expert(noise, t, other), found, atol=1e-3)


def test_a_record_keeps_its_weight_with_its_label(folder: Path) -> None:
    """Whatever is drawn from the aggregate later is labelled as its own weight says."""
    it = built(folder, "sd", shares=[0.25, 0.5, 0.25])
    loop = it.loop(it.expert, 2)
    kept: list[Any] = []
    add = Aggregate.add

    def watched(self: Any, source: str, records: Any, *rest: Any, **named: Any) -> Any:
        kept.append((source, records.clone()))
        return add(self, source, records, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Aggregate, "add", watched)
        for _ in loop:
            pass
    assert {source for source, _ in kept} == {"forward", "student", "expert"}
    weights = torch.cat([it.task.weights(records["condition"]) for _, records in kept])
    assert len(set(weights.tolist())) > 3 and float(weights.min()) >= 3.0 and float(weights.max()) <= 8.0
    for _, records in kept:
        again = it.expert.target(records["x_t"], records["t"], records["end"], records["condition"])
        assert torch.allclose(again, records["target"], rtol=1e-3, atol=1e-4)
        other = it.expert.target(
            *(records[name] for name in ("x_t", "t", "end")), it.task.numbers(records["condition"])
        )
        assert not torch.allclose(other, records["target"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux"])
def test_a_student_starts_as_it_was_and_learns_what_a_weight_is(name: str, folder: Path) -> None:
    """An added input changes nothing at first, and has a gradient; then the weight moves the answer."""
    it = built(folder, name)
    noise, condition, _ = it.start(3, seed=0)
    t = torch.full((3,), 0.6)
    low, high = it.task.weighted(condition, 3.0), it.task.weighted(condition, 8.0)
    same = torch.equal(it.student(noise, t, low), it.student(noise, t, high))
    assert same == name.startswith("sd")
    projection = getattr(getattr(body_of(it.student), "time_embedding", None), "cond_proj", None)
    if projection is not None:
        assert body_of(it.student).config.time_cond_proj_dim == 256
        assert it.task.teacher.network.body.config.time_cond_proj_dim is None
        it.student(noise, t, low).square().mean().backward()
        assert float(projection.weight.grad.abs().max()) > 0.0
        torch.nn.init.normal_(projection.weight, std=0.1, generator=torch.Generator().manual_seed(0))
        assert not torch.allclose(it.student(noise, t, low), it.student(noise, t, high), atol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux"])
def test_the_exported_pipeline_hears_the_weight_of_its_call(name: str, folder: Path) -> None:
    """Its own loop ends where dagdiff's chain does at two weights, and these ends differ."""
    it = built(folder, name, objective={"class": "consistency"})
    body = body_of(it.student)
    if name != "flux":
        weights = body.time_embedding.cond_proj.weight
        torch.nn.init.normal_(weights, std=0.1, generator=torch.Generator().manual_seed(0))
    parts = it.sampler, it.times, it.threshold
    pipeline = build_pipeline(it.student, *parts, str(folder / name))
    record = chain_of(it.student, *parts)
    call = call_arguments(pipeline, 2, it.task.shape[1:], record.call, it.student.network.family)
    assert call["guidance_scale"] == 5.5
    ends = []
    for weight in WEIGHTS:
        told = call | {"guidance_scale": weight}
        agreed = check_agreement(pipeline, it.student, body, record, told, it.sampler, it.threshold)
        assert agreed.difference < 1e-5
        case = _case(pipeline, it.student, record, told)
        draws = torch.Generator().manual_seed(0)
        ends.append(_called(pipeline, case, [torch.randn((1, *case.shape), generator=draws) for _ in range(3)])[0])
    assert float((ends[0] - ends[1]).norm() / ends[1].norm()) > 1e-3


def test_adapters_learn_the_weight_beside_them(folder: Path) -> None:
    """The added input is trained and kept with the adapters, and a file of adapters alone is refused."""
    words = (
        "distill --task pipeline --pipeline.path {folder}/sd --pipeline.prompts {folder}/prompts.txt {few} --lr 0.01"
    )
    status, told = run(f"{words} --guidance 3,8 --policy lora --policy.rank 2 --out {{folder}}/adapted", folder)
    assert status == 0, told
    opened = open_run(folder / "adapted", "cpu")
    body = body_of(opened.student)
    assert float(body.time_embedding.cond_proj.weight.abs().max()) > 0.0
    assert merged(body).config.time_cond_proj_dim == 256
    assert [name for name in opened.student.state_dict() if "lora_" not in name] == [
        "network.body.time_embedding.cond_proj.weight"
    ]
    for form in ("lora", "kohya"):
        status, told = run(f"export {{folder}}/adapted --format {form} --out {{folder}}/{form}", folder)
        assert status == 2 and "--format diffusers" in told and "cond_proj" in told
    status, told = run("export {folder}/adapted --format safetensors --out {folder}/single", folder)
    assert status == 2 and "--format diffusers" in told
    status, told = run("export {folder}/adapted --pictures 0 --out {folder}/whole", folder)
    assert status == 0 and "guidance_scale=5.5" in told
    assert "from 3 to 8" in (folder / "whole" / "README.md").read_text()
    assert json.loads((folder / "whole" / "chain.json").read_text())["guidance_inside"] == [3.0, 8.0]


def test_half_precision_trains_the_input_in_full(folder: Path) -> None:
    chosen = settings(folder, "sd", policy={"class": "lora", "rank": 2})
    chosen["pipeline"] |= {"dtype": "bfloat16"}
    it = Experiment.build(configure(chosen))
    body = body_of(it.student)
    assert body.conv_in.weight.dtype == torch.bfloat16
    assert body.time_embedding.cond_proj.weight.dtype == torch.float32
    noise, condition, _ = it.start(2, seed=0)
    assert bool(it.student(noise, torch.full((2,), 0.5), condition).isfinite().all())


def test_a_few_step_model_that_is_told_a_weight_keeps_its_own_input(folder: Path) -> None:
    it = built(folder, "sd", policy={"class": "few-step", "path": str(folder / "lcm")})
    assert body_of(it.student).config.time_cond_proj_dim == 32
    noise, condition, _ = it.start(2, seed=0)
    t = torch.full((2,), 0.5)
    ends = [it.student(noise, t, it.task.weighted(condition, weight)) for weight in WEIGHTS]
    assert not torch.allclose(*ends, atol=1e-5)
    plain = built(folder, "sd", policy={"class": "few-step", "path": str(folder / "sd")})
    assert body_of(plain.student).config.time_cond_proj_dim == 256


def test_a_sample_has_the_weight_that_is_asked_for(folder: Path) -> None:
    words = (
        "distill --task pipeline --pipeline.path {folder}/sd --pipeline.prompts {folder}/prompts.txt {few} --lr 0.05"
    )
    status, told = run(f"{words} --guidance 3,8 --objective consistency --out {{folder}}/run", folder)
    assert status == 0, told
    found = {}
    for weight in (3, 8):
        status, told = run(f"sample {{folder}}/run --num 4 --guidance {weight} --out {{folder}}/s{weight}.npz", folder)
        assert status == 0, told
        found[weight] = np.load(folder / f"s{weight}.npz")
        assert found[weight]["guidance"].tolist() == [weight] * 4
    assert found[3]["prompt"].tolist() == found[8]["prompt"].tolist()
    assert not np.allclose(found[3]["latents"], found[8]["latents"])
    status, _ = run("sample {folder}/run --num 6 --prompt 'a dog' --out {folder}/any.npz", folder)
    drawn = np.load(folder / "any.npz")
    assert status == 0 and len(set(drawn["guidance"].tolist())) == 6 and set(drawn["prompt"]) == {"a dog"}
    status, told = run("sample {folder}/run --num 4 --guidance 8.5 --out {folder}/no.npz", folder)
    assert status == 2 and "outside 3,8" in told
    status, told = run("shift {folder}/run --num 10", folder)
    assert status == 0, told


def test_images_meet_weights_at_every_draw(folder: Path) -> None:
    """The prompt of a picture stays; its weight is drawn anew."""
    from PIL import Image

    place = folder / "pictures"
    place.mkdir()
    for number in range(12):
        Image.new("RGB", (16, 16), (20 * number, 0, 0)).save(place / f"{number}.png")
        (place / f"{number}.txt").write_text(["a cat", "two dogs"][number % 2])
    chosen = settings(folder, "sd")
    chosen["pipeline"] |= {"images": str(place)}
    it = Experiment.build(configure(chosen))
    _, first = it.task.data.sample_labelled(50, torch.Generator().manual_seed(0))
    weights = it.task.weights(first)
    assert weights is not None and len(set(weights.tolist())) == 50
    assert set(it.task.numbers(first).tolist()) <= {0, 1}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--task pipeline --pipeline.path {folder}/sd3 --guidance 3,8", "SD3Transformer2DModel"),
        ("--task pipeline --pipeline.path {folder}/schnell --guidance 3,8", "FluxTransformer2DModel"),
        ("--task pipeline --pipeline.path {folder}/sd --guidance 8,3", "two that rise"),
        ("--task pipeline --pipeline.path {folder}/sd --guidance 0.5,3", "from 1 to 1000"),
        ("--task pipeline --pipeline.path {folder}/sd --guidance 3,4,5", "guidance"),
        ("--guidance 3,8", "pipelines alone"),
    ],
)
def test_what_can_t_be_is_refused_in_one_line(words: str, told: str, folder: Path) -> None:
    more = " --pipeline.prompts {folder}/prompts.txt {few}" if "pipeline" in words else ""
    status, said = run(f"distill {words}{more} --out {{folder}}/none", folder)
    line = said.strip().splitlines()[-1]
    assert status == 2 and line.startswith("dagdiff: error") and told in line, said
    assert not (folder / "none").exists()


def test_one_weight_is_what_it_was(folder: Path) -> None:
    """A run of one weight has plain prompts as conditions, the same identity, and no weight to choose."""
    it = built(folder, "sd", guidance=3.0)
    assert identity(it.config)["settings"]["guidance"] == 3.0
    _, condition, _ = it.start(8, seed=0)
    assert int(condition.max()) < 3 and it.task.weights(condition) is None
    assert body_of(it.student).config.time_cond_proj_dim is None
    with pytest.raises(Refusal, match="trained with one weight"):
        it.task.weighted(condition, 3.0)
