"""The newer families: Qwen-Image, Z-Image, FLUX.2, PixArt, Sana, Lumina 2, AuraFlow and HunyuanDiT.

Where a pipeline asks a large language model for embeddings, a small Qwen stands in for all of them: what counts is how
its answers are read.
"""

from typing import Any

from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    StableDiffusionXLPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from dagdiff.benchmarks.small.classic import sdxl, t5, vae

SHIFTING = {"use_dynamic_shifting": True, "shift": 3.0}
TEMPLATE = """{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}
{{- m['content'][0]['text'] }}{% endif %}{% endfor %}"""


def qwen(layers: int = 2) -> tuple[Any, Any]:
    """A causal language model, 16 wide, and a tokenizer of bytes that knows a template of chats."""
    from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    words = [*bytes_to_unicode().values(), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=4096)
    tokenizer.chat_template = TEMPLATE
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=4096,
    )  # fmt: skip
    return Qwen3Model(config).eval(), tokenizer


def kolors() -> StableDiffusionXLPipeline:
    """SDXL as Kolors changes it: embeddings that the network projects, and a clock of 1100 timesteps.

    Its own pipeline needs the package sentencepiece.
    """
    betas = {"beta_start": 0.00085, "beta_end": 0.014, "beta_schedule": "scaled_linear"}
    scheduler = EulerDiscreteScheduler(num_train_timesteps=1100, **betas, steps_offset=1)
    return sdxl(scheduler=scheduler, cross_attention_dim=16, encoder_hid_dim=32, encoder_hid_dim_type="text_proj")


def deep_vae() -> Any:
    """An autoencoder that halves images three times, as pipelines take for granted that count in eights."""
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    return vae(block_out_channels=[8] * 4, scaling_factor=0.3611, shift_factor=0.1159, **kinds)


def qwen_image() -> QwenImagePipeline:
    """The family of Qwen-Image."""
    encoder, tokenizer = qwen()
    network = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    coder = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 1.5],
    )  # fmt: skip
    spaced = {"base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **spaced), vae=coder, text_encoder=encoder,
        tokenizer=tokenizer, transformer=network,
    )  # fmt: skip


def z_image() -> ZImagePipeline:
    """The family of Z-Image."""
    encoder, tokenizer = qwen()
    network = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[4, 4, 8], axes_lens=[1024, 64, 64],
    )  # fmt: skip
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=encoder, tokenizer=tokenizer, transformer=network,
    )  # fmt: skip


def _flux2_parts(layers: int, told: bool) -> dict[str, Any]:
    encoder, tokenizer = qwen(layers)
    network = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=told,
    )  # fmt: skip
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    coder: Any = AutoencoderKLFlux2(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **kinds)
    coder.bn.running_mean.uniform_(-1.0, 1.0)
    coder.bn.running_var.uniform_(0.5, 2.0)
    scheduler = FlowMatchEulerDiscreteScheduler(**SHIFTING)
    return {
        "scheduler": scheduler,
        "vae": coder,
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "transformer": network,
    }


def flux2() -> Flux2Pipeline:
    """The family of FLUX.2-dev, which is told a weight of guidance."""
    return Flux2Pipeline(**_flux2_parts(31, told=True))


def flux2_klein() -> Flux2KleinPipeline:
    """The family of FLUX.2-klein's base models, which are guided as usual."""
    return Flux2KleinPipeline(**_flux2_parts(28, told=False))


def _pixart(**changes: Any) -> dict[str, Any]:
    encoder, tokenizer = t5()
    network = PixArtTransformer2DModel(
        num_attention_heads=3, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
        cross_attention_dim=24, caption_channels=32, **changes,
    )  # fmt: skip
    return {
        "tokenizer": tokenizer, "text_encoder": encoder, "vae": vae(), "transformer": network,
        "scheduler": DPMSolverMultistepScheduler(),
    }  # fmt: skip


def pixart_alpha() -> PixArtAlphaPipeline:
    """The family of PixArt-alpha at 1024 pixels, which is told the size of images."""
    return PixArtAlphaPipeline(**_pixart(sample_size=128))


def pixart_sigma() -> PixArtSigmaPipeline:
    """The family of PixArt-sigma."""
    return PixArtSigmaPipeline(**_pixart(sample_size=8))


def sana() -> SanaPipeline:
    """The family of Sana."""
    encoder, tokenizer = qwen()
    network = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
        sample_size=8,
    )  # fmt: skip
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in _BLOCKS.items()}
    coder = AutoencoderDC(latent_channels=4, scaling_factor=0.41407, **sides)
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return SanaPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=coder, transformer=network,
        scheduler=DPMSolverMultistepScheduler(**flow),
    )  # fmt: skip


_BLOCKS = {"block_out_channels": (8, 8, 8), "layers_per_block": (1, 1, 1), "qkv_multiscales": ((), (), ())}


def lumina2() -> Lumina2Pipeline:
    """The family of Lumina-Image 2."""
    encoder, tokenizer = qwen()
    network = Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1,
        num_attention_heads=3, num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 2, 2), axes_lens=(300, 64, 64),
        cap_feat_dim=16,
    )  # fmt: skip
    return Lumina2Pipeline(
        transformer=network, scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0), vae=deep_vae(), text_encoder=encoder,
        tokenizer=tokenizer,
    )  # fmt: skip


def auraflow() -> AuraFlowPipeline:
    """The family of AuraFlow."""
    encoder, tokenizer = t5()
    network = AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16,
        pos_embed_max_size=64,
    )  # fmt: skip
    _louder(network)
    return AuraFlowPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=vae(), transformer=network,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )  # fmt: skip


def _louder(network: Any) -> None:
    """Make the weights of a network large enough for prompts to count."""
    for weight in network.parameters():
        weight.data.mul_(2.0)


def hunyuan() -> HunyuanDiTPipeline:
    """The family of HunyuanDiT."""
    (one, tokenizer), (two, tokenizer_2) = t5(), t5()
    network: Any = HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, patch_size=2, sample_size=8, hidden_size=16,
        num_layers=4, cross_attention_dim=32, cross_attention_dim_t5=32, pooled_projection_dim=16,
    )  # fmt: skip
    betas = {"beta_start": 0.00085, "beta_end": 0.018, "beta_schedule": "scaled_linear"}
    return HunyuanDiTPipeline(
        vae=deep_vae(), text_encoder=one, tokenizer=tokenizer, transformer=network.eval(),
        scheduler=DDPMScheduler(**betas, prediction_type="v_prediction", clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False, text_encoder_2=two,
        tokenizer_2=tokenizer_2,
    )  # fmt: skip
