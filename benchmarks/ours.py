"""This project's side of a comparison: its training step, sampler and VAE, ready to time."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from shapes import Model

from slam_jax.config.options import Optimizer, Training
from slam_jax.drawing.samplers import student_sampler
from slam_jax.families.pipeline import DENOISER, Frozen
from slam_jax.method.method import gaussian
from slam_jax.method.slam import Slam, draw
from slam_jax.models import functional
from slam_jax.models.execution import Execution
from slam_jax.parallel import runtime
from slam_jax.parallel.keys import ENCODE, keys_of
from slam_jax.parallel.sharding import make_mesh, shard, shard_batch
from slam_jax.recipes.distil import distillation_loss
from slam_jax.training.step import init_state, make_optimizer, make_train_step

EMA, SEED = 0.95, 0
LEARNING_RATE = 8e-6


@dataclasses.dataclass(frozen=True)
class Setup:
    """How a model is computed.

    Attributes:
      dtype: of all networks but the VAE.
      vae_dtype: of the VAE.
      teacher_dtype, target_dtype, student_dtype: of one of the UNets; None: `dtype`.
      method: what is distilled.
      execution: of the networks; None: the pipeline's own.
      remat: of the student's gradient.
    """

    dtype: str = "float32"
    vae_dtype: str = "float32"
    teacher_dtype: str | None = None
    target_dtype: str | None = None
    student_dtype: str | None = None
    method: Slam = Slam()
    execution: Execution | None = None
    remat: str = "none"


def batch_for(batch: dict[str, np.ndarray], with_pictures: bool) -> dict[str, np.ndarray]:
    """A batch of `shapes.make_batch` with pictures, or with what the VAE made of them."""
    left_out = "moments" if with_pictures else "images"
    return {name: array for name, array in batch.items() if name != left_out}


def train_step(
    model: Model,
    batch: dict[str, np.ndarray],
    setup: Setup = Setup(),  # noqa: B008 (frozen)
) -> Callable[[], jax.Array]:
    """A function that trains one more step, always on the same batch, and returns its loss.

    Args:
      model: with its student's and EMA's first weights.
      batch: with "images" or "moments", not both.
      setup: how it is computed.
    """
    step, state, frozen, batch = train_arguments(model, batch, setup)

    def advance() -> jax.Array:
        nonlocal state
        state, metrics = step(state, frozen, batch)
        return metrics["loss"]

    return advance


def train_arguments(model: Model, batch: dict[str, np.ndarray], setup: Setup) -> tuple:
    """The jitted step, and its arguments on the first device."""
    mesh = make_mesh(devices=jax.devices()[:1])
    tx = make_optimizer(Optimizer(learning_rate=LEARNING_RATE), steps=10**6)
    loss = distillation_loss(_pipeline(model, setup), setup.method, setup.remat)
    training = Training(ema=EMA, batch_size=len(batch["tokens"]))
    dtypes = setup.student_dtype or setup.dtype, setup.target_dtype or setup.dtype
    step = make_train_step(loss, tx, training, keys_of(SEED).student, mesh, dtypes)
    state = init_state(shard(model.student, mesh), tx, mesh)
    state = dataclasses.replace(state, ema=shard(model.ema, mesh))
    return step, state, shard(_frozen(model, setup), mesh), shard_batch(batch, mesh)


def step_draws(model: Model, count: int, step: int, method: Slam) -> dict[str, np.ndarray]:
    """What `train_step` draws in a step: sub-paths, gammas, noise, and noise of the VAE."""
    shape, examples = model.pipeline.latent_shape, jnp.arange(count)
    key = jax.random.fold_in(keys_of(SEED).student, step)
    starts, gamma = draw(key, examples, shape, method)
    encode = gaussian(jax.random.fold_in(key, ENCODE), examples, shape)
    drawn = {"index": starts.index, "gamma": gamma, "eps": starts.eps, "encode": encode}
    return {name: np.asarray(array) for name, array in drawn.items()}


def sampler(
    model: Model,
    setup: Setup = Setup(),  # noqa: B008 (frozen)
) -> Callable[[int, int], jax.Array]:
    """(pictures, steps) -> as many pictures in [-1, 1], always the same prompts and noise."""
    draw_pictures = student_sampler(
        _pipeline(model, setup), model.network, setup.method, setup.dtype
    )
    frozen = jax.device_put({**_frozen(model, setup), DENOISER: {}})
    params = jax.device_put(_cast(model.student, setup.dtype))
    batches: dict[int, Any] = {}

    def call(count: int, steps: int) -> jax.Array:
        if count not in batches:
            batches[count] = jax.device_put(prompts(model, count))
        return draw_pictures(frozen, params, batches[count], (SEED, 0), steps=steps)

    return call


def prompts(model: Model, count: int) -> dict[str, np.ndarray]:
    """A batch of prompts to draw."""
    return model.pipeline.prompts([f"picture number {i} of a harbour" for i in range(count)])


def sampler_noise(model: Model, count: int, steps: int) -> list[np.ndarray]:
    """What `sampler` draws: the noise that it starts from, then that between its steps."""
    keys, examples = keys_of(SEED), jnp.arange(count)
    between = jax.random.split(keys.steps, steps)[:-1]
    shape = model.pipeline.latent_shape
    return [np.asarray(gaussian(key, examples, shape)) for key in (keys.noise, *between)]


def vae_decode(
    model: Model,
    setup: Setup = Setup(),  # noqa: B008 (frozen)
) -> Callable[[np.ndarray], Callable[[], jax.Array]]:
    """Latents -> a function that makes pictures in [-1, 1] of them."""
    decode = jax.jit(_pipeline(model, setup).decode)
    frozen = jax.device_put({"vae": _cast(model.frozen["vae"], setup.vae_dtype)})

    def bind(latents: np.ndarray) -> Callable[[], jax.Array]:
        on_device = jax.device_put(latents)
        return lambda: decode(frozen, on_device)

    return bind


def flops_per_sample(model: Model, batch: dict[str, np.ndarray]) -> float:
    """Additions and multiplications of loss and gradient for one sample, as XLA counts them."""
    pipeline = _pipeline(model, Setup(execution=Execution(attention="xla")))
    loss = distillation_loss(pipeline, Slam())

    def gradient(student, ema, frozen, batch, key):
        return jax.grad(lambda p: loss(p, ema, frozen, batch, jnp.arange(1), key)[0].sum())(student)

    one = {name: array[:1] for name, array in batch.items()}
    arguments = model.student, model.ema, model.frozen, one, jax.random.key(0)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments)
    with jax.default_device(runtime.cpu()):
        return jax.jit(gradient).lower(*shapes).cost_analysis()["flops"]


def _pipeline(model: Model, setup: Setup) -> Any:
    if setup.execution is None:
        return model.pipeline
    return dataclasses.replace(model.pipeline, execution=setup.execution)


def _frozen(model: Model, setup: Setup) -> Frozen:
    dtypes = {"vae": setup.vae_dtype, DENOISER: setup.teacher_dtype or setup.dtype}
    return {
        part: _cast(params, dtypes.get(part, setup.dtype)) for part, params in model.frozen.items()
    }


def _cast(params: Any, dtype: str) -> Any:
    return params if dtype == "float32" else functional.cast(params, dtype)
