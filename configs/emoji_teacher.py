"""A small Stable Diffusion of emoji, from nothing: the teacher that `configs/emoji.py` distils.

slam-jax pretrain --config emoji_teacher --config.data.source=emoji:data/emoji

`emoji_teacher:tiny` takes a minute, and its pictures are noise.
"""

from slam_jax.config.pretraining import default_pretraining


def get_config(size="full"):
    if size not in ("full", "tiny"):
        raise ValueError(f"configs/emoji_teacher.py:{size}: expected full or tiny")
    config = default_pretraining()
    config.name = "emoji_teacher"
    config.data.update(resolution=32, crop="center")
    config.tokens.update(vocabulary=2048, length=24)

    config.autoencoder.network = dict(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
    )
    config.autoencoder.training.update(
        steps=2500,
        batch_size=32,
        ema=0.99,
        checkpoint_every=500,
        optimizer=dict(learning_rate=2e-3, schedule="cosine", warmup_steps=200),
    )

    config.text_encoder = dict(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
    )
    config.unet = dict(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    config.prediction_type = "v_prediction"
    config.training.update(
        steps=8000,
        batch_size=64,
        ema=0.999,
        checkpoint_every=500,
        optimizer=dict(learning_rate=1e-3, schedule="cosine", warmup_steps=300),
    )
    config.dtype = "float16"
    if size == "tiny":
        shrink(config)
    return config


def shrink(config):
    """The config for a try on a CPU."""
    config.name = f"tiny_{config.name}"
    config.tokens.update(vocabulary=540, length=16)
    config.autoencoder.network.update(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
    )
    config.text_encoder.update(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    config.unet.update(block_out_channels=(8, 16), attention_head_dim=2, norm_num_groups=4)
    for training in (config.autoencoder.training, config.training):
        training.update(steps=4, batch_size=8, ema=0.5, checkpoint_every=2, log_every=2)
        training.optimizer.update(learning_rate=1e-2, warmup_steps=0)
