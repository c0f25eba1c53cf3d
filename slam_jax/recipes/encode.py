"""Encodes examples on all devices of this process: the VAE's moments and, if asked for, the text
encoders' embeddings."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from slam_jax.base.errors import InputError
from slam_jax.data.prepared import empty_dtype, row_dtype
from slam_jax.data.views import Views
from slam_jax.families.latent_pipeline import LatentPipeline
from slam_jax.families.stable_diffusion_folder import read_surroundings
from slam_jax.formats.diffusers_folder import Folder
from slam_jax.parallel.sharding import AXES, batch_sharding, by_rows, replicated


class Encoded(NamedTuple):
    """Examples given to the devices, whose results are not fetched yet.

    Attributes:
      fields: what needed no device.
      results: what the devices compute: name -> array of the rows that were asked for and more.
      flags: name -> whether the array is finite as computed, and as stored.
    """

    fields: dict[str, np.ndarray]
    results: dict[str, jax.Array]
    flags: dict[str, tuple[jax.Array, jax.Array]]


class Encoder:
    """Views of examples to the fields of their records.

    Args:
      pipeline: the model, for pictures of the views' size.
      folder: where its weights are.
      precision: that it computes in.
      fields: what is stored, as plan.json has it.
      batch: how many examples are encoded at once, at least; a multiple of the devices.

    Attributes:
      batch: how many they are.

    Raises:
      InputError: the weights cannot be read.
    """

    def __init__(
        self,
        pipeline: LatentPipeline,
        folder: Folder,
        precision: str,
        fields: Mapping[str, Mapping[str, Any]],
        batch: int,
    ):
        devices = jax.local_devices()
        mesh = Mesh(np.reshape(devices, (-1, 1)), AXES)
        self.batch = -(-batch // len(devices)) * len(devices)
        self._pipeline, self._precision, self._row = pipeline, precision, row_dtype(fields)
        self._embeds = "encoder_hidden_states" in fields
        self._sharding = batch_sharding(mesh)
        self._dtype = self._row["moments"].base
        of_texts = precision if self._embeds else None
        frozen = read_surroundings(folder, pipeline, of_texts, precision)
        self._frozen = jax.device_put(frozen, replicated(mesh))
        self._moments = by_rows(self._trace_moments, mesh)
        self._embed = by_rows(self._trace_embeddings, mesh)

    def start(self, views: Sequence[Views]) -> Encoded:
        """Has the devices begin with up to `batch` examples, one or more."""
        fields = self._host_fields(views)
        images = self._put(np.stack([view.images for view in views]))
        computed = {"moments": self._moments(self._frozen, images)}
        if self._embeds:
            computed |= self._embed(self._frozen, self._put(fields["tokens"]))
        results = {name: result for name, (result, *_) in computed.items()}
        flags = {name: (is_finite, is_held) for name, (_, is_finite, is_held) in computed.items()}
        return Encoded(fields, results, flags)

    def finish(self, encoded: Encoded) -> dict[str, np.ndarray]:
        """Waits for the devices; the fields of the examples' records, stacked.

        Raises:
          InputError: the model gives NaN or infinity, or more than the stored numbers can hold.
        """
        fields = dict(encoded.fields)
        count = len(fields["tokens"])
        for name, result in encoded.results.items():
            self._check(name, *encoded.flags[name])
            shape = self._row[name].shape
            fields[name] = np.asarray(result)[: count * shape[0]].reshape(count, *shape)
        return fields

    def empty_prompt(self) -> np.ndarray:
        """Its fields, as prepared.empty_dtype has them.

        Raises:
          InputError: as `finish`.
        """
        row = np.empty((), empty_dtype(self._row))
        row["tokens"] = self._pipeline.tokenize([""])[0]
        if self._embeds:
            captions = self._row["tokens"].shape[0]
            tokens = np.broadcast_to(row["tokens"], (1, captions, *row["tokens"].shape))
            for name, (result, *flags) in self._embed(self._frozen, self._put(tokens)).items():
                self._check(name, *flags)
                row[name] = np.asarray(result)[0]
        return row

    def _host_fields(self, views: Sequence[Views]) -> dict[str, np.ndarray]:
        most = self._row["tokens"].shape[0]
        kept = [view.captions[:most] for view in views]
        texts = [texts[i % len(texts)] for texts in kept for i in range(most)]
        tokens = self._pipeline.tokenize(texts)
        fields = {
            "time_ids": np.stack([view.time_ids for view in views]),
            "tokens": tokens.reshape(len(views), most, *tokens.shape[1:]),
            "caption_count": np.array([len(texts) for texts in kept], np.int32),
        }
        return {name: field for name, field in fields.items() if name in (self._row.names or ())}

    def _put(self, rows: np.ndarray) -> jax.Array:
        """Rows of examples, with as many copies of the first one as there are too few of them: one
        shape, one compiled program; the first two axes as one."""
        missing = self.batch - len(rows)
        rows = np.concatenate([rows, np.repeat(rows[:1], missing, axis=0)])
        return jax.device_put(rows.reshape(-1, *rows.shape[2:]), self._sharding)

    def _trace_moments(self, frozen, images):
        return self._stored(self._pipeline.moments(frozen, images))

    def _trace_embeddings(self, frozen, tokens):
        embedded = self._pipeline.embed(frozen, tokens)
        return {name: self._stored(array) for name, array in embedded.items()}

    def _stored(self, array):
        stored = array.astype(self._dtype)
        axes = tuple(range(1, array.ndim))
        return stored, jnp.isfinite(array).all(axis=axes), jnp.isfinite(stored).all(axis=axes)

    def _check(self, name: str, is_finite: jax.Array, is_held: jax.Array) -> None:
        if not np.all(is_finite):
            raise InputError(
                f"{name}: the model gives NaN or infinity in {self._precision}; use another "
                "--precision, or another model"
            )
        if not np.all(is_held):
            raise InputError(f"{name}: too large for {self._dtype}; use --dtype bfloat16")
