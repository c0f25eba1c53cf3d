"""Reading what `checkpoint` has written: nothing changes on disk, and one process is enough."""

import errno
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from slam_jax.base.errors import InputError
from slam_jax.models.functional import first_difference
from slam_jax.training import checksums

STATE, ABOUT = "state", "about"  # the items of a checkpoint
DAMAGE = (OSError, ValueError, KeyError, TypeError)  # what reading a damaged checkpoint raises


def steps_in(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, ascending; none where it is missing."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if re.fullmatch(r"0|[1-9]\d*", p.name))


def best_step(folder: Path, metric: str) -> int | None:
    """The step of the checkpoint with the lowest metric, the newer one of equals; None where no
    checkpoint has it."""
    values = metric_values(folder, metric)
    return min(values, key=lambda step: (values[step], -step), default=None)


def metric_values(folder: Path, metric: str) -> dict[int, float]:
    """Step -> metric, of the checkpoints that have it and can be read."""
    values = {}
    for step in steps_in(folder):
        with suppress(*DAMAGE):
            values[step] = float(read_about(folder / str(step))["metrics"][metric])
    return values


def read_position(folder: Path) -> dict[str, Any] | None:
    """The data position in the newest checkpoint where it can be read; None where it is in none."""
    for step in reversed(steps_in(folder)):
        with suppress(*DAMAGE):
            return read_about(folder / str(step))["position"]
    return None


def read_part(folder: Path, step: int, part: str, like: Any) -> Any:
    """One part of a saved state, such as "ema", as numpy arrays; nothing else takes memory.

    Args:
      folder: of the checkpoints; nothing in it changes.
      step: one of `steps_in`.
      part: the name of a field of the state.
      like: nested dict with leaves that have `.shape` and `.dtype`.

    Raises:
      InputError: the checkpoint is damaged, or its arrays are not those of `like`.
    """
    path = folder.absolute() / str(step)
    wanted = {part: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), like)}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    handler: Any = ocp.PyTreeCheckpointHandler()  # says that it takes paths of etils alone
    try:
        checksums.check(path)
        compare(path, like, handler.metadata(path / STATE).tree[part], "its own config")
        arguments = ocp.args.PyTreeRestore(wanted, as_numpy, partial_restore=True)
        return handler.restore(path / STATE, args=arguments)[part]
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(
            f"{path}: damaged ({reason(error)}); choose another step's checkpoint"
        ) from error
    finally:
        handler.close()


def read_about(folder: Path) -> dict[str, Any]:
    """What a checkpoint says about itself.

    Raises:
      OSError, ValueError: it is damaged.
    """
    handler: Any = ocp.JsonCheckpointHandler()
    about = handler.restore(folder / ABOUT)
    if not isinstance(about, dict) or not isinstance(about.get("format"), int):
        raise ValueError(f"{ABOUT}: not what a checkpoint says about itself")
    return about


def compare(folder: Path, wanted: Any, saved: Any, whose: str) -> None:
    """Compares two pytrees of arrays or of what describes them.

    Raises:
      InputError: names the first array that is not the wanted one.
    """
    wanted, saved = _named(wanted), _named(saved)
    difference = first_difference(wanted, saved)
    for name, leaf in wanted.items():
        # Orbax would convert silently, and the run would not go on with the same bits.
        if not difference and saved[name].dtype != leaf.dtype:
            difference = f"{name} is {saved[name].dtype}, expected {leaf.dtype}"
    if difference:
        raise InputError(f"{folder}: {difference}; go on with {whose}, or choose another workdir")


def reason(error: Exception) -> str:
    """What the system or a library said, in one line; of long ones, the system's part."""
    if isinstance(error, OSError) and error.strerror:
        name = f" ({Path(error.filename).name})" if error.filename else ""
        return error.strerror + name
    text = " ".join(str(error).split())
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(code) in text:
            return os.strerror(code)
    return text[:200]


def _named(tree: Any) -> dict[str, Any]:
    """A pytree as {path: leaf}: orbax describes tuples and dataclasses by other containers."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
