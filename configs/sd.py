"""Stable Diffusion 1.5 by the recipe of the SLAM authors (ECCV 2024, arXiv 2404.13903).

    slam-jax prepare --source 'data/laion/{00000..00331}.tar' \
        --model stable-diffusion-v1-5/stable-diffusion-v1-5 --out data/sd15_512
    slam-jax train --config sd --config.data.source=data/sd15_512
    slam-jax train --config sd --config.data.source=data/sd15_512 --resume

The first command stores what the VAE makes of the images. `--config.data.source` may be the shards
themselves too, which are then read and encoded in every step, with another crop each time; add
`--config.data.workers=8` or so then, as each image takes about 12 ms of a core.

The recipe `sd_slam` has this project's variant of the method instead (docs/results.md).

Hardware: the authors used A100 GPUs, 12 pictures on each at a time; batch_size is that for 8.
Result, the paper's claim: FID 10.06 on COCO-2014-30k and 20.77 on COCO-2017-5k with 4 steps.
Time, the paper's claim: 6 A100 GPU days. Nothing of this size has been run here yet; the number of
steps and the learning rate's constant schedule for them are a guess.

`--config sd:tiny` is the same, shrunk to a minute on two CPU cores (56 s measured), with a
teacher that has random weights (`make demo-sd` makes and distils it) and the photographs that come
with scikit-learn and scikit-image.
"""

from slam_jax.config.options import default_config


def get_config(size="full"):
    if size not in ("full", "tiny"):
        raise ValueError(f"configs/sd.py:{size}: expected full or tiny")
    config = default_config()
    config.name = "sd"
    config.teacher.update(
        path="stable-diffusion-v1-5/stable-diffusion-v1-5",
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    )
    config.data.update(source="", resolution=512)  # the source is yours to name
    config.method.update(num_ddim_timesteps=50, w=8.0, gamma="uniform", huber_c=1e-3)
    config.training.update(
        steps=10_000,
        batch_size=96,
        ema=0.95,
        sample_every=1000,
        checkpoint_every=1000,
        remat="minimal",  # a step with XLA's attention needs more than 80 GB for 12 pictures
        optimizer=dict(learning_rate=8e-6, weight_decay=0.0, clip_norm=1.0),
    )
    config.precision.update(
        teacher="bfloat16", target="bfloat16", student="bfloat16", text_encoder="bfloat16"
    )
    config.evaluation.teacher_steps = (50,)
    if size == "tiny":
        shrink(config, "sd15")
    return config


def shrink(config, family):
    """The config for a tiny teacher of the family, on a CPU."""
    config.name = f"tiny_{config.name}"
    config.teacher.update(path=f"runs/tiny_teachers/{family}", revision="", variant="")
    config.data.update(source="photographs", resolution=64)
    config.training.update(steps=30, batch_size=4, log_every=10, sample_every=15, remat="none")
    config.training.update(checkpoint_every=15, optimizer=dict(learning_rate=3e-4))
    for network in config.precision:
        config.precision[network] = "float32"
    config.evaluation.update(teacher_steps=(10,), student_steps=(1, 4))
