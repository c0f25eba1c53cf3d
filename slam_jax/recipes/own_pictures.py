"""Pictures that a teacher draws to be distilled on: `config.data.source = teacher:PROMPTS`.

They are drawn once, at the start of a run, and kept in its workdir as slam-jax prepare keeps
those of a data set (data.prepared). Their latents are the mean there and the log variance is the
lowest that the VAE knows, so that training gets these latents again, in float16.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from slam_jax.base.errors import InputError, prefixed
from slam_jax.config.options import Config, Data
from slam_jax.data.batches import Source
from slam_jax.data.options import OF_TEACHER
from slam_jax.data.prepared import FORMAT, INFO_FILE, empty_dtype
from slam_jax.data.prepared_write import Store
from slam_jax.data.rejects import Rejects
from slam_jax.data.sources import TEACHER, check_used, kind_of
from slam_jax.drawing.samplers import on_mesh, teacher_latents
from slam_jax.evaluation.prompts import KINDS, PromptList, read_at_most
from slam_jax.families.family import Family
from slam_jax.families.latent_pipeline import TEXT_ENCODERS, LatentPipeline
from slam_jax.families.pipeline import DENOISER, Frozen, cast_weights
from slam_jax.parallel.keys import keys_of
from slam_jax.parallel.processes import exchange, is_main, wait
from slam_jax.parallel.sharding import shard
from slam_jax.recipes.embedded import embedder

FOLDER = "teacher_pictures"  # in the workdir
SHARD_SIZE = 256  # pictures; what a kill loses is one shard, whatever the devices
DTYPE = "float16"
OPTIONS = "teacher_count", "teacher_steps", "teacher_w"  # that decide what is drawn


@dataclass(frozen=True)
class OwnPictures:
    """Pictures of a teacher, of which some or all are still to be drawn.

    Attributes:
      config: the run.
      family: the teacher.
      pipeline: the same without its weights.
      texts: the prompts; picture i is of prompt i, of the first one again after the last one.
      store: where they are kept.
    """

    config: Config
    family: Family
    pipeline: LatentPipeline
    texts: Sequence[str]
    store: Store

    def missing(self) -> list[int]:
        """The shards that are still to be made."""
        return [number for number in range(self.store.shards) if self.store.done(number) is None]

    def draw(self, mesh: Mesh) -> Source:
        """Draws what is missing, on all devices of all processes; returns the examples.

        Raises:
          InputError: a picture is not finite, or cannot be written.
        """
        # The first process alone looks and writes, wherever the folder is.
        missing = json.loads(exchange(json.dumps(self.missing() if is_main() else []))[0])
        size = self.store.shard_size
        pictures = [n * size + row for n in missing for row in range(self.store.count(n))]
        if missing:
            frozen = self._frozen(mesh)
            empty = self._empty_prompt(frozen, mesh)
            if is_main() and not self.store.has_empty:
                self.store.write_empty(empty)
            rows = self._draw(pictures, frozen, mesh)
            for number in missing:
                made = np.array(list(islice(rows, self.store.count(number))))
                with self.store.shard(number) if is_main() else nullcontext() as writer:
                    if writer is not None:
                        writer.write({name: made[name] for name in self.store.dtype.names or ()})
        if is_main() and (missing or not (self.store.folder / INFO_FILE).exists()):
            self.store.finish(Rejects(), 0)
        wait("the teacher's pictures")
        return self.family.source(as_prepared(self.config.data, self.store.folder))

    def _frozen(self, mesh: Mesh) -> Frozen:
        """All weights, on the mesh."""
        precision = self.config.precision
        weights = self.family.weights(precision)
        weights[DENOISER] = cast_weights(self.pipeline, weights[DENOISER], precision.teacher)
        return shard(weights, mesh)

    def _empty_prompt(self, frozen: Frozen, mesh: Mesh) -> np.ndarray:
        """Its fields, as data.prepared keeps them."""
        row, tokens = np.empty((), empty_dtype(self.store.dtype)), self.pipeline.tokenize([""])
        row["tokens"] = tokens[0]
        if self._embeds:
            of_texts = {name: x for name, x in frozen.items() if name in TEXT_ENCODERS}
            for name, array in embedder(self.pipeline, of_texts, mesh)(tokens).items():
                row[name] = array[0]
        return row

    @property
    def _embeds(self) -> bool:
        return self.config.data.teacher_text_embeddings

    def _draw(self, pictures: Sequence[int], frozen: Frozen, mesh: Mesh) -> Iterator[np.void]:
        """The records of pictures, one after the other."""
        # As many at a time on each device, however many there are: one program computes them all.
        size, draw = self.config.data.teacher_batch * mesh.size, self._sampler(frozen, mesh)
        total = self.config.data.teacher_count
        with tqdm(
            desc="the teacher's pictures",
            total=total,
            initial=total - len(pictures),
            unit="picture",
            disable=not is_main(),
        ) as bar:
            for first in range(0, len(pictures), size):
                some = pictures[first : first + size]
                filled = [some[row % len(some)] for row in range(size)]
                batch = self.pipeline.prompts([self.texts[n % len(self.texts)] for n in filled])
                made = draw({**batch, "index": np.array(filled, np.int32)})
                for n, *parts in zip(some, *made.values(), strict=False):
                    if not all(np.isfinite(part).all() for part in parts):
                        raise InputError(
                            f"the teacher's picture {n} is not finite, or too large for {DTYPE}: "
                            "its weights are damaged, or config.precision.teacher is too coarse"
                        )
                fields = {**batch, **made, "caption_count": np.ones(size, np.int32)}
                rows = np.empty(len(some), self.store.dtype)
                for name in self.store.dtype.names or ():
                    rows[name] = np.reshape(fields[name][: len(some)], rows[name].shape)
                bar.update(len(some))
                yield from rows

    def _sampler(
        self, frozen: Frozen, mesh: Mesh
    ) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
        """Prompts and the numbers of their pictures -> moments, and embeddings where they are kept,
        by all devices of a mesh."""
        pipeline, precision, data = self.pipeline, self.config.precision, self.config.data
        params = frozen[DENOISER]
        frozen = {name: part for name, part in frozen.items() if name != DENOISER}
        latents = teacher_latents(pipeline, data.teacher_w, precision.teacher)

        def draw(frozen, params, batch, start):
            seed, _ = start
            key, steps = keys_of(seed).own, data.teacher_steps
            embedded = pipeline.embed(frozen, batch["tokens"]) if self._embeds else {}
            x0 = latents(frozen, params, {**batch, **embedded}, key, batch["index"], steps)
            made = {"moments": pipeline.moments_of(x0), **embedded}
            return {name: array.astype(DTYPE) for name, array in made.items()}

        spread = on_mesh(draw, mesh, precision.teacher)
        start = self.config.seed, 0
        return lambda batch: jax.tree.map(np.asarray, spread(frozen, params, batch, start))


def own_pictures(config: Config, workdir: Path, family: Family) -> OwnPictures | None:
    """The pictures that a config has its teacher draw; None: it names another source, or the family
    has no prepared latents. Writes nothing.

    Raises:
      InputError: an option does not fit, the prompts cannot be read, or the workdir has pictures
        that were drawn otherwise.
    """
    data, pipeline = config.data, family.pipeline
    if family.trains or not isinstance(pipeline, LatentPipeline):
        return None
    with prefixed("config.data: "):
        if kind_of(data.source) != "teacher":
            return None
        check_used(data, "teacher")
        try:
            pipeline.schedule.teacher_timesteps(data.teacher_steps)
        except ValueError as error:
            raise InputError(f"teacher_{error}") from error
        if not (path := data.source.removeprefix(TEACHER)):
            raise InputError(f"{TEACHER} names no prompts; add {KINDS}")
        prompts = read_at_most(path, data.teacher_count, config.seed)
        plan = plan_of(config, family, pipeline, prompts)
        store = Store(workdir / FOLDER, plan)
    return OwnPictures(config, family, pipeline, prompts.texts, store)


def plan_of(
    config: Config, family: Family, pipeline: LatentPipeline, prompts: PromptList
) -> dict[str, Any]:
    """All that decides what is drawn, as slam-jax prepare records it."""
    data, precision, identity = config.data, config.precision, family.identity()
    prints = identity["fingerprints"]
    parts = ("vae", "tokenizer", *(("text_encoder",) if data.teacher_text_embeddings else ()))
    read = {name: prints[name] for name in prints if name.startswith(parts)}
    return {
        "format": FORMAT,
        "source": data.source,
        **{name: getattr(data, name) for name in OPTIONS},
        "seed": config.seed,
        "identity": prompts.record["prompts_sha256"],
        "examples": data.teacher_count,
        "teacher": prints,
        "precision": precision.teacher,
        "text_precision": precision.text_encoder,
        "model": {
            **{name: identity[name] for name in ("path", "revision", "variant")},
            "fingerprints": read,  # what has to fit where they are trained on
        },
        "resolution": data.resolution,
        "flip": False,
        "captions": 1,
        "dtype": DTYPE,
        "shard_size": SHARD_SIZE,
        "fields": pipeline.prepared_fields(1, 1, data.teacher_text_embeddings, DTYPE),
    }


def as_prepared(data: Data, folder: Path) -> Data:
    """The options to read the pictures with when they are drawn."""
    decided = {
        field.name: field.default
        for field in fields(Data)
        if field.metadata.get("read_by") == OF_TEACHER
    }
    return replace(data, source=str(folder), **decided)
