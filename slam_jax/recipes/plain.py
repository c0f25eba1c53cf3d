"""Training without a teacher: of a teacher itself, and of an autoencoder."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from slam_jax.config.options import Training
from slam_jax.data.batches import Batches, Source
from slam_jax.parallel.keys import keys_of
from slam_jax.parallel.runtime import versions
from slam_jax.parallel.sharding import to_host
from slam_jax.training.loop import TrainingRun, fit
from slam_jax.training.step import Loss, Params, init_state, make_optimizer, make_train_step


@dataclass(frozen=True)
class PlainTraining:
    """What is trained, on what, and where it is kept.

    Attributes:
      loss: of each example.
      source: examples.
      options: how long and how fast.
      seed: of all random draws.
      workers: processes that read.
      folder: for checkpoints and metrics.
      name: of the progress bar.
      record: the config, for the checkpoints.
    """

    loss: Loss
    source: Source
    options: Training
    seed: int
    workers: int
    folder: Path
    name: str
    record: dict[str, Any]

    def train(self, params: Params, frozen: Any, mesh: Mesh) -> Params:
        """Trains, from the newest checkpoint where there is one.

        Args:
          params: weights before the first step, in the host's memory.
          frozen: weights on the mesh that the loss reads.
          mesh: devices.

        Returns:
          The moving average of the weights, in the host's memory.

        Raises:
          InputError: the checkpoint is of another model or other data.
          Interrupted: Ctrl-C; the state is saved.
        """
        options, share = self.options, (jax.process_index(), jax.process_count())
        tx = make_optimizer(options.optimizer, options.steps)
        step = make_train_step(self.loss, tx, options, keys_of(self.seed).teacher, mesh)
        size, workers = options.batch_size, self.workers
        data = Batches(self.source, size, self.seed, workers, share=share)
        init = partial(init_state, tx=tx, mesh=mesh)
        record = {"config": self.record, "versions": versions(), "teacher": None}
        run = TrainingRun(step, init, data, mesh, options, self.folder, self.name, record)
        return to_host(fit(run, params, frozen).ema, mesh)
