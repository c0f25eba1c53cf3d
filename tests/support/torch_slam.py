"""The method once more, in torch and float64, with the networks of diffusers and transformers.

    x_t = alpha_t x_0 + sigma_t eps,   s = (j + 1) k - 1,   e = max(s - k, 0),   k = N // M
    x_e: p DDIM steps of the teacher from x_s, with eps_w = eps_c + w (eps_c - eps_u), x0_w alike
    x_g = gamma x_s + (1 - gamma) r x_e,   r = alpha_s / alpha_e
    "paper":  sigma_g^2 = (r sigma_e)^2 + gamma^2 (1 - r^2)
    "linear": sigma_g = gamma sigma_s + (1 - gamma) r sigma_e
    f(x_g, s, gamma) = c_skip(s) x_g + c_out(s) x0(x_g, output; alpha_s, sigma_g)
    loss = mean over pixels and channels of h(f(x_g, s, gamma) - f-(x_e, e, 1)), f- with the EMA

Nothing here is taken from slam_jax: one equation after the other, one network call for each, and
no thought for speed. Arrays are NCHW.
"""

import json
import math

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

DATA_STD = 0.5
GAMMA_DIM = 256


class TorchSlam:
    """A teacher's folder.

    Attributes:
        unet, vae: its networks, float64.
        alpha, sigma: [N], the scales of its schedule.
    """

    def __init__(self, folder):
        self.stock = DiffusionPipeline.from_pretrained(folder).to(torch.float64)
        self.unet, self.vae = self.stock.unet, self.stock.vae
        for parameter in self.unet.parameters():
            parameter.requires_grad_(False)
        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        self.prediction_type = config.get("prediction_type", "epsilon")
        abar = torch.from_numpy(alphas_cumprod(config))
        self.alpha, self.sigma = abar.sqrt(), (1 - abar).sqrt()
        self.log_ratio = (self.sigma / self.alpha).log().numpy()

    def student(self, weights):
        """A UNet of the teacher's form with these weights (numpy), and with a projection of gamma
        where they have one."""
        dim = GAMMA_DIM if "time_embedding.cond_proj.weight" in weights else None
        unet = UNet2DConditionModel.from_config(dict(self.unet.config, time_cond_proj_dim=dim))
        unet = unet.to(torch.float64)
        unet.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
        return unet

    @torch.no_grad()
    def latents(self, images, noise):
        """Scaled latents of uint8 images [B, 3, H, W]."""
        distribution = self.vae.encode(images.double() / 255 * 2 - 1).latent_dist
        drawn = distribution.mean + distribution.std * noise
        return drawn * self.vae.config.scaling_factor

    @torch.no_grad()
    def contexts(self, prompts, time_ids):
        """Arguments of the UNet for the prompts, and for no prompt, as the stock pipeline has
        them."""
        embeds = self.stock.encode_prompt(
            prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
        )
        if len(embeds) == 2:
            return tuple({"encoder_hidden_states": embed} for embed in embeds)
        return tuple(
            {
                "encoder_hidden_states": embed,
                "added_cond_kwargs": {"text_embeds": pooled, "time_ids": time_ids.double()},
            }
            for embed, pooled in (embeds[::2], embeds[1::2])
        )

    def losses(self, student, target, x0, contexts, draws, method):
        """The loss of each example.

        Args:
            student, target: UNets of `student`; only the first gets a gradient.
            x0: [B, C, H, W] scaled latents.
            contexts: of `contexts`.
            draws: (j [B], gamma [B, G], eps [B, C, H, W]).
            method: options, by the names of the configuration.
        """
        j, gamma, eps = draws
        k = len(self.alpha) // method.num_ddim_timesteps
        s = (j + 1) * k - 1
        e = (s - k).clamp(min=0)
        with torch.no_grad():
            x_s = self._at(self.alpha, s) * x0 + self._at(self.sigma, s) * eps
            x_e, t = x_s, s
            for i in range(1, method.solver_substeps + 1):
                t_next = s - i * (s - e) // method.solver_substeps  # down to a whole timestep
                x_e, t = self._teacher_step(x_e, t, t_next, contexts, method.w), t_next
            alpha_e, sigma_e = self._at(self.alpha, e), self._at(self.sigma, e)
            one = torch.ones(len(j), dtype=torch.float64)
            f_e = self._f(target, x_e, e, alpha_e, sigma_e, one, contexts[0], method)
        alpha_s, sigma_s = self._at(self.alpha, s), self._at(self.sigma, s)
        r = alpha_s / alpha_e
        losses = []
        for g in gamma.unbind(dim=1):
            g4 = g[:, None, None, None]
            x_g = g4 * x_s + (1 - g4) * r * x_e
            sigma_g = {
                "paper": ((r * sigma_e) ** 2 + g4**2 * (1 - r**2)).sqrt(),
                "linear": g4 * sigma_s + (1 - g4) * r * sigma_e,
            }[method.sigma]
            d = self._f(student, x_g, s, alpha_s, sigma_g, g, contexts[0], method) - f_e
            c = method.huber_c
            h = {"l2": d**2, "huber": (d**2 + c**2).sqrt() - c}[method.distance]
            losses.append(h.mean(dim=(1, 2, 3)))
        return torch.stack(losses).mean(dim=0)

    def _at(self, table, t):
        return table[t][:, None, None, None]

    def _teacher_step(self, x, t, t_next, contexts, w):
        alpha, sigma = self._at(self.alpha, t), self._at(self.sigma, t)
        (x0_c, eps_c), (x0_u, eps_u) = (
            self._x0_and_eps(x, self.unet(x, t, **context).sample, alpha, sigma)
            for context in contexts
        )
        x0_w, eps_w = x0_c + w * (x0_c - x0_u), eps_c + w * (eps_c - eps_u)
        return self._at(self.alpha, t_next) * x0_w + self._at(self.sigma, t_next) * eps_w

    def _x0_and_eps(self, x, output, alpha, sigma):
        if self.prediction_type == "epsilon":
            return (x - sigma * output) / alpha, output
        assert self.prediction_type == "v_prediction"
        total = alpha**2 + sigma**2
        return (alpha * x - sigma * output) / total, (alpha * output + sigma * x) / total

    def _f(self, unet, x, t, alpha, sigma, gamma, context, method):
        """The consistency function at timestep t [B] of x, whose scales are alpha and sigma."""
        t_in, n = t, 1.0
        if method.conditioning in ("snr", "both"):
            n = (alpha**2 + sigma**2).sqrt()
            log_ratio = (sigma / alpha).log().flatten().numpy()
            t_in = np.interp(log_ratio, self.log_ratio, np.arange(len(self.log_ratio)))
            t_in = torch.from_numpy(t_in)
        condition = None
        if method.conditioning in ("embedding", "both"):
            condition = gamma_embedding(gamma)
        output = unet(x / n, t_in, timestep_cond=condition, **context).sample
        x0, _ = self._x0_and_eps(x / n, output, alpha / n, sigma / n)
        scaled = 10.0 * t[:, None, None, None]
        c_skip = DATA_STD**2 / (scaled**2 + DATA_STD**2)
        c_out = scaled / (scaled**2 + DATA_STD**2).sqrt()
        return c_skip * x + c_out * x0


def gamma_embedding(gamma):
    """[B] -> [B, GAMMA_DIM]."""
    u, half = 10 - 10 * gamma, GAMMA_DIM // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64) / (half - 1))
    phases = 1000 * u[:, None] * frequencies
    return torch.cat([phases.sin(), phases.cos()], dim=1)


def alphas_cumprod(config):
    """abar [N] of a scheduler_config.json."""
    assert config["beta_schedule"] == "scaled_linear"
    start, end = config["beta_start"], config["beta_end"]
    betas = np.linspace(start**0.5, end**0.5, config["num_train_timesteps"]) ** 2
    abar = np.cumprod(1 - betas)
    if config.get("rescale_betas_zero_snr"):
        # Lin et al., "Common Diffusion Noise Schedules and Sample Steps Are Flawed": sqrt(abar) is
        # shifted to 0 at its end, and scaled so that its first value stays.
        root = np.sqrt(abar)
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        abar[-1] = 2**-24  # as diffusers' Euler scheduler has it, where 0 is no number to divide by
    return abar
