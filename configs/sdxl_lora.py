"""A LoRA that draws in few steps with SDXL and its fine-tunes; otherwise as configs/sd_lora.py.

    slam-jax train --config sdxl_lora --config.data.source=data/sdxl_1024

197 million weights are trained in the place of 2,567; the LoRA's file has 394 MB. No SDXL of real
size has been distilled with it yet. `--config sdxl_lora:tiny` needs
`python tests/support/tiny_stable_diffusion.py runs/tiny_teachers/sdxl --family sdxl`.
"""

import runpy
from pathlib import Path


def get_config(size="full"):
    here = Path(__file__)
    config = runpy.run_path(str(here.with_name("sdxl.py")))["get_config"](size)
    like = runpy.run_path(str(here.with_name("sd_lora.py")))["get_config"](size)
    config.name = config.name.replace("sdxl", "sdxl_lora")
    config.student, config.method = like.student, {**like.method, "w": config.method.w}
    config.training.optimizer.learning_rate = like.training.optimizer.learning_rate
    return config
