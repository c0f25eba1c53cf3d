"""Stable Diffusion 1.x, 2.x and SDXL."""

from pathlib import Path

from slam_jax.families import stable_diffusion_folder as files
from slam_jax.families.pipeline import Params
from slam_jax.families.published_model import PublishedModel
from slam_jax.families.stable_diffusion_pipeline import StableDiffusionPipeline
from slam_jax.formats.diffusers_folder import Folder, read_model_index
from slam_jax.method.method import Method


class StableDiffusion(PublishedModel):
    """A teacher in a folder or on the hub."""

    name = "stable_diffusion"
    denoiser_folder = "unet"
    few_steps = f"{files.RECORD_FILE}, time_cond_proj_dim or {' or '.join(files.FEW_STEPS)}"
    pipeline: StableDiffusionPipeline

    @classmethod
    def reads(cls, folder: Path) -> bool:
        # Also one that it will refuse by its class.
        return (folder / "model_index.json").exists() or super().reads(folder)

    @classmethod
    def read_pipeline(
        cls, folder: Folder, height: int | None, width: int | None
    ) -> StableDiffusionPipeline:
        return files.read_pipeline(folder, height, width)

    @classmethod
    def read_denoiser(cls, folder: Folder, pipeline: StableDiffusionPipeline, dtype: str) -> Params:
        return files.read_unet(folder, pipeline, dtype)

    @classmethod
    def is_student(cls, folder: Folder, pipeline: StableDiffusionPipeline) -> bool:
        return files.is_student(folder, pipeline)

    @classmethod
    def method_of_student(cls, folder: Folder, pipeline: StableDiffusionPipeline) -> Method:
        return files.method_of_student(folder, pipeline)

    @classmethod
    def note_of(cls, folder: Folder, pipeline: StableDiffusionPipeline) -> str:
        pipeline_class = read_model_index(folder)["_class_name"]
        if "LatentConsistency" in pipeline_class and not files.read_record(folder):
            return "to an LCM whose guidance is an input, a student's gamma = 1 means none"
        return ""
