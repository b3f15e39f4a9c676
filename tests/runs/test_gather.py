"""Expert answers made ahead: the records are those that a run would make, are paid once, and are never mistaken."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dagdiff.checks import Refusal
from dagdiff.cli import main
from dagdiff.gathered import Gathered, read_manifest
from dagdiff.runs.config import Config, configure
from dagdiff.runs.experiment import Experiment
from dagdiff.runs.gather import gather
from dagdiff.runs.identity import check_labels, digest

SMALL: dict[str, Any] = {
    "task": "gaussians8-biased",
    "policy": {"class": "fresh", "width": 8},
    "updates": 8,
    "rounds": 2,
    "chains": 8,
    "batch_size": 16,
    "heldout": 0,
    "samples": 50,
    "device": "cpu",
    "reuse": 1.0,
}


def config(**changes: Any) -> Config:
    return configure({**SMALL, **changes})


def fill(out: Path, **changes: Any) -> dict[str, Any]:
    options = {name: changes.pop(name) for name in ("runs", "rows") if name in changes}
    with ThreadPoolExecutor(1) as pool:
        return gather(config(**changes), out, pool, 1, **{"rows": 16, **options})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gather") / "records"
    fill(out)
    return out


def train(**changes: Any) -> tuple[Any, Any]:
    *_, last = Experiment.build(config(**changes)).rounds()
    return last


@pytest.mark.parametrize("objective", ["progressive", "consistency", "distribution", "gaussian-kl"])
def test_a_run_takes_records_and_does_not_pay_for_them(objective: str, tmp_path: Path) -> None:
    """What the expert is asked is less by just what the records cost; student states are the run's own.

    Where guesses must be right at data, its 8 sub-steps are for the whole chain: from the four times 8, 6, 4 and 2.
    """
    published = {"consistency": {"label_end": "step"}, "distribution": {"label_weight": 0.0}}.get(objective, {})
    chosen = {"objective": {"class": objective, **published}, "substeps": 8, "shares": [0.25, 0.5, 0.25]}
    fill(tmp_path, **chosen, runs=2)
    (loop, done), (_, plain) = train(**chosen, gathered=str(tmp_path)), train(**chosen)
    assert loop.gathering.ready.saved > 0 or objective == "distribution"
    assert done.nfe_expert < plain.nfe_expert
    per_row = {"progressive": (8, 16), "gaussian-kl": (8, 16), "consistency": (1, 6), "distribution": (0, 5)}
    taken = loop.gathering.ready.taken
    assert loop.gathering.ready.saved == sum(
        rows * cost for rows, cost in zip((taken["forward"], taken["expert"]), per_row[objective], strict=True)
    )
    kinds = [loop.aggregate.records(source) for source in ("forward", "student", "expert")]
    assert kinds[0].keys() == kinds[1].keys() == kinds[2].keys()


def test_records_are_labelled_as_a_run_labels_them(made: Path) -> None:
    it = Experiment.build(config())
    ready = Gathered(made)
    for source in ("forward", "expert"):
        (records, *_) = ready.take(source, 16)
        anew = it.objective.annotate(it.expert, records.exclude("target", "end"))
        assert torch.allclose(anew["target"], records["target"], atol=1e-5)
        assert torch.equal(records["actor"], torch.full((16,), 1 if source == "expert" else -1))


def test_each_record_is_taken_once_and_in_another_order_for_another_seed(made: Path) -> None:
    def rows(seed: int) -> torch.Tensor:
        return torch.cat([each["x_t"] for each in Gathered(made, seed).take("forward", 10_000)])

    held = torch.cat([load_file(file)["x_t"] for file in sorted(made.glob("forward-*.safetensors"))])
    one, two = rows(0), rows(1)
    assert not torch.equal(one, two) and torch.equal(one, rows(0))
    assert all(torch.equal(each.sort(0).values, held.sort(0).values) for each in (one, two))


def test_processes_of_one_run_take_different_records(made: Path) -> None:
    parts = [
        torch.cat([each["x_t"] for each in Gathered(made, 0, rank=i, world_size=3).take("forward", 99)])
        for i in range(3)
    ]
    whole = torch.cat([each["x_t"] for each in Gathered(made).take("forward", 99)])
    assert torch.equal(torch.cat(parts).sort(0).values, whole.sort(0).values)


def test_where_it_was_is_restored(made: Path) -> None:
    first, second = Gathered(made), Gathered(made)
    list(first.take("forward", 21))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert all(
        torch.equal(one["x_t"], two["x_t"])
        for one, two in zip(first.take("forward", 99), second.take("forward", 99), strict=True)
    )


def test_a_run_that_needs_more_makes_its_own(tmp_path: Path) -> None:
    fill(tmp_path, updates=2, rounds=1)
    loop, done = train(gathered=str(tmp_path), updates=32)
    held = sum(shard["rows"] for shard in read_manifest(tmp_path)["shards"].values())
    assert sum(loop.gathering.ready.taken.values()) == held and done.updates == 32


def test_a_shard_does_not_depend_on_the_others_and_is_kept(tmp_path: Path) -> None:
    fill(tmp_path / "a", runs=2)
    fill(tmp_path / "b")
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "b").glob("*.safetensors")}
    (tmp_path / "b/forward-00000-16.safetensors").unlink()  # lost: made again
    fill(tmp_path / "b", runs=2)
    one, two = (read_manifest(tmp_path / name)["shards"] for name in "ab")
    assert one == two and len(one) > len(before)
    kept = {name: (tmp_path / "b" / name).stat().st_mtime_ns for name in before}
    assert [name for name in before if kept[name] != before[name]] == ["forward-00000-16.safetensors"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"task": "gaussians8-matched"}, "task"),
        ({"substeps": 4}, "substeps"),
        ({"steps": 2}, "steps"),
        ({"threshold": "box"}, "threshold"),
        ({"schedule": "flow"}, "schedule"),
        ({"objective": "consistency"}, "objective"),
        ({"input_perturbation": 0.1}, "input_perturbation"),
        ({"driver": "dart"}, "driver"),
    ],
)
def test_records_of_other_labels_are_refused_by_name(change: dict[str, Any], name: str, made: Path) -> None:
    with pytest.raises(Refusal, match=f"was made with {name} .*, and this run has .*Make them equal"):
        Experiment.build(config(**change, gathered=str(made)))


def test_records_of_another_version_are_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dagdiff.objectives.Progressive.version", 99)
    with pytest.raises(Refusal, match="version of objective 1, and this run has 99"):
        check_labels(config(), made)


@pytest.mark.parametrize("change", [{"seed": 3}, {"lr": 1e-5}, {"updates": 6}, {"shares": [0.5, 0.0, 0.5]}], ids=str)
def test_other_settings_share_the_records(change: dict[str, Any], made: Path) -> None:
    check_labels(config(**change), made)
    check_labels(config(objective={"class": "progressive", "weight": "dagdiff.objectives.progressive.snr"}), made)


def test_the_records_count_for_the_identity_and_their_place_does_not(made: Path, tmp_path: Path) -> None:
    plain = digest(config())
    (tmp_path / "elsewhere").symlink_to(made)
    mine = digest(config(gathered=str(made)))
    assert mine != plain and digest(config(gathered=str(tmp_path / "elsewhere"))) == mine
    assert digest({name: value for name, value in config().items() if name != "gathered"}) == plain
    fill(tmp_path / "more", runs=2)
    assert digest(config(gathered=str(tmp_path / "more"))) != mine


def test_the_same_seed_gives_the_same_run(made: Path) -> None:
    (one, _), (two, _) = train(gathered=str(made)), train(gathered=str(made))
    assert all(torch.equal(a, b) for a, b in zip(one.student.parameters(), two.student.parameters(), strict=True))


def test_a_flipped_bit_and_a_missing_file_are_noticed(tmp_path: Path) -> None:
    fill(tmp_path)
    file = next(tmp_path.glob("expert-*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    with pytest.raises(Refusal, match="its SHA-256 differs"):
        Experiment.build(config(gathered=str(tmp_path)))
    file.unlink()
    with pytest.raises(Refusal, match="can't be read"):
        Experiment.build(config(gathered=str(tmp_path)))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "is not JSON"),
        ('{"format": 2}', "has the format 2, not 1"),
        ('{"format": 1}', "is not what `dagdiff gather` writes"),
        ('{"format": 1, "settings": {}, "code": {}, "shards": {"../x.safetensors": {}}}', "names a shard"),
        ('{"format": 1, "settings": {}, "code": {}, "shards": {"x.safetensors": {"rows": 1}}}', "names a shard"),
        (None, "holds no manifest.json"),
    ],
)
def test_manifests_that_cannot_be(text: str | None, match: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(Refusal, match=match):
        Gathered(tmp_path)


def test_the_commands(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--policy fresh --updates 8 --rounds 2 --chains 8 --batch_size 16 --heldout 0 --samples 50 --device cpu"
    line = f"gather gaussians8-biased {words} --out made --shard_rows 32"
    assert main(line.split()) == 0
    assert "use them with --gathered made" in capsys.readouterr().out
    before = (own_folder / "made/manifest.json").read_bytes()
    assert main(line.split()) == 0 and (own_folder / "made/manifest.json").read_bytes() == before
    assert main(f"distill --task gaussians8-biased {words} --gathered made --out run".split()) == 0
    assert "evaluations of the expert were paid for by made" in capsys.readouterr().out
    assert json.loads((own_folder / "run/metrics.json").read_text())["nfe_gathered"] > 0


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("gaussians8-biased", "--out is missing"),
        ("gaussians8-biasd --out made", "Did you mean 'gaussians8-biased'"),
        ("--out made", "task"),
        ("gaussians8-biased --out made --stages 4,2", "--stages .* change the expert"),
        ("gaussians8-biased --out made --shares 0,1,0", "nothing can be made ahead"),
        ("gaussians8-biased --out made --runs 0", "runs must be at least 1"),
        ("gaussians8-biased --out made --workers 0", "workers must be at least 1"),
        ("gaussians8-biased --out taken", "holds something else than records"),
        ("gaussians8-biased --out taken/file", "is a file"),
        ("gaussians8-biased --out made --executor dusk", "Did you mean 'dask'"),
    ],
)
def test_mistakes(words: str, match: str, own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    (own_folder / "taken").mkdir()
    (own_folder / "taken/file").touch()
    assert main(["gather", *words.split()]) == 2
    told = capsys.readouterr().err.strip()
    assert re.search(match, told) and len(told.splitlines()) == 1, told
    assert not (own_folder / "made/manifest.json").exists()
