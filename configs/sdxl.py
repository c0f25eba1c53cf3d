"""SDXL (1024 pixels), the whole UNet; otherwise as configs/sd.py.

    slam-jax train --config sdxl --config.data.source=data/sdxl_1024

The authors published a LoRA for SDXL and no recipe for it; this trains all 2.6 billion weights.
Weights, EMA and Adam take 41 GB in float32, gradients 10 GB, the teacher 5 GB, on each device, or
split over 8 with `--config.mesh.fsdp=8`; `slam-jax plan` says what else a step needs. No
result has been measured. `--config sdxl:tiny` needs
`python tests/support/tiny_stable_diffusion.py runs/tiny_teachers/sdxl --family sdxl`.
"""

import runpy
from pathlib import Path


def get_config(size="full"):
    sd = runpy.run_path(str(Path(__file__).with_name("sd.py")))
    config = sd["get_config"]()
    config.name = "sdxl"
    config.teacher.update(
        path="stabilityai/stable-diffusion-xl-base-1.0",
        revision="462165984030d82259a11f4367a4eed129e94a7b",
    )
    config.data.resolution = 1024
    config.method.w = 7.0
    config.training.batch_size = 16
    if size == "tiny":
        sd["shrink"](config, "sdxl")
    return config
