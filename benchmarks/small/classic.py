"""The families of the first pipelines: DDPM, Stable Diffusion, SDXL, DiT, Stable Diffusion 3 and FLUX.1."""

from typing import Any

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)

SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def unet(**changes: Any) -> UNet2DModel:
    """A pixel UNet for 1 x 8 x 8 images."""
    usual = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DModel(**usual | changes)


def ddpm(scheduler: Any = None, **changes: Any) -> DDPMPipeline:
    """The family of google/ddpm-cifar10-32."""
    return DDPMPipeline(unet(**changes), scheduler or DDPMScheduler(variance_type="fixed_large", clip_sample=True))


def text_unet(**changes: Any) -> UNet2DConditionModel:
    """A text-conditional UNet for 4 x 8 x 8 latents."""
    usual = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DConditionModel(**usual | changes)


def vae(**changes: Any) -> AutoencoderKL:
    """An autoencoder that halves images once."""
    usual = {
        "block_out_channels": [8, 8],
        "norm_num_groups": 4,
        "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    }
    return AutoencoderKL(**usual | changes)


def clip(projected: bool = False) -> tuple[Any, Any]:
    """A CLIP text encoder, 16 wide, and a tokenizer of bytes."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16)
    config = CLIPTextConfig(
        hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2, vocab_size=514,
        max_position_embeddings=16, projection_dim=16, bos_token_id=512, pad_token_id=513, eos_token_id=513,
    )  # fmt: skip
    encoder: Any = CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)
    return encoder.eval(), tokenizer


def t5() -> tuple[Any, Any]:
    """A T5 encoder, 32 wide, and a tokenizer of letters."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    letters = [(chr(code), -3.0) for code in range(33, 127)]
    tokenizer = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), *letters], extra_ids=0)
    config = T5Config(vocab_size=len(letters) + 4, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval(), tokenizer


def stable_diffusion(scheduler: Any = None, **changes: Any) -> StableDiffusionPipeline:
    """The family of Stable Diffusion 1.x."""
    encoder, tokenizer = clip()
    scheduler = scheduler or PNDMScheduler(**SD_BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    return StableDiffusionPipeline(
        unet=text_unet(**changes), vae=vae(), text_encoder=encoder, tokenizer=tokenizer, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl(zeros: bool = True, scheduler: Any = None, **changes: Any) -> StableDiffusionXLPipeline:
    """The family of SDXL, SSD-1B included."""
    (one, tokenizer), (two, tokenizer_2) = clip(), clip(projected=True)
    network = text_unet(
        **{"cross_attention_dim": 32} | changes, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8, transformer_layers_per_block=(1, 1),
        use_linear_projection=True,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        unet=network, vae=vae(scaling_factor=0.13025), text_encoder=one, tokenizer=tokenizer, text_encoder_2=two,
        tokenizer_2=tokenizer_2, scheduler=scheduler or EulerDiscreteScheduler(**SD_BETAS, steps_offset=1),
        force_zeros_for_empty_prompt=zeros, add_watermarker=False,
    )  # fmt: skip


def dit() -> DiTPipeline:
    """The family of facebook/DiT-XL-2-256: 1000 classes, a null class, a learned variance."""
    network: Any = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        norm_num_groups=4, num_embeds_ada_norm=1000,
    )  # fmt: skip
    return DiTPipeline(network.eval(), vae(), DDIMScheduler(clip_sample=False))


def sd3() -> StableDiffusion3Pipeline:
    """The family of Stable Diffusion 3, without its third encoder."""
    (one, tokenizer), (two, tokenizer_2) = clip(projected=True), clip(projected=True)
    network = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=8, pooled_projection_dim=32,
        pos_embed_max_size=8,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=network, vae=vae(scaling_factor=1.5305, shift_factor=0.0609), text_encoder=one, tokenizer=tokenizer,
        text_encoder_2=two, tokenizer_2=tokenizer_2, text_encoder_3=None, tokenizer_3=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def flux(distilled: bool = True) -> FluxPipeline:
    """The family of FLUX.1: dev if distilled from guidance, else schnell."""
    (one, tokenizer), (two, tokenizer_2) = clip(), t5()
    network = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=distilled,
    )  # fmt: skip
    return FluxPipeline(
        transformer=network, vae=vae(scaling_factor=0.3611, shift_factor=0.1159), text_encoder=one, tokenizer=tokenizer,
        text_encoder_2=two, tokenizer_2=tokenizer_2, scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )  # fmt: skip
