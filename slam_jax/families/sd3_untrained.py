"""A small Stable Diffusion 3 before it is trained."""

from typing import Any

import numpy as np

from slam_jax.config.pretraining import Pretraining
from slam_jax.families.pipeline import Params
from slam_jax.families.sd3 import StableDiffusion3
from slam_jax.families.sd3_folder import CLIPS
from slam_jax.families.untrained import Untrained
from slam_jax.models import functional
from slam_jax.models.clip import CLIPTextConfig
from slam_jax.models.mmdit import PATCH, SD3Config, SD3Transformer2DModel
from slam_jax.models.vae import SD3VAEConfig, VAEConfig

SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 1.0,  # larger ones are for larger pictures
}

# The ends of the paths of weights that start at zero.
FROM_ZERO = ("norm1.linear.kernel", "norm1_context.linear.kernel", "proj_out.kernel")


class UntrainedStableDiffusion3(Untrained):
    """A transformer and two text encoders of CLIP, without T5."""

    model = StableDiffusion3
    pipeline_class = "StableDiffusion3Pipeline"
    vae_class = SD3VAEConfig
    denoiser_classes = SD3Transformer2DModel, SD3Config
    text_encoders = CLIPS
    patch = PATCH

    @classmethod
    def of_denoiser(cls, vae: VAEConfig, text: CLIPTextConfig, config: Pretraining) -> Any:
        names = ("num_attention_heads", "attention_head_dim")
        heads = [config.transformer.get(name, getattr(SD3Config, name)) for name in names]
        width = {} if None in heads else {"caption_projection_dim": heads[0] * heads[1]}
        return {
            **width,
            "joint_attention_dim": len(CLIPS) * text.hidden_size,
            "pooled_projection_dim": len(CLIPS) * (text.projection_dim or 0),
            "pos_embed_max_size": config.data.resolution // (vae.downscale * PATCH),
        }

    @classmethod
    def begun(cls, weights: Params) -> Params:
        """Blocks that change nothing, and an answer of zero (adaLN-Zero: Peebles and Xie 2023,
        arXiv 2212.09748, section 3.2)."""
        return functional.unflatten(
            {
                path: np.zeros_like(array) if path.endswith(FROM_ZERO) else array
                for path, array in functional.flatten(weights).items()
            }
        )

    @classmethod
    def scheduler(cls, config: Pretraining) -> dict[str, Any]:
        return dict(SCHEDULER)
