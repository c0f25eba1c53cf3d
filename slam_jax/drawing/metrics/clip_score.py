"""CLIP score: how well pictures fit their prompts; and the variety of pictures of one prompt."""

from collections import Counter

import numpy as np
from jaxtyping import Float

from slam_jax.drawing.metrics.metric import Drawn, Metric


class ClipScore(Metric):
    """The mean cosine between the features of a picture and those of its prompt, whose text begins
    with "A photo depicts" (Hessel et al. 2021, arXiv 2104.08718); some report 100 times that."""

    name, title, lower_is_better = "clip_score", "CLIP score", False
    networks, reads_prompts, needs_rows = ("clip_b32",), True, True

    def compute(self, drawn: Drawn) -> float:
        (network,) = self.networks
        pictures, texts = (drawn.features[whose, network] for whose in ("model", "prompts"))
        cosines = [np.sum(unit(x) * unit(y), axis=1) for x, y in zip(pictures, texts, strict=True)]
        return float(np.mean(np.concatenate(cosines)))


class Diversity(Metric):
    """One minus the mean cosine between CLIP's features of two pictures of the same prompt; no
    prompt may have one picture only."""

    name, title, lower_is_better = "diversity", "diversity", False
    networks, needs_rows, of_a_prompt = ("clip_b32",), True, 2

    def applies(self, drawn: Drawn) -> bool:
        return min(Counter(drawn.prompts).values()) >= self.of_a_prompt

    def compute(self, drawn: Drawn) -> float:
        features = unit(drawn.features["model", self.networks[0]].array())
        places: dict[str, list[int]] = {}
        for place, prompt in enumerate(drawn.prompts):
            places.setdefault(prompt, []).append(place)
        return float(np.mean([_spread(features[p]) for p in places.values() if len(p) > 1]))


def _spread(rows: Float[np.ndarray, "n D"]) -> float:
    """One minus the mean cosine of two different rows, all of length 1."""
    count = len(rows)
    total = np.sum(rows.sum(axis=0) ** 2)  # of the cosines of all pairs, each with itself too
    return 1 - float((total - count) / (count * (count - 1)))


def unit(rows: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n D"]:
    """Rows of length 1, float64."""
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
