"""Students of the tiny Stable Diffusion folders that are their teacher and a LoRA."""

import dataclasses
from contextlib import contextmanager

import jax
import numpy as np
import pytest

from slam_jax.config.options import Config, StudentOptions, Teacher
from slam_jax.families.pipeline import student_params
from slam_jax.families.stable_diffusion import StableDiffusion
from slam_jax.method.slam import Slam
from slam_jax.recipes.student import saved_student

CONFIG = Config(
    method=Slam(conditioning="snr", w=2.0), student=StudentOptions("lora", rank=4, alpha=6.0)
)


def make(folder, seed=0, kind=StableDiffusion, config=CONFIG):
    """(student, its teacher), with adapters that change a lot; alpha is not the rank."""
    family = kind.open(Teacher(path=str(folder)), folder)
    rng, options = np.random.default_rng(seed), config.student
    teacher = family.denoiser()
    zeros = student_params(family.pipeline, config.method, teacher, options)

    def drawn(leaf):
        fan_in = np.prod(leaf.shape[:-1])
        return (0.4 * rng.standard_normal(leaf.shape) / fan_in**0.5).astype(np.float32)

    info = {name: dataclasses.asdict(getattr(config, name)) for name in ("method", "student")}
    return saved_student(family, config, jax.tree.map(drawn, zeros), info), family


@contextmanager
def any_peft():
    """transformers 5.24 asks for a peft that is not released; the one there is does."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        module = "transformers.integrations.peft.check_peft_version"
        monkeypatch.setattr(module, lambda min_version: None)
        yield


# What trainers of style LoRAs change, in transformers and diffusers.
IN_UNET = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "conv1", "proj_in"]
IN_TEXTS = ["q_proj", "v_proj", "out_proj", "fc1"]


def style(pipeline, rank=3, alpha=5.0, seed=1):
    """A LoRA that peft made in a pipeline of diffusers: part -> its state dict, as peft names it;
    and part -> its configuration. The pipeline is changed."""
    import peft
    import torch
    from peft.utils import get_peft_model_state_dict

    generator, states, configs = torch.Generator().manual_seed(seed), {}, {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        if (network := getattr(pipeline, part, None)) is None:
            continue
        targets = IN_UNET if part == "unet" else IN_TEXTS
        configs[part] = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
        network.add_adapter(configs[part])
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data = 0.5 * noise / parameter[0].numel() ** 0.5
        states[part] = get_peft_model_state_dict(network)
    return states, configs
