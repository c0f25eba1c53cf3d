"""Features of pictures and of prompts by several networks, each batch spread over the devices."""

import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from slam_jax.features.network import FeatureNetwork, TextImageNetwork
from slam_jax.features.registry import NETWORKS
from slam_jax.parallel.sharding import batch_sharding, by_rows, replicated

THREADS = 8  # that resize pictures

View = Callable[[UInt8[np.ndarray, "H W 3"]], UInt8[np.ndarray, "h w 3"]]
Features = dict[str, Float[np.ndarray, "n D"]]


class Extractor:
    """Networks on devices.

    Args:
      networks: by name.
      mesh: devices of this process.
      batch: pictures that a network sees at a time, a multiple of the devices.
      view: what is done to every picture, drawn or real, before a network sees it that does not
        see originals.
    """

    def __init__(
        self,
        networks: Mapping[str, FeatureNetwork],
        mesh: Mesh,
        batch: int,
        view: View = lambda image: image,
    ):
        self.networks, self._batch, self._view = networks, batch, view
        self._rows, self._pool = batch_sharding(mesh), ThreadPoolExecutor(THREADS)
        self._params = {n: jax.device_put(x.params, replicated(mesh)) for n, x in networks.items()}
        self._apply = {name: by_rows(network.apply, mesh) for name, network in networks.items()}
        self._apply_text = {
            name: by_rows(network.apply_text, mesh)
            for name, network in networks.items()
            if isinstance(network, TextImageNetwork)
        }

    def only(self, names: Sequence[str]) -> "Extractor":
        """The same with some of its networks."""
        fewer = copy.copy(self)
        fewer.networks = {name: self.networks[name] for name in names}
        return fewer

    def images(self, images: Sequence[UInt8[np.ndarray, "H W C"]]) -> Features:
        """Features of pictures, by network; C is 3, or 1 for grey ones."""
        if not self.networks:
            return {}
        seen: dict[bool, list[np.ndarray]] = {True: [_rgb(image) for image in images]}
        found = {}
        for name, network in self.networks.items():
            if not (original := NETWORKS[name].sees_original) and original not in seen:
                seen[original] = list(self._pool.map(self._view, seen[True]))
            x = np.stack(list(self._pool.map(network.prepare, seen[original])))
            found[name] = self._run(self._apply[name], self._params[name], x)
        return found

    def texts(self, prompts: Sequence[str]) -> Features:
        """Features of prompts, by each network that reads texts."""
        found = {}
        for name, apply in self._apply_text.items():
            network = self.networks[name]
            assert isinstance(network, TextImageNetwork)
            tokens = network.tokens([network.prefix + prompt for prompt in prompts])
            found[name] = self._run(apply, self._params[name], tokens)
        return found

    def _run(self, apply: Callable, params: Any, x: np.ndarray) -> np.ndarray:
        """Rows of the output; the last batch is filled with the last row."""
        rows = []
        for start in range(0, len(x), self._batch):
            part = x[start : start + self._batch]
            full = np.concatenate([part, np.repeat(part[-1:], self._batch - len(part), axis=0)])
            rows.append(np.asarray(apply(params, jax.device_put(full, self._rows)))[: len(part)])
        return np.concatenate(rows)


def _rgb(image: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "H W 3"]:
    return np.broadcast_to(image, (*image.shape[:2], 3))
