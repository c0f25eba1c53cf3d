"""Real pictures with labels, which drawn ones are compared with."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class Reference:
    """Real pictures to compare with.

    Attributes:
      images: in [-1, 1], [M, H, W, C].
      labels: the prompt that each would be drawn for, [M].
    """

    images: Float[np.ndarray, "M H W C"]
    labels: tuple[str, ...]
