"""Students of the tiny Stable Diffusion folders that are their teacher and a LoRA."""

import dataclasses

import jax
import numpy as np

from slam_jax.config.options import Config, StudentOptions, Teacher
from slam_jax.families.pipeline import DENOISER, student_params
from slam_jax.families.stable_diffusion import StableDiffusion
from slam_jax.method.slam import Slam
from slam_jax.recipes.student import saved_student

CONFIG = Config(
    method=Slam(conditioning="snr", w=2.0), student=StudentOptions("lora", rank=4, alpha=6.0)
)


def make(folder, seed=0):
    """(student, its teacher), with adapters that change a lot; alpha is not the rank."""
    family = StableDiffusion.open(Teacher(path=str(folder)), folder)
    rng, options = np.random.default_rng(seed), CONFIG.student
    teacher = family.weights(CONFIG.precision)[DENOISER]
    zeros = student_params(family.pipeline, CONFIG.method, teacher, options)

    def drawn(leaf):
        fan_in = np.prod(leaf.shape[:-1])
        return (0.4 * rng.standard_normal(leaf.shape) / fan_in**0.5).astype(np.float32)

    info = {name: dataclasses.asdict(getattr(CONFIG, name)) for name in ("method", "student")}
    return saved_student(family, CONFIG, jax.tree.map(drawn, zeros), info), family
