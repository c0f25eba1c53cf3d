"""Which file of a component's folder holds its weights, and their arrays by torch's names.

Safetensors, plain, of a variant or sharded, and the msgpack files that the Flax classes of older
diffusers and transformers wrote. Pickles are refused.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from flax import serialization

from slam_jax.base.errors import InputError
from slam_jax.formats import convert
from slam_jax.formats import safetensors as weights
from slam_jax.formats.hub import first_line

FLAX_FILES = {
    "diffusion_pytorch_model": "diffusion_flax_model.msgpack",
    "model": "flax_model.msgpack",
}


def find(where: Path, stem: str, variant: str) -> Path:
    """The file, or the index of several files, that holds a component's weights.

    Args:
        where: the component's folder.
        stem: of the file's name, "diffusion_pytorch_model" or "model".
        variant: such as "fp16"; "" is none.

    Raises:
        InputError: there is none; says what is there instead and what to do.
    """
    try:
        names = sorted(path.name for path in where.iterdir() if path.is_file())
    except OSError as error:
        raise InputError(f"{where}: missing, but a diffusers model folder has it") from error
    # A variant stands at one of three places, by the version of diffusers that wrote the file.
    pattern = rf"{stem}(?:\.(\w+))?\.safetensors(?:(?:\.(\w+))?\.index(?:\.(\w+))?\.json)?"
    found: dict[str, str] = {}
    for name in names:
        if match := re.fullmatch(pattern, name):
            spelled = next(filter(None, match.groups()), "")
            if spelled not in found or name.endswith(".json"):  # as diffusers prefers
                found[spelled] = name
    if variant in found:
        return where / found[variant]
    if found:
        asked, *there = (f"variant {v!r}" if v else "no variant" for v in (variant, *found))
        raise InputError(
            f"{where}: weights of {asked} are asked for, those of {' and '.join(there)} are there; "
            f"set variant to {next(iter(found))!r}"
        )
    if FLAX_FILES[stem] in names and not variant:
        return where / FLAX_FILES[stem]
    pickle = re.compile(r"(?:diffusion_)?pytorch_model(?:\.(\w+))?(?:-[\w-]+)?\.bin|.*\.ckpt")
    pickles = {name: match.group(1) or "" for name in names if (match := pickle.fullmatch(name))}
    chosen = [name for name in pickles if pickles[name] == variant] or list(pickles)
    suffix = f".{variant}" if variant else ""
    target = where / f"{stem}{suffix}.safetensors"
    if chosen:
        raise InputError(
            f"{where / chosen[0]}: a pickle, which can run any code, is not read; convert it with: "
            f"{_conversion([where / name for name in chosen], target)}"
        )
    raise InputError(f"{target}: missing, and no other weights are there")


def _conversion(pickles: Sequence[Path], target: Path) -> str:
    """The shell command that makes one safetensors file of a component's pickles."""
    sources = json.dumps([str(path) for path in pickles], ensure_ascii=False)
    code = (
        "import torch; from safetensors.torch import save_file; "
        f"d = {{k: v for f in {sources} "
        'for k, v in torch.load(f, map_location="cpu", weights_only=True).items()}; '
        # Cloned, because safetensors refuses tensors that share memory.
        "save_file({k: v.clone().contiguous() for k, v in d.items()}, "
        f'{json.dumps(str(target), ensure_ascii=False)}, {{"format": "pt"}})'
    )
    return f"python -c {shlex.quote(code)}"


def open_weights(path: Path) -> Mapping[str, np.ndarray]:
    """The torch state dict of what `find` found; of safetensors, each array is read on access.

    Raises:
        InputError: the file is damaged or cannot be read.
    """
    return _read_flax(path) if path.suffix == ".msgpack" else weights.open_arrays(path)


def _read_flax(path: Path) -> dict[str, np.ndarray]:
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
        if not isinstance(tree, dict):
            raise ValueError(f"a {type(tree).__name__}")
        return convert.to_torch(convert.from_old_flax(tree))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        why = first_line(error)
        raise InputError(f"{path}: not a file of Flax weights ({why}); get it again") from error


def fingerprint(path: Path) -> str:
    """A cheap identity of what `find` found: of each array a sample is read.

    Raises:
        InputError: the file is damaged or cannot be read.
    """
    if path.suffix == ".msgpack":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return weights.open_arrays(path).fingerprint()
