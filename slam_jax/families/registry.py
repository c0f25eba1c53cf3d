"""The families there are, by the name that `config.teacher.family` gives.

Another one is added from outside: `FAMILIES["mine"] = Mine`, for example in a config file.
"""

from pathlib import Path

from slam_jax.families.digits import Digits
from slam_jax.families.family import Family
from slam_jax.families.sd3 import StableDiffusion3
from slam_jax.families.sd3_untrained import UntrainedStableDiffusion3
from slam_jax.families.stable_diffusion import StableDiffusion
from slam_jax.families.stable_diffusion_untrained import UntrainedStableDiffusion
from slam_jax.families.untrained import Untrained

FAMILIES: dict[str, type[Family]] = {
    "stable_diffusion": StableDiffusion,
    "sd3": StableDiffusion3,
    "digits": Digits,
}

# Those that `slam-jax pretrain` trains, by the name that `config.family` gives.
UNTRAINED: dict[str, type[Untrained]] = {
    kind.model.name: kind for kind in (UntrainedStableDiffusion, UntrainedStableDiffusion3)
}


def reader_of(folder: Path) -> type[Family] | None:
    """The family that reads the model in a folder; None: no family does."""
    # Those that were added first come last: from outside a name may be taken over.
    return next((family for family in reversed(FAMILIES.values()) if family.reads(folder)), None)
