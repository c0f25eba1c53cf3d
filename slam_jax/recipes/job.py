"""What the command line asks of a kind of run."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from slam_jax.data.batches import Source
from slam_jax.drawing.ladder import Ladder
from slam_jax.families.family import Batch, Frozen, Params, Pipeline
from slam_jax.formats.flax_folder import SavedModel


class Job(ABC):
    """A kind of run, built from a config and whatever it reads, without writing anything.

    Attributes:
      pipeline: the teacher's family.
    """

    pipeline: Pipeline

    @abstractmethod
    def weights(self, mesh: Mesh) -> Frozen:
        """Hands over the weights of the teacher ("unet", float32) and of what surrounds it, once;
        numpy arrays, in the host's memory.

        Raises:
          Interrupted: the teacher was being trained, and Ctrl-C came.
        """

    @abstractmethod
    def source(self) -> Source:
        """The examples to train on."""

    @abstractmethod
    def ladder_prompts(self) -> Batch:
        """The prompts of the step ladder."""

    @abstractmethod
    def save_ladder(self, ladder: Ladder, student: Params, path: Path) -> dict[str, float]:
        """Draws the step ladder into a picture, and returns what `Ladder.save` does."""

    @abstractmethod
    def measure(self, ladder: Ladder, frozen: Frozen, student: Params) -> list[dict[str, Any]]:
        """Rows of metrics, for each model and step count."""

    @abstractmethod
    def teacher_info(self) -> dict[str, Any]:
        """Which teacher it was, for the student's record; "fingerprints" has one for each of its
        parts. After `weights`."""

    @abstractmethod
    def export(self, student: SavedModel, folder: Path) -> None:
        """Writes the student."""
