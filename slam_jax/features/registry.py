"""The networks there are for comparing pictures.

Another one is added from outside: `NETWORKS["mine"] = Kind(open_mine, where="...")`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from slam_jax.base.errors import InputError
from slam_jax.features import clip, dinov2, efficientnet, inception
from slam_jax.features.network import FeatureNetwork
from slam_jax.features.weights import NoWeights


@dataclass(frozen=True)
class Kind:
    """How a network is opened.

    Attributes:
        open: a file, folder or hub id to the network.
        default: the hub id of its weights, or the package that has them; "" if neither does.
        where: where to get them, one line.
        sees_original: pictures as they are, whatever the others see them resized to.
    """

    open: Callable[[str], FeatureNetwork]
    default: str = ""
    where: str = ""
    sees_original: bool = False


def _on_hub(open: Callable[[str], FeatureNetwork], name: str, sees_original: bool = False) -> Kind:
    return Kind(open, name, f"take https://huggingface.co/{name}", sees_original)


NETWORKS: dict[str, Kind] = {
    "inception": Kind(inception.open_whole, where=inception.WHERE),
    "inception_tf1": Kind(inception.open_tensorflow1, where=inception.WHERE),
    "inception_patch": Kind(inception.open_patch, where=inception.WHERE, sees_original=True),
    "clip_b32": _on_hub(
        partial(clip.open_clip, "clip_b32", clip.Size(224, 32, 512)),
        "openai/clip-vit-base-patch32",
    ),
    "clip_l14": _on_hub(
        partial(clip.open_clip, "clip_l14", clip.Size(224, 14, 768)),
        "openai/clip-vit-large-patch14",
    ),
    "clip_l14_336": _on_hub(
        partial(clip.open_clip, "clip_l14_336", clip.Size(336, 14, 768), resizer=clip.CMMD),
        "openai/clip-vit-large-patch14-336",
        sees_original=True,
    ),
    "clip_own": Kind(
        partial(clip.open_clip, "clip_own", None, prefix=""),
        where="benchmarks/train_judge.py trains such a CLIP",
    ),
    "dinov2": _on_hub(partial(dinov2.open_dinov2, "dinov2", 1024), "facebook/dinov2-large"),
    "efficientnet_lite0": Kind(
        efficientnet.open_lite0, efficientnet.PACKAGE, where=efficientnet.WHERE
    ),
}


def open_network(name: str, path: str = "") -> FeatureNetwork:
    """A network with its weights.

    Args:
        name: of NETWORKS.
        path: the file or folder of the weights, or a hub id; "": its default.

    Raises:
        InputError: there is no such network, or its weights are missing, damaged or another's.
    """
    if name not in NETWORKS:
        raise InputError(f"{name!r}: no such network, expected one of {', '.join(NETWORKS)}")
    kind = NETWORKS[name]
    if not path and not kind.default:
        raise InputError(f"{name}: give the file of its weights; {kind.where}")
    try:
        return kind.open(path or kind.default)
    except NoWeights as error:
        raise InputError(f"{error}; {kind.where}") from error
