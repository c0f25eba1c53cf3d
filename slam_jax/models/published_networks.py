"""The published Stable Diffusions whose LoRAs are about: which layers their networks have."""

import functools
from collections.abc import Mapping

from slam_jax.models import functional
from slam_jax.models.clip import CLIPTextConfig, CLIPTextModel
from slam_jax.models.functional import Params, flatten
from slam_jax.models.mmdit import SD3Config, SD3Transformer2DModel
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig

# What their UNets have unlike the defaults.
UNETS = {
    "SD 1.5": UNetConfig(cross_attention_dim=768),
    "SD 2.x": UNetConfig(
        cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
    ),
    "SDXL": UNetConfig(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        cross_attention_dim=2048,
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
}
# What their transformers have.
TRANSFORMERS = {
    "SD 3 medium": SD3Config(
        num_layers=24,
        num_attention_heads=24,
        caption_projection_dim=1536,
        pos_embed_max_size=192,
    ),
    "SD 3.5 medium": SD3Config(
        num_layers=24,
        num_attention_heads=24,
        caption_projection_dim=1536,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)),
        qk_norm="rms_norm",
    ),
}
CLIP_L = CLIPTextConfig(
    hidden_size=768, intermediate_size=3072, projection_dim=768, num_attention_heads=12
)
OPEN_CLIP_H = CLIPTextConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=23,
    num_attention_heads=16,
    hidden_act="gelu",
)
OPEN_CLIP_BIG_G = CLIPTextConfig(
    hidden_size=1280,
    intermediate_size=5120,
    projection_dim=1280,
    num_hidden_layers=32,
    num_attention_heads=20,
    hidden_act="gelu",
    projection=True,
)
TEXT_ENCODERS = {
    "SD 1.5": {"text_encoder": CLIP_L},
    "SD 2.x": {"text_encoder": OPEN_CLIP_H},
    "SDXL": {"text_encoder": CLIP_L, "text_encoder_2": OPEN_CLIP_BIG_G},
    **dict.fromkeys(TRANSFORMERS, {"text_encoder": CLIP_L, "text_encoder_2": OPEN_CLIP_BIG_G}),
}
# Part of a model -> dotted path of a layer -> shape of its kernel, [in, out] or [H, W, in, out].
Layers = dict[str, dict[str, tuple[int, ...]]]


def kernel_shapes(parts: Mapping[str, Params]) -> Layers:
    """The linear layers and convolutions of a model.

    Args:
      parts: arrays or shapes of "denoiser", "text_encoder", ...
    """
    return {
        part: {
            path.removesuffix(".kernel"): tuple(leaf.shape)
            for path, leaf in flatten(params).items()
            if path.endswith(".kernel")
        }
        for part, params in parts.items()
    }


@functools.cache
def published_layers(base: str) -> Layers:
    """Those of a published model, from shapes alone; SDXL's take some seconds.

    Args:
      base: one of UNETS or TRANSFORMERS.
    """
    if base in UNETS:
        denoiser = functional.abstract_params(UNet2DConditionModel, UNETS[base])
    else:
        denoiser = functional.abstract_params(SD3Transformer2DModel, TRANSFORMERS[base])
    shapes = {"denoiser": denoiser}
    for part, config in TEXT_ENCODERS[base].items():
        shapes[part] = functional.abstract_params(CLIPTextModel, config)
    return kernel_shapes(shapes)
