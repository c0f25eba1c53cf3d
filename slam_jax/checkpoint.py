"""Checkpoints of a run: training state and data position, written together by orbax."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from slam_jax.errors import InputError
from slam_jax.models.functional import first_difference


class Checkpoints:
    """The checkpoints in one folder, a context manager; saving is asynchronous and atomic.

    Args:
      folder: made when it is missing.
      keep: how many of the newest to keep.
    """

    def __init__(self, folder: Path, keep: int):
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
            },
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data_position: dict[str, Any]) -> None:
        """Saves a pytree of arrays and a JSON-serialisable position, unless the step is there."""
        if step != self.latest_step:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_position)
                ),
            )

    def restore(self, like: Any, sharding: jax.sharding.Sharding) -> tuple[Any, dict[str, Any]]:
        """The newest state and the data position.

        Args:
          like: the state, of arrays or of ShapeDtypeStructs.
          sharding: where the arrays go.

        Raises:
          InputError: the arrays in the checkpoint are not those of `like`; names the first one.
        """
        step = self.latest_step
        saved = self._manager.item_metadata(step).state
        if difference := first_difference(_named(like), _named(saved)):
            raise InputError(
                f"{self._folder}/{step}: {difference}; go on with the model that made this "
                "checkpoint, or choose another workdir"
            )
        abstract = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), like
        )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
            ),
        )
        return restored.state, restored.data


def steps_in(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, ascending; none where it is missing."""
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def read_position(folder: Path, step: int) -> dict[str, Any]:
    """The data position in a checkpoint.

    Args:
      folder: of the checkpoints.
      step: one of `steps_in`.

    Raises:
      InputError: the checkpoint is damaged.
    """
    path = folder.absolute() / str(step) / "data"
    try:
        return ocp.JsonCheckpointHandler().restore(path)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: damaged ({why}); remove this step's checkpoint") from error


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
    path = folder.absolute() / str(step) / "state"
    wanted = {part: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), like)}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    handler = ocp.PyTreeCheckpointHandler()
    try:
        saved = handler.metadata(path).tree[part]
        if difference := first_difference(_named(like), _named(saved)):
            raise InputError(f"{path}: {difference}; the config is not this checkpoint's")
        arguments = ocp.args.PyTreeRestore(wanted, as_numpy, partial_restore=True)
        return handler.restore(path, args=arguments)[part]
    except InputError:
        raise
    except (OSError, ValueError, KeyError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: damaged ({why}); choose another step's checkpoint") from error
    finally:
        handler.close()


def _named(tree: Any) -> dict[str, Any]:
    """A pytree as {path: leaf}: orbax describes tuples and dataclasses by other containers."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        ".".join(
            str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path
        ): leaf
        for path, leaf in leaves
    }
