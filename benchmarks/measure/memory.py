"""What a run of a pipeline holds in memory, as formulas, and what Stable Diffusion 1.5 makes of them.

Run: python -m dagdiff.benchmarks.measure.memory

With P weights in a network, of which T are trained (all of them, or the adapters), in bytes:

- the expert, frozen: P times the bytes of its ``dtype``;
- the student: 4 T, for the frozen weights of adapters are the expert's own; gradients 4 T, Adam's two moments 8 T;
- the loop's copies of what is trained: the last good student 4 T, the best round's 4 T (none with ``heldout`` 0), the
  average 4 T (with ``ema``);
- LCM's target network 4 T; DMD2's critic 4 T, its gradients 4 T and its moments 8 T;
- a record of the aggregate: its states, times and numbers (:func:`record_bytes`).
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dagdiff.pipelines.lora import ATTENTION

SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
"""The network of Stable Diffusion 1.5, where it differs from the defaults of its class in diffusers."""


def held(
    weights: int, trained: int, expert: int = 2, objective: str = "progressive", heldout: bool = True,
    ema: bool = False,
) -> dict[str, int]:  # fmt: skip
    """Return the bytes of everything that is as large as a network, by what it is.

    Args:
        weights: P, of the expert, and of what the student starts from.
        trained: T; equal to ``weights`` for a full copy, else the adapters alone.
        expert: bytes a weight of the expert: 4 in float32, 2 in bfloat16.
        objective: progressive, consistency or distribution.
        heldout: whether the best round is kept.
        ema: whether an average is kept.
    """
    critic = objective == "distribution"
    return {
        "expert": expert * weights,
        "student": 4 * trained,
        "gradients": 4 * trained,
        "Adam": 8 * trained,
        "copies": 4 * trained * (1 + heldout + ema),
        "target": 4 * trained if objective == "consistency" else 0,
        "critic": 16 * trained if critic else 0,
    }


def record_bytes(shape: tuple[int, ...], objective: str = "progressive", conditional: bool = True) -> int:
    """Return the bytes of one record: x_t, for PD and LCM its label and the label's end; t, s; four integers."""
    state = 4 * torch.Size(shape).numel()
    label = 0 if objective == "distribution" else state + 4
    return state + label + 4 + 4 + 8 + 8 + 8 + 8 * conditional


def adapters(network: nn.Module, rank: int) -> int:
    """Return T of low-rank adapters on the attention: rank (in + out) for each layer."""
    layers = [layer for name, layer in network.named_modules() if name.endswith(ATTENTION)]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers if isinstance(layer, nn.Linear))


def activations(network: Any, checkpointing: bool, shape: tuple[int, ...], text: tuple[int, ...]) -> int:
    """Return the bytes that a row leaves behind for the way back, weights apart: tensors saved, each storage once.

    On the meta device, so attention is counted as composed of its matrix products; kernels that fuse it keep less.
    """
    (network.enable_gradient_checkpointing if checkpointing else network.disable_gradient_checkpointing)()
    own = {id(weight.untyped_storage()) for weight in network.parameters()}
    kept: dict[int, Any] = {}

    def seen(values: Tensor) -> Tensor:
        kept[id(values.untyped_storage())] = values.untyped_storage()
        return values

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(seen, lambda values: values):
        state, told = (torch.empty(1, *size, dtype=network.dtype) for size in (shape, text))
        network.train()(state, torch.empty(1), encoder_hidden_states=told)
    return sum(storage.nbytes() for place, storage in kept.items() if place not in own)


def table(weights: int, rank: int, low: int) -> str:
    """Return the memory of four kinds of runs, in GB (10^9 bytes), as a table in Markdown."""
    runs = {
        "PD, LoRA": held(weights, low),
        "DMD2, LoRA": held(weights, low, objective="distribution"),
        "PD, full": held(weights, weights),
        "DMD2, full": held(weights, weights, objective="distribution"),
    }
    parts = ["expert", "student", "gradients", "Adam", "copies", "critic"]
    lines = [f"| LoRA of rank {rank} | {' | '.join(parts)} | sum |", "|---" * (len(parts) + 2) + "|"]
    for name, found in runs.items():
        told = " | ".join(f"{found[part] / 1e9:.2f}" for part in parts)
        lines.append(f"| {name} | {told} | {sum(found.values()) / 1e9:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Print the numbers of Stable Diffusion 1.5."""
    shape, text = (4, 64, 64), (77, 768)
    with torch.device("meta"):
        network: Any = UNet2DConditionModel(**SD15)
    weights, rank = sum(weight.numel() for weight in network.parameters()), 64
    low = adapters(network, rank)
    print(f"P = {weights:,}, T = {low:,} with LoRA of rank {rank}\n\n{table(weights, rank, low)}\n")
    record, prompt = record_bytes(shape), 2 * torch.Size(text).numel()
    print(f"a record: {record:,} bytes; a prompt in bfloat16: {prompt:,} bytes")
    nn.Module.to(network, torch.bfloat16)
    for checkpointing in (False, True):
        found = activations(network, checkpointing, shape, text)
        print(f"activations a row, {'with' if checkpointing else 'without'} checkpointing: {found / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
