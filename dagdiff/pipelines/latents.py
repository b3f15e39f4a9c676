"""Where an expert's states live: pixels, or the latents of an autoencoder, scaled as its diffusion network wants them.

Images are floats in [-1, 1], ``(B, C, H, W)``. Latent diffusion (Rombach et al. 2021, https://arxiv.org/abs/2112.10752)
runs on z = scale (encode(x) - shift), about unit variance. Data are encoded once, and kept in a file. Latents have no
natural range: estimate one on them with ``QuantileBox.estimate``.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

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
        vae: one of those that :data:`KINDS` names.
        size: of the latents, height and width.
        batch_size: images that go through it at once.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, vae: Any, size: tuple[int, int], batch_size: int = 8) -> None:
        super().__init__()
        self.kind = kind_of(vae)
        self.vae, self.batch_size = vae.float().requires_grad_(False).eval(), batch_size
        cell = self.kind.cell(vae)
        self.image_shape = (self.kind.colours(vae), size[0] * cell, size[1] * cell)
        shift, scale = self.kind.moments(vae)
        self.register_buffer("scale", scale.float().reshape(-1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().reshape(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> States:
        """Return latents, ``(B, *D)``: drawn from the posterior with a generator, its mode without.

        Raises:
            Refusal: for images of another size, or whose values can't be pixels in [-1, 1].
        """
        _checked(images, self.image_shape)
        chunks = images.to(self.scale.device, torch.float32).split(self.batch_size)
        raw = (self.kind.latents(self.vae, chunk, generator) for chunk in chunks)
        return torch.cat([(each - self.shift) * self.scale for each in raw])

    @torch.no_grad()
    def decode(self, latents: States) -> Tensor:
        """Return images, ``(B, C, H, W)``."""
        chunks = (latents.float() / self.scale + self.shift).split(self.batch_size)
        return torch.cat([self.kind.images(self.vae, chunk) for chunk in chunks])


class Kind:
    """How a kind of autoencoder is asked: that of Stable Diffusion, from which others differ in little."""

    def channels(self, vae: Any) -> int:
        """Return the channels of a latent."""
        return int(vae.config.latent_channels)

    def colours(self, vae: Any) -> int:
        """Return the channels of an image."""
        return int(vae.config.in_channels)

    def cell(self, vae: Any) -> int:
        """Return how many pixels a side of one place of a latent has."""
        config = vae.config
        levels = config.get("block_out_channels") or config.get("encoder_block_out_channels")
        return int(2 ** (len(levels) - 1))

    def moments(self, vae: Any) -> tuple[Tensor, Tensor]:
        """Return shift and scale of latents as the networks know them, a number or one a channel."""
        config = vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        shift = mean if mean is not None else config.get("shift_factor") or 0.0
        scale = torch.tensor(config.get("scaling_factor", 1.0)) / torch.tensor(1.0 if std is None else std)
        return torch.tensor(shift), scale

    def latents(self, vae: Any, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Encode images, before shift and scale; with a generator draw from the posterior."""
        return _drawn(vae.encode(images), generator)

    def images(self, vae: Any, latents: Tensor) -> Tensor:
        """Decode latents after shift and scale."""
        images: Tensor = vae.decode(latents).sample
        return images


class Plain(Kind):
    """An autoencoder without posterior: ``AutoencoderTiny``, ``VQModel``, Sana's ``AutoencoderDC``."""

    def latents(self, vae: Any, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Encode; nothing is drawn."""
        answer = vae.encode(images)
        latents: Tensor = answer.latent if hasattr(answer, "latent") else answer.latents
        return latents


class OneFrame(Kind):
    """Qwen-Image's autoencoder of films, which takes a picture as a film of one frame."""

    def channels(self, vae: Any) -> int:
        """Return the channels of a latent."""
        return int(vae.config.z_dim)

    def colours(self, vae: Any) -> int:
        """Return the channels of an image."""
        return int(vae.config.get("input_channels", 3))

    def cell(self, vae: Any) -> int:
        """A halving a level."""
        return int(2 ** len(vae.config.temperal_downsample))

    def latents(self, vae: Any, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Encode a film of one frame."""
        return _drawn(vae.encode(images.unsqueeze(2)), generator).squeeze(2)

    def images(self, vae: Any, latents: Tensor) -> Tensor:
        """Decode a film of one frame."""
        images: Tensor = vae.decode(latents.unsqueeze(2)).sample
        return images.squeeze(2)


class Patches(Kind):
    """FLUX.2's autoencoder: a place of a state is a patch of latents, scaled by running means and variances."""

    def channels(self, vae: Any) -> int:
        """Return the channels of a patch."""
        return int(vae.bn.num_features)

    def cell(self, vae: Any) -> int:
        """Return the pixels of a side of a patch."""
        return super().cell(vae) * int(vae.config.patch_size[0])

    def moments(self, vae: Any) -> tuple[Tensor, Tensor]:
        """Return those of its batch norm."""
        variance = vae.bn.running_var + vae.config.batch_norm_eps
        return vae.bn.running_mean, variance.rsqrt()

    def latents(self, vae: Any, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Encode, and take a patch as one place."""
        return pixel_unshuffle(_drawn(vae.encode(images), generator), int(vae.config.patch_size[0]))

    def images(self, vae: Any, latents: Tensor) -> Tensor:
        """Take a place as a patch, and decode."""
        images: Tensor = vae.decode(pixel_shuffle(latents, int(vae.config.patch_size[0]))).sample
        return images


KINDS: dict[str, Kind] = {
    "AutoencoderKL": Kind(),
    "AutoencoderTiny": Plain(),
    "VQModel": Plain(),
    "AutoencoderDC": Plain(),
    "AutoencoderKLQwenImage": OneFrame(),
    "AutoencoderKLFlux2": Patches(),
}
"""The autoencoders that are served, by their class in diffusers."""


def kind_of(vae: Any) -> Kind:
    """Return how an autoencoder is asked; refuse one that is not known."""
    return KINDS[check_in("autoencoder", type(vae).__name__, KINDS)]


def _drawn(answer: Any, generator: torch.Generator | None) -> Tensor:
    """The latents of a posterior: drawn with a generator, its mode without."""
    posterior = answer.latent_dist
    latents: Tensor = posterior.mode() if generator is None else posterior.sample(generator)
    return latents


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
