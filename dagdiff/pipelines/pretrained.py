"""Experts from diffusers pipelines: a teacher that others have trained, from a folder or from the hub.

A pipeline is a network, a scheduler, and perhaps an autoencoder and text encoders around them. What an expert needs of
it is little: the noise law its network was trained under (:mod:`dagdiff.pipelines.noise_law`), the way it is asked
(:mod:`dagdiff.pipelines.families`), what a condition's number means to it (:mod:`dagdiff.pipelines.conditions`), and
the space of its states (:mod:`dagdiff.pipelines.latents`). Its sampler, guidance and safety checker stay behind::

    teacher = DiffusersExpert.from_pretrained("google/ddpm-cifar10-32")
    expert = Expert(teacher, teacher.schedule, threshold=teacher.threshold)

Importing this module imports diffusers.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dagdiff.checks import Refusal, check_in
from dagdiff.expert import Guide, Weight, classifier_free
from dagdiff.pipelines.conditions import PromptBank, read_prompts
from dagdiff.pipelines.families import Family, Wanted
from dagdiff.pipelines.families.named import family_of
from dagdiff.pipelines.latents import Autoencoder, Pixels, kind_of
from dagdiff.pipelines.loading import PRECISIONS, load_pipeline
from dagdiff.pipelines.noise_law import NoiseLaw, read_noise_law
from dagdiff.pipelines.prompts import cut_off
from dagdiff.pipelines.suited import few_step_sign
from dagdiff.policies.student import Student
from dagdiff.shapes import Condition, States, Times, column


class PretrainedNetwork(nn.Module):
    """A diffusers network read as dagdiff's raw network: ``(x_t, t, condition) -> output``, like ``networks.MLP``.

    States keep their own precision; the network works in its own.

    Args:
        body: the diffusers model.
        family: how it is asked.
        conditions: what a condition's numbers mean to it.
        law: its noise law, for its clock.
    """

    body: Any  # a diffusers model

    def __init__(self, body: nn.Module, family: Family, conditions: nn.Module, law: NoiseLaw) -> None:
        super().__init__()
        self.body, self.family, self.conditions, self.law = body, family, conditions, law

    def forward(self, x_t: States, t: Times, condition: Condition = None) -> Tensor:
        """Return the raw output, ``(B, *D)``; of a network that tells a variance too, the first half."""
        given = self.conditions(condition, x_t)
        output = self._asking(condition)(self.body, x_t.to(self.body.dtype), self.law.timestep(t), given)
        return output[:, : x_t.shape[1]].to(x_t.dtype)

    def features(self, x_t: States, t: Times, condition: Condition = None) -> Tensor:
        """Return what the middle of the network makes of states, averaged over their places, ``(B, F)``.

        A GAN's head judges by it. The whole network is asked.
        """
        seen: list[Any] = []
        layer = self._middle()
        watching = layer.register_forward_hook(lambda module, given, answer: seen.append(answer))
        try:
            self.forward(x_t, t, condition)  # not the compiled call, which sees no hook
        finally:
            watching.remove()
        hidden: Tensor = seen[0][-1] if isinstance(seen[0], tuple) else seen[0]
        return hidden.mean((2, 3) if hidden.ndim == 4 else 1).to(x_t.dtype)

    @property
    def feature_size(self) -> int:
        """F, the width of :meth:`features`.

        Raises:
            Refusal: if the network has no such layer.
        """
        self._middle()
        return self.family.width(self.body.config)

    def _middle(self) -> nn.Module:
        found = self.family.middle(self.body)
        if found is None:
            raise Refusal(
                f"a {type(self.body).__name__} has no layer that a GAN's head could judge by. Leave gan_weight at 0, "
                "or name a family of your own that has one (middle and width)."
            )
        return found

    def hear_weights(self) -> None:
        """Give the network an input for the weights of guidance that its conditions hold, if they hold any.

        It changes nothing at first. A network that has one keeps it.
        """
        weights = getattr(self.conditions, "range", None)
        if weights is not None:
            self.family.hear(self.body)
            self.family = self.family.telling(sum(weights) / 2)

    def _asking(self, condition: Condition) -> Family:
        """The family, which tells the network the weight of each row where conditions hold weights."""
        weigh = getattr(self.conditions, "weights", None)
        weights = None if weigh is None else weigh(condition)
        if weights is None or self.family.embedded(self.body.config) is None:
            return self.family
        return self.family.telling(weights)


class DiffusersExpert:
    """A frozen teacher, ``(x_t, t, condition) -> x0``, on its own ``schedule``.

    Its threshold is not applied here but handed to ``Expert(threshold=...)``: guidance comes first.

    Args:
        network: the teacher; it is frozen.
        shape: of one state, ``(C, H, W)``.
        autoencoder: to and from images.
        few_step: what says that it is a few-step model already, and so no teacher; None if nothing does.
        cut_off: which of its prompts is too long for its encoders, in words; None if there is none.
    """

    def __init__(
        self,
        network: PretrainedNetwork,
        shape: tuple[int, int, int],
        autoencoder: Pixels | Autoencoder,
        few_step: str | None = None,
        cut_off: str | None = None,
    ) -> None:
        self.few_step, self.cut_off = few_step, cut_off
        self.network, self.shape, self.autoencoder = network.requires_grad_(False).eval(), shape, autoencoder
        law = network.law
        self.schedule, self.prediction, self.threshold = law.schedule, law.prediction, law.threshold

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        prompts: str | Path | Sequence[str] | PromptBank = (),
        sample_size: int | None = None,
        null_class: int | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        variant: str | None = None,
        family: Family | None = None,
        allow_pickle: bool = False,
        captions: Sequence[str] = (),
        asked: bool = False,
    ) -> "DiffusersExpert":
        """Load a pipeline's network and what belongs to it.

        Args:
            path: a folder that ``save_pretrained`` wrote, or a hub id.
            prompts: of a text-to-image pipeline: the prompts themselves, or a file: of a prompt a line, or
                (.safetensors) a saved :class:`~dagdiff.pipelines.conditions.PromptBank`, which needs no text encoder;
                or such a bank.
            sample_size: the side of the states, if not the network's usual one.
            null_class: the class that stands for none, if the network was trained with one.
            dtype: the network's precision: float32, bfloat16 or float16; its autoencoder stays in float32.
            device: where the network goes, and where prompts are embedded.
            variant: of the weight files, such as fp16.
            family: how the network is asked, where it is not one of ``FAMILIES`` or is to be asked otherwise.
            allow_pickle: read weights from pickles (.bin) where there are no safetensors; a pickle can run code.
            captions: of pictures: prompts too, if the pipeline takes any and they are not in a bank already.
            asked: of many prompts, embed only those that the network is asked with, unless all are in the cache: for
                samples, which show few. The text encoders stay in memory.

        Raises:
            Refusal: if there is no such pipeline, it is incomplete, or its network can't be served.
        """
        precision = PRECISIONS[check_in("dtype", dtype, PRECISIONS)]
        wanted = as_prompts(prompts)
        pipeline, network = load_pipeline(path, precision, variant, allow_pickle, bank=isinstance(wanted, PromptBank))
        if family is None:
            family = family_of(network)
        if not isinstance(wanted, PromptBank) and hasattr(pipeline, "encode_prompt"):
            there = set(wanted)
            wanted += [caption for caption in dict.fromkeys(captions) if caption not in there]
        vae = getattr(pipeline, "vae", getattr(pipeline, "vqvae", None))
        law = read_noise_law(pipeline.scheduler, latent=vae is not None)
        shape = _shape(network, family, vae, sample_size)
        size = (shape[1], shape[2])
        law = replace(law, spacing=partial(family.spacing, network.config, size))
        autoencoder = Pixels(shape) if vae is None else Autoencoder(vae, size).to(device)
        for name, part in pipeline.components.items():
            if part is network or (part is not None and name.startswith("text_encoder")):
                part.to(device)
        pixels = (autoencoder.image_shape[1], autoencoder.image_shape[2])
        told = Wanted(wanted, null_class, pixels, asked)
        conditions = family.conditions(network, pipeline, told).to(device, precision)
        sign = few_step_sign(path, pipeline.config, pipeline.scheduler, network)
        cut = None if isinstance(wanted, PromptBank) or not wanted else cut_off(pipeline, wanted)
        return cls(PretrainedNetwork(network, family, conditions, law), shape, autoencoder, sign, cut)

    def guided(self, weight: float) -> float:
        """Tell the network a weight of guidance, if it is one that is told any; return the weight that is left.

        Networks distilled from guidance (FLUX.1-dev) hear it as an input, and guiding their answers once more would
        overdo it: 1 is left. All others know nothing of it, and the whole weight is left to
        :class:`~dagdiff.expert.Expert`. With a weight of 1, which is none, they keep their usual one.
        """
        family = self.network.family
        if family.embedded(self.network.body.config) is None:
            return weight
        if weight != 1.0:
            self.network.family = family.telling(weight)
        return 1.0

    def unmet(self, guidance: float | tuple[float, float]) -> float | Callable[[Tensor], Tensor]:
        """Return the guidance that is left to :class:`~dagdiff.expert.Expert`, when the network has been told its part.

        Of a range that is what tells the weights of conditions.
        """
        if self.network.family.embedded(self.network.body.config) is not None:
            return 1.0
        if not isinstance(guidance, tuple):
            return guidance
        weigh: Callable[[Tensor], Tensor] = self.network.conditions.weights  # type: ignore[assignment]
        return weigh

    @property
    def guide(self) -> Guide:
        """What guidance makes of two guesses, as the pipeline's own call does it."""
        return self._in_answers if self.network.family.bends_guidance else classifier_free

    def _in_answers(self, x_t: States, t: Times, told: States, free: States, weight: Weight) -> States:
        """Guide what the network answers, which some pipelines scale, and not the guesses."""
        alpha, sigma = (column(values, x_t) for values in self.schedule(t))
        one, other = (self.prediction.from_x0(x_t, guess, alpha, sigma) for guess in (told, free))
        return self.prediction.guess(x_t, self.network.family.guided(one, other, weight), t, self.schedule)

    @torch.no_grad()
    def __call__(self, x_t: States, t: Times, condition: Condition = None) -> States:
        """Return the guess of x0, ``(B, C, H, W)``, without guidance or threshold.

        Raises:
            Refusal: for states of another shape than the teacher's, or a condition it can't take.
        """
        if tuple(x_t.shape[1:]) != self.shape:
            want = ", ".join(map(str, self.shape))
            raise Refusal(
                f"this expert's states are (B, {want}); got {tuple(x_t.shape)}. Encode images with its autoencoder, or "
                "pass sample_size."
            )
        return self.prediction.guess(x_t, self.network(x_t, t, condition), t, self.schedule)

    def to(self, device: torch.device | str) -> "DiffusersExpert":
        """Move the expert to ``device``; return it."""
        self.network.to(device)
        if isinstance(self.autoencoder, nn.Module):
            self.autoencoder.to(device)
        return self

    def student(self) -> Student:
        """Return a student that starts as the teacher: its own weights to train, the same prompt bank."""
        network = copy.deepcopy(self.network)
        network.hear_weights()
        return Student(network.requires_grad_(True), self.schedule, self.prediction)


def as_prompts(prompts: str | Path | Sequence[str] | PromptBank, column: str | None = None) -> PromptBank | list[str]:
    """Read prompts (of a table's ``column``) or their bank from a file, or take them as they are."""
    if not isinstance(prompts, str | Path):
        return prompts if isinstance(prompts, PromptBank) else list(prompts)
    path = Path(prompts)
    return PromptBank.load(path) if path.suffix == ".safetensors" else read_prompts(path, column)


def _shape(network: Any, family: Family, vae: Any, sample_size: int | None) -> tuple[int, int, int]:
    """Return the shape of the network's states; refuse a network whose states are not all that it takes and tells."""
    name, (taken, told) = type(network).__name__, family.channels(network.config)
    channels = taken if vae is None else kind_of(vae).channels(vae)
    if taken != channels:
        raise Refusal(
            f"{name} takes {taken} channels, and states have {channels}: it wants more than a noisy state (inpainting, "
            "depth, upscaling). Name a text-to-image, class-conditional or unconditional pipeline."
        )
    if told not in (channels, 2 * channels):
        raise Refusal(
            f"{name} answers with {told} channels; a guess of the state has {channels}, or {2 * channels} with a "
            "variance. It is no denoiser of its own input."
        )
    size = sample_size or family.size(network.config)
    if size is None:
        raise Refusal(f"{name} tells no sample_size in its configuration. Pass sample_size, the side of its states.")
    height, width = (int(side) for side in (size if isinstance(size, list | tuple) else (size, size)))
    multiple = family.multiple(network.config)
    if height % multiple or width % multiple:
        raise Refusal(f"sample_size must be a multiple of {multiple} for this {name}; got {height} x {width}.")
    return channels, height, width
