"""A network for images: diffusers' U-Net, sized so that one CPU core can train it.

The first and the last part keep the image's size, each level between halves it, and skips join the halves of equal
size (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597; Ho et al. 2020, https://arxiv.org/abs/2006.11239). The
lowest level and the middle attend. 0.2 million parameters serve 8 x 8, 0.7 million 14 x 14 and 28 x 28, and 1.1
million 32 x 32.

It is a ``diffusers.UNet2DModel`` in our words, and leaves as one: :meth:`UNet.save` writes the folder that
``UNet2DModel.from_pretrained`` reads.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from dagdiff.checkpoint import follow_umask
from dagdiff.checks import Refusal, check_at_least, check_at_most
from dagdiff.shapes import Condition, States, Times


def image_unet(
    shape: tuple[int, ...], labels: int = 0, channels: tuple[int, ...] | None = None, layers: int = 1
) -> "UNet":
    """Build a U-Net for images of ``shape``, its weights drawn from torch's global seed.

    Args:
        shape: of one image, ``(C, H, W)``.
        labels: the number of classes; 0 for an unconditional network.
        channels: of each level, from the image's size down; None takes (16, 32) up to 8 x 8, (32, 64) below 28 x 28,
            and (16, 32, 64) from there on, with a fourth level of 64 where 32 x 32 and more can be halved three times.
        layers: residual blocks a level.

    Raises:
        Refusal: if the image can't be halved once between each two levels, or a channel number is no multiple of 8.
    """
    if len(shape) != 3:
        raise Refusal(f"a U-Net needs images of shape (C, H, W); got {tuple(shape)}. For flat states take an MLP.")
    check_at_least("labels", labels, 0)
    check_at_least("layers", layers, 1)
    check_at_most("layers", layers, 1000)
    size = (shape[1], shape[2])
    widths = channels or _widths(size)
    check_at_most("channels", max(widths), 100_000)
    lower = len(widths) - 1
    if any(side % 2**lower for side in size):
        side = max(2**lower, max(size) // 2**lower * 2**lower)
        raise Refusal(
            f"{size[0]} x {size[1]} can't be halved {lower} times. Resize (your own pictures: --size {side}), or give "
            f"fewer channels: {widths}."
        )
    if any(width % _GROUP for width in widths):
        raise Refusal(f"channels must be multiples of {_GROUP}; got {widths}. Pass e.g. (32, 64).")
    network = UNet2DModel(
        sample_size=size,
        in_channels=shape[0],
        out_channels=shape[0],
        block_out_channels=widths,
        layers_per_block=layers,
        down_block_types=("DownBlock2D",) * lower + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * lower,
        attention_head_dim=_GROUP,
        norm_num_groups=_GROUP,
        num_class_embeds=labels + 1 if labels else None,
    )
    return UNet(network)


class UNet(nn.Module):
    """Raw network for images: ``(x_t, t, condition) -> output`` of x_t's shape, whatever it is read as.

    Time t is the timestep 1000 t - 1, as in :class:`~dagdiff.schedule.VPSchedule`: t = 1 is 999. The last row of the
    class embedding is "no label".

    Args:
        unet: a ``UNet2DModel``; conditional if it has class embeddings.
    """

    unet: Any  # a UNet2DModel, whose parts carry no types
    origin: nn.Linear | None  # reads the origin's time, in networks that are told of it

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet, self.origin = unet, None
        self.labels = int(self.unet.config.num_class_embeds or 1) - 1
        self.feature_size = int(self.unet.config.block_out_channels[-1])

    def forward(self, x_t: States, t: Times, condition: Condition = None, origin: Times | None = None) -> Tensor:
        """Return the raw output, ``(B, C, H, W)``."""
        unet, known = self.unet, self._known(t, condition, origin)
        hidden, skips = self._middle(x_t, known)
        for level in unet.up_blocks:
            taken = len(level.resnets)
            hidden, skips = level(hidden, skips[-taken:], known), skips[:-taken]
        output: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
        return output

    def features(self, x_t: States, t: Times, condition: Condition = None, origin: Times | None = None) -> Tensor:
        """Return the middle of the U, averaged over space, ``(B, F)``; the way up is not taken."""
        return self._middle(x_t, self._known(t, condition, origin))[0].mean((2, 3))

    def with_origin(self) -> "UNet":
        """Return a copy that can also be told an origin, the time ``(B,)`` at which the image it sees was predicted.

        At first it answers as this network does, whatever it is told. :meth:`save` leaves the origin's weights out.
        """
        twin = copy.deepcopy(self)
        widths = twin.unet.config.block_out_channels[0], twin.unet.time_embedding.linear_2.out_features
        twin.origin = nn.Linear(*widths).to(twin.unet.conv_in.weight)
        nn.init.zeros_(twin.origin.weight)
        nn.init.zeros_(twin.origin.bias)
        return twin

    def _middle(self, x_t: States, known: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The way down and the middle, and what the way up will join on."""
        hidden = self.unet.conv_in(x_t)
        skips: tuple[Tensor, ...] = (hidden,)
        for level in self.unet.down_blocks:
            hidden, passed = level(hidden, known)
            skips += passed
        return self.unet.mid_block(hidden, known), skips

    def _known(self, t: Times, condition: Condition, origin: Times | None) -> Tensor:
        """The embedding of all that is known beside the image: time, label, origin."""
        known: Tensor = self.unet.time_embedding(self._waves(t))
        rows = self._rows(t, condition)
        if rows is not None:
            known = known + self.unet.class_embedding(rows)
        if self.origin is not None and origin is not None:
            known = known + self.origin(self._waves(origin))
        return known

    def _waves(self, t: Times) -> Tensor:
        waves: Tensor = self.unet.time_proj(_timesteps(t)).to(self.unet.conv_in.weight.dtype)
        return waves

    def _rows(self, t: Times, condition: Condition) -> Tensor | None:
        """The row of each class embedding; a network without classes needs none."""
        if not self.labels:
            return None
        asked = torch.full(t.shape, -1, device=t.device) if condition is None else condition
        return torch.where(asked < 0, self.labels, asked)

    def save(self, folder: Path) -> None:
        """Write the configuration and the weights, as diffusers does: ``config.json`` and safetensors."""
        self.unet.save_pretrained(folder)
        follow_umask(Path(folder))

    @classmethod
    def load(cls, folder: Path) -> "UNet":
        """Read a folder that :meth:`save` wrote.

        Raises:
            Refusal: if a file is missing.
        """
        missing = [name for name in _FILES if not (Path(folder) / name).exists()]
        if missing:
            raise Refusal(f"no U-Net at {folder}: {missing[0]} is missing. Name a folder that save() wrote.")
        return cls(UNet2DModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).train())


def _widths(size: tuple[int, int]) -> tuple[int, ...]:
    """The lowest level attends, and attention over more than 8 x 8 places is what a CPU is slow at."""
    side = max(size)
    if side <= 8:
        return 16, 32
    if side < 28:
        return 32, 64
    return (16, 32, 64, 64) if side >= 32 and not any(each % 8 for each in size) else (16, 32, 64)


def _timesteps(t: Times) -> Tensor:
    return 1000.0 * t - 1.0


_GROUP = 8  # channels an attention head, and groups of a normalisation
_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
