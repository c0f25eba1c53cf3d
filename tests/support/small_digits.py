"""A distillation of the digits with a UNet of one level, without files."""

import dataclasses
from contextlib import closing

import jax
import numpy as np

from slam_jax.config.options import Config, Optimizer, StudentOptions, Teacher, Training
from slam_jax.data import digits
from slam_jax.data.batches import Batches
from slam_jax.data.options import Data
from slam_jax.families.digits import digits_pipeline
from slam_jax.families.pipeline import DENOISER, student_params
from slam_jax.method.slam import Slam
from slam_jax.models import functional
from slam_jax.models.execution import Execution
from slam_jax.models.unet import UNetConfig
from slam_jax.parallel.sharding import make_mesh, shard, shard_batch
from slam_jax.recipes.distil import student_step, teacher_dtype

UNET = UNetConfig(
    sample_size=4,
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    block_out_channels=(16,),
    layers_per_block=1,
    cross_attention_dim=12,
    attention_head_dim=2,
    norm_num_groups=8,
)


CONFIG = Config(
    teacher=Teacher(family="digits", network=UNET.to_dict()),
    data=Data(source="digits"),
    method=Slam(w=2.0, gamma="paired", gammas_per_subpath=2, conditioning="both"),
    training=Training(steps=20, batch_size=32, optimizer=Optimizer(learning_rate=8e-6)),
)


LORA = dataclasses.replace(
    CONFIG,
    method=dataclasses.replace(CONFIG.method, conditioning="snr"),
    student=StudentOptions("lora", rank=4),
)


PIPELINE = digits_pipeline(UNET, "epsilon")


class Run:
    """A distillation of the digits on some devices."""

    def __init__(self, devices, fsdp, accumulation, config=CONFIG, execution=Execution()):
        training = dataclasses.replace(config.training, accumulation=accumulation)
        pipeline = dataclasses.replace(PIPELINE, execution=execution)
        self.mesh = make_mesh(-1, fsdp, jax.devices()[:devices])
        self.step, init = student_step(
            dataclasses.replace(config, training=training), pipeline, self.mesh
        )
        student, teacher = (pipeline.init(UNET, jax.random.key(seed)) for seed in (0, 1))
        self.params = student_params(pipeline, config.method, student, config.student)
        self.state = init(shard(self.params, self.mesh))
        teacher = functional.cast(teacher, teacher_dtype(config))
        self.frozen = shard({DENOISER: teacher}, self.mesh)

    def losses(self, steps):
        history = []
        with closing(Batches(digits.Source(), 32, seed=0).iterate(0)) as batches:
            for _ in range(steps):
                batch = shard_batch(next(batches), self.mesh)
                self.state, metrics = self.step(self.state, self.frozen, batch)
                history.append([metrics[name] for name in ("loss", "grad_norm", "loss_gamma3")])
        return np.array(history, np.float64)

    def compiled(self):
        with closing(Batches(digits.Source(), 32, seed=0).iterate(0)) as batches:
            batch = shard_batch(next(batches), self.mesh)
        return self.step.lower(self.state, self.frozen, batch).compile()
