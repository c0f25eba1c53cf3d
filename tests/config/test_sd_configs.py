"""The configs for Stable Diffusion teachers."""

import runpy
from dataclasses import asdict
from pathlib import Path

import pytest

from slam_jax.base.errors import InputError
from slam_jax.config.validate import freeze

VARIANTS = ("sd_slam.py", "sd_lora.py", "sdxl_lora.py")
ROOT = Path(__file__).parents[2]


NAMES = {path.name for path in (ROOT / "configs").glob("s*.py")} - {"sd35.py"}  # of flow matching


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_configs_are_the_authors_recipe_on_each_teacher(name):
    """But those of this project's variant, two of which are LoRAs."""
    get_config = runpy.run_path(str(ROOT / "configs" / name))["get_config"]
    values = get_config("full")
    with pytest.raises(InputError, match="config.data.source = '', expected digits, photographs"):
        freeze(values)  # which images is everybody's own choice
    values.data.source = "data/prepared"
    config, tiny_config = freeze(values), freeze(get_config("tiny"))
    method, optimizer = config.method, config.training.optimizer
    ours = ("paired", 2, "linear", "snr"), ("uniform", 1, "paper", "embedding")
    chosen = method.gamma, method.gammas_per_subpath, method.sigma, method.conditioning
    assert chosen == ours[name not in VARIANTS]
    assert (method.num_ddim_timesteps, method.distance, method.huber_c) == (50, "huber", 1e-3)
    assert (method.solver_substeps, method.w_spread) == (1, 0)
    is_lora, is_xl = "lora" in name, "sdxl" in name
    assert config.student.kind == ("lora" if is_lora else "full") and config.student.rank == 64
    assert method.w == (7 if is_xl else 8)
    assert (optimizer.learning_rate, optimizer.weight_decay) == (1e-4 if is_lora else 8e-6, 0)
    assert (optimizer.b1, optimizer.b2, optimizer.clip_norm) == (0.9, 0.999, 1)
    assert (optimizer.schedule, config.training.ema) == ("constant", 0.95)
    assert len(config.teacher.revision) == 40 and "/" in config.teacher.path
    assert config.precision.vae == "float32"
    assert config.data.resolution == (1024 if is_xl else 768 if name == "sd21_v.py" else 512)
    assert tiny_config.teacher.path == f"runs/tiny_teachers/{tiny_family(name)}"
    assert set(asdict(tiny_config.precision).values()) == {"float32"}


def tiny_family(name):
    name = name.removesuffix(".py").removesuffix("_lora").removesuffix("_slam")
    return "sd15" if name == "sd" else name
