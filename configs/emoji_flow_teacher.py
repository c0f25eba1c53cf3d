"""A small Stable Diffusion 3 of emoji, from nothing: the teacher that `configs/emoji_flow.py`
distils.

slam-jax pretrain --config emoji_flow_teacher --config.data.source=emoji:data/emoji

A transformer that learns by flow matching takes the place of the UNet of configs/emoji_teacher.py;
the autoencoder has the same layers, and the vocabulary is the same. `emoji_flow_teacher:tiny` takes
a minute, and its pictures are noise.
"""

import runpy
from pathlib import Path


def get_config(size="full"):
    if size not in ("full", "tiny"):
        raise ValueError(f"configs/emoji_flow_teacher.py:{size}: expected full or tiny")
    unet = runpy.run_path(str(Path(__file__).with_name("emoji_teacher.py")))
    config = unet["get_config"]("full")
    config.name = "emoji_flow_teacher"
    config.family = "sd3"
    config.unet = {}
    config.prediction_type = "flow"
    config.autoencoder.training.update(steps=2000, batch_size=32)
    # Each of two text encoders; the transformer sees both, one behind the other: 128 features.
    config.text_encoder = dict(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=2,
    )
    config.transformer = dict(
        num_layers=7,
        num_attention_heads=4,
        attention_head_dim=32,
        qk_norm="rms_norm",
    )
    config.training.update(
        steps=5000,
        batch_size=64,
        ema=0.999,
        checkpoint_every=500,
        optimizer=dict(learning_rate=1e-3, schedule="cosine", warmup_steps=300),
    )
    if size == "tiny":
        unet["shrink"](config)
        config.unet = {}
        config.transformer.update(num_layers=2, num_attention_heads=2, attention_head_dim=8)
    return config
