"""The configurations that are shipped for accelerate, as far as they can be tried without GPUs."""

import os
from typing import Any

import pytest
import torch
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_multi_gpu_env
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from helpers import ROOT
from torch import nn

from dagdiff import engine
from dagdiff.benchmarks.measure.memory import SD15
from dagdiff.launch import check_launcher

FOLDER = ROOT / "docs" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))


def environment(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return what ``accelerate launch`` sets by a file, apart from each process's place."""
    chosen = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    words = launch_command_parser().parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), "program.py"])
    for key, value in {**vars(chosen), **chosen.fsdp_config}.items():
        if not isinstance(value, dict):
            setattr(words, key, value)
    words.use_fsdp = chosen.distributed_type is DistributedType.FSDP
    words.dynamo_backend = "no"
    words.gradient_accumulation_steps = 1
    for key in list(os.environ):
        if key.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.delenv(key)
    told: dict[str, str] = prepare_multi_gpu_env(words)
    return told


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_file_is_one_that_accelerate_reads(file: Any) -> None:
    chosen = load_config_from_file(str(file))
    assert isinstance(chosen, ClusterConfig) and (chosen.num_processes, chosen.mixed_precision) == (8, "no")


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_launch_by_a_file_is_taken(file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "8", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    check_launcher({**environment(file.stem, monkeypatch), **place})


def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What accelerate makes of fsdp2.yaml in a process of the run."""
    for key, value in environment("fsdp2", monkeypatch).items():
        if key.startswith("FSDP_"):
            monkeypatch.setenv(key, value)
    return FullyShardedDataParallelPlugin()


def units(network: nn.Module, chosen: Any) -> list[int]:
    """The weights of each part that is gathered at once, and last of those that are left to the whole."""
    wanted = fsdp2_prepare_auto_wrap_policy(chosen, network)
    assert wanted is not None
    inside: set[int] = set()
    found = []
    for module in network.modules():
        if wanted(module):
            mine = {id(weight): weight.numel() for weight in module.parameters() if id(weight) not in inside}
            inside |= mine.keys()
            found.append(sum(mine.values()))
    return [*found, sum(weight.numel() for weight in network.parameters() if id(weight) not in inside)]


def test_sd15_is_gathered_in_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device: by how much less each of 8 GPUs holds of it, and what one part takes when it is gathered."""
    chosen = plugin(monkeypatch)
    assert chosen.fsdp_version == 2 and chosen.reshard_after_forward is True and not chosen.cpu_ram_efficient_loading
    with torch.device("meta"):
        network = UNet2DConditionModel(**SD15)
    chosen.set_auto_wrap_policy(network)
    parts = units(network, chosen)
    total = sum(weight.numel() for weight in network.parameters())
    assert sum(parts) == total == 859_520_964
    assert len(parts) == 22 + 16 + 1, "blocks of residual layers and of attention, and the rest"
    assert max(parts) < total / 10


@pytest.mark.parametrize(
    ("kind", "block"),
    [(DiTTransformer2DModel, "BasicTransformerBlock"), (SD3Transformer2DModel, "JointTransformerBlock")],
)
def test_the_blocks_of_transformers_have_the_names_that_the_file_tells(
    kind: Any, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert block in (FOLDER / "fsdp2.yaml").read_text()
    chosen = plugin(monkeypatch)
    chosen.transformer_cls_names_to_wrap = [block]
    with torch.device("meta"):
        network = kind(num_layers=2)
    chosen.set_auto_wrap_policy(network)
    assert len(units(network, chosen)) == 2 + 1


def test_the_file_names_blocks_of_the_unet() -> None:
    told = yaml.safe_load((FOLDER / "fsdp2.yaml").read_text())["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"]
    with torch.device("meta"):
        names = {type(module).__name__ for module in UNet2DConditionModel(**SD15).modules()}
    assert set(told.split(",")) <= names


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_share_weights_out(own_folder: Any) -> None:
    """The whole run, sharded where accelerate itself shards."""
    import subprocess
    import sys
    from pathlib import Path

    words = "distill --task gaussians8-biased --policy fresh --updates 8 --rounds 2 --chains 16 --batch_size 32"
    tool = str(Path(sys.executable).parent / "accelerate")
    fsdp = "--use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP --mixed_precision no"
    layers = "--fsdp_transformer_layer_cls_to_wrap Linear --fsdp_cpu_ram_efficient_loading false --num_processes 2"
    command = [tool, "launch", *fsdp.split(), *layers.split(), "-m", "dagdiff", *words.split(), "--samples", "100"]
    done = subprocess.run([*command, "--out", "run"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert main_sample() == 0


def main_sample() -> int:
    from dagdiff.cli import main

    return main(["sample", "run", "--num", "4", "--out", "run.npz"])


def test_nothing_is_sharded_where_nobody_asks() -> None:
    network = nn.Linear(2, 2)
    engine.shard(network)
    assert not engine.sharded(network)
