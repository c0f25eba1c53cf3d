"""Caption retrieval: which of the prompts a picture was drawn for, as an image-text model says."""

import numpy as np
from jaxtyping import Float

from slam_jax.drawing.metrics.clip_score import unit
from slam_jax.drawing.metrics.metric import Drawn, Metric


class Retrieval(Metric):
    """The share of pictures whose own prompt is nearer, by the cosine of features, than any other
    of the distinct prompts: R-precision with R = 1 (Xu et al. 2018, arXiv 1711.10485, section 4,
    where a model trained on the data judges, too, among 100 captions).

    Chance is one in the number of prompts: shares among more and fewer prompts do not compare.
    """

    name, title, lower_is_better = "retrieval", "caption retrieval", False
    networks, reads_prompts, needs_rows = ("clip_own",), True, True

    def applies(self, drawn: Drawn) -> bool:
        return len(set(drawn.prompts)) > 1

    def compute(self, drawn: Drawn) -> float:
        pictures, texts = (drawn.features[w, self.networks[0]] for w in ("model", "prompts"))
        _, first, own = np.unique(drawn.prompts, return_index=True, return_inverse=True)
        return share_right(pictures.array(), texts.array()[first], own)

    def choices(self, drawn: Drawn) -> int:
        return len(set(drawn.prompts))


def share_right(
    pictures: Float[np.ndarray, "N D"], texts: Float[np.ndarray, "M D"], own: np.ndarray
) -> float:
    """The share of pictures whose own text is nearer than any other.

    Args:
      pictures, texts: their features.
      own: row of each picture's text, [N].
    """
    nearest = np.argmax(unit(pictures) @ unit(texts).T, axis=1)
    return float(np.mean(nearest == own))
