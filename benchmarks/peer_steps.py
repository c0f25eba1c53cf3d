"""Distillation steps in torch: the authors' own as their README runs it, and a tuned one.

Both compute the method as published, with eps read as eps: the sub-path with the "paper" noise
scale, gamma drawn uniformly and told by its embedding, one gamma for each sub-path, pseudo-Huber.
"""

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from peers import Networks, embed, no_prompt, on_device
from shapes import Model

from slam_jax.method.slam import Slam

EMA, LEARNING_RATE, CLIP_NORM = 0.95, 8e-6, 1.0
DATA_STD, TIME_SCALE, GAMMA_DIM = 0.5, 10.0, 256
Draws = dict[str, torch.Tensor]
# draws or None -> the loss, after a step with it. None: the step draws.
Advance = Callable[..., torch.Tensor]


def authors_step(
    model: Model, nets: Networks, batch: dict[str, np.ndarray], method: Slam
) -> Advance:
    """What the authors' script does in a step: pictures and prompts are encoded in each, cond and
    uncond are two passes, gradients are checkpointed; float16 where the frozen networks are.

    Args:
      model: ours.
      nets: its networks.
      batch: with "images".
      method: of which only M, w and the loss's constant are read.
    """
    student, tensors = nets.student.requires_grad_(True).train(), on_device(batch, nets.device)
    student.enable_gradient_checkpointing()
    parameters = list(student.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    scaler = torch.amp.GradScaler(nets.device.type, enabled=nets.dtype == torch.float16)
    null = null_context(model, nets, tensors)

    def advance(draws: Draws | None = None) -> torch.Tensor:
        draws = draw(nets, tensors, method) if draws is None else draws
        with torch.no_grad():
            pictures = tensors["images"].to(nets.dtype) / 127.5 - 1
            moments = nets.vae.encode(pictures).latent_dist.parameters.float()
            x0 = latents_of(nets, moments, draws["encode"])
            contexts = embed(nets, tensors["tokens"], tensors["time_ids"]), null
        with autocast(nets):
            loss = slam_loss(nets, x0, contexts, draws, method, together=False)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            for averaged, new in zip(nets.ema.parameters(), parameters, strict=True):
                averaged.mul_(EMA).add_(new, alpha=1 - EMA)
        return loss.detach()

    return advance


def tuned_step(
    model: Model,
    nets: Networks,
    batch: dict[str, np.ndarray],
    method: Slam,
    compile_mode: str | None = None,
) -> Advance:
    """The same step by a reader of torch's performance guides: moments instead of pictures, cond
    and uncond in one batch, nothing checkpointed, fused AdamW, EMA by one call for all arrays.

    Args:
      model: ours.
      nets: its networks, best with channels_last; bfloat16 where the frozen networks are.
      batch: with "moments".
      method: as for `authors_step`.
      compile_mode: of torch.compile, for the three UNets; None: nothing is compiled.
    """
    student, tensors = nets.student.requires_grad_(True).train(), on_device(batch, nets.device)
    parameters, averages = list(student.parameters()), list(nets.ema.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    null = null_context(model, nets, tensors)
    calls = {name: getattr(nets, name) for name in ("unet", "student", "ema")}
    if compile_mode is not None:
        compiled = partial(torch.compile, mode=compile_mode, dynamic=False)
        calls = {name: compiled(unet) for name, unet in calls.items()}

    def advance(draws: Draws | None = None) -> torch.Tensor:
        draws = draw(nets, tensors, method) if draws is None else draws
        x0 = latents_of(nets, tensors["moments"].float(), draws["encode"])
        contexts = embed(nets, tensors["tokens"], tensors["time_ids"]), null
        with autocast(nets):
            loss = slam_loss(nets, x0, contexts, draws, method, together=True, **calls)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM, foreach=True)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - EMA)
        return loss.detach()

    return advance


def autocast(nets: Networks) -> Any:
    """Computing in the frozen networks' dtype, where that is a half one."""
    return torch.autocast(
        nets.device.type, nets.dtype, enabled=nets.dtype in (torch.float16, torch.bfloat16)
    )


def null_context(model: Model, nets: Networks, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The empty prompt's context for a whole batch; computed once."""
    count, time_ids = len(tensors["tokens"]), tensors["time_ids"]
    null = embed(nets, no_prompt(model, nets.device).expand(count, -1, -1), time_ids)
    if model.pipeline.zeros_for_empty_prompt:
        null["encoder_hidden_states"].zero_()
        null["added_cond_kwargs"]["text_embeds"].zero_()
    return null


def draw(nets: Networks, tensors: dict[str, torch.Tensor], method: Slam) -> Draws:
    """The random part of a step, drawn on the device."""
    count, device = len(tensors["tokens"]), nets.device
    side, channels = nets.unet.config.sample_size, nets.vae.config.latent_channels
    return {
        "index": torch.randint(method.num_ddim_timesteps, (count,), device=device),
        "gamma": torch.rand(count, device=device),
        "eps": torch.randn(count, channels, side, side, device=device),
        "encode": torch.randn(count, channels, side, side, device=device),
    }


def given_draws(drawn: dict[str, np.ndarray], device: torch.device) -> Draws:
    """What `ours.step_draws` returns, for a step here."""
    tensors = on_device({**drawn, "tokens": np.zeros(1)}, device)
    return {
        "index": tensors["index"].long(),
        "gamma": tensors["gamma"][:, 0],
        "eps": tensors["eps"],
        "encode": tensors["encode"],
    }


@torch.no_grad()
def latents_of(nets: Networks, moments: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Scaled latents from mean and log variance."""
    mean, log_variance = moments.chunk(2, dim=1)
    drawn = mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise
    return drawn * nets.vae.config.scaling_factor


def slam_loss(
    nets: Networks,
    x0: torch.Tensor,
    contexts: tuple[dict[str, Any], dict[str, Any]],
    draws: Draws,
    method: Slam,
    together: bool,
    **calls: Any,
) -> torch.Tensor:
    """The mean loss of a batch.

    Args:
      nets: networks.
      x0: [B, C, H, W] scaled latents.
      contexts: of the prompts and of the empty one.
      draws: of `draw`.
      method: M, w and the loss's constant.
      together: whether cond and uncond are one batch, without autocast.
      calls: "unet", "student" and "ema" to use instead of those of `nets`.
    """
    calls = {"unet": nets.unet, "student": nets.student, "ema": nets.ema, **calls}
    gap = len(nets.alphas) // method.num_ddim_timesteps
    s = (draws["index"] + 1) * gap - 1
    e = (s - gap).clamp(min=0)
    alpha_s, sigma_s, alpha_e, sigma_e = (
        table[t][:, None, None, None] for t in (s, e) for table in (nets.alphas, nets.sigmas)
    )
    gamma, ones = draws["gamma"][:, None, None, None], torch.ones_like(draws["gamma"])
    with torch.no_grad():
        x_s = alpha_s * x0 + sigma_s * draws["eps"]
        # Autocast would compute the norms of weights that are in half precision in float32.
        outside = torch.autocast(nets.device.type, enabled=False)
        with outside if together else contextlib.nullcontext():
            x_t = x_s.to(nets.dtype) if together else x_s
            parts = teacher_outputs(calls["unet"], x_t, s, contexts, together)
        (x0_c, eps_c), (x0_u, eps_u) = (
            read(nets, output.float(), x_s, alpha_s, sigma_s) for output in parts
        )
        x_e = alpha_e * (x0_c + method.w * (x0_c - x0_u))
        x_e = x_e + sigma_e * (eps_c + method.w * (eps_c - eps_u))
        target = consistency(nets, calls["ema"], x_e, e, alpha_e, sigma_e, ones, contexts[0])
    r = alpha_s / alpha_e
    x_g = gamma * x_s + (1 - gamma) * r * x_e
    sigma_g = ((r * sigma_e) ** 2 + gamma**2 * (1 - r**2)).sqrt()
    f = consistency(nets, calls["student"], x_g, s, alpha_s, sigma_g, draws["gamma"], contexts[0])
    return (((f - target) ** 2 + method.huber_c**2).sqrt() - method.huber_c).mean()


def teacher_outputs(
    unet: Any, x: torch.Tensor, t: torch.Tensor, contexts: tuple, together: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's outputs for the prompts and for none."""
    if not together:
        return tuple(unet(x, t, **context).sample for context in contexts)
    names = "encoder_hidden_states", "added_cond_kwargs"
    cond, uncond = contexts
    both = {names[0]: torch.cat([cond[names[0]], uncond[names[0]]])}
    if names[1] in cond:
        pairs = {key: (cond[names[1]][key], uncond[names[1]][key]) for key in cond[names[1]]}
        both[names[1]] = {key: torch.cat(pair) for key, pair in pairs.items()}
    return unet(torch.cat([x, x]), torch.cat([t, t]), **both).sample.chunk(2)


def read(
    nets: Networks, output: torch.Tensor, x: torch.Tensor, alpha: Any, sigma: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """A network's output as (x0, eps)."""
    if nets.prediction_type == "epsilon":
        return (x - sigma * output) / alpha, output
    total = alpha**2 + sigma**2
    return (alpha * x - sigma * output) / total, (alpha * output + sigma * x) / total


def consistency(
    nets: Networks,
    unet: Any,
    x: torch.Tensor,
    t: torch.Tensor,
    alpha: torch.Tensor,
    sigma: torch.Tensor,
    gamma: torch.Tensor,
    context: dict[str, Any],
) -> torch.Tensor:
    """f(x, t, gamma), the estimate of the clean latents."""
    half = GAMMA_DIM // 2
    places = torch.arange(half, device=x.device)
    frequencies = torch.exp(-math.log(10000) / (half - 1) * places)
    phases = 1000 * (10 - 10 * gamma)[:, None] * frequencies
    condition = torch.cat([phases.sin(), phases.cos()], dim=1)
    output = unet(x, t, timestep_cond=condition, **context).sample.float()
    x0, _ = read(nets, output, x, alpha, sigma)
    scaled = TIME_SCALE * t[:, None, None, None]
    total = scaled**2 + DATA_STD**2
    return DATA_STD**2 / total * x + scaled / total.sqrt() * x0
