"""Families whose models are published as folders of diffusers."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slam_jax.base.errors import prefixed
from slam_jax.data.batches import Source
from slam_jax.data.options import Data
from slam_jax.data.prepared import Prepared, check_fits, read_info
from slam_jax.data.sources import kind_of, open_source
from slam_jax.families.family import Family
from slam_jax.families.latent_pipeline import LatentPipeline
from slam_jax.formats.diffusers_folder import Folder, fingerprints


class PublishedModel(Family):
    """A model in a folder or on the hub."""

    in_diffusers = True
    pipeline: LatentPipeline

    def __init__(self, pipeline: LatentPipeline, folder: Folder):
        self.pipeline, self.folder = pipeline, folder

    def identity(self) -> dict[str, Any]:
        return {
            "path": self.folder.name,
            "revision": self.folder.revision,
            "variant": self.folder.variant,
            "fingerprints": fingerprints(self.folder),
        }

    def source(self, data: Data) -> Source:
        with prefixed("config.data: "):
            source = open_source(data, partial(self.pipeline.tokens_of, self.pipeline.tokenizers))
            if isinstance(source, Prepared):
                prints = self.identity()["fingerprints"]
                path, name = Path(data.source), self.folder.name
                check_fits(path, source.info, name, prints, data.resolution)
        return source

    def batch_shapes(self, data: Data | None, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        with prefixed("config.data.source = "):
            kind = None if data is None else kind_of(data.source)
        if kind in (None, "prepared", "teacher"):
            fields = self.pipeline.prepared_fields(1, 1, False, "float16")
            if data is not None and kind == "prepared":
                fields = read_info(Path(data.source).expanduser())["fields"]
            return {
                name: jax.ShapeDtypeStruct((size, *field["shape"][1:]), jnp.dtype(field["dtype"]))
                for name, field in fields.items()
                if name != "caption_count"
            }
        images = np.zeros((1, *self.pipeline.image_size, 3), np.uint8)
        arrays = {"images": images, **self.pipeline.prompts([""])}
        return {
            name: jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype)
            for name, array in arrays.items()
        }
