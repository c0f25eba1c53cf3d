"""Students of the tiny Stable Diffusion folders: every weight unlike its teacher's."""

import dataclasses

import jax
import numpy as np
from slam_jax.families.load import read_pipeline, read_unet

from slam_jax.families.family import student_config, student_params
from slam_jax.formats.diffusers_folder import resolve
from slam_jax.formats.flax_folder import SavedModel
from slam_jax.method.slam import Slam


def make(folder, conditioning="both", variant="", seed=0, num_ddim_timesteps=50):
    """(student, teacher): float32 numpy weights, those for gamma not zero either."""
    teacher = resolve(str(folder), variant=variant)
    pipeline = read_pipeline(teacher)
    unet = student_config(pipeline.unet, conditioning)
    rng = np.random.default_rng(seed)

    def moved(leaf):
        return np.asarray(leaf) + 0.02 * rng.standard_normal(leaf.shape).astype(np.float32)

    params = jax.tree.map(moved, student_params(read_unet(teacher, pipeline.unet, "float32"), unet))
    method = Slam(conditioning=conditioning, num_ddim_timesteps=num_ddim_timesteps)
    info = {"method": dataclasses.asdict(method)}
    return SavedModel(unet, params, pipeline.scheduler, info), teacher
