"""Stable Diffusion 1.5 by this project's variant of SLAM; otherwise as configs/sd.py.

    slam-jax train --config sd_slam --config.data.source=data/sd15_512

It differs from the paper's recipe in how a point inside a sub-path is described to the network, and
in which points are drawn:

sigma="linear"         its noise scale is the one that the teacher's DDIM step gives it
conditioning="snr"     the network is told the real-valued time that has this noise scale
gamma="paired", two    one point is the sub-path's start, where samplers are; the other is anywhere

On digits this draws in 1 to 8 steps where the published recipe collapses on the same compute, and
its students draw as well at times between those of the grid, where LCM's get worse. On emoji LCM is
nearer to the teacher; docs/results.md has both, and PCM. No Stable Diffusion of real size has been
distilled with it yet.

A step takes 9 network passes an example instead of 6, and the student sees two rows for each
example: where memory does not suffice, `--config.training.accumulation=2` halves them.
"""

import runpy
from pathlib import Path


def get_config(size="full"):
    sd = runpy.run_path(str(Path(__file__).with_name("sd.py")))
    config = sd["get_config"](size)
    config.name = config.name.replace("sd", "sd_slam")
    config.method.update(sigma="linear", conditioning="snr", gamma="paired", gammas_per_subpath=2)
    return config
