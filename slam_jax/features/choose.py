"""The networks that metrics read, each with its published weights or with others."""

from collections.abc import Sequence

from slam_jax.base.errors import InputError
from slam_jax.features.network import FeatureNetwork
from slam_jax.features.registry import NETWORKS, open_network


def open_networks(
    names: Sequence[str], weights: Sequence[str], option: str
) -> dict[str, FeatureNetwork]:
    """Opens them.

    Args:
      names: of the networks.
      weights: NETWORK=PATH each; the others have their published weights.
      option: what the user calls `weights`.

    Raises:
      InputError: a pair is malformed, or of a network that no metric reads; or weights cannot be
        had or read.
    """
    paths = {}
    for pair in weights:
        name, equals, path = pair.partition("=")
        if not (equals and path and name in NETWORKS):
            raise InputError(f"{option} {pair}: expected NETWORK=PATH, of {', '.join(NETWORKS)}")
        if name not in names:
            asked = ", ".join(names) or "none"
            raise InputError(f"{option} {pair}: no metric reads {name}; read are: {asked}")
        paths[name] = path
    return {name: open_network(name, paths.get(name, "")) for name in names}
