"""The manual of distill: every option once, in groups, and nothing that the command doesn't take."""

import re
from dataclasses import dataclass
from typing import Any

import pytest

from dagdiff.commands import manual
from dagdiff.runs.config import configure
from dagdiff.runs.parts import PARTS
from dagdiff.runs.settings import NAMES, Settings
from dagdiff.runs.words import nested

CHOICES: list[dict[str, Any]] = [
    {},
    {"task": "digits-biased", "objective.class": "distribution", "expert.class": "unet", "policy.class": "fresh-unet"},
    {"expert.class": "learned", "driver.class": "gate", "curriculum.class": "coaching", "threshold.class": "quantile"},
    {"task": "pipeline", "policy.class": "lora", "objective.class": "consistency"},
]
COMMAND = {"out", "logger", "resume", "fresh", "save_every", "look_every", "trust_code", "config", "print_config"}


def plain(value: Any) -> Any:
    """As YAML keeps it."""
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    return {
        name: value
        for key, each in config.items()
        for name, value in (
            flat(each, f"{prefix}{key}.").items() if isinstance(each, dict) else [(f"{prefix}{key}", each)]
        )
    }


@pytest.mark.parametrize("given", CHOICES, ids=str)
def test_the_manual_holds_what_a_run_takes_with_its_defaults(given: dict[str, Any]) -> None:
    told = [option for group in manual.groups(given) for option in group.options]
    assert len({option.name for option in told}) == len(told)
    found = {f"{name}.class" if (name := option.name) in PARTS else name: plain(option.value) for option in told}
    assert set(found) >= COMMAND
    assert {name: value for name, value in found.items() if name not in COMMAND} == flat(configure(nested(given)))


def test_every_option_has_a_group_that_says_when_it_is_decided() -> None:
    listed = [name for names in manual.GROUPS.values() for name in names]
    assert len(set(listed)) == len(listed)
    assert set(listed) <= {*NAMES, *PARTS, *COMMAND}
    titles = [group.title for group in manual.groups({})]
    assert titles[: len(manual.GROUPS)] == list(manual.GROUPS)


def test_a_new_setting_is_in_the_manual_without_a_word_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class More(Settings):
        """More settings.

        Args:
            patience: how long to wait.
        """

        patience: int = 3

    monkeypatch.setattr(manual, "Settings", More)
    (group,) = (group for group in manual.groups({}) if group.title == "More")
    assert group.options[-1] == ("patience", 3, "int", "how long to wait.")
    assert re.search(r"--patience N +How long to wait\. Default: 3\.", manual.text({}, "Distil."))


@pytest.mark.parametrize("given", CHOICES, ids=str)
def test_help_is_for_readers(given: dict[str, Any]) -> None:
    """No class that nobody can name, no Python types, no second spelling of a list."""
    text = manual.text(given, "Distil.")
    named = set(re.findall(r"\b(?:torch|tensordict|torchrl)\.\w+", text))
    assert named == set()
    assert not re.search(r"known subclasses|\(type:|Optional\[|Callable|--\S+\+|CLASS_PATH|default: null|<\w+>", text)
    assert all(re.search(rf"^  --{name}\b", text, re.M) for name in (*NAMES, *PARTS, *COMMAND))


def test_every_setting_and_part_says_what_it_means() -> None:
    told = [option for group in manual.groups({}) for option in group.options if "." not in option.name]
    assert [option.name for option in told if not option.meaning] == []
