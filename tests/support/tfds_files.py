"""Small sets of tensorflow-datasets, which tfds itself describes and serialises."""

import json
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from broken_images import GOOD, encode, noise, smooth
from PIL import Image

F = tfds.features
FEATURES = {
    "image": F.Image(),
    "captions": F.Sequence({"id": np.int64, "text": F.Text()}),
    "title": F.Scalar(np.object_),
    "label": F.ClassLabel(names=["cat", "dog", "cow"]),
    "mask": F.Image(shape=(None, None, 1)),
    "more": {"image": F.Image(), "text": F.Text()},
}
SHARDS = (4, 3)
COUNT = sum(SHARDS)


def picture(index: int) -> bytes:
    return encode(smooth(width=40, height=20 + index), "JPEG")


def example(index: int) -> dict:
    mask = encode(Image.fromarray(noise(8, 8)))
    return {
        "image": BytesIO(picture(index)),
        "captions": [{"id": i, "text": f"ñ {index}.{i}"} for i in range(1 + index % 3)],
        "title": f" title {index}\n",
        "label": index % 3,
        "mask": BytesIO(mask),
        "more": {"image": BytesIO(GOOD["RGBA PNG"]()), "text": f"text {index}"},
    }


def make(folder: Path, features: dict, examples: list[dict], kind: str = "array_record") -> Path:
    """The set pics/1.0.0 with the split train in two shards."""
    home = folder / "pics" / "1.0.0"
    home.mkdir(parents=True)
    F.FeaturesDict(features).save_config(home)
    stored = F.FeaturesDict({key: features[key] for key in (examples or [()])[0]})
    records = iter([stored.serialize_example(example) for example in examples])
    counts = SHARDS if len(examples) == COUNT else (len(examples), 0)
    for shard, count in enumerate(counts):
        file = home / f"pics-train.{kind}-{shard:05d}-of-00002"
        writer = ArrayRecordWriter(str(file), "group_size:1,uncompressed")
        for record in islice(records, count):
            writer.write(record)
        writer.close()
    split = {"name": "train", "shardLengths": counts, "numBytes": 1000}
    split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {"name": "pics", "version": "1.0.0", "fileFormat": kind, "splits": [split]}
    (home / "dataset_info.json").write_text(json.dumps(info))
    return home
