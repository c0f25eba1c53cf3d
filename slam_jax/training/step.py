"""Training: the state, the optimiser and the one jitted step. What is trained is decided by the
loss handed in.

A step is compiled once for all devices (jit). In it each device computes loss and gradient for its
rows of the batch (shard_map), gathering the arrays that are split. Gradients are summed over "data"
once, and over "fsdp" for each part of an accumulation; then each device updates its part of the
state.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int

from slam_jax.base.options import check
from slam_jax.config.options import Optimizer, Training
from slam_jax.method.method import Sums
from slam_jax.parallel.sharding import (
    AXES,
    AnyMesh,
    gather,
    gathered_grad,
    replicated,
    rows_of_device,
    shardings_of,
    specs_of,
    sum_gradients,
)

Params = dict[str, Any]
Batch = dict[str, Array]
# (params, ema, frozen weights, batch, global example indices [B], key) -> (losses [B], metrics)
Loss = Callable[[Params, Params, Any, Batch, Array, Array], tuple[Array, Sums]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: number of steps taken.
      skipped: how many of them changed nothing else, as loss or gradient was not finite.
      params: trained weights, float32.
      ema: their exponential moving average, float32; also the target of the distillation.
      opt_state: the optimiser's.
    """

    step: Int[Array, ""]
    skipped: Int[Array, ""]
    params: Params
    ema: Params
    opt_state: Any


Step = Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, Array]]]
Init = Callable[[Params], TrainState]


def check_batch_size(training: Training, mesh: AnyMesh) -> None:
    """Makes sure that a batch can be split over the devices, and each one's rows into parts.

    Raises:
      OptionError: it cannot.
    """
    check(
        training.batch_size % (mesh.size * training.accumulation) == 0,
        "batch_size",
        training.batch_size,
        f"a multiple of the {mesh.size} devices times accumulation = {training.accumulation}",
    )


def learning_rate(options: Optimizer, steps: int) -> optax.Schedule:
    """The learning rate over `steps`: number of updates so far -> its value in the next one."""
    peak, last = options.learning_rate, 0.02 * options.learning_rate
    decay_steps = max(steps - options.warmup_steps, 1)
    decay = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, last, decay_steps),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps, alpha=last / peak),
    }[options.schedule]
    warmup = optax.linear_schedule(peak / max(options.warmup_steps, 1), peak, options.warmup_steps)
    if options.warmup_steps:
        return optax.join_schedules([warmup, decay], [options.warmup_steps])
    return decay


def make_optimizer(options: Optimizer, steps: int) -> optax.GradientTransformation:
    """AdamW after clipping by global norm, with the learning-rate schedule over `steps`."""
    return optax.chain(
        optax.clip_by_global_norm(options.clip_norm),
        optax.adamw(
            learning_rate(options, steps),
            b1=options.b1,
            b2=options.b2,
            weight_decay=options.weight_decay,
        ),
    )


def init_state(params: Params, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first step, each part on its device; the EMA starts as a copy of the
    weights.

    Args:
      params: global arrays, see `sharding.shard`; or ShapeDtypeStructs, under jax.eval_shape.
      tx: optimiser.
      mesh: devices.
    """

    def build(params):
        zero, averaged = jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params)
        return TrainState(zero, jnp.copy(zero), params, averaged, tx.init(params))

    shardings = shardings_of(jax.eval_shape(build, params), mesh)
    return jax.jit(build, out_shardings=shardings)(params)


def gathers_again(training: Training, mesh: AnyMesh) -> bool:
    """Whether the backward pass gathers weights again that are split over devices, in place of
    keeping them whole: more traffic for less memory."""
    return training.remat == "full" and mesh.shape["fsdp"] > 1


def make_train_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    training: Training,
    key: Array,
    mesh: Mesh,
    dtypes: tuple[str, str] = ("float32", "float32"),
) -> Step:
    """The jitted step (state, frozen, batch) -> (state, metrics); donates the state it is given.

    Random draws depend on (key, step, example index) only: they are the same on any devices.

    Args:
      loss: unreduced loss.
      tx: optimiser.
      training: batch size, accumulation and EMA decay; see `check_batch_size`.
      key: of all its random draws.
      mesh: where it runs.
      dtypes: in which the loss gets the weights and their EMA.
    """
    gradients, ema = _make_gradients(loss, training, mesh, dtypes), training.ema
    rate = learning_rate(training.optimizer, training.steps)

    def step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        step_key = jax.random.fold_in(key, state.step)
        grads, metrics = gradients(state.params, state.ema, frozen, batch, step_key)
        norm = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged = jax.tree.map(lambda old, new: ema * old + (1 - ema) * new, state.ema, params)
        new = replace(state, params=params, ema=averaged, opt_state=opt_state)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        new = jax.tree.map(partial(jnp.where, finite), new, state)
        new = replace(new, step=state.step + 1, skipped=state.skipped + ~finite)
        metrics = {**metrics, "grad_norm": norm, "skipped": new.skipped}
        metrics["learning_rate"] = jnp.float32(rate(state.step - state.skipped))
        shardings = shardings_of(new, mesh), replicated(mesh)
        return jax.lax.with_sharding_constraint((new, metrics), shardings)

    return jax.jit(step, donate_argnums=0)


def _make_gradients(
    loss: Loss, training: Training, mesh: Mesh, dtypes: tuple[str, str]
) -> Callable[[Params, Params, Any, Batch, Array], tuple[Params, dict[str, Array]]]:
    """(params, ema, frozen, batch, key) -> (gradients, split as the params are; metrics)."""
    batch_size, accumulation = training.batch_size, training.accumulation
    again = gathers_again(training, mesh)

    def gradients(params, ema, frozen, batch, key):
        specs = specs_of((params, ema, frozen), mesh)

        def share_of_loss(params, ema, frozen, batch, examples, key):
            ema, frozen = gather(ema, specs[1], dtypes[1]), gather(frozen, specs[2])
            losses, sums = loss(params, ema, frozen, batch, examples, key)
            total = losses.sum()
            return total / batch_size, {"loss": (total, jnp.float32(losses.size)), **sums}

        def on_device(params, ema, frozen, batch, key):
            def gradient_of(part):
                rows, examples = part

                def share(params):
                    return share_of_loss(params, ema, frozen, rows, examples, key)

                return gathered_grad(share, params, specs[0], dtypes[0], again)

            def add(grads, part):
                more, sums = gradient_of(part)
                return jax.tree.map(jnp.add, grads, more), sums

            rows = batch, rows_of_device(batch_size)
            if accumulation == 1:  # not in a loop, where XLA is slow at convolutions on a CPU
                grads, sums = gradient_of(rows)
            else:
                parts = jax.tree.map(lambda a: a.reshape(accumulation, -1, *a.shape[1:]), rows)
                grads, sums = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
                sums = jax.tree.map(lambda a: a.sum(axis=0), sums)
            sums = jax.lax.psum(sums, AXES)
            means = {name: total / count for name, (total, count) in sums.items()}
            return sum_gradients(grads, specs[0]), means

        everywhere, rows = PartitionSpec(), PartitionSpec(AXES)
        # Its check of what is equal on all devices does not know a gradient before it is summed.
        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(*specs, rows, everywhere),
            out_specs=(specs[0], everywhere),
            check_vma=False,
        )(params, ema, frozen, batch, key)

    return gradients
