"""Root of the mean squared difference from the teacher's pictures."""

import numpy as np

from slam_jax.drawing.metrics.metric import Drawn, Metric


class RmseToTeacher(Metric):
    """In units of a picture's [-1, 1]."""

    name, title = "rmse_to_teacher", "RMSE to teacher"

    def compute(self, drawn: Drawn) -> float:
        return rmse(drawn.images, drawn.teacher)


def rmse(x: np.ndarray, y: np.ndarray) -> float:
    """Root of the mean squared difference."""
    return float(np.sqrt(np.mean((x - y) ** 2)))
