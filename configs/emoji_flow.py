"""Emoji in 1 to 8 steps by SLAM for flow matching, from a small Stable Diffusion 3.

    slam-jax train --config emoji_flow

`configs/emoji_flow_teacher.py` makes the teacher, which also draws the pictures that the student
learns from; the method is that of configs/sd35.py, all else that of configs/emoji.py. Run it in the
folder that has `assets`. `--config emoji_flow:tiny` distils, in a minute, the teacher that
`emoji_flow_teacher:tiny` leaves in `runs`.
"""

import runpy
from pathlib import Path

from slam_jax.data.options import Data

TEACHER = "assets/emoji_flow_teacher"
TINY_TEACHER = "runs/tiny_emoji_flow_teacher/teacher"


def get_config(size="full"):
    if size not in ("full", "tiny"):
        raise ValueError(f"configs/emoji_flow.py:{size}: expected full or tiny")
    emoji = runpy.run_path(str(Path(__file__).with_name("emoji.py")))
    config = emoji["get_config"]()
    config.name = "emoji_flow"
    config.teacher.update(family="sd3", path=TEACHER)
    if size == "tiny":
        config.name = "tiny_emoji_flow"
        config.teacher.path = TINY_TEACHER
        config.data.update(vars(Data("photographs", resolution=32)))
        config.training.update(steps=4, batch_size=8, log_every=2, sample_every=0)
        config.evaluation.update(
            prompts=("a picture",), samples=0, teacher_steps=(2,), student_steps=(1, 4)
        )
    return config
