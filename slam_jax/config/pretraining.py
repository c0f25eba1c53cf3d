"""The options of a Stable Diffusion that is trained here from nothing: `slam-jax pretrain`."""

from dataclasses import asdict, dataclass, field
from typing import Any

from ml_collections import ConfigDict

from slam_jax.base.options import Options, check, group, option
from slam_jax.config.options import SEEDS, Mesh, Training
from slam_jax.data.options import Data
from slam_jax.method.flow_matching import FLOW
from slam_jax.method.variance_preserving import PREDICTION_TYPES

# CLIP's vocabulary: a letter and a letter at the end of a word for each byte, then start and end.
FIXED_TOKENS = 2 * 256 + 2
STORED = ("float32", "float16")
# What can be trained: the group of the config that has its denoiser, and what that may predict.
DENOISERS = {
    "stable_diffusion": ("unet", PREDICTION_TYPES),
    "sd3": ("transformer", (FLOW,)),
}


@dataclass(frozen=True)
class Autoencoder(Options):
    """The autoencoder, trained first and by its own loss."""

    network: dict[str, Any] = field(
        default_factory=dict,
        metadata={"doc": "its configuration, in the keys of diffusers' AutoencoderKL"},
    )
    kl_weight: float = option(
        1e-4, "weight of the latents' divergence from a standard normal", at_least=0, at_most=1e6
    )
    training: Training = group(Training, "how it is trained")


@dataclass(frozen=True)
class Tokens(Options):
    """The byte-pair vocabulary, learnt from the captions."""

    vocabulary: int = option(
        2048,
        "tokens, the 514 that CLIP's form has anyway included",
        at_least=FIXED_TOKENS,
        at_most=10**6,
    )
    length: int = option(
        24, "tokens of a prompt, with those of its start and end", at_least=3, at_most=10_000
    )

    @property
    def merges(self) -> int:
        """How many pairs are merged, at most."""
        return self.vocabulary - FIXED_TOKENS


@dataclass(frozen=True)
class Pretraining(Options):
    """A small Stable Diffusion from nothing: vocabulary, autoencoder, then denoiser and text
    encoders together, by the plain denoising loss."""

    name: str = option("teacher", "name of the run, and of its folder in runs/")
    family: str = option(
        "stable_diffusion",
        'what is trained: "stable_diffusion", a UNet with a text encoder; "sd3", a transformer '
        "with two of them, by flow matching",
        one_of=tuple(DENOISERS),
    )
    seed: int = option(0, "seed of all random draws", at_least=0, at_most=SEEDS - 1)
    data: Data = group(Data, "the training data")
    tokens: Tokens = group(Tokens, "the prompts' vocabulary")
    autoencoder: Autoencoder = group(Autoencoder, "images to latents and back")
    text_encoder: dict[str, Any] = field(
        default_factory=dict,
        metadata={"doc": "configuration of each text encoder, in the keys of a CLIPTextModel"},
    )
    unet: dict[str, Any] = field(
        default_factory=dict,
        metadata={"doc": "configuration of the UNet, in the keys of a UNet2DConditionModel"},
    )
    transformer: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "doc": "configuration of the transformer of sd3, in the keys of an "
            "SD3Transformer2DModel"
        },
    )
    prediction_type: str = option(
        "epsilon",
        'what the denoiser predicts; "flow", that of sd3: the velocity of flow matching',
        one_of=(*PREDICTION_TYPES, FLOW),
    )
    dropout: float = option(
        0.1, "share of examples without their prompt, which guidance needs", above=0, below=1
    )
    training: Training = group(Training, "how the denoiser and the text encoders are trained")
    dtype: str = option("float32", "of the weights as they are written", one_of=STORED)
    mesh: Mesh = group(Mesh, "the devices", free=True)

    def __post_init__(self):
        super().__post_init__()
        named = self.name.isidentifier()
        check(named, "name", self.name, "letters, digits and underscores")
        self._check_family()
        for group_name, training in (
            ("training", self.training),
            ("autoencoder.training", self.autoencoder.training),
        ):
            shown, best, remat = training.sample_every, training.best_metric, training.remat
            check(shown == 0, f"{group_name}.sample_every", shown, "0: there is no step ladder")
            check(best == "loss", f"{group_name}.best_metric", best, "loss")
            check(remat == "none", f"{group_name}.remat", remat, "none: it is for a student")

    def _check_family(self) -> None:
        """What is said of the denoiser is of one of this family."""
        of_family, types = DENOISERS[self.family]
        for name, _ in DENOISERS.values():
            given = getattr(self, name)
            expected = f"nothing: the family {self.family} has a {of_family}"
            check(name == of_family or not given, name, given, expected)
        shown, expected = self.prediction_type, f"{' or '.join(types)} for the family {self.family}"
        check(shown in types, "prediction_type", shown, expected)


def default_pretraining() -> ConfigDict:
    """The defaults as a locked ConfigDict, for config files to start from."""
    return ConfigDict(asdict(Pretraining())).lock()
