"""Images with captions that tensorflow-datasets prepared, without TensorFlow.

A set that was prepared as array_record can be read in any order. Its records are protos of type
tf.train.Example, in which the feature "a" within the feature "b" is called "b/a".
"""

import hashlib
import json
import zlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from slam_jax.base.errors import InputError
from slam_jax.data import images, metadata
from slam_jax.data.examples import Example, Filters
from slam_jax.data.rejects import Rejected, Rejects, all_usable

FORMAT = "array_record"
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
        features = dict(sorted(_features(tfds, builder.info.features)))

        def choose(what: str, key: str, there: list[str]) -> str:
            if key not in there:
                names = ", ".join(there) or "(none)"
                raise InputError(
                    f"{self.name}: no {what} {key!r}; set {what}_key to one of {names}"
                )
            return key

        def of_kind(*kinds: type) -> list[str]:
            return [path for path, feature in features.items() if isinstance(feature, kinds)]

        classes = of_kind(tfds.features.ClassLabel)
        texts = [p for p, f in features.items() if f.shape == () and f.np_dtype == np.object_]
        key = caption_key or (texts[0] if len(texts) == 1 else "caption")
        self._image_key = choose("image", image_key, of_kind(tfds.features.Image))
        self._caption_key = choose("caption", key, texts + classes)
        self._classes = features[key].names if key in classes else None
        self._records, files = _open(tfds, self.name, builder, split)
        self._kept = self._look_at_all() if filters != Filters() else range(len(self._records))
        which = zlib.crc32(np.asarray(self._kept, np.int64).tobytes())
        what = [builder.info.full_name, files, self._image_key, self._caption_key, which]
        self.identity = hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Example:
        return self._read(int(self._kept[index]))

    def _look_at_all(self) -> list[int]:
        """Which records are usable and wanted; the others are counted."""

        def look(index: int) -> int:
            example = self._read(index)
            assert isinstance(example.image, bytes)  # as `_read` gives it
            self._filters.check(example.name, images.read_size(example.image, example.name))
            return index

        if not (kept := all_usable(look, range(len(self._records)), self.rejects)):
            why = "; ".join(self.rejects.lines())
            raise InputError(f"{self.name}: no example can be used: {why}")
        return kept

    def _read(self, index: int) -> Example:
        from tensorflow_datasets.proto import tf_example_pb2

        name = f"{self._split}/{index}"
        try:
            example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
            # A record behind the end of a shard that was cut is read as nothing.
            record = example.FromString(self._records[index] or b"cut")
        # The reader's errors are of several kinds.
        except Exception as error:
            raise Rejected("damaged record", name) from error
        features = record.features.feature  # which makes what is asked for and not there
        if not (found := features[self._image_key].bytes_list.value):
            raise Rejected("no image", name)
        caption = features[self._caption_key]
        texts = list(caption.bytes_list.value)
        if self._classes is not None:
            texts = [self._classes[number] for number in caption.int64_list.value if number >= 0]
        return Example(name, found[0], metadata.captions(texts or None, name))


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


def _features(tfds: ModuleType, feature: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Name -> feature, for all that are one thing or a sequence of things."""
    if isinstance(feature, tfds.features.FeaturesDict):
        for key, inner in feature.items():
            yield from _features(tfds, inner, f"{path}/{key}" if path else key)
    elif isinstance(feature, tfds.features.Sequence):
        yield from _features(tfds, feature.feature, path)
    else:
        yield path, feature


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
