"""What networks see in pictures of a fixed list of prompts, by teacher and student of a run."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slam_jax.base.errors import InputError
from slam_jax.config.options import Evaluation
from slam_jax.drawing.metrics.metric import Whose
from slam_jax.drawing.metrics.registry import METRICS, networks_of
from slam_jax.drawing.pictures import to_uint8
from slam_jax.features.choose import open_networks
from slam_jax.features.extract import Extractor, Features
from slam_jax.features.rows import Rows, in_memory
from slam_jax.formats.safetensors import load_arrays, save_arrays
from slam_jax.parallel.processes import as_first, is_main
from slam_jax.parallel.sharding import make_mesh

LOOKED_AT = 32  # pictures that networks on a device see at a time

# (prompts, first row of the noise) -> images in [-1, 1], [N, H, W, C].
Draw = Callable[[Sequence[str], int], np.ndarray]


class Seen:
    """Features of pictures that one model or another draws for the same prompts and noise.

    Args:
      extractor: the networks.
      prompts: one for each picture.
      batch: pictures that are drawn at a time.
      teacher: draws what the others are compared with; once, and then no more.
      how: the teacher draws, in JSON: its steps, the seed.
      folder: where the teacher's features are kept between starts; None: nowhere.
    """

    def __init__(
        self,
        extractor: Extractor,
        prompts: Sequence[str],
        batch: int,
        teacher: Draw,
        how: Any,
        folder: Path | None = None,
    ):
        self._extractor, self.prompts, self._batch = extractor, tuple(prompts), batch
        self._teacher, self._how, self._folder = teacher, how, folder
        self._fixed: dict[tuple[Whose, str], Rows] = {}

    def by(self, draw: Draw) -> dict[tuple[Whose, str], Rows]:
        """(whose, network) -> features: the model's, those of the teacher and of the prompts."""
        if not self._fixed:
            self._fixed = self._of_teacher_and_prompts()
        ours = self._look(draw)
        return {**self._fixed, **{("model", name): in_memory(rows) for name, rows in ours.items()}}

    def _look(self, draw: Draw) -> Features:
        found = []
        for first in range(0, len(self.prompts), self._batch):
            images = to_uint8(draw(self.prompts[first : first + self._batch], first))
            found.append(self._extractor.images(list(images)))
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def _of_teacher_and_prompts(self) -> dict[tuple[Whose, str], Rows]:
        """Made, or read where an earlier start of the run made them."""
        networks = {name: x.identity for name, x in self._extractor.networks.items()}
        what = json.dumps([self.prompts, self._how, networks])
        name = f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.safetensors"
        path = self._folder and self._folder / name
        if path and as_first(path.exists()):
            arrays = load_arrays(path)
        else:
            seen, read = self._look(self._teacher), self._extractor.texts(self.prompts)
            arrays = {f"teacher.{name}": rows for name, rows in seen.items()}
            arrays |= {f"prompts.{name}": rows for name, rows in read.items()}
            if path and is_main():
                path.parent.mkdir(parents=True, exist_ok=True)
                save_arrays(path, arrays)
        whose: dict[str, Whose] = {"teacher": "teacher", "prompts": "prompts"}
        return {
            (whose[key.partition(".")[0]], key.partition(".")[2]): in_memory(rows)
            for key, rows in arrays.items()
        }


def extractor_of(options: Evaluation) -> Extractor | None:
    """The networks that the metrics of an evaluation read, on this process's devices.

    Raises:
      InputError: weights cannot be had or read, there are too few pictures for a metric, or one
        compares with real pictures, which there are none of; names the option.
    """
    metrics = [METRICS[name] for name in options.metrics]
    if not (names := networks_of(metrics)):
        return None
    networks = open_networks(names, options.weights, "weights")
    widths = {name: network.width for name, network in networks.items()}
    for metric in metrics:
        if metric.compares_with == "reference" and metric.networks:
            raise InputError(
                f"metrics: {metric.name} compares with real pictures; measure it with slam-jax "
                "evaluate"
            )
        # A ladder has at least one picture.
        if metric.networks and (options.pictures or 1) < (fewest := metric.fewest(widths)):
            raise InputError(
                f"pictures = {options.pictures}, expected {fewest} or more for {metric.name}; "
                f"{metric.too_few}"
            )
    mesh = make_mesh(devices=jax.local_devices())
    return Extractor(networks, mesh, LOOKED_AT * mesh.size)
