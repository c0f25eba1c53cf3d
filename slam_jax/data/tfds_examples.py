"""Images with captions that tensorflow-datasets prepared, without TensorFlow.

A set that was prepared as array_record can be read in any order. Its records are protos of type
tf.train.Example, in which the feature "a" within the feature "b" is called "b/a".
"""

import hashlib
import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
from tqdm import tqdm

from slam_jax.base.errors import InputError
from slam_jax.data import images, metadata
from slam_jax.data.examples import Example, Filters
from slam_jax.data.rejects import Rejected, Rejects

FORMAT = "array_record"
THREADS = 16  # that wait for the disk
LISTED = 10  # sets that a message names


class TfdsExamples:
    """A split of a set, as examples.

    Args:
      name: of the set, such as "coco_captions", "coco/2014" or "coco:1.1.0".
      split: such as "train", "train[:10%]" or "train+validation".
      data_dir: where sets are; empty: where tensorflow-datasets has them.
      image_key: the feature that is the image.
      caption_key: the feature that is the caption, such as "captions/text"; a sequence gives
        several captions, and a class label its class's name. Empty: "caption", or the only text.
      filters: which examples are wanted; where they ask for anything, all are looked at now.

    Raises:
      InputError: there is no such set, split or feature, or it was prepared otherwise.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        data_dir: str = "",
        image_key: str = "image",
        caption_key: str = "",
        filters: Filters = Filters(),  # noqa: B008 - it is frozen
    ):
        self.name, self.rejects = f"tfds:{name}", Rejects()
        self._split, self._filters = split, filters
        tfds = _import(self.name)
        builder = _find(tfds, name, data_dir)
        features = dict(_features(tfds, builder.info.features))
        self._image_key = _choose_image(tfds, self.name, features, image_key)
        self._caption_key = _choose_caption(tfds, self.name, features, caption_key)
        caption = features[self._caption_key]
        self._classes = caption.names if isinstance(caption, tfds.features.ClassLabel) else None
        self._records, files = _open(tfds, self.name, builder, split)
        self._kept = self._look_at_all() if filters != Filters() else range(len(self._records))
        which = zlib.crc32(np.asarray(self._kept, np.int64).tobytes())
        what = [builder.info.full_name, files, self._image_key, self._caption_key, which]
        self.identity = hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Example:
        return self._read(int(self._kept[index]))

    def _look_at_all(self) -> np.ndarray:
        """Which records are usable and wanted; the others are counted."""

        def look(index: int) -> Rejected | None:
            try:
                example = self._read(index)
                self._filters.check(example.name, *images.read_size(example.image, example.name))
            except Rejected as rejected:
                return rejected
            return None

        indices = range(len(self._records))
        with ThreadPoolExecutor(THREADS) as pool:
            looked = tqdm(pool.map(look, indices), "looking at images", len(indices), delay=2)
            found = list(looked)
        for rejected in filter(None, found):
            self.rejects.add(rejected)
        if not (kept := np.flatnonzero([rejected is None for rejected in found])).size:
            why = "; ".join(self.rejects.lines())
            raise InputError(f"{self.name}: no example can be used: {why}")
        return kept

    def _read(self, index: int) -> Example:
        from tensorflow_datasets.proto import tf_example_pb2

        name = f"{self._split}/{index}"
        try:
            record = self._records[index]
            if not record:  # so a record behind the end of a shard that was cut is read
                raise EOFError
            example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
            features = example.FromString(record).features.feature
        # The reader's errors are of several kinds.
        except Exception as error:
            raise Rejected("damaged record", name) from error
        # A proto makes what is asked for and not there.
        found = features[self._image_key].bytes_list.value
        if not found:
            raise Rejected("no image", name)
        return Example(name, found[0], self._captions(features[self._caption_key], name))

    def _captions(self, feature: Any, name: str) -> tuple[str, ...]:
        if self._classes is not None:
            classes = [c for c in feature.int64_list.value if 0 <= c < len(self._classes)]
            texts = [self._classes[c] for c in classes]
        else:
            try:
                texts = [text.decode() for text in feature.bytes_list.value]
            except UnicodeDecodeError as error:
                raise Rejected("caption not UTF-8", name) from error
        return metadata.captions(texts or None, name)


def _import(source: str) -> ModuleType:
    try:
        import tensorflow_datasets  # takes a while
    except ImportError as error:
        raise InputError(
            f"{source}: needs tensorflow-datasets ({error}); pip install 'slam_jax[tfds]'"
        ) from error
    return tensorflow_datasets


def _find(tfds: ModuleType, name: str, data_dir: str) -> Any:
    """The set's description, from its folder."""
    from etils import epath  # comes with tensorflow-datasets

    where = epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    try:
        # Unlike tfds.builder it never runs a set's own code, and never downloads.
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=where)
    except tfds.core.DatasetNotFoundError as error:
        there = where.iterdir() if where.is_dir() else ()
        sets = sorted(folder.name for folder in there if folder.is_dir())[:LISTED]
        raise InputError(
            f"tfds:{name}: not in {where}, which has {', '.join(sets) or 'no sets'}; set data_dir, "
            f"or prepare it where TensorFlow is installed: tfds build {name} --data_dir={where} "
            f"--file_format={FORMAT}"
        ) from error
    # Whatever its files lead to.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"tfds:{name}: cannot be read in {where} ({reason})") from error


def _features(
    tfds: ModuleType, feature: Any, path: str = "", rank: int = 0
) -> Iterator[tuple[str, Any]]:
    """Name -> feature, for all that are one thing or, but for images, a sequence of things."""
    if isinstance(feature, tfds.features.FeaturesDict):
        for key, inner in feature.items():
            yield from _features(tfds, inner, f"{path}/{key}" if path else key, rank)
    elif isinstance(feature, tfds.features.Dataset):  # a sequence, but a record within the record
        return
    elif isinstance(feature, tfds.features.Sequence):
        yield from _features(tfds, feature.feature, path, rank + 1)
    elif rank == 0 or (rank == 1 and not isinstance(feature, tfds.features.Image)):
        yield path, feature


def _choose_image(tfds: ModuleType, source: str, features: dict[str, Any], key: str) -> str:
    there = [
        path
        for path, feature in sorted(features.items())
        if isinstance(feature, tfds.features.Image) and feature.np_dtype == np.uint8
    ]
    if key not in there:
        raise InputError(
            f"{source}: no image {key!r}; set image_key to one of {', '.join(there) or '(none)'}"
        )
    return key


def _choose_caption(tfds: ModuleType, source: str, features: dict[str, Any], key: str) -> str:
    texts = [
        path
        for path, feature in sorted(features.items())
        if feature.shape == () and np.dtype(feature.np_dtype).kind in "OSU"
    ]
    classes = [p for p, f in sorted(features.items()) if isinstance(f, tfds.features.ClassLabel)]
    if not key:
        key = texts[0] if len(texts) == 1 else "caption"
    if key not in (*texts, *classes):
        there = ", ".join((*texts, *classes)) or "(none)"
        raise InputError(f"{source}: no caption {key!r}; set caption_key to one of {there}")
    return key


def _open(tfds: ModuleType, source: str, builder: Any, split: str) -> tuple[Any, list[Any]]:
    """The records, and the files' names, extents and sizes."""
    from etils import epath

    formats = sorted(file_format.value for file_format in builder.info.available_file_formats())
    if FORMAT not in formats:
        raise InputError(
            f"{source}: prepared as {', '.join(formats)}, expected {FORMAT}; where TensorFlow is "
            f"installed: tfds convert_format --dataset_version_dir={builder.data_path} "
            f"--out_file_format={FORMAT}"
        )
    try:
        parts = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES, file_format=FORMAT
        )
        instructions = builder.info.splits[split].file_instructions
    except ValueError as error:
        raise InputError(
            f"{source}: no examples in split {split!r}; expected a part of "
            f"{', '.join(sorted(builder.info.splits))}"
        ) from error
    files = []
    for part in instructions:
        file = epath.Path(part.filename)
        if not file.exists():
            raise InputError(f"{file}: no such file; prepare {source} anew")
        files.append([file.name, part.skip, part.take, file.stat().length])
    # array_record's own, which needs nothing of the set's description in worker processes.
    return parts.data_source, files
