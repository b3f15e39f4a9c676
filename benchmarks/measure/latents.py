"""How long a label a pipeline's teacher should walk: LCM students of a small latent pipeline at equal cost.

Run: python -m dagdiff.benchmarks.measure.latents FOLDER seeds=1 updates=50, all words optional. Runs that
FOLDER/latents.csv holds already are not made again; at the end the table of docs/pipeline.md is printed, and in the
checkout written to the page.

A pipeline is trained first, once, and cached: digits of 16 x 16 in an autoencoder's latents of 4 x 4 x 4, and a small
DiT that knows the ten classes. It is then distilled into 4 steps with labels of several lengths, each with as many
updates as the budget pays: that of ``updates`` updates with the longest label. Samples are compared with real digits
behind the same autoencoder.

The cost is counted in rows of training. A row of training costs some three evaluations of the network (forward, and
twice as much backward), so an evaluation of a teacher of the student's own size costs a third of one, two thirds with
classifier-free guidance, which asks twice. A price of 3 stands for a teacher that is nine times as dear.

Expected before the runs:

* One-step labels with the most updates stay behind the walks to data at all prices: their targets are the student's
  own outputs, and more updates copy its errors more often.
* At the prices of a pipeline (1/3, 2/3) the whole walk of 16 sub-steps is as good as that of 8, or better; at 3 the
  shorter walk leads.
* A label that ends anywhere between (``uniform``) lies between.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, mse_loss

from dagdiff.benchmarks.measure.overhead import one_thread, processor
from dagdiff.benchmarks.measure.rows import asked, completed, read_rows
from dagdiff.benchmarks.pages import with_table
from dagdiff.benchmarks.running.nfe import predict_nfe, updates_for
from dagdiff.benchmarks.suites.labels import ENDS
from dagdiff.benchmarks.tables import head, line
from dagdiff.checkpoint import cache_folder, save_json, save_text
from dagdiff.checks import Refusal
from dagdiff.jobs.aside import filled as aside
from dagdiff.metrics.images import Frechet
from dagdiff.metrics.truth import Truth
from dagdiff.reading import read_json
from dagdiff.runs.config import Config, configure
from dagdiff.runs.experiment import Experiment
from dagdiff.tasks.names import make_task
from dagdiff.tasks.teachers import train_teacher
from dagdiff.versions import versions

FOLDER = Path(__file__).resolve().parent.parent / "results" / "latents"
PAGE = Path("docs/pipeline.md")

CHOSEN = {"prices": "1/3,2/3,3", "labels": "one step,uniform,data;8,data;16", "updates": "200", "seeds": "2"}
"""What is run where the command says nothing; seeds are 0 to seeds - 1, a semicolon stands for the comma of a name."""

KEY = ("price", "label", "seed")
LONGEST = "data, 16"
SAMPLES, STEPS, CLASSES = 896, 4, 10
CODER_UPDATES, TEACHER_UPDATES = 1500, 4000
PRICES = {"1/3": "1/3: the student's size", "2/3": "2/3: the same, guided", "3": "3: nine times as dear"}


def digits() -> tuple[Any, Tensor, Tensor]:
    """Return the task of the digits, and its training pictures of 16 x 16 with their labels."""
    task: Any = make_task("digits-matched")
    train = task.world.train
    return task, enlarged(train.points), train.labels


def enlarged(pictures: Tensor) -> Tensor:
    """Digits of 8 x 8 as 16 x 16."""
    return interpolate(pictures, scale_factor=2.0, mode="bilinear")


def reduced(pictures: Tensor) -> Tensor:
    """Pictures of 16 x 16 as 8 x 8."""
    return avg_pool2d(pictures.clamp(-1.0, 1.0), 2)


def distance(coder: Any, pictures: Tensor) -> float:
    """The Frechet distance to held-out digits behind the same autoencoder, in the features of the digits' classifier.

    What the autoencoder loses is lost on both sides.
    """
    task, _, _ = digits()
    held = coder.decode(coder.encode(enlarged(task.world.test.points)))
    found: float = Frechet(by_parts=True)(reduced(pictures), Truth(reduced(held), classifier=task.classifier))["fd"]
    return found


def autoencoder(pictures: Tensor, updates: int) -> AutoencoderKL:
    """Train an autoencoder; its scaling factor gives latents about unit variance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae: Any = AutoencoderKL(
            in_channels=1, out_channels=1, latent_channels=4, norm_num_groups=8, block_out_channels=(16, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, sample_size=16,
        )  # fmt: skip
    optimiser, draws = torch.optim.Adam(vae.parameters(), 2e-3), torch.Generator().manual_seed(0)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        batch = pictures[torch.randint(len(pictures), (64,), generator=draws)]
        posterior = vae.encode(batch).latent_dist
        loss = mse_loss(vae.decode(posterior.sample(draws)).sample, batch) + 1e-5 * posterior.kl().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mean
    vae.register_to_config(scaling_factor=1.0 / float(latents.std()))
    return vae  # type: ignore[no-any-return]


def pipeline(folder: Path) -> tuple[Path, Path]:
    """Return the folder of the trained pipeline and the file of its pictures; both are made once."""
    made, images = folder / "pipeline", folder / "digits.npz"
    folder.mkdir(parents=True, exist_ok=True)
    if not made.exists():
        _, pictures, labels = digits()
        pixels = ((pictures.permute(0, 2, 3, 1) + 1.0) * 127.5).round().to(torch.uint8)
        np.savez(images, images=pixels.numpy(), labels=labels.numpy())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network: Any = DiTTransformer2DModel(
                num_attention_heads=4, attention_head_dim=24, in_channels=4, out_channels=4, num_layers=4,
                sample_size=4, patch_size=1, num_embeds_ada_norm=CLASSES, norm_num_groups=4,
            )  # fmt: skip
        whole: Any = DiTPipeline(
            network, autoencoder(pictures, CODER_UPDATES), DDIMScheduler(prediction_type="v_prediction")
        )
        with aside(folder / "untrained") as place:
            whole.save_pretrained(place)
        it = Experiment.build(configure(settings(folder / "untrained", images)))
        task: Any = it.task
        student, draws = task.teacher.student(), torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # DiT itself leaves labels away at random while it is trained
            for _ in train_teacher(
                student,
                task.world.splits[0],
                task.schedule,
                TEACHER_UPDATES,
                64,
                1e-3,
                conditional=True,
                generator=draws,
            ):
                pass
        whole.transformer.load_state_dict(student.network.body.state_dict())
        with aside(made) as place:
            whole.save_pretrained(place)
    return made, images


def settings(teacher: Path, images: Path, **others: Any) -> dict[str, Any]:
    """The settings of a distillation."""
    usual = {"objective": "consistency", "steps": STEPS, "rounds": 10, "batch_size": 64, "chains": 32, "lr": 5e-4}
    told = {"task": "pipeline", "pipeline.path": str(teacher), "pipeline.images": str(images), "device": "cpu"}
    return {**told, **usual, "heldout": 0, **others}


def labelled(label: str, base: Mapping[str, Any]) -> Config:
    """The configuration of runs with a label of that name."""
    own = ENDS["consistency"][label]
    return configure({**base, **own, "objective": {"class": "consistency", **own["objective"]}})


def measure(run: Mapping[str, Any], teacher: Path, images: Path, updates: int) -> dict[str, Any]:
    """Make one run; return its key, the updates that its budget paid, evaluations, and the distance of its samples."""
    base = settings(teacher, images, seed=run["seed"], updates=updates)
    numerator, _, denominator = str(run["price"]).partition("/")
    price = float(numerator) / float(denominator or 1)
    chosen = labelled(run["label"], base)
    chosen["updates"] = updates_for(chosen, predict_nfe(labelled(LONGEST, base)).at(price), price)
    it = Experiment.build(chosen)
    *_, (_, last) = it.rounds()
    told: Any = it.task
    found = distance(told.teacher.autoencoder, told.pictures(it.sample(SAMPLES, seed=run["seed"])))
    spent = {"nfe_student": last.nfe_student, "nfe_expert": last.nfe_expert}
    return {**run, "updates": chosen["updates"], **spent, "fd": f"{found:.6g}"}


def references(teacher: Path, images: Path) -> dict[str, float]:
    """The distances of the teacher in the student's place, and of training pictures behind the autoencoder."""
    it = Experiment.build(labelled(LONGEST, settings(teacher, images)))
    told: Any = it.task
    coder, (_, pictures, _) = told.teacher.autoencoder, digits()
    real = coder.decode(coder.encode(pictures))
    return {
        "expert": distance(coder, told.pictures(it.sample_expert(SAMPLES, seed=0))),
        "floor": distance(coder, real[:SAMPLES]),
    }


def runs(chosen: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield what tells each run apart, seed by seed."""
    names = [name.replace(";", ", ") for name in chosen["labels"].split(",")]
    for seed, price, label in product(range(int(chosen["seeds"])), chosen["prices"].split(","), names):
        if label not in ENDS["consistency"] or price not in PRICES:
            raise Refusal(
                f"unknown label {label!r} or price {price!r}. Known: {list(ENDS['consistency'])}, {list(PRICES)}."
            )
        yield {"price": price, "label": label, "seed": seed}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the distances as a table in Markdown: a line a label, a column a price."""
    prices = [price for price in PRICES if any(row["price"] == price for row in rows)]
    lines = head("label walks to", *(PRICES[price] for price in prices))
    for label in dict.fromkeys(row["label"] for row in rows):
        cells = []
        for price in prices:
            mine = [row for row in rows if (row["label"], row["price"]) == (label, price)]
            found = [float(row["fd"]) for row in mine]
            spread = f" [{min(found):.2f}, {max(found):.2f}]" if len(found) > 1 else ""
            cells.append(f"{fmean(found):.2f}{spread}, {int(mine[0]['updates']):,} updates" if mine else "-")
        lines += line(label, *cells)
    return "\n".join(lines)


def filled(text: str, folder: Path) -> str:
    """Return the page's text with its table made anew from what is kept."""
    rows, beside = read_rows(folder / "latents.csv"), read_json(folder / "machine.json", dict)
    note = (
        f"FD-cnn, means over {len({row['seed'] for row in rows})} seeds, in brackets the least and the greatest. "
        f"Lower is better. The teacher in the student's place: {beside['expert']:.2f}; training digits: "
        f"{beside['floor']:.2f}."
    )
    return with_table(text, "latents", f"{table(rows)}\n\n{note}")


def main(words: Sequence[str]) -> None:
    """Make the runs that are not there yet, write the file after each, and print the table."""
    chosen, folder = asked(words, CHOSEN, FOLDER)
    with one_thread():
        teacher, images = pipeline(cache_folder() / "latents-16")
        updates = int(chosen["updates"])
        rows = completed(folder / "latents.csv", KEY, runs(chosen), lambda run: measure(run, teacher, images, updates))
        found = references(teacher, images)
        save_json(folder / "machine.json", {**versions(1), "processor": processor(), **found})
    print(table(rows))
    print(f"\nthe teacher in its place: {found['expert']:.2f}; training digits: {found['floor']:.2f}")
    if folder == FOLDER and PAGE.exists():
        save_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), folder))


if __name__ == "__main__":
    main(sys.argv[1:])
