"""The chain explorer: what it is given, and what its page does in a browser."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reports import GAIN, TASK, content, folder

from dagdiff.report.explorer import CHAINS, PICTURES, explored
from dagdiff.report.page import write_report
from dagdiff.runs.config import configure
from dagdiff.runs.experiment import Experiment

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
GRID = [1.0, 0.75, 0.5, 0.25, 0.0]
TIMES = np.array(GRID)


def points(kind: int, chains: int = 40) -> np.ndarray[Any, Any]:
    """Chains from the same noise, which a kind leaves by a tenth of its number a step, to the right."""
    noise = np.random.default_rng(0).normal(size=(chains, 1, 2))
    return noise * TIMES[None, :, None] + np.array([0.1 * kind, 0.0]) * np.arange(5)[:, None]


def given(**chains: Any) -> dict[str, Any]:
    truth = np.random.default_rng(1).normal(size=(500, 2))
    found = explored("ring, LCM", GRID, {"expert": points(0), **chains}, truth)
    assert found is not None
    return found


def test_chains_from_one_noise_are_kept_side_by_side() -> None:
    found = given(forward=points(2), mixture=points(1))
    assert [kind["name"] for kind in found["kinds"]] == ["expert", "forward", "mixture"]
    kept = np.array(found["chains"])
    assert kept.shape == (3, CHAINS, 5, 2) and len(found["target"]) == 400
    assert np.allclose(kept[1], points(2)[:CHAINS], atol=1e-3)
    assert np.hypot(*(kept[1] - kept[0]).mean(axis=(0, 1))) == pytest.approx(0.4, abs=1e-3)


def test_chains_of_another_noise_or_grid_are_left_out() -> None:
    other, longer = points(1)[::-1], np.repeat(points(1), 2, axis=1)
    assert [kind["name"] for kind in given(forward=other, mixture=points(1))["kinds"]] == ["expert", "mixture"]
    assert explored("ring", GRID, {"expert": points(0), "forward": other, "mixture": longer}, points(0)[:, -1]) is None


def test_a_student_that_diverged_is_shown_far_away_and_the_page_can_be_read() -> None:
    lost = points(1)
    lost[:, 3:] = np.nan
    found = given(forward=lost)
    assert json.loads(json.dumps(found, allow_nan=False)) == found and found["half"] < 10


def test_images_are_kept_as_bytes_with_their_errors() -> None:
    noise = np.random.default_rng(0).normal(size=(9, 1, 1, 8, 8)).clip(-1, 1)
    expert = np.repeat(noise, 5, axis=1)
    found = explored(
        "digits, PD", GRID, {"expert": expert, "mixture": expert * TIMES[:, None, None, None]}, expert[:, 0]
    )
    assert found is not None and found["shape"] == [PICTURES, 5, 1, 8, 8]
    assert np.allclose(found["errors"][0], 0.0)
    rms = np.sqrt((noise[:PICTURES] ** 2).mean(axis=(2, 3, 4)))
    assert np.allclose(found["errors"][1], rms * (1.0 - TIMES), atol=1e-4)
    large = np.zeros((2, 5, 4, 128, 128))
    shape = explored("latents", GRID, {"expert": large, "mixture": large}, large[:, 0])["shape"]  # type: ignore[index]
    assert shape == [2, 5, 3, 64, 64]


@pytest.mark.parametrize("objective", ["progressive", "consistency"])
def test_the_expert_takes_the_student_s_place_in_its_chains(objective: str) -> None:
    """From the same noise, and where chains draw fresh noise from the same of that; nobody is charged."""
    settings = {"policy": {"class": "fresh", "width": 8}, "objective": objective, "samples": 20, "device": "cpu"}
    made = Experiment.build(configure(settings))
    student, expert = made.chains(6, seed=3), made.expert_chains(6, seed=3)
    assert student.shape == expert.shape and torch.equal(student[:, 0], expert[:, 0])
    assert torch.allclose(expert[:, -1], made.sample_expert(6, seed=3), atol=1e-5) and made.expert.nfe == 0


def page(path: Path) -> Path:
    """A report of two objectives whose chains are known."""
    found = content(GAIN)
    for record in found["records"]:
        record["samples"] = f"samples/{record['variant']}.npz"
    other = content(GAIN, objective="progressive")
    for record in other["records"]:
        record["samples"] = "samples/other.npz"
    made = folder(path, {**found, "records": [*found["records"], *other["records"]]})
    cloud = np.random.default_rng(0).normal(size=(200, 2))
    for name, kind in {"forward": 2, "mixture": 1, "other": 4}.items():
        np.savez(path / "samples" / f"{name}.npz", x=cloud, chains=points(kind), expert_chains=points(0))
    return write_report(made)


def test_the_page_holds_the_chains_of_every_objective(tmp_path: Path) -> None:
    text = page(tmp_path).read_text()
    views = json.loads(re.search(r'id="chains">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    assert [view["name"] for view in views] == [f"{TASK}, LCM", f"{TASK}, PD"]
    assert views[0]["times"] == TIMES.tolist() and len(text) < 3e6
    assert not re.search(r"https?://|fetch\(|XMLHttpRequest|import\(", text)


DRIVER = """<script>addEventListener("load", () => {
  const out = document.createElement("pre"), run = () => { SCRIPT };
  out.id = "found";
  try { out.textContent = JSON.stringify(run()); } catch (error) { out.textContent = JSON.stringify(String(error)); }
  document.body.append(out);
});</script>"""


def in_browser(file: Path, script: str, width: int = 1280) -> Any:
    """Open a page in headless Chromium, run a script in it, and return what the script returns."""
    if BROWSER is None:
        pytest.skip("needs Chromium")
    driver = DRIVER.replace("SCRIPT", script)
    test = file.with_name("driven.html")
    test.write_text(file.read_text().replace("</body>", f"{driver}</body>"))
    words = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", f"--window-size={width},900"]
    words += [f"--user-data-dir={file.parent / 'profile'}", "--virtual-time-budget=5000", test.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


def test_a_reader_walks_the_chains_in_a_browser(tmp_path: Path) -> None:
    """Slider, hover and choice; the drawn pixels change with the step, and errors are the known ones."""
    found = in_browser(
        page(tmp_path),
        """
        const root = document.getElementById("explorer"), part = name => root.querySelector(`[data-part=${name}]`);
        const texts = kind => [...root.querySelectorAll(kind)].map(each => each.textContent);
        const told = () => [part("told").textContent, ...texts("figcaption")];
        const drawn = () => [...root.querySelectorAll("canvas")].map(each => each.toDataURL());
        const seen = {begin: told()}, end = drawn();
        const slider = part("step");
        slider.value = 2; slider.dispatchEvent(new Event("input"));
        seen.middle = told();
        seen.redrawn = drawn().every((each, place) => each !== end[place]);
        const canvas = root.querySelectorAll("canvas")[1], box = canvas.getBoundingClientRect();
        const view = JSON.parse(document.getElementById("chains").textContent)[0], [x, y] = view.chains[1][7][2];
        const over = (px, py) => canvas.dispatchEvent(new PointerEvent("pointermove", {clientX: px, clientY: py}));
        over(box.left + (x / view.half + 1) / 2 * box.width, box.top + (1 - y / view.half) / 2 * box.height);
        seen.hover = told();
        canvas.dispatchEvent(new PointerEvent("pointerleave"));
        seen.left = told();
        part("choice").selectedIndex = 1; part("choice").dispatchEvent(new Event("change"));
        seen.other = told();
        part("play").click();
        seen.playing = [told()[0], part("play").textContent];
        return seen;
        """,
    )
    assert found["begin"] == [
        "step 4 of 4, t = 0.00 (data)",
        "expert",
        "forward mean error 0.80",
        "mixture mean error 0.40",
    ]
    assert found["middle"] == ["step 2 of 4, t = 0.50", "expert", "forward mean error 0.40", "mixture mean error 0.20"]
    assert found["redrawn"]
    assert found["hover"][0].endswith(", chain 8") and found["hover"][2] == "forward error of chain 8: 0.40"
    assert found["left"] == found["middle"]
    assert found["other"] == [
        "step 4 of 4, t = 0.00 (data)",
        "expert",
        "forward mean error 1.60",
        "mixture mean error 1.60",
    ]
    assert found["playing"] == ["step 0 of 4, t = 1.00 (noise)", "Stop"]


def test_on_a_phone_only_tables_scroll(tmp_path: Path) -> None:
    found = in_browser(
        page(tmp_path),
        """
        for (const each of document.querySelectorAll("details")) each.open = true;
        document.documentElement.style.width = "390px";
        const all = [...document.querySelectorAll("body *")].filter(each => !each.closest(".scroll, pre, script"));
        const over = all.filter(each => each.getBoundingClientRect().right > 391);
        const frames = [...document.querySelectorAll(".scroll")];
        return {over: over.map(each => each.outerHTML.slice(0, 80)),
                scrolls: frames.some(each => each.scrollWidth > each.clientWidth)};
        """,
    )
    assert found["over"] == [] and found["scrolls"] is True
