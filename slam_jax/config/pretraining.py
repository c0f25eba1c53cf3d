"""The options of a Stable Diffusion that is trained here from nothing: `slam-jax pretrain`."""

from dataclasses import asdict, dataclass, field
from typing import Any

from ml_collections import ConfigDict

from slam_jax.base.options import Options, check, group, option
from slam_jax.config.options import SEEDS, Mesh, Training
from slam_jax.data.options import Data
from slam_jax.method.variance_preserving import PREDICTION_TYPES

# CLIP's vocabulary: a letter and a letter at the end of a word for each byte, then start and end.
FIXED_TOKENS = 2 * 256 + 2
STORED = ("float32", "float16")


@dataclass(frozen=True)
class Autoencoder(Options):
    """The autoencoder, trained first and by its own loss."""

    network: dict[str, Any] = field(
        default_factory=dict,
        metadata={"doc": "its configuration, in the keys of diffusers' AutoencoderKL"},
    )
    kl_weight: float = option(
        1e-4, "weight of the latents' divergence from a standard normal", at_least=0
    )
    training: Training = group(Training, "how it is trained")


@dataclass(frozen=True)
class Tokens(Options):
    """The byte-pair vocabulary, learnt from the captions."""

    vocabulary: int = option(2048, "tokens, the 514 that CLIP's form has anyway included")
    length: int = option(24, "tokens of a prompt, with those of its start and end", at_least=3)

    def __post_init__(self):
        super().__post_init__()
        fits = self.vocabulary >= FIXED_TOKENS
        check(fits, "vocabulary", self.vocabulary, f"{FIXED_TOKENS} or more")

    @property
    def merges(self) -> int:
        """How many pairs are merged, at most."""
        return self.vocabulary - FIXED_TOKENS


@dataclass(frozen=True)
class Pretraining(Options):
    """A small Stable Diffusion from nothing: vocabulary, autoencoder, then UNet and text encoder
    together, by the plain denoising loss."""

    name: str = option("teacher", "name of the run, and of its folder in runs/")
    seed: int = option(0, "seed of all random draws", at_least=0, at_most=SEEDS - 1)
    data: Data = group(Data, "the training data")
    tokens: Tokens = group(Tokens, "the prompts' vocabulary")
    autoencoder: Autoencoder = group(Autoencoder, "images to latents and back")
    text_encoder: dict[str, Any] = field(
        default_factory=dict,
        metadata={"doc": "configuration of the text encoder, in the keys of a CLIPTextModel"},
    )
    unet: dict[str, Any] = field(
        default_factory=dict,
        metadata={"doc": "configuration of the UNet, in the keys of a UNet2DConditionModel"},
    )
    prediction_type: str = option("epsilon", "what the UNet predicts", one_of=PREDICTION_TYPES)
    dropout: float = option(
        0.1, "share of examples without their prompt, which guidance needs", above=0, below=1
    )
    training: Training = group(Training, "how UNet and text encoder are trained")
    dtype: str = option("float32", "of the weights as they are written", one_of=STORED)
    mesh: Mesh = group(Mesh, "the devices", free=True)

    def __post_init__(self):
        super().__post_init__()
        named = self.name.isidentifier()
        check(named, "name", self.name, "letters, digits and underscores")
        for group_name, training in (
            ("training", self.training),
            ("autoencoder.training", self.autoencoder.training),
        ):
            shown, best, remat = training.sample_every, training.best_metric, training.remat
            check(shown == 0, f"{group_name}.sample_every", shown, "0: there is no step ladder")
            check(best == "loss", f"{group_name}.best_metric", best, "loss")
            check(remat == "none", f"{group_name}.remat", remat, "none: it is for a student")


def default_pretraining() -> ConfigDict:
    """The defaults as a locked ConfigDict, for config files to start from."""
    return ConfigDict(asdict(Pretraining())).lock()
