"""The methods there are, by the name that `config.method.name` gives, and the noise schedules."""

from collections.abc import Mapping
from typing import Any

from slam_jax.method.flow_matching import FlowMatching
from slam_jax.method.lcm import Lcm
from slam_jax.method.method import Method
from slam_jax.method.pcm import Pcm
from slam_jax.method.schedule import Schedule
from slam_jax.method.slam import Slam
from slam_jax.method.slam_literal import SlamLiteral
from slam_jax.method.variance_preserving import VariancePreserving

METHODS: dict[str, type[Method]] = {
    "slam": Slam,
    "slam_literal": SlamLiteral,
    "lcm": Lcm,
    "pcm": Pcm,
}

SCHEDULES: dict[str, type[Schedule]] = {
    "variance_preserving": VariancePreserving,
    "flow_matching": FlowMatching,
}


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """The schedule that a diffusers `scheduler_config.json` describes.

    Raises:
      ValueError: it is of no kind in SCHEDULES, or a value in it is not known.
    """
    for kind in reversed(SCHEDULES.values()):  # those that were added first
        if kind.reads(config):
            return kind.from_config(config)
    raise ValueError(
        f"{config.get('_class_name')}: a schedule of another kind than {', '.join(SCHEDULES)}"
    )
