"""Each family equals its own pipeline's call and leaves as its pipeline; the newer ones with their autoencoders."""

from pathlib import Path
from typing import Any

import pipelines
import pytest
import torch
from helpers import ROOT

from dagdiff.benchmarks.measure.families import KEPT, MAKES, PAGE, PROMPTS, apart, filled
from dagdiff.benchmarks.small import newer
from dagdiff.pipelines.agreement import EXACT, check_agreement
from dagdiff.pipelines.calling import call_arguments
from dagdiff.pipelines.export import body_of, build_pipeline, chain_of
from dagdiff.pipelines.pretrained import DiffusersExpert
from dagdiff.pipelines.schedulers import usual_times
from dagdiff.reading import read_csv
from dagdiff.threshold import NoThreshold
from dagdiff.transition import Ddim, Renoise

pytestmark = pytest.mark.usefixtures("offline")

NEWER = [name for name, make in MAKES.items() if getattr(make, "__module__", "") == newer.__name__]


def load(name: str, folder: Path) -> tuple[Any, str, DiffusersExpert]:
    """A small pipeline, its folder, and the teacher in it."""
    pipeline = pipelines.seeded(MAKES[name])
    base = pipelines.save(pipeline, folder)
    prompts = PROMPTS if hasattr(pipeline, "encode_prompt") else ()
    return pipeline, base, DiffusersExpert.from_pretrained(base, prompts, sample_size=8)


def moved(teacher: DiffusersExpert) -> Any:
    """A student whose answers are not its teacher's."""
    student = teacher.student().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in student.network.body.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    return student


def test_most_families_are_newer() -> None:
    assert len(NEWER) == 11 and len(MAKES) == 19


@pytest.mark.parametrize("name", MAKES)
def test_a_family_equals_its_pipeline_s_own_call(name: str, tmp_path: Path) -> None:
    """From the same noise, with prompts of different lengths and guidance, in four steps of the deterministic law."""
    pipeline, _, teacher = load(name, tmp_path)
    assert apart(name, pipeline, teacher) < 1e-5


@pytest.mark.parametrize("name", NEWER)
def test_prompts_and_guidance_count(name: str, tmp_path: Path) -> None:
    """So that the equality above says something."""
    _, _, teacher = load(name, tmp_path)
    noise, time = torch.randn(1, *teacher.shape, generator=torch.Generator().manual_seed(7)), torch.tensor([0.7])
    told, other, null = (teacher(noise, time, torch.tensor([number])) for number in (0, 1, -1))
    assert min(float((told - each).norm() / told.norm()) for each in (other, null)) > 1e-4


@pytest.mark.parametrize("law", [Ddim, Renoise])
@pytest.mark.parametrize("name", NEWER)
def test_an_exported_pipeline_makes_the_student_s_chain(name: str, law: Any, tmp_path: Path) -> None:
    _, base, teacher = load(name, tmp_path)
    student, move = moved(teacher), law(teacher.schedule)
    for steps in (1, 3, 4):
        times = usual_times(move, teacher.network.law, steps)
        record = chain_of(student, move, times, NoThreshold())
        pipeline = build_pipeline(student, move, times, NoThreshold(), base)
        arguments = call_arguments(pipeline, steps, teacher.shape[1:], record.call, teacher.network.family)
        found = check_agreement(pipeline, student, body_of(student), record, arguments, move, NoThreshold())
        assert found.difference <= EXACT


@pytest.mark.parametrize("name", NEWER)
def test_images_go_through_its_autoencoder(name: str, tmp_path: Path) -> None:
    """Latents are the network's, as wide as the pipeline's call makes them of so many pixels."""
    pipeline, _, teacher = load(name, tmp_path)
    images = torch.rand(2, *teacher.autoencoder.image_shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = teacher.autoencoder.encode(images)
    assert tuple(latents.shape[1:]) == teacher.shape
    assert teacher.autoencoder.image_shape[1] == 8 * teacher.network.family.cell(pipeline)
    assert teacher.autoencoder.decode(latents).shape == images.shape


def test_the_page_shows_the_rows_that_are_kept() -> None:
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    assert filled(page, ROOT / KEPT) == page, "run: python -m dagdiff.benchmarks.measure.families"
    rows = read_csv(ROOT / KEPT / "families.csv")
    assert {row["family"] for row in rows} == set(MAKES) and not any(row.get("fails") for row in rows)
