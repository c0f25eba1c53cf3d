"""Looks again at a step of a distillation that was passed over, since its loss or gradient was not
finite: which examples it was, and in which weights.

On one device, with the same random draws; the weights are those of the nearest checkpoint.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slam_jax.base.errors import InputError
from slam_jax.config.options import Config
from slam_jax.families.pipeline import DENOISER, Frozen, Params, Pipeline, cast_weights
from slam_jax.formats.safetensors import load_arrays
from slam_jax.models.functional import cast, flatten
from slam_jax.parallel.keys import keys_of
from slam_jax.recipes.distil import loss_of_run, teacher_dtype, trained_dtypes, trained_shapes
from slam_jax.recipes.student import find_teacher
from slam_jax.training.checkpoint_files import read_part, steps_in
from slam_jax.training.loop import REPLAY
from slam_jax.training.step import Batch
from slam_jax.training.workdir import read_run

NAMES = 5  # of arrays, in the last line


class Example(NamedTuple):
    """An example of a step.

    Attributes:
      index: its place in the batch of all processes.
      loss: its loss.
      norm: of its gradient.
      drawn: what was random of it, such as "t" and "gamma".
      not_finite: names of the arrays in whose gradient there is an infinity or a NaN.
    """

    index: int
    loss: float
    norm: float
    drawn: dict[str, np.ndarray]
    not_finite: list[str]

    def line(self) -> str:
        """What is printed of it."""
        words = " ".join(
            f"{name} {' '.join(f'{value:.4g}' for value in np.ravel(values))}"
            for name, values in self.drawn.items()
        )
        finite = np.isfinite(self.loss) and not self.not_finite
        return (
            f"example {self.index:4}  loss {self.loss:<12.6g} gradient {self.norm:<12.6g} "
            f"{words}  {'finite' if finite else 'NOT FINITE'}"
        )


def read_kept(folder: Path, step: int | None, batch_size: int) -> tuple[int, dict[int, Batch]]:
    """The batch that was kept of a step.

    Args:
      folder: replay/ in the workdir.
      step: None: the last one that is there.
      batch_size: over all processes.

    Returns:
      The step, and the rows of each process by the index of the first of them.

    Raises:
      InputError: there is no such step, or a file is damaged.
    """
    found: dict[int, dict[int, Path]] = {}
    groups: dict[int, str] = {}
    # The newest last: a step that was skipped again by more or fewer processes is theirs.
    for path in sorted(folder.glob("step_*.safetensors"), key=lambda path: path.stat().st_mtime):
        if match := re.fullmatch(r"step_(\d+)\.process_(\d+)_of_(\d+)\.safetensors", path.name):
            number = int(match[1])
            if groups.setdefault(number, match[3]) != match[3]:
                groups[number] = match[3]
                del found[number]
            found.setdefault(number, {})[int(match[2])] = path
    if not found:
        raise InputError(f"{folder}: no batch in it; no step of this run was skipped")
    step = max(found) if step is None else step
    if step not in found:
        there = ", ".join(map(str, sorted(found)))
        raise InputError(f"--step {step}: {folder} has no batch of it, it has those of {there}")
    batches = {}
    for process, path in sorted(found[step].items()):
        try:
            batch = load_arrays(path)
        except ValueError as error:
            raise InputError(f"{path}: damaged ({error}); choose another --step") from error
        counts = {array.shape[0] if array.ndim else 0 for array in batch.values()}
        rows = counts.pop() if len(counts) == 1 else 0
        if rows == 0 or (process + 1) * rows > batch_size:
            raise InputError(
                f"{path}: not this process's rows of a batch of {batch_size}; choose another --step"
            )
        batches[process * rows] = batch
    return step, batches


def nearest(checkpoints: Path, step: int) -> int | None:
    """The newest checkpoint that is not after a step, else the oldest one; None if there is none.

    The step itself changed nothing: the checkpoint after it has the weights of the one before it.
    """
    steps = steps_in(checkpoints)
    return max((n for n in steps if n <= step), default=min(steps, default=None))


def read_networks(
    config: Config, workdir: Path, checkpoint: int
) -> tuple[Pipeline, Params, Params, Frozen]:
    """The pipeline, the trained weights and their EMA in a checkpoint, and the frozen weights.

    Raises:
      InputError: the teacher is not there or not the run's, or the checkpoint is damaged.
    """
    family = find_teacher(workdir, config)
    like = trained_shapes(family.pipeline, config)
    params, ema = (
        read_part(workdir / "checkpoints", checkpoint, part, like) for part in ("params", "ema")
    )
    frozen = family.weights(config.precision)
    frozen[DENOISER] = cast_weights(family.pipeline, frozen[DENOISER], teacher_dtype(config))
    return family.pipeline, params, ema, frozen


# (params, ema, frozen, batch of one, index [1], key) -> (loss, norm, array -> whether finite, ...)
Look = Callable[..., tuple[Any, ...]]


def make_look(config: Config, pipeline: Pipeline) -> Look:
    """Jitted: loss and gradient of one example, and what was drawn for it."""
    loss = loss_of_run(config, pipeline)
    student, target = trained_dtypes(config)

    def look(params, ema, frozen, batch, index, key):
        def loss_of(params):
            weights, average = cast(params, student), cast(ema, target)
            return loss(weights, average, frozen, batch, index, key)[0][0]

        value, gradient = jax.value_and_grad(loss_of)(params)
        arrays = flatten(gradient)
        norm = jnp.sqrt(sum(jnp.sum(array**2) for array in arrays.values()))
        drawn = config.method.drawn(key, index, pipeline.latent_shape, pipeline.schedule)
        finite = {name: jnp.isfinite(array).all() for name, array in arrays.items()}
        return value, norm, drawn, finite

    return jax.jit(look)


def replay(
    config: Config, workdir: Path, step: int, checkpoint: int, batches: dict[int, Batch]
) -> Iterator[Example]:
    """Looks at every example of a step; each comes as soon as it is known.

    Args:
      config: the run's.
      workdir: its folder.
      step: which.
      checkpoint: where the weights are.
      batches: of `read_kept`.

    Raises:
      InputError: teacher or checkpoint cannot be read, or the batch does not fit the run.
    """
    pipeline, params, ema, frozen = read_networks(config, workdir, checkpoint)
    key = jax.random.fold_in(keys_of(config.seed).student, step - 1)  # steps taken before it
    weights, look = jax.device_put((params, ema, frozen)), make_look(config, pipeline)
    for first, batch in batches.items():
        for row in range(len(next(iter(batch.values())))):
            one = {name: array[row : row + 1] for name, array in batch.items()}
            try:
                found = look(*weights, one, jnp.array([first + row]), key)
            except (KeyError, TypeError, ValueError) as error:
                why = " ".join(str(error).split())[:200]
                raise InputError(
                    f"{workdir / REPLAY}: the batch of step {step} is not one of this run ({why}); "
                    "choose another --step"
                ) from error
            value, norm, drawn, finite = jax.device_get(found)
            not_finite = [name for name, is_finite in finite.items() if not is_finite]
            yield Example(first + row, float(value), float(norm), drawn, not_finite)


def summary(examples: list[Example]) -> str:
    """Which arrays have a gradient that is not finite, in words."""
    names = list(dict.fromkeys(name for example in examples for name in example.not_finite))
    if not names:
        return "the gradient of each example is finite"
    dots = ", ..." if len(names) > NAMES else ""
    return f"not finite: the gradients of {len(names)} arrays: {', '.join(names[:NAMES])}{dots}"


def which_weights(step: int, checkpoint: int) -> str:
    """Whether it was with a checkpoint's weights that a step failed, in words."""
    if checkpoint in (step - 1, step):
        return f"with the weights of that step (checkpoint {checkpoint})"
    age = "older" if checkpoint < step else "newer"
    return f"with {age} weights (checkpoint {checkpoint}): its own losses may have been others"


def run(workdir: Path, step: int | None) -> None:
    """Prints what is found.

    Raises:
      InputError: no run, no such step, or something of it is damaged.
    """
    config = read_run(workdir)
    step, batches = read_kept(workdir / REPLAY, step, config.training.batch_size)
    checkpoint = nearest(workdir / "checkpoints", step)
    if checkpoint is None:
        raise InputError(f"{workdir / 'checkpoints'}: no checkpoint in it, so no weights to try")
    print(f"step {step} of {workdir}, {which_weights(step, checkpoint)}", flush=True)
    examples = []
    for example in replay(config, workdir, step, checkpoint, batches):
        print(example.line())
        examples.append(example)
    if missing := config.training.batch_size - len(examples):
        print(f"{missing} more examples are in files of other processes that are not there")
    print(summary(examples))
