"""How each family of diffusers networks is asked, a file a family; :data:`FAMILIES` finds them by their networks."""

from dagdiff.pipelines.families.auraflow import AuraFlow
from dagdiff.pipelines.families.base import Family, Wanted
from dagdiff.pipelines.families.dit import DiT
from dagdiff.pipelines.families.flux import Flux
from dagdiff.pipelines.families.flux2 import Flux2
from dagdiff.pipelines.families.hunyuan import HunyuanDiT
from dagdiff.pipelines.families.lumina2 import Lumina2
from dagdiff.pipelines.families.pixart import PixArt
from dagdiff.pipelines.families.qwen import QwenImage
from dagdiff.pipelines.families.sana import Sana
from dagdiff.pipelines.families.sd3 import SD3
from dagdiff.pipelines.families.unet import ImageUNet, TextUNet
from dagdiff.pipelines.families.z_image import ZImage

__all__ = ["FAMILIES", "Family", "Flux", "ImageUNet", "TextUNet", "Wanted"]

FAMILIES: dict[str, Family] = {
    "UNet2DModel": ImageUNet(),
    "UNet2DConditionModel": TextUNet(),
    "DiTTransformer2DModel": DiT(),
    "SD3Transformer2DModel": SD3(),
    "FluxTransformer2DModel": Flux(),
    "Flux2Transformer2DModel": Flux2(),
    "QwenImageTransformer2DModel": QwenImage(),
    "ZImageTransformer2DModel": ZImage(),
    "PixArtTransformer2DModel": PixArt(),
    "SanaTransformer2DModel": Sana(),
    "Lumina2Transformer2DModel": Lumina2(),
    "HunyuanDiT2DModel": HunyuanDiT(),
    "AuraFlowTransformer2DModel": AuraFlow(),
}
"""The families that are served, by the class of their network in diffusers."""
