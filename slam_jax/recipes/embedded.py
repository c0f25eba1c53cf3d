"""Training on texts that were embedded before: no text encoder stays on the devices."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from slam_jax.data.batches import Source
from slam_jax.data.prepared import Prepared
from slam_jax.drawing.samplers import on_mesh
from slam_jax.families.latent_pipeline import EMPTY, TEXT_ENCODERS, LatentPipeline
from slam_jax.families.pipeline import Frozen, Pipeline
from slam_jax.parallel.sharding import shard

Embedder = Callable[[Int[np.ndarray, "B ..."]], dict[str, np.ndarray]]


def embedder(pipeline: LatentPipeline, frozen: Frozen, mesh: Mesh) -> Embedder:
    """Token ids -> what the text encoders make of them, float32, computed by all devices.

    Args:
      pipeline: of the model.
      frozen: the text encoders' weights, on the mesh.
      mesh: devices.
    """

    def embed(frozen, params, batch, start):
        del params, start
        return pipeline.embed(frozen, batch["tokens"])

    spread = on_mesh(embed, mesh, "float32")
    return lambda tokens: jax.tree.map(np.asarray, spread(frozen, {}, {"tokens": tokens}, (0, 0)))


def without_text_encoders(
    pipeline: Pipeline, source: Source, weights: Frozen, texts: Sequence[str], mesh: Mesh
) -> Callable[[Sequence[str]], dict[str, np.ndarray]]:
    """What turns texts into batches of prompts to draw with.

    Where the source has the embeddings of its captions, those of the texts and of the empty prompt
    are computed here, and kept in the host's memory; then the text encoders are let go.

    Args:
      pipeline: of the model.
      source: the examples to train on.
      weights: numpy arrays; text encoders that are not needed any more are taken out.
      texts: all that will be drawn.
      mesh: devices.
    """
    stored = isinstance(source, Prepared) and source.has_embeddings
    if not (stored and isinstance(pipeline, LatentPipeline)):
        return pipeline.prompts
    encoders = {name: weights.pop(name) for name in TEXT_ENCODERS if name in weights}
    embed, rows = embedder(pipeline, shard(encoders, mesh), mesh), {}
    del encoders
    every = [*dict.fromkeys(["", *texts])]
    for first in range(0, len(every), mesh.size):
        some = every[first : first + mesh.size]
        found = embed(pipeline.tokenize(np.resize(some, mesh.size).tolist()))
        for row, text in enumerate(some):
            rows[text] = {name: array[row] for name, array in found.items()}
    weights[EMPTY] = {name: array[None] for name, array in rows[""].items()}

    def prompts(texts: Sequence[str]) -> dict[str, np.ndarray]:
        embedded = {name: np.stack([rows[text][name] for text in texts]) for name in rows[""]}
        return {**pipeline.prompts(texts), **embedded}

    return prompts
