"""Training: the state, the optimiser and the one jitted step. What is trained is decided by the
loss handed in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from slam_jax.config import Optimizer
from slam_jax.sharding import batch_sharding, replicated

Params = dict[str, Any]
Batch = dict[str, Array]
# (params, ema, frozen weights, batch, global example indices [B], key) -> (losses [B], more
# per-example metrics)
Loss = Callable[[Params, Params, Any, Batch, Array, Array], tuple[Array, dict[str, Array]]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: number of steps taken.
      params: trained weights, float32.
      ema: their exponential moving average, float32; also the target of the distillation.
      opt_state: the optimiser's.
    """

    step: Int[Array, ""]
    params: Params
    ema: Params
    opt_state: Any


def make_optimizer(options: Optimizer, steps: int) -> optax.GradientTransformation:
    """AdamW after clipping by global norm, with the learning-rate schedule over `steps`."""
    peak, last = options.learning_rate, 0.02 * options.learning_rate
    decay_steps = max(steps - options.warmup_steps, 1)
    decay = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, last, decay_steps),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps, alpha=last / peak),
    }[options.schedule]
    warmup = optax.linear_schedule(peak / max(options.warmup_steps, 1), peak, options.warmup_steps)
    return optax.chain(
        optax.clip_by_global_norm(options.clip_norm),
        optax.adamw(
            optax.join_schedules([warmup, decay], [options.warmup_steps])
            if options.warmup_steps
            else decay,
            b1=options.b1,
            b2=options.b2,
            weight_decay=options.weight_decay,
        ),
    )


def init_state(params: Params, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first step, on the mesh; the EMA starts as a copy of the weights."""

    def build(params):
        return TrainState(
            jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), tx.init(params)
        )

    return jax.jit(build, out_shardings=replicated(mesh))(params)


def make_train_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    ema: float,
    key: Array,
    batch_size: int,
    mesh: Mesh,
) -> Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, Array]]]:
    """The jitted step (state, frozen, batch) -> (state, metrics); donates the state it is given.

    Random draws depend on (key, step, example index) only: they are the same on any devices.

    Args:
      loss: unreduced loss.
      tx: optimiser.
      ema: decay of the moving average.
      key: of all its random draws.
      batch_size: over all devices.
      mesh: where it runs.
    """

    def step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        step_key = jax.random.fold_in(key, state.step)
        examples = jnp.arange(batch_size)

        def mean_loss(params):
            losses, metrics = loss(params, state.ema, frozen, batch, examples, step_key)
            return losses.mean(), metrics

        (value, metrics), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged = jax.tree.map(lambda old, new: ema * old + (1 - ema) * new, state.ema, params)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), **metrics}
        return TrainState(state.step + 1, params, averaged, opt_state), metrics

    everywhere, split = replicated(mesh), batch_sharding(mesh)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(everywhere, everywhere, split),
        out_shardings=(everywhere, everywhere),
    )


def mean_by_bin(
    values: Float[Array, " B"], bins: Int[Array, " B"], count: int, name: str
) -> dict[str, Array]:
    """Mean of the values in each of `count` bins, as metrics name0 .. ; an empty bin is NaN."""
    totals = jnp.zeros(count).at[bins].add(values)
    sizes = jnp.zeros(count).at[bins].add(1.0)
    return {f"{name}{i}": totals[i] / sizes[i] for i in range(count)}
