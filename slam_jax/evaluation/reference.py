"""Real pictures to compare with: a folder or tars of them, or a file of what networks see in them.

The file is an .npz: for each network its `count`, `mean` and `covariance`, the `rows` themselves
where a metric compares picture by picture, and a record of where they come from. Files of mean and
covariance (`mu`, `sigma`) as pytorch-fid and clean-fid make them are read, too; they do not say how
their pictures were resized.
"""

import hashlib
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slam_jax.base.errors import InputError
from slam_jax.base.files import unfinished
from slam_jax.base.json_file import parse_json
from slam_jax.base.tree import differences
from slam_jax.drawing.metrics.metric import Metric
from slam_jax.evaluation.images import Images, open_images
from slam_jax.evaluation.parts import DIGESTS, Parts
from slam_jax.evaluation.pictures import look_at
from slam_jax.features.extract import Extractor
from slam_jax.features.moments import Moments
from slam_jax.features.registry import NETWORKS
from slam_jax.features.rows import Rows, Summary, in_memory
from slam_jax.parallel.processes import wait

AGAIN = "make it again with slam-jax reference"
OF_PYTORCH_FID = {"mu", "sigma"}  # no more than these: mean and covariance of InceptionV3's


@dataclass(frozen=True)
class RealPictures:
    """What networks see in real pictures.

    Attributes:
      features: by network.
      record: where they come from, in JSON.
    """

    features: Mapping[str, Rows]
    record: dict[str, Any]


def from_pictures(images: Images, folder: Path, extractor: Extractor) -> RealPictures:
    """Looks at pictures, each process at its share; what has been seen is kept.

    Args:
      images: the pictures.
      folder: for what is kept.
      extractor: what looks at them.
    """
    parts = Parts(folder, len(images))
    look_at(images, parts, extractor)
    wait("the reference is seen")
    # Of the decoded pixels, whatever files they came in.
    digests = b"".join(block.tobytes() for block in parts.rows(DIGESTS))
    record = {
        "path": images.name,
        "count": len(images),
        "sha256": hashlib.sha256(digests).hexdigest(),
    }
    return RealPictures({name: parts.rows(name) for name in extractor.networks}, record)


def write_statistics(path: Path, real: RealPictures, metrics: Sequence[Metric]) -> None:
    """Writes the file, whole or not at all; rows where any of these metrics needs them.

    Raises:
      InputError: it cannot be written.
    """
    arrays: dict[str, Any] = {"record": np.array(json.dumps(real.record))}
    with_rows = {name for metric in metrics if metric.needs_rows for name in metric.networks}
    for name, rows in real.features.items():
        for key in ("count", "mean", "covariance"):
            arrays[f"{name}.{key}"] = np.asarray(getattr(rows.moments, key))
        if name in with_rows:
            arrays[f"{name}.rows"] = rows.array()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(path) as beside, beside.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def open_reference(path: str, networks: Mapping[str, Any], size: int) -> Images | RealPictures:
    """Pictures in a folder, a zip or tars, or a file of statistics.

    Args:
      path: where they are.
      networks, size: see `read_statistics`.

    Raises:
      InputError: they cannot be read, or do not fit.
    """
    if path.endswith(".npz"):
        return read_statistics(Path(path), networks, size)
    return open_images(path)


def read_statistics(path: Path, networks: Mapping[str, Any], size: int) -> RealPictures:
    """What `write_statistics` wrote, or pytorch-fid.

    Args:
      path: the file.
      networks: identities of those that drawn pictures are looked at with, by name.
      size: what drawn pictures are resized to; 0: they are not.

    Raises:
      InputError: it cannot be read, lacks a network, or was made with another one or another size.
    """
    try:
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files}
    # A .npy in disguise is no context manager, and has no files.
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as .npz ({why}); {AGAIN}") from error
    if set(arrays) == OF_PYTORCH_FID:
        return _of_pytorch_fid(path, arrays, networks)
    try:
        record = parse_json(str(arrays["record"]))
        there, seen = record["networks"], {"size": record["size"]}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: no statistics of slam-jax reference ({error}); {AGAIN}"
        ) from error
    originals = all(NETWORKS[name].sees_original for name in networks)
    for key, found, expected in differences(seen, seen if originals else {"size": size}):
        raise InputError(f"{path}: was made with {key} {found}, expected {expected}; {AGAIN}")
    features = {}
    for name, identity in networks.items():
        if name not in there:
            known = ", ".join(there)
            raise InputError(f"{path}: has no features of {name}, only of {known}; {AGAIN}")
        for key, found, expected in differences(there[name], identity):
            if key not in ("file", "revision"):  # where the same weights are
                raise InputError(
                    f"{path}: {name} had the {key} {found!r}, expected {expected!r}; {AGAIN}"
                )
        features[name] = _features(path, arrays, name)
    return RealPictures(features, {"path": str(path), **record})


def _features(path: Path, arrays: Mapping[str, np.ndarray], name: str) -> Rows:
    if (rows := arrays.get(f"{name}.rows")) is not None:
        return in_memory(rows)
    try:
        parts = (arrays[f"{name}.{key}"] for key in ("count", "mean", "covariance"))
        count, mean, covariance = parts
    except KeyError as error:
        raise InputError(f"{path}: lacks {error}; {AGAIN}") from error
    return Summary.of(Moments(int(count), mean, covariance), str(path))


def _of_pytorch_fid(
    path: Path, arrays: Mapping[str, np.ndarray], networks: Mapping[str, Any]
) -> RealPictures:
    mean, covariance = (arrays[key].astype(np.float64) for key in ("mu", "sigma"))
    if set(networks) != {"inception"} or mean.shape != (2048,) or covariance.shape != (2048, 2048):
        raise InputError(
            f"{path}: holds mean and covariance of {mean.size} features (mu, sigma), and serves no "
            "metric but FID with InceptionV3's 2048; give pictures, or leave other metrics out"
        )
    print(
        f"note: {path} does not say how its pictures were resized; a FID to it is comparable only "
        "if that was done as here",
        file=sys.stderr,
    )
    record = {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return RealPictures({"inception": Summary.of(Moments(0, mean, covariance), str(path))}, record)
