"""The same models in torch: networks of diffusers and transformers with our weights, and the stock
pipeline that draws with them. What trains them is in peer_steps.py.

Needs torch, diffusers and transformers.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import jax
import numpy as np
import torch
import transformers
from diffusers.schedulers import scheduling_lcm
from shapes import LENGTH, Model

from slam_jax.families.pipeline import DENOISER, Params
from slam_jax.families.stable_diffusion_pipeline import TEXT_ENCODERS
from slam_jax.formats.convert import to_torch

TEXT_MODELS = {
    False: transformers.CLIPTextModel,
    True: transformers.CLIPTextModelWithProjection,
}
PREFIX = "text_model."  # of keys, which not every version of transformers has


@dataclass(frozen=True)
class Networks:
    """A model's networks on a device, in inference mode and without gradients but for the student.

    Attributes:
      unet: the teacher's.
      student, ema: float32 masters.
      vae, text_encoders: around them.
      pipeline_class: of diffusers, which draws with them.
      alphas, sigmas: [N], the schedule.
      prediction_type: of the teacher.
      device: where all are.
      dtype: of the frozen ones.
    """

    unet: Any
    student: Any
    ema: Any
    vae: Any
    text_encoders: list[Any]
    pipeline_class: type
    alphas: torch.Tensor
    sigmas: torch.Tensor
    prediction_type: str
    device: torch.device
    dtype: torch.dtype


def prepare(threads: int) -> torch.device:
    """The device that jax computes on, with torch set to be fast on it.

    Args:
      threads: on a CPU.
    """
    torch.set_num_threads(threads)
    # As XLA does unless told otherwise; what is compared is bfloat16.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    return torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")


def networks(
    model: Model,
    device: torch.device,
    dtype: str = "float32",
    channels_last: bool = False,
    unets: tuple[str, ...] = ("unet", "student", "ema"),
) -> Networks:
    """The networks with a model's weights.

    Args:
      model: ours.
      device: where they go.
      dtype: of the frozen networks; student and EMA are float32.
      channels_last: the layout of convolutions.
      unets: which of the three; the others are None.
    """
    frozen, layout = getattr(torch, dtype), torch.channels_last if channels_last else None

    def place(module: Any, to: torch.dtype) -> Any:
        module = module.to(device, to).requires_grad_(False).eval()
        return module if layout is None else module.to(memory_format=layout)

    weights = {
        "unet": (model.shapes.unet, model.frozen[DENOISER], frozen),
        "student": (model.network, model.student, torch.float32),
        "ema": (model.network, model.ema, torch.float32),
    }
    made = dict.fromkeys(weights)
    for name in unets:
        config, params, to = weights[name]
        made[name] = place(_filled(diffusers.UNet2DConditionModel, config, params), to)
    parts = zip(TEXT_ENCODERS, model.shapes.text_encoders, strict=False)
    schedule = model.pipeline.schedule
    return Networks(
        **made,
        vae=place(_filled(diffusers.AutoencoderKL, model.shapes.vae, model.frozen["vae"]), frozen),
        text_encoders=[
            place(_text_encoder(config, model.frozen[part]), frozen) for part, config in parts
        ],
        pipeline_class=diffusers.StableDiffusionPipeline
        if len(model.shapes.text_encoders) == 1
        else diffusers.StableDiffusionXLPipeline,
        alphas=torch.tensor(np.asarray(schedule.alphas), device=device),
        sigmas=torch.tensor(np.asarray(schedule.sigmas), device=device),
        prediction_type=schedule.prediction_type,
        device=device,
        dtype=frozen,
    )


def _filled(module_class: Any, config: Any, params: Params) -> Any:
    """A network of diffusers with our weights, which are not drawn at random first."""
    with torch.device("meta"):
        module = module_class.from_config(config.to_dict())
    state = {name: torch.tensor(array) for name, array in to_torch(params).items()}  # copies
    module.load_state_dict(state, assign=True)
    return module


def _text_encoder(config: Any, params: Params) -> Any:
    options = config.to_dict()
    module_class = TEXT_MODELS[config.projection]
    module = module_class(transformers.CLIPTextConfig(**options))
    arrays = {name.removeprefix(PREFIX): array for name, array in to_torch(params).items()}
    state = {
        name: torch.from_numpy(arrays.pop(name.removeprefix(PREFIX)))
        for name in module.state_dict()
    }
    module.load_state_dict(state)
    if arrays:
        raise ValueError(f"{module_class.__name__} has no {', '.join(arrays)}")
    return module


@torch.no_grad()
def embed(nets: Networks, tokens: torch.Tensor, time_ids: torch.Tensor) -> dict[str, Any]:
    """What the UNet is told of prompts: its arguments.

    Args:
      nets: whose text encoders compute it.
      tokens: [B, E, L].
      time_ids: [B, 6], for SDXL.
    """
    if len(nets.text_encoders) == 1:
        return {"encoder_hidden_states": nets.text_encoders[0](tokens[:, 0])[0]}
    outputs = [
        encoder(tokens[:, i], output_hidden_states=True)
        for i, encoder in enumerate(nets.text_encoders)
    ]
    states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    added = {"text_embeds": outputs[1].text_embeds, "time_ids": time_ids}
    return {"encoder_hidden_states": states, "added_cond_kwargs": added}


def nchw(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array [B, H, W, C] as torch has it."""
    return torch.tensor(np.moveaxis(array, -1, 1)).contiguous().to(device)


def stock_sampler(
    nets: Networks, num_ddim_timesteps: int, compile_mode: str | None
) -> Callable[..., torch.Tensor]:
    """The pipeline of diffusers with LCMScheduler at guidance_scale=1.

    Args:
      nets: networks; the student's weights draw, in the dtype of the frozen networks.
      num_ddim_timesteps: M of the distillation.
      compile_mode: of torch.compile, for UNet and the VAE's decoder; None: nothing is compiled.

    Returns:
      (prompts as `ours.prompts`, steps, noise or None) -> pictures [B, 3, H, W] in [0, 1].
    """
    student = nets.student.to(nets.dtype)
    scheduler = diffusers.LCMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        original_inference_steps=num_ddim_timesteps,
        prediction_type=nets.prediction_type,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    parts = {"vae": nets.vae, "unet": student, "scheduler": scheduler, "feature_extractor": None}
    if len(nets.text_encoders) == 1:
        parts |= {"text_encoder": nets.text_encoders[0], "tokenizer": None, "safety_checker": None}
        pipeline = nets.pipeline_class(**parts, requires_safety_checker=False)
    else:
        first, second = nets.text_encoders
        parts |= {"text_encoder": first, "text_encoder_2": second}
        parts |= {"tokenizer": None, "tokenizer_2": None}
        pipeline = nets.pipeline_class(**parts, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    if compile_mode is not None:
        compiled = partial(torch.compile, mode=compile_mode, fullgraph=True, dynamic=False)
        pipeline.unet, pipeline.vae.decode = map(compiled, (pipeline.unet, pipeline.vae.decode))

    def call(
        prompts: dict[str, torch.Tensor], steps: int, noise: list[np.ndarray] | None = None
    ) -> torch.Tensor:
        told = embed(nets, prompts["tokens"], prompts["time_ids"])
        arguments = {"prompt_embeds": told["encoder_hidden_states"]}
        if "added_cond_kwargs" in told:
            arguments["pooled_prompt_embeds"] = told["added_cond_kwargs"]["text_embeds"]
        side = student.config.sample_size * pipeline.vae_scale_factor
        first = {} if noise is None else {"latents": nchw(noise[0], nets.device).to(nets.dtype)}
        with given_noise(noise, nets):
            return pipeline(
                **arguments,
                **first,
                height=side,
                width=side,
                num_inference_steps=steps,
                guidance_scale=1.0,
                output_type="pt",
            ).images

    return call


@contextlib.contextmanager
def given_noise(noise: list[np.ndarray] | None, nets: Networks) -> Iterator[None]:
    """LCMScheduler takes this noise between its steps, and not its own."""
    if noise is None:
        yield
        return
    original, between = scheduling_lcm.randn_tensor, iter(noise[1:])
    scheduling_lcm.randn_tensor = lambda *_, **__: nchw(next(between), nets.device).to(nets.dtype)
    try:
        yield
    finally:
        scheduling_lcm.randn_tensor = original


def on_device(batch: dict[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """A batch of ours in torch: pictures and moments as [B, C, H, W]."""
    placed = {}
    for name, array in batch.items():
        if array.ndim == 4:
            placed[name] = nchw(array, device)
        else:
            placed[name] = torch.tensor(array, device=device)
    placed["tokens"] = placed["tokens"].long()
    return placed


def no_prompt(model: Model, device: torch.device) -> torch.Tensor:
    """Token ids [1, E, L] of the empty prompt."""
    tokens = model.pipeline.tokenize([""])
    assert tokens.shape[-1] == LENGTH
    return torch.from_numpy(tokens).long().to(device)


def vae_decode(
    model: Model, device: torch.device, dtype: str, latents: np.ndarray, compile_mode: str | None
) -> Callable[[], torch.Tensor]:
    """A function that makes pictures [B, 3, H, W] in [0, 1] of latents, with diffusers' VAE."""
    vae = _filled(diffusers.AutoencoderKL, model.shapes.vae, model.frozen["vae"])
    vae = vae.to(device, getattr(torch, dtype)).requires_grad_(False).eval()
    if device.type == "cuda":
        vae = vae.to(memory_format=torch.channels_last)
    decode = vae.decode
    if compile_mode is not None:
        decode = torch.compile(decode, mode=compile_mode, fullgraph=True, dynamic=False)
    z = nchw(latents, device).to(vae.dtype)

    @torch.no_grad()
    def call() -> torch.Tensor:
        pictures = decode(z / model.shapes.vae.scaling_factor, return_dict=False)[0]
        return (pictures / 2 + 0.5).clamp(0, 1)

    return call
