"""From words or YAML to checked settings and parts, and back again."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dagdiff.checks import Refusal
from dagdiff.runs.config import complete, configure
from dagdiff.runs.parts import PARTS, resolve
from dagdiff.runs.settings import NAMES
from dagdiff.runs.words import spell, spread


def config(*words: str) -> dict[str, Any]:
    """The configuration that words on the command line stand for."""
    return complete(spell(words))


def test_the_defaults_hold_every_setting_and_every_part() -> None:
    found = configure({})
    assert set(found) == {*NAMES, *PARTS}
    assert {name for name, value in found.items() if value is None} == {
        "stages", "start", "gathered", "rounds_kept", "max_age", "memmap", "size", "value_range",
    }  # fmt: skip
    assert {part: found[part]["class"] for part in PARTS} == {
        "objective": "progressive",
        "expert": "exact",
        "data": None,
        "policy": "teacher",
        "solver": "dpm",
        "threshold": "none",
        "schedule": "cosine",
        "beta": "constant",
        "shares_ramp": "constant",
        "lr_ramp": "linear",
        "driver": "mixture",
        "curriculum": "plain",
    }
    assert found["beta"]["value"] == 0.0 and found["shares_ramp"]["value"] == 1.0


def test_configurations_are_plain_and_come_back_from_yaml() -> None:
    found = configure({"task": "moons-scarce", "stages": [8, 4], "objective": {"class": "consistency", "ema": 0.9}})
    text = yaml.safe_dump(found)
    words = [f"--{name}={value}" for name, value in spread(found).items()]
    assert configure(yaml.safe_load(text)) == found == config(*words)
    assert found["stages"] == [8, 4]
    assert found["objective"] == {
        "class": "consistency",
        "solver_steps": 50,
        "ema": 0.9,
        "huber_width": 1e-3,
        "renoise": True,
        "label_end": "data",
    }


@pytest.mark.parametrize(
    "words",
    [
        ("--shares", "0.5,0.5,0"),
        ("--shares=0.5,0.5,0",),
        ("--shares", "[0.5, 0.5, 0]"),
        ("--shares", "(0.5,0.5,0)"),
        ("--shares", "1,0,0", "--shares", "0.5,0.5,0"),
    ],
)
def test_shares_in_every_spelling(words: tuple[str, ...]) -> None:
    assert config(*words)["shares"] == [0.5, 0.5, 0.0]


@pytest.mark.parametrize(
    "words", [("--policy.channels", "8,16"), ("--policy.channels=[8, 16]",), ("--policy.channels=8,16",)]
)
def test_numbers_of_a_part_are_told_as_those_of_a_run(words: tuple[str, ...]) -> None:
    assert list(config("--task", "digits-biased", "--policy", "fresh-unet", *words)["policy"]["channels"]) == [8, 16]


@pytest.mark.parametrize("words", [("--stages", "8,4"), ("--stages=[8, 4]",), ("--stages", "2", "--stages", "8,4")])
def test_stages_in_every_spelling(words: tuple[str, ...]) -> None:
    assert config(*words)["stages"] == [8, 4]
    assert config(*words, "--stages", "null")["stages"] is None


@pytest.mark.parametrize(
    "words",
    [
        ("--objective", "consistency", "--objective.ema", "0.9"),
        ("--objective=consistency", "--objective.ema=0.9"),
        ("--objective.ema", "0.9", "--objective", "consistency"),
        ("--objective.class", "consistency", "--objective.ema", "0.9"),
        ("--objective", "dagdiff.objectives.Consistency", "--objective.ema", "0.9"),
        ("--objective", "distribution", "--objective", "consistency", "--objective.ema", "0.9"),
    ],
)
def test_a_part_and_its_arguments_in_every_order(words: tuple[str, ...]) -> None:
    found = config(*words)["objective"]
    assert resolve("objective", found["class"]) is resolve("objective", "consistency")
    assert (found["ema"], found["solver_steps"]) == (0.9, 50)


def test_scientific_numbers_are_numbers() -> None:
    assert config("--lr", "1e-3")["lr"] == configure({"lr": "1e-3"})["lr"] == 1e-3


@pytest.mark.parametrize("objective", ["distribution", "dagdiff.objectives.DistributionMatching"])
def test_runs_of_images_start_from_settings_of_their_objective(objective: str) -> None:
    found = configure({"task": "digits-biased", "objective": objective})
    assert (found["lr"], found["shares"], found["batch_size"]) == (2e-4, [0.0, 1.0, 0.0], 64)
    own = configure({"task": "digits-biased", "objective": objective, "lr": 1e-3, "shares": [0.0, 0.5, 0.5]})
    assert (own["lr"], own["shares"]) == (1e-3, [0.0, 0.5, 0.5])
    plane = configure({"objective": objective})
    assert (plane["lr"], plane["shares"]) == (2e-3, [0.0, 0.5, 0.5])
    assert configure({"task": "digits-biased", "objective": "gaussian-kl"})["lr"] == 2e-3


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("expert: exact", {"class": "exact"}),
        (
            "expert: {class: learned, width: 16}",
            {"class": "learned", "width": 16, "depth": 3, "updates": 4000, "seed": 0},
        ),
        ("expert:", {"class": "exact"}),
    ],
)
def test_parts_in_yaml(content: str, wanted: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    assert config("--config", str(file))["expert"] == wanted


def test_of_file_and_options_the_later_wins(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("updates: 70\nsteps: 3\nexpert: exact\n")
    assert [config("--config", str(file), "--updates", "90")[name] for name in ("updates", "steps")] == [90, 3]
    assert [config("--updates", "90", f"--config={file}")[name] for name in ("updates", "steps")] == [70, 3]
    (tmp_path / "d.yaml").write_text("updates: 80\n")
    both = config("--config", str(file), "--config", str(tmp_path / "d.yaml"))
    assert (both["updates"], both["steps"]) == (80, 3)


def test_shares_and_stages_in_yaml_may_be_spelled_as_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("shares: 0.5,0.5,0\nstages: 8,4\n")
    found = config("--config", str(file))
    assert (found["shares"], found["stages"]) == ([0.5, 0.5, 0.0], [8, 4])


@pytest.mark.parametrize(("part", "name"), [("objective", "consistency"), ("policy", "fresh"), ("lr_ramp", "constant")])
def test_another_part_replaces_the_file_s_with_its_arguments(part: str, name: str, tmp_path: Path) -> None:
    """A kept config.yaml spells out the arguments of its parts; naming another part drops them. Settings stay."""
    file = tmp_path / "config.yaml"
    kept = configure({})
    file.write_text(yaml.safe_dump(kept))
    alone = config(f"--{part}", name, "--substeps", str(kept["substeps"]))
    assert config("--config", str(file), f"--{part}", name) == alone


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("- a\n", "holds list, not settings"),
        ("text", "holds str, not settings"),
        ("a: [\n", "can't be read"),
        ("nosuch: 1", "nosuch"),
        ("updates: x", "updates"),
        ("seed: {a: 1}", "seed"),
        ("expert: {nosuch: 2}", "expert.nosuch"),
        ("objective: progresive", "Did you mean 'progressive'"),
    ],
)
def test_files_that_hold_no_settings(content: str, match: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(Refusal, match=match) as refusal:
        config("--config", str(file))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("part", PARTS)
def test_every_short_name_is_there_and_says_what_it_is(part: str) -> None:
    for name, path in PARTS[part].items():
        kind = resolve(part, name)
        assert kind == resolve(part, path)
        assert (kind.__doc__ or "").strip().split("\n")[0].endswith((".", ":", "``."))
        needed = {"policy.path": "folder"} if name.startswith("few-step") else {}
        assert configure({part: name, **needed})[part]["class"] == name


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("exct", "unknown expert 'exct'. Did you mean 'exact'"),
        ("zzz", "unknown expert 'zzz'. Known: exact, learned"),
        ("dagdiff.tasks.plane.exact_exprt", "Did you mean 'exact_expert'"),
        ("dagdiff.benchmark.tasks.exact_expert", "Did you mean '(dagdiff.)?benchmarks"),
        ("nosuch.X", "no module named 'nosuch'"),
        ("math.pi", "not a class or a function"),
        ("", "expert"),
        (".", "expert"),
    ],
)
def test_class_paths_that_lead_nowhere(name: str, match: str) -> None:
    with pytest.raises(Refusal, match=match) as refusal:
        resolve("expert", name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--steps", "x"), "steps"),
        (("--steps", "2.5"), "steps"),
        (("--per_chain", "maybe"), "per_chain"),
        (("--shares", "1,0"), "shares"),
        (("--stages", "a,b"), "stages"),
        (("--objective.weight", "nosuch"), "objective.weight"),
        (("word",), "word"),
        (("--driver.threshold", "1"), "driver.threshold"),
        (("--driver", "gate", "--driver.student", "x"), "driver.student"),
        (("--stepwise", "true", "--stages", "8,4"), "stepwise has a network a step"),
        (("--input_perturbation", "-1"), "input_perturbation must be at least 0"),
        (("--epsilon_scale", "0"), "epsilon_scale must be above 0"),
        (("--curriculum", "coachin"), "Did you mean 'coaching'"),
    ],
)
def test_values_of_the_wrong_type_are_named_in_one_line(words: tuple[str, ...], match: str) -> None:
    with pytest.raises(Refusal, match=match) as refusal:
        config(*words)
    assert "\n" not in str(refusal.value)
    assert "Parser key" not in str(refusal.value) and "<class" not in str(refusal.value)  # the user's words, not ours


def test_options_are_not_abbreviated() -> None:
    with pytest.raises(Refusal, match="--upd"):
        config("--upd", "3")
