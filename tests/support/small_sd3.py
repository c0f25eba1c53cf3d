"""A distillation of a small transformer of Stable Diffusion 3, on prepared latents and
text embeddings that are random: without files, and without a text encoder."""

import dataclasses
from contextlib import closing

import jax
import numpy as np
from torch_mmdits import CONFIGS

from slam_jax.config.options import Config, Optimizer, Training
from slam_jax.data.batches import Batches
from slam_jax.data.rejects import Rejects
from slam_jax.families.latent_pipeline import EMPTY
from slam_jax.families.pipeline import DENOISER, student_params
from slam_jax.families.sd3_pipeline import T5_LENGTH, StableDiffusion3Pipeline
from slam_jax.method.flow_matching import FlowMatching
from slam_jax.method.slam import Slam
from slam_jax.models.vae import SD3VAEConfig
from slam_jax.parallel.sharding import make_mesh, shard, shard_batch
from slam_jax.recipes.distil import student_step

NETWORK = dataclasses.replace(CONFIGS["sd35_medium"], num_layers=2, sample_size=4)
CONFIG = Config(
    method=Slam(w=2.0, sigma="linear", conditioning="snr"),
    training=Training(
        steps=20, batch_size=8, optimizer=Optimizer(learning_rate=8e-6, weight_decay=0.1)
    ),
)
PIPELINE = StableDiffusion3Pipeline(
    network=NETWORK,
    scheduler={},
    schedule=FlowMatching(3.0),
    latent_shape=(4, 4, 4),
    vae=SD3VAEConfig(latent_channels=4, shift_factor=0.1),
    text_encoders=(),
    tokenizers=(),
)


class Rows:
    """Random prepared examples."""

    name = identity = "rows"

    def __len__(self):
        return 40

    def read(self, indices, seeds):
        rows = [self._row(index) for index in indices]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}, Rejects()

    def _row(self, index):
        """Five tokens, and then as many zeros as there are in the place of T5."""
        rng = np.random.default_rng(index)
        width = NETWORK.joint_attention_dim
        texts = np.zeros((5 + T5_LENGTH, width), np.float16)
        texts[:5] = rng.standard_normal((5, width))
        return {
            "moments": rng.standard_normal((4, 4, 8)).astype(np.float16),
            "encoder_hidden_states": texts,
            "text_embeds": rng.standard_normal(NETWORK.pooled_projection_dim).astype(np.float16),
        }


def embedded_empty():
    """What text encoders could have made of an empty prompt."""
    (batch, _), names = Rows().read([99], [0]), ("encoder_hidden_states", "text_embeds")
    return {name: batch[name].astype(np.float32) for name in names}


class Run:
    """A distillation on some devices."""

    def __init__(self, devices, fsdp, accumulation):
        training = dataclasses.replace(CONFIG.training, accumulation=accumulation)
        config = dataclasses.replace(CONFIG, training=training)
        self.mesh = make_mesh(-1, fsdp, jax.devices()[:devices])
        self.step, self.init = student_step(config, PIPELINE, self.mesh)
        student, teacher = (
            jax.device_get(PIPELINE.init(NETWORK, jax.random.key(seed))) for seed in (0, 1)
        )
        self.teacher, self.params = teacher, student_params(PIPELINE, config.method, student)
        self.state = self.init(shard(self.params, self.mesh))
        self.frozen = shard({DENOISER: teacher, EMPTY: embedded_empty()}, self.mesh)

    def losses(self, steps):
        history = []
        with closing(Batches(Rows(), 8, seed=0).iterate(0)) as batches:
            for _ in range(steps):
                batch = shard_batch(next(batches), self.mesh)
                self.state, metrics = self.step(self.state, self.frozen, batch)
                history.append([metrics[name] for name in ("loss", "grad_norm")])
        return np.array(history, np.float64)
