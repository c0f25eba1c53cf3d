"""Students of the tiny Stable Diffusion folders: every weight unlike its teacher's."""

import dataclasses

import jax
import numpy as np

from slam_jax.config.options import StudentOptions, Teacher
from slam_jax.families.pipeline import student_config, student_params, student_weights
from slam_jax.families.stable_diffusion import StableDiffusion
from slam_jax.formats.flax_folder import SavedModel
from slam_jax.method.slam import Slam


def make(
    folder,
    conditioning="both",
    variant="",
    seed=0,
    num_ddim_timesteps=50,
    method=None,
    kind=StableDiffusion,
):
    """(student, its teacher): float32 numpy weights, those for gamma not zero either. Of SLAM with
    these options, or of another method; of another family than Stable Diffusion's."""
    family = kind.open(Teacher(path=str(folder), variant=variant), folder)
    pipeline = family.pipeline
    method = method or Slam(conditioning=conditioning, num_ddim_timesteps=num_ddim_timesteps)
    rng = np.random.default_rng(seed)

    def moved(leaf):
        return np.asarray(leaf) + 0.02 * rng.standard_normal(leaf.shape).astype(np.float32)

    teacher = family.denoiser()
    trained = jax.tree.map(moved, student_params(pipeline, method, teacher))
    params = student_weights(pipeline, StudentOptions(), teacher, trained)
    network = student_config(pipeline, method).to_dict()
    info = {"method": dataclasses.asdict(method)}
    return SavedModel(family.name, network, params, pipeline.scheduler, info), family


def export(made, out):
    """Exports what `make` made."""
    student, family = made
    family.export(student, out)
