"""Low-rank adapters: a student that is its frozen teacher plus a few trained matrices (LoRA).

Hu et al. 2021, https://arxiv.org/abs/2106.09685; used for consistency distillation by Luo et al. 2023 (LCM-LoRA,
https://arxiv.org/abs/2311.05556). Beside a linear layer W stand A (rank x in) and B (out x rank), and the layer answers
with W x + (alpha / rank) B A x. B starts at 0, so the student starts as the teacher. The adapters are those of the
package peft, and leave in diffusers' own file: ``pipeline.load_lora_weights(folder)``.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dagdiff.checks import Refusal, check_at_least, first_line
from dagdiff.pipelines.pretrained import DiffusersExpert, PretrainedNetwork
from dagdiff.policies.adapted import Adapted

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The layers that are adapted unless others are named: the projections of every attention."""


def lora_student(
    teacher: DiffusersExpert, rank: int = 16, alpha: float | None = None, targets: Sequence[str] = ATTENTION
) -> Adapted:
    """Return a student that starts as the teacher, shares its frozen weights, and trains adapters alone, in float32.

    Where its conditions hold weights of guidance, the input that it is given for them is trained too.

    Args:
        teacher: any that :class:`~dagdiff.pipelines.pretrained.DiffusersExpert` serves.
        rank: of the adapters.
        alpha: their weight, times 1 / rank; None takes the rank, which makes it 1.
        targets: the ends of the names of the linear layers to adapt.

    Raises:
        Refusal: if peft is missing, or no layer has such a name.
    """
    peft = _peft()
    check_at_least("rank", rank, 1)
    network: PretrainedNetwork = copy.deepcopy(teacher.network, {id(weight): weight for weight in _weights(teacher)})
    frozen = {id(weight) for weight in network.body.parameters()}
    network.hear_weights()
    config = peft.LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=list(targets))
    try:
        peft.inject_adapter_in_model(config, network.body)
    except ValueError as error:
        kind = type(network.body).__name__
        raise Refusal(f"targets {tuple(targets)} name no layer of {kind} ({first_line(error)}).") from None
    for name, weight in network.named_parameters():
        trained = "lora_" in name or id(weight) not in frozen
        weight.requires_grad_(trained)
        weight.data = weight.data.float() if trained else weight.data
    return Adapted(network, teacher.schedule, teacher.prediction)


def merged(body: nn.Module) -> nn.Module:
    """Return a copy of a network with its adapters added to its weights; one without adapters as it is.

    Layers that have adapters come in float32: in half precision a small change of a weight is rounded away.
    """
    if not has_adapters(body):
        return body
    from peft.tuners.tuners_utils import BaseTunerLayer

    whole = copy.deepcopy(body)
    for name, layer in list(whole.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            whole.get_submodule(name).float()
            layer.merge()
            parent = whole.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], layer.get_base_layer())
    whole.__dict__.pop("peft_config", None)
    return whole


def has_adapters(body: nn.Module) -> bool:
    """Whether a network holds adapters."""
    return any("lora_" in name for name, _ in body.named_parameters())


def save_adapters(pipeline: Any, body: nn.Module, folder: Path) -> None:
    """Write the adapters of a network as the file that ``load_lora_weights`` of the pipeline's kind reads.

    Raises:
        Refusal: if there are none, or the pipeline's kind reads none.
    """
    peft = _peft()
    if not has_adapters(body):
        raise Refusal("this student has no adapters: all of it was trained. Export it with --format diffusers.")
    check_adapters_alone(body)
    if not hasattr(pipeline, "save_lora_weights"):
        raise Refusal(f"a {type(pipeline).__name__} reads no adapters. Export it whole, with --format diffusers.")
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    state = peft.get_peft_model_state_dict(body, adapter_name="default")
    named = {f"{name}_lora_layers": state, f"{name}_lora_adapter_metadata": _told(body)}
    pipeline.save_lora_weights(folder, **named)


def check_adapters_alone(body: nn.Module) -> None:
    """Refuse a network that has learned more than its adapters, which a file of them would lose."""
    more = [name for name, weight in body.named_parameters() if weight.requires_grad and "lora_" not in name]
    if more:
        raise Refusal(
            f"this student was trained with a range of guidance: it has learned {more[0]} beside its adapters, and a "
            "file of adapters holds none. Export it whole, with --format diffusers."
        )


def _told(body: Any) -> dict[str, Any]:
    """Rank and alpha, which the reader needs to weigh the adapters."""
    config = body.peft_config["default"].to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def _weights(teacher: DiffusersExpert) -> list[Any]:
    return [*teacher.network.parameters(), *teacher.network.buffers()]


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise Refusal("adapters need the package peft, which is not here. Run: pip install 'dagdiff[hub]'") from None
    return peft
