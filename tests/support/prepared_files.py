"""Sources for what is prepared, and folders of random latents without a model."""

import numpy as np

from slam_jax.data.examples import Example
from slam_jax.data.prepared import empty_dtype
from slam_jax.data.prepared_write import Store
from slam_jax.data.rejects import Rejected, Rejects

COUNT, SHARD_SIZE = 10, 4
CAPTIONS = 3


class Pictures:
    """Noise of several shapes, with one to three captions each, of which some are broken.

    Attributes:
      broken: indices -> reason.
      read: the indices that were asked for.
    """

    name = identity = "pictures"

    def __init__(self, count=COUNT, broken=None):
        self.count, self.broken, self.rejects = count, broken or {}, Rejects()

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        name = f"picture {index}"
        if index in self.broken:
            raise Rejected(self.broken[index], name)
        shape = (80 + 5 * index, 100, 3) if index % 2 else (70, 90 + 3 * index, 3)
        # Smooth, so that resizing it is not a matter of every pixel.
        noise = np.random.default_rng(index).integers(0, 256, (-(-shape[0] // 8), 16, 3), np.uint8)
        image = np.repeat(np.repeat(noise, 8, axis=0), 8, axis=1)[: shape[0], : shape[1]]
        captions = tuple(f"caption {n} of {index}" for n in range(1 + index % 3))
        return Example(name, np.ascontiguousarray(image), captions)


def plan(twins=True, embeddings=True, dtype="float16", count=COUNT, **changes):
    """As the command makes it, of latents [2, 3, 2 * 4] and two text encoders."""
    views = 2 if twins else 1
    fields = {
        "moments": {"dtype": dtype, "shape": [views, 2, 3, 8]},
        "time_ids": {"dtype": "float32", "shape": [views, 6]},
        "tokens": {"dtype": "int32", "shape": [CAPTIONS, 2, 5]},
        "caption_count": {"dtype": "int32", "shape": []},
    }
    if embeddings:
        fields["encoder_hidden_states"] = {"dtype": dtype, "shape": [CAPTIONS, 5, 7]}
        fields["text_embeds"] = {"dtype": dtype, "shape": [CAPTIONS, 6]}
    prints = {"vae": "1", "tokenizer": "2"} | ({"text_encoder": "3"} if embeddings else {})
    return {
        "format": 1,
        "source": "pictures",
        "identity": "a digest",
        "examples": count,
        "filters": {"min_size": 0},
        "model": {
            "path": "some/model",
            "revision": "",
            "variant": "",
            "fingerprints": prints,
        },
        "resolution": 24,
        **{"flip": twins, "crop": "center", "captions": CAPTIONS, "precision": "float32"},
        "shard_size": SHARD_SIZE,
        "fields": fields,
        **changes,
    }


def random_fields(dtype, count, seed):
    """Random content for each field of a record, stacked."""
    rng, fields = np.random.default_rng(seed), {}
    for name in dtype.names:
        kind, shape = dtype[name].base, (count, *dtype[name].shape)
        if name == "caption_count":
            fields[name] = (1 + np.arange(count) % CAPTIONS).astype(np.int32)
        elif kind == np.int32:
            fields[name] = rng.integers(0, 1000, shape, np.int32)
        else:
            fields[name] = rng.standard_normal(shape, np.float32).astype(kind)
    return fields


def write(folder, rejected=(), finish=True, **options):
    """A folder as the command makes it; returns its content, stacked, and the empty prompt's."""
    content = plan(**options)
    store = Store(folder, content)
    everything = random_fields(store.dtype, content["examples"], seed=0)
    if not store.has_empty:
        empty = np.empty((), empty_dtype(store.dtype))
        for name in empty.dtype.names:
            empty[name] = random_fields(store.dtype, 1, seed=1)[name][0][0]
        store.write_empty(empty)
    for shard in range(store.shards):
        with store.shard(shard) as writer:
            for index in range(shard * SHARD_SIZE, shard * SHARD_SIZE + store.count(shard)):
                if index in rejected:
                    writer.rejects.add(Rejected("broken", f"picture {index}"))
                else:
                    writer.write({k: v[index : index + 1] for k, v in everything.items()})
    if finish:
        store.finish(Rejects(), 1.0)
    kept = [n for n in range(content["examples"]) if n not in rejected]
    return {name: rows[kept] for name, rows in everything.items()}, empty
