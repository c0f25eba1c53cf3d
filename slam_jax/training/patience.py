"""Early stopping: the end of a run that no longer gets better."""

from collections.abc import Sequence

from slam_jax.parallel.processes import as_first


class Patience:
    """Whether a metric has failed to become lower for too long.

    Args:
      limit: measurements without a lower one than before, after which it has; 0: it never has.
      name: of the metric.
      rows: measured before, in their order.
    """

    def __init__(self, limit: int, name: str, rows: Sequence[dict[str, float]]):
        self._limit, self._name = limit, name
        self._best, self._worse = float("inf"), 0
        for row in rows:
            self._count(row)

    def over(self, row: dict[str, float]) -> bool:
        """Whether it is, with one more row; all processes have to ask where it has the metric."""
        if not self._count(row):
            return False
        return as_first(self.is_over)

    @property
    def is_over(self) -> bool:
        """Whether it is, with the rows so far."""
        return 0 < self._limit <= self._worse

    def _count(self, row: dict[str, float]) -> bool:
        """Takes a row; whether it has the metric."""
        if (value := row.get(self._name)) is None:
            return False
        self._worse = 0 if value < self._best else self._worse + 1
        self._best = min(value, self._best)
        return True
