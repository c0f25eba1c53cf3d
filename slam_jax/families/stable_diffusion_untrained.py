"""A small Stable Diffusion 1 before it is trained."""

from typing import Any

from slam_jax.config.pretraining import Pretraining
from slam_jax.families.stable_diffusion import StableDiffusion
from slam_jax.families.untrained import Untrained
from slam_jax.models.clip import CLIPTextConfig
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig
from slam_jax.models.vae import VAEConfig

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "timestep_spacing": "trailing",  # the steps of `Schedule.teacher_timesteps`, to alpha = 1
    "set_alpha_to_one": True,
    "steps_offset": 1,  # of no effect here; diffusers warns of any other
}


class UntrainedStableDiffusion(Untrained):
    """A UNet and one text encoder."""

    model = StableDiffusion
    pipeline_class = "StableDiffusionPipeline"
    vae_class = VAEConfig
    denoiser_classes = UNet2DConditionModel, UNetConfig
    text_encoders = ("text_encoder",)

    @classmethod
    def of_denoiser(cls, vae: VAEConfig, text: CLIPTextConfig, config: Pretraining) -> Any:
        return {"cross_attention_dim": text.hidden_size}

    @classmethod
    def scheduler(cls, config: Pretraining) -> dict[str, Any]:
        return {**SCHEDULER, "prediction_type": config.prediction_type}
