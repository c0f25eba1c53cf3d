"""Finds and reads the published weights of a feature network."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from slam_jax.base.errors import InputError
from slam_jax.formats import convert, hub, safetensors, torch_file
from slam_jax.formats.diffusers_folder import HUB_ID
from slam_jax.models.functional import Params

# As transformers names them, the better one first.
MODEL_FILES = ("model.safetensors", "pytorch_model.bin")


class NoWeights(InputError):
    """There is no file; the registry adds where to get it."""


def locate(path: str, names: Sequence[str], others: Sequence[str] = ()) -> Path:
    """The file of the weights.

    Args:
        path: the file, its folder, or the id "owner/name" of a model on the hub.
        names: what the file may be called in a folder, the first that is there counts.
        others: patterns of what to fetch from the hub beside it.

    Raises:
        NoWeights: it is not there.
        InputError: the hub does not give it.
    """
    local = Path(path).expanduser()
    if local.is_file():
        return local
    if local.is_dir():
        folders = [local]
    elif HUB_ID.fullmatch(path):
        # One after the other, as a model may be there in several files.
        folders = (hub.fetch(path, "", [*others, name]) for name in names)
    else:
        raise NoWeights(
            f"{path!r}: no such file or folder, and not a hub id of the form owner/name"
        )
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise NoWeights(f"{path}: has no weights, which are in {' or '.join(names)}")


def identity(network: str, file: Path, digest: str, resizer: str) -> dict[str, str]:
    """What a record of a measurement says of a network.

    Args:
        network: its name in the registry.
        file: of its weights.
        digest: the file's SHA-256.
        resizer: what is done to a picture before it, in words.
    """
    return {"network": network, "file": file.name, "sha256": digest, "resizer": resizer}


def read_arrays(path: Path) -> Mapping[str, np.ndarray]:
    """The arrays of a file of safetensors or torch, by their names there.

    Raises:
        InputError: it is neither, or damaged.
    """
    if path.suffix == ".safetensors":
        return safetensors.open_arrays(path)
    if path.suffix in (".pth", ".pt", ".bin"):
        return torch_file.load_arrays(path)
    raise InputError(f"{path}: expected a file .safetensors, .pth, .pt or .bin")


def to_params(
    path: Path, arrays: Mapping[str, np.ndarray], abstract: Params, unused: Collection[str] = ()
) -> Params:
    """A network's params from a file's arrays.

    Args:
        path: the file, for a refusal.
        arrays: what is in it.
        abstract: the params to fill.
        unused: names in it that the network does without.

    Raises:
        InputError: they are those of another network.
    """
    try:
        params, missing, extra = convert.from_torch(arrays, abstract)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: weights of another network: {error}") from error
    extra = [name for name in extra if name not in unused]
    for kind, names in (("missing", missing), ("not expected", extra)):
        if names:
            raise InputError(
                f"{path}: weights of another network: {len(names)} names {kind}, first {names[0]}"
            )
    return params
