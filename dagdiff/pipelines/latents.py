"""Where an expert's states live: pixels, or the latents of an autoencoder, scaled as its diffusion network wants them.

Images are floats in [-1, 1], ``(B, C, H, W)``. Latent diffusion (Rombach et al. 2021, https://arxiv.org/abs/2112.10752)
runs on z = scale (encode(x) - shift), about unit variance. Data are encoded once, and kept in a file. Latents have no
natural range: estimate one on them with ``QuantileBox.estimate``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dagdiff.checks import Refusal, check_in
from dagdiff.shapes import States


class Pixels:
    """No autoencoder: images are the states themselves.

    Args:
        shape: of an image, ``(C, H, W)``.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.image_shape = shape

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> States:
        """Return the images."""
        return _checked(images, self.image_shape)

    def decode(self, latents: States) -> Tensor:
        """Return the states."""
        return latents


class Autoencoder(nn.Module):
    """A diffusers autoencoder in float32, frozen: half precision overflows in some of them.

    Args:
        vae: AutoencoderKL, AutoencoderTiny or VQModel.
        size: of the latents, height and width.
        batch_size: images that go through it at once.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, vae: Any, size: tuple[int, int], batch_size: int = 8) -> None:
        super().__init__()
        check_in("autoencoder", type(vae).__name__, _LATENTS)
        self.vae, self.batch_size = vae.float().requires_grad_(False).eval(), batch_size
        config = vae.config
        factor = 2 ** (len(getattr(config, "block_out_channels", config.get("encoder_block_out_channels"))) - 1)
        self.image_shape = (config.in_channels, size[0] * factor, size[1] * factor)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        shift = mean if mean is not None else config.get("shift_factor") or 0.0
        scale = torch.tensor(config.scaling_factor) / torch.tensor(1.0 if std is None else std)
        self.register_buffer("scale", scale.reshape(-1, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(shift).reshape(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> States:
        """Return latents, ``(B, *D)``: drawn from the posterior with a generator, its mode without.

        Raises:
            Refusal: for images of another size, or whose values can't be pixels in [-1, 1].
        """
        _checked(images, self.image_shape)
        raw = _LATENTS[type(self.vae).__name__]
        chunks = images.to(self.scale.device, torch.float32).split(self.batch_size)
        return torch.cat([(raw(self.vae.encode(chunk), generator) - self.shift) * self.scale for chunk in chunks])

    @torch.no_grad()
    def decode(self, latents: States) -> Tensor:
        """Return images, ``(B, C, H, W)``."""
        chunks = (latents.float() / self.scale + self.shift).split(self.batch_size)
        return torch.cat([self.vae.decode(chunk).sample for chunk in chunks])


def _draw(posterior: Any, generator: torch.Generator | None) -> Tensor:
    latents: Tensor = posterior.latent_dist.mode() if generator is None else posterior.latent_dist.sample(generator)
    return latents


_LATENTS: dict[str, Callable[[Any, torch.Generator | None], Tensor]] = {
    "AutoencoderKL": _draw,
    "AutoencoderTiny": lambda answer, generator: answer.latents,
    "VQModel": lambda answer, generator: answer.latents,
}
"""How to take latents from what each autoencoder's ``encode`` answers."""


def _checked(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Refuse what can't be images of that shape in [-1, 1]; return them."""
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise Refusal(
            f"images must be (B, {', '.join(map(str, shape))}) for this expert; got {tuple(images.shape)}. Resize them."
        )
    if not images.is_floating_point() or not bool(images.abs().max() <= 1.001):
        got = f"{images.dtype} from {images.min():g} to {images.max():g}"
        raise Refusal(f"images must be floats in [-1, 1]; got {got}. Of bytes, pass images / 127.5 - 1.")
    return images
