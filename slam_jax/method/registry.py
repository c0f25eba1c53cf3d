"""The methods there are, by the name that `config.method.name` gives."""

from slam_jax.method.method import Method
from slam_jax.method.slam import Slam

METHODS: dict[str, type[Method]] = {"slam": Slam}
