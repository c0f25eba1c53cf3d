"""Root of the mean squared difference from the teacher's pictures."""

import numpy as np

from slam_jax.drawing.metrics.metric import Drawn, Metric


class RmseToTeacher(Metric):
    """In units of a picture's [-1, 1]."""

    name, title, compares_with = "rmse_to_teacher", "RMSE to teacher", "teacher"

    def applies(self, drawn: Drawn) -> bool:
        return drawn.images is not None and drawn.teacher is not None

    def compute(self, drawn: Drawn) -> float:
        assert drawn.images is not None and drawn.teacher is not None  # it applies
        return rmse(drawn.images, drawn.teacher)


def rmse(x: np.ndarray, y: np.ndarray) -> float:
    """Root of the mean squared difference."""
    return float(np.sqrt(np.mean((x - y) ** 2)))
