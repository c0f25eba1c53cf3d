"""The methods there are, by the name that `config.method.name` gives."""

from slam_jax.method.lcm import Lcm
from slam_jax.method.method import Method
from slam_jax.method.pcm import Pcm
from slam_jax.method.slam import Slam
from slam_jax.method.slam_literal import SlamLiteral

METHODS: dict[str, type[Method]] = {
    "slam": Slam,
    "slam_literal": SlamLiteral,
    "lcm": Lcm,
    "pcm": Pcm,
}
