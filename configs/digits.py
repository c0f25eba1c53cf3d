"""Handwritten digits on a laptop CPU: train a small teacher, distil it, draw in 1, 2, 4, 8 steps.

slam-jax train --config digits
"""

from slam_jax.config.options import default_config


def get_config():
    config = default_config()
    config.name = "digits"

    config.teacher.family = config.data.source = "digits"
    config.teacher.network = dict(
        sample_size=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        block_out_channels=(32,),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    config.teacher.training.update(
        steps=4000,
        batch_size=64,
        ema=0.995,
        checkpoint_every=1000,
        optimizer=dict(learning_rate=2e-3, schedule="cosine", warmup_steps=100),
    )

    config.method.update(
        w=2.0, sigma="linear", conditioning="snr", gamma="paired", gammas_per_subpath=2
    )
    config.training.update(
        steps=1500,
        batch_size=64,
        sample_every=500,
        optimizer=dict(learning_rate=5e-4, schedule="cosine"),
    )
    config.evaluation.update(batch=100, samples=2000)
    return config
