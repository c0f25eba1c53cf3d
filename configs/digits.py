"""Handwritten digits on a laptop CPU: train a small teacher, distil it, draw in 1, 2, 4 and 8
steps.

python -m slam_jax.main --config configs/digits.py
"""

from slam_jax.config import default_config


def get_config():
    config = default_config()
    config.name = "digits"

    teacher = config.teacher
    teacher.unet.update(
        sample_size=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        block_out_channels=(32,),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    teacher.training.update(
        steps=3000,
        batch_size=128,
        ema=0.999,
        checkpoint_every=1000,
        optimizer=dict(learning_rate=2e-3, schedule="cosine", warmup_steps=100),
    )

    config.method.update(w=1.0, sigma="linear", conditioning="snr")
    config.training.update(
        steps=1000,
        batch_size=128,
        sample_every=250,
        optimizer=dict(learning_rate=3e-4),
    )
    return config
