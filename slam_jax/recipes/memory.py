"""What a run needs of each device, from shapes alone: bytes of its state, bytes of a step, FLOPs.

Weights, state and gradients follow from their shapes and the sharding rules, exactly. What a step
needs besides is asked of XLA, or counted.
"""

import math
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from slam_jax.base.errors import InputError, options_of
from slam_jax.config import options
from slam_jax.config.options import Config
from slam_jax.data.options import Data
from slam_jax.data.prepared import EMBEDDED
from slam_jax.data.sources import TEACHER
from slam_jax.families.family import Family
from slam_jax.families.pipeline import DENOISER, Frozen, Params, cast_weights
from slam_jax.models.execution import Execution
from slam_jax.models.functional import cast
from slam_jax.parallel import runtime
from slam_jax.parallel.sharding import (
    AXES,
    AnyMesh,
    batch_sharding,
    make_mesh,
    placed,
    shardings_of,
    specs_of,
)
from slam_jax.recipes.distil import (
    loss_of_run,
    student_step,
    teacher_dtype,
    trained_dtypes,
    trained_shapes,
)
from slam_jax.training.step import TrainState, check_batch_size, gathers_again

# For a config that leaves the data to the user.
PREPARED = "latents that slam-jax prepare makes"
PREPARED_TEXTS = f"{PREPARED} with --text-embeddings"
# Nothing will run. XLA's usual order of operations on a CPU is for speed, and it drops the barriers
# that keep the gradient from computing things again before it needs them; accelerators keep these.
ON_CPU = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_disable_hlo_passes": "cse_barrier_expander",
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


@dataclass(frozen=True)
class Need:
    """What a run needs.

    Attributes:
      parts: name -> bytes of it all, and on each device.
      temporary: bytes on each device that come and go in a step, beside gradients.
      source: where that number comes from.
    """

    parts: dict[str, tuple[int, int]]
    temporary: int
    source: str

    @property
    def total(self) -> int:
        """Bytes on each device."""
        return self.temporary + sum(here for _, here in self.parts.values())


def networks_of(config: Config, family: Family) -> tuple[Params, Frozen]:
    """Shapes of all trained weights and of the frozen networks'."""
    pipeline, embedded = family.pipeline, EMBEDDED in batch_of(config, family, 1)
    teacher = jax.eval_shape(
        partial(cast_weights, pipeline, dtype=teacher_dtype(config)),
        pipeline.abstract_params(pipeline.network),
    )
    around = pipeline.shapes_around(config.precision, embedded)
    return trained_shapes(pipeline, config), {DENOISER: teacher, **around}


def _cast(shapes: Params, dtype: str) -> Params:
    return jax.eval_shape(partial(cast, dtype=dtype), shapes)


def batch_of(config: Config, family: Family, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of `size` examples of the config's data.

    Raises:
      InputError: there is no such source.
    """
    data: Data | None = config.data
    if data.source == PREPARED:
        data = None
    elif data.source == PREPARED_TEXTS:  # as a teacher's own pictures are kept
        data = Data(source=TEACHER, teacher_text_embeddings=True)
    return family.batch_shapes(data, size)


def bytes_of(tree: Any, mesh: AnyMesh) -> tuple[int, int]:
    """Bytes of arrays: all of them, and what one device holds of them."""
    leaves, places = jax.tree.leaves(tree), jax.tree.leaves(shardings_of(tree, mesh))
    here = sum(
        math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, place in zip(leaves, places, strict=True)
    )
    return sum(map(_size, leaves)), here


def _size(array: Any) -> int:
    """Bytes of an array, or of what describes one."""
    return array.size * array.dtype.itemsize


def parts_of(config: Config, family: Family) -> dict[str, tuple[int, int]]:
    """What stays on the devices, and the gradients: name -> bytes of it all, and on each."""
    params, frozen = networks_of(config, family)
    mesh = _mesh_of(config)
    one_device = make_mesh(1, 1, jax.local_devices()[:1])
    _, init = student_step(replace(config, mesh=options.Mesh(1, 1)), family.pipeline, one_device)
    state: TrainState = jax.eval_shape(init, params)
    batch = batch_of(config, family, config.training.batch_size)
    total = sum(map(_size, batch.values()))
    names = {DENOISER: f"teacher ({teacher_dtype(config)})"}
    return {
        **{names.get(name, name): bytes_of(tree, mesh) for name, tree in frozen.items()},
        "student": bytes_of(state.params, mesh),
        "EMA": bytes_of(state.ema, mesh),
        "optimiser": bytes_of(state.opt_state, mesh),
        "gradients": bytes_of(params, mesh),
        "batch": (total, total // mesh.size),
    }


def lower(config: Config, family: Family, mesh: Mesh) -> jax.stages.Lowered:
    """The training step, of shapes alone."""
    step, init = student_step(config, family.pipeline, mesh)
    params, frozen = networks_of(config, family)

    state = jax.eval_shape(init, params)
    state, frozen = (placed(tree, shardings_of(tree, mesh)) for tree in (state, frozen))
    batch = batch_of(config, family, config.training.batch_size)
    return step.lower(state, frozen, placed(batch, dict.fromkeys(batch, batch_sharding(mesh))))


def flops_per_sample(config: Config, family: Family) -> float:
    """Additions and multiplications of a step with one sample, as XLA counts them; it does not
    see what a fused or chunked attention does, and of a solver's substeps, a loop, it sees one.

    Raises:
      BackendError: as `runtime.cpu`.
    """
    plain = copy(family)
    plain.pipeline = replace(family.pipeline, execution=Execution("xla"))
    training = replace(config.training, batch_size=1, accumulation=1)
    config = replace(config, training=training, mesh=options.Mesh(1, 1))
    lowered: Any = lower(config, plain, make_mesh(1, 1, [runtime.cpu()]))
    return lowered.cost_analysis()["flops"]


def rows_of(config: Config) -> int:
    """Examples that a device computes at a time."""
    training = config.training
    return training.batch_size // (config.mesh.data * config.mesh.fsdp * training.accumulation)


def compiled_bytes(config: Config, family: Family) -> tuple[int, str]:
    """Bytes that XLA sets aside on a device for a step, gradients included; and whose XLA it is.

    Raises:
      InputError: there are not enough devices, and none can be made up.
    """
    data, fsdp = min(config.mesh.data, 2), config.mesh.fsdp
    devices, count = runtime.devices(), data * fsdp
    if len(devices) < count:
        with suppress(RuntimeError):  # JAX_PLATFORMS leaves the CPU out
            devices = jax.devices("cpu")
    if len(devices) < count:
        raise InputError(
            f"--mesh: {count} devices are needed to compile for it; set JAX_PLATFORMS=cpu, "
            "where they are made up, or give --no-compile"
        )
    platform, rows = devices[0].platform, rows_of(config) * config.training.accumulation
    training = replace(config.training, batch_size=rows * count)
    config = replace(config, training=training, mesh=options.Mesh(data, fsdp))
    lowered = lower(config, family, make_mesh(data, fsdp, devices[:count]))
    compiled: Any = lowered.compile(compiler_options=ON_CPU if platform == "cpu" else None)
    for_others = ", an estimate for others" if platform == "cpu" else ""
    return compiled.memory_analysis().temp_size_in_bytes, f"of XLA on {platform}{for_others}"


def counted_bytes(config: Config, family: Family) -> int:
    """Bytes on a device of what the gradient keeps of the forward pass, and of weights that are
    gathered or cast for a step."""
    params, frozen = networks_of(config, family)
    dtypes, rows = trained_dtypes(config), rows_of(config)
    loss = loss_of_run(config, family.pipeline)

    def pullback(params, ema, frozen, batch, key):
        def total(params):
            return loss(params, ema, frozen, batch, jnp.arange(rows), key)[0].sum()

        return jax.vjp(total, params)[1]

    student, target = _cast(params, dtypes[0]), _cast(params, dtypes[1])
    batch = batch_of(config, family, rows)
    arguments = (student, target, frozen, batch, jax.eval_shape(lambda: jax.random.key(0)))
    jaxpr = jax.make_jaxpr(pullback)(*arguments).jaxpr
    kept = {v for v in jaxpr.outvars if isinstance(v, jax.extend.core.Var)} - {*jaxpr.invars}

    def copies(tree, stored):
        pairs = zip(*map(jax.tree.leaves, (tree, stored, specs_of(tree, mesh))), strict=True)
        return sum(
            _size(leaf)
            for leaf, original, spec in pairs
            if "fsdp" in spec or leaf.dtype != original.dtype
        )

    mesh = _mesh_of(config)
    weights = copies(target, params) + copies(frozen, frozen)
    if not gathers_again(config.training, mesh):
        weights += copies(student, params)
    return weights + sum(_size(variable.aval) for variable in kept)


def _mesh_of(config: Config) -> AbstractMesh:
    return AbstractMesh((config.mesh.data, config.mesh.fsdp), AXES)


def check_batch(config: Config) -> None:
    """Makes sure that the batch can be split over the config's mesh.

    Raises:
      InputError: it cannot.
    """
    with options_of("config.training"):
        check_batch_size(config.training, _mesh_of(config))


def held_bytes(config: Config, family: Family) -> int:
    """Bytes on each device of what stays there, and of gradients."""
    return sum(here for _, here in parts_of(config, family).values())


def need_of(config: Config, family: Family, compiling: bool) -> Need:
    """What a run needs.

    Args:
      config: with a mesh in numbers, over which its batch can be split.
      family: the teacher.
      compiling: whether to ask XLA what a step needs, or to count.

    Raises:
      InputError: as `compiled_bytes`.
    """
    parts = parts_of(config, family)
    if not compiling:
        return Need(parts, counted_bytes(config, family), "counted, an estimate")
    temporary, source = compiled_bytes(config, family)
    return Need(parts, max(temporary - parts["gradients"][1], 0), source)
