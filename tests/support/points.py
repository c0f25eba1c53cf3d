"""Points of a plane, and a loss that pulls one parameter to them."""

import jax
import jax.numpy as jnp
import numpy as np

from slam_jax.config.options import Optimizer, Training
from slam_jax.data.rejects import Rejected, Rejects
from slam_jax.parallel.sharding import make_mesh, shard
from slam_jax.training.step import init_state, make_optimizer, make_train_step

BATCH = 16


class Points:
    """256 points of a plane; those in `damaged` cannot be used."""

    name = "points"

    def __init__(self, identity="256", damaged=()):
        self.identity, self.damaged = identity, set(damaged)

    def __len__(self):
        return 256

    def read(self, indices, seeds):
        rejects = Rejects()
        for index in self.damaged & set(indices.tolist()):
            rejects.add(Rejected("damaged point", str(index)))
        return {
            "x": np.stack([np.sin(indices), np.cos(indices)], axis=1).astype(np.float32)
        }, rejects


def quadratic(params, ema, frozen, batch, examples, key):
    noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (2,)))(examples)
    losses = ((batch["x"] + 0.1 * noise - params["w"][None, :]) ** 2).sum(axis=1)
    distance = jnp.abs(params["w"] - ema["w"]).sum() + 0 * frozen["f"]
    return losses, {"distance_to_ema": (distance, 1.0)}


OPTIMIZER = make_optimizer(Optimizer(learning_rate=0.1), 100)


def setup(loss=quadratic, ema=0.9, mesh=None, tx=OPTIMIZER, **changes):
    mesh, training = mesh or make_mesh(), Training(ema=ema, batch_size=BATCH, **changes)
    state = init_state(shard({"w": np.ones(2, np.float32)}, mesh), tx, mesh)
    return make_train_step(loss, tx, training, jax.random.key(0), mesh), state, mesh
