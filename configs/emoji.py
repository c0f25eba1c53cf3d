"""Emoji in 1 to 8 steps, from a teacher that comes with this repository: no data is needed.

    slam-jax train --config emoji

The teacher, `assets/emoji_teacher`, was made by `configs/emoji_teacher.py`. It first draws the
pictures that the student learns from. Run it in the folder that has `assets`.
"""

from slam_jax.config.options import default_config

TEACHER = "assets/emoji_teacher"


def get_config():
    config = default_config()
    config.name = "emoji"
    config.teacher.path = TEACHER
    config.data.update(
        source=f"teacher:{TEACHER}/prompts.txt",
        resolution=32,
        teacher_count=1024,
        teacher_steps=20,
        teacher_w=2.0,
        teacher_batch=64,
    )
    config.method.update(
        w=2.0, sigma="linear", conditioning="snr", gamma="paired", gammas_per_subpath=2
    )
    config.training.update(
        steps=500,
        batch_size=32,
        ema=0.98,
        sample_every=250,
        optimizer=dict(learning_rate=3e-4, schedule="cosine"),
    )
    config.evaluation.update(
        prompts=(
            "noto emoji of green apple",
            "fluent emoji of green apple",
            "noto emoji of cat face",
            "fluent emoji of cat face",
            "noto emoji of octopus",
            "fluent emoji of octopus",
            "noto emoji of sunflower",
            "fluent emoji of sunflower",
            "noto emoji of hamburger",
            "fluent emoji of hamburger",
        ),
        teacher_steps=(50, 4, 2, 1),
        samples=100,
    )
    return config
