"""Stable Diffusion 3.5 medium by SLAM for flow matching; docs/flow.md has the method.

    slam-jax train --config sd35 --config.data.source=data/laion
    slam-jax train --config sd35 --config.data.source=data/laion --config.student.kind=lora

The method is that of configs/sd_slam.py. The second command trains a LoRA on the attention and the
feed-forwards of pictures and texts. The hub gives the teacher to those who accept its terms.

No Stable Diffusion 3 of real size has been distilled with it yet: w, the learning rate and the
number of steps are guesses. `--config sd35:tiny` is the same on a CPU, with a teacher of random
weights, which `python tests/support/tiny_sd3.py runs/tiny_teachers/sd35` makes.
"""

import runpy
from pathlib import Path

# The layers of the transformer that a LoRA changes.
TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
)


def get_config(size="full"):
    sd = runpy.run_path(str(Path(__file__).with_name("sd.py")))
    config = sd["get_config"]("full")
    config.name = "sd35"
    config.teacher.update(family="sd3", path="stabilityai/stable-diffusion-3.5-medium", revision="")
    config.data.resolution = 1024
    config.method.update(
        w=3.5, sigma="linear", conditioning="snr", gamma="paired", gammas_per_subpath=2
    )
    config.student.targets = TARGETS
    if size == "tiny":
        sd["shrink"](config, "sd35")
        config.student.rank = 4
    elif size != "full":
        raise ValueError(f"configs/sd35.py:{size}: expected full or tiny")
    return config
