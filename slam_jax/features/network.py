"""What a network for comparing pictures does.

Pictures are prepared on the host and go through the network on the device:

    network = open_network("clip_b32")
    apply = jax.jit(network.apply)
    features = apply(network.params, np.stack([network.prepare(image) for image in images]))

Shape letters: B batch, H height, W width, L tokens, D features.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from slam_jax.models.functional import Params

PREFIX = "A photo depicts "  # of a prompt, for CLIP score (Hessel et al. 2021, arXiv 2104.08718)


@dataclass(frozen=True, eq=False)
class FeatureNetwork(ABC):
    """A frozen network whose features pictures are compared in.

    Attributes:
        name: its name in the registry.
        width: D, features of a picture.
        params: its weights, nested dict of numpy arrays, float32.
        identity: for the record of a measurement, as JSON: "network", "file", "sha256", "resizer".
    """

    name: str
    width: int
    params: Params
    identity: dict[str, Any]

    @abstractmethod
    def prepare(self, image: UInt8[np.ndarray, "H W 3"]) -> np.ndarray:
        """A picture as the network takes it: resized, float32 [S, S, 3]. May run in any thread."""

    @abstractmethod
    def apply(self, params: Params, x: Array) -> Float[Array, "B D"]:
        """Features of prepared pictures; may be traced.

        Args:
            params: the network's, or the same on a device.
            x: prepared pictures [B, S, S, 3].
        """


@dataclass(frozen=True, eq=False)
class TextImageNetwork(FeatureNetwork):
    """A network that has features of texts too, to be compared with those of pictures.

    Neither are of length 1.

    Attributes:
        prefix: what a prompt is read behind.
    """

    prefix: str = field(default=PREFIX, kw_only=True)

    @abstractmethod
    def tokens(self, texts: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """Texts as the network takes them; long ones are cut."""

    @abstractmethod
    def apply_text(self, params: Params, tokens: Array) -> Float[Array, "B D"]:
        """Features of texts; may be traced.

        Args:
            params: the network's, or the same on a device.
            tokens: what `tokens` gave.
        """


def full_precision(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`apply` with products in float32 on GPUs and TPUs too, which round to fewer bits by default:
    a distance between features is a small difference of large numbers."""

    @functools.wraps(apply)
    def precise(*args):
        with jax.default_matmul_precision("highest"):
            return apply(*args)

    return precise
