"""A LoRA that draws in few steps with Stable Diffusion 1.5 and its fine-tunes.

    slam-jax train --config sd_lora --config.data.source=data/sd15_512

The method is that of configs/sd_slam.py. Of the student only a LoRA is trained, with the rank, the
layers and the learning rate of the published LCM-LoRA (arXiv 2311.05556): 67 million weights with
an optimiser and an average in the place of 860. The export is
pytorch_lora_weights.safetensors, 135 MB, with a scheduler and a model card.

No Stable Diffusion of real size has been distilled with it yet. `--config sd_lora:tiny` is the same
on a CPU; it needs the teacher of `make demo-sd`.
"""

import runpy
from pathlib import Path


def get_config(size="full"):
    config = runpy.run_path(str(Path(__file__).with_name("sd_slam.py")))["get_config"](size)
    config.name = config.name.replace("sd_slam", "sd_lora")
    config.student.kind = "lora"
    if size == "tiny":
        config.student.rank = 4
    else:
        config.training.optimizer.learning_rate = 1e-4
    return config
