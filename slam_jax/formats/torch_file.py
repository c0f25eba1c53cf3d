"""Files that torch wrote, .pth, .pt and .bin: pickled state dicts, and programs in TorchScript.

torch reads them; it is imported when it is needed and is no requirement.
"""

import warnings
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from slam_jax.base.errors import InputError
from slam_jax.formats.hub import first_line

AGAIN = "get it again"


def is_script(path: Path) -> bool:
    """Whether a file is a program in TorchScript, which has weights inside."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(Path(name).name == "constants.pkl" for name in archive.namelist())


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a pickled state dict, float32; no code in the file is run.

    Raises:
        InputError: torch is not there, or the file cannot be read, is damaged or holds something
            else.
    """
    torch = _torch(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from error
    # Whatever damage leads the unpickler to.
    except Exception as error:
        raise InputError(
            f"{path}: damaged, or no weights that torch saved ({first_line(error)}); {AGAIN}"
        ) from error
    return _arrays(path, content, torch)


def load_script(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a program in TorchScript, float32; loading one can run code, so trust it first.

    Raises:
        InputError: torch is not there, or the file is damaged.
    """
    torch = _torch(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as a whole
            content = torch.jit.load(path, map_location="cpu").state_dict()
    # Whatever damage leads the parser to.
    except Exception as error:
        raise InputError(f"{path}: damaged ({first_line(error)}); {AGAIN}") from error
    return _arrays(path, content, torch)


def _torch(path: Path) -> ModuleType:
    """The library.

    Raises:
        InputError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: torch reads it and is not installed; pip install torch, or convert the file "
            "to safetensors where torch is"
        ) from error
    return torch


def _arrays(path: Path, content: Any, torch: ModuleType) -> dict[str, np.ndarray]:
    """The tensors of a state dict as arrays.

    Raises:
        InputError: it is none.
    """
    is_flat = isinstance(content, dict) and all(torch.is_tensor(x) for x in content.values())
    if not is_flat:
        kind = type(content).__name__
        raise InputError(
            f"{path}: holds a {kind} of other things, expected a state dict: a tensor for each name"
        )
    return {key: tensor.detach().float().numpy() for key, tensor in content.items()}
