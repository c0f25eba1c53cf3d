"""Models that `slam-jax pretrain` trains from nothing: their networks, as a config tells them and
as they follow from one another, and their weights before training.

What a family has of its own is in `stable_diffusion_untrained` and in `sd3_untrained`.
"""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import jax
from jaxtyping import Array

from slam_jax.base.errors import InputError
from slam_jax.config.pretraining import Pretraining
from slam_jax.families.pipeline import Params
from slam_jax.families.published_model import PublishedModel
from slam_jax.formats.model_index import PIPELINES
from slam_jax.models import functional
from slam_jax.models.clip import CLIPTextConfig, CLIPTextModel
from slam_jax.models.vae import AutoencoderKL, VAEConfig

# Configuration and weights by the component's folder.
Parts = dict[str, tuple[Any, Params]]


@dataclass(frozen=True)
class Untrained(ABC):
    """Configurations of the networks.

    Attributes:
      model: the family.
      pipeline_class: the pipeline of diffusers that draws with it.
      vae_class: of the autoencoder's configuration.
      denoiser_classes: the denoiser's module and its configuration.
      text_encoders: their folders.
      patch: latents of a patch of the denoiser, along a side.
      vae: of the autoencoder.
      text_encoder: of each text encoder.
      denoiser: of the denoiser.
    """

    model: ClassVar[type[PublishedModel]]
    pipeline_class: ClassVar[str]
    vae_class: ClassVar[type[VAEConfig]]
    denoiser_classes: ClassVar[tuple[type, Any]]
    text_encoders: ClassVar[tuple[str, ...]]
    patch: ClassVar[int] = 1

    vae: VAEConfig
    text_encoder: CLIPTextConfig
    denoiser: Any

    @classmethod
    @abstractmethod
    def of_denoiser(cls, vae: VAEConfig, text: CLIPTextConfig, config: Pretraining) -> Any:
        """What of the denoiser's configuration follows from the others, in its keys."""

    @classmethod
    def begun(cls, weights: Params) -> Params:
        """The denoiser's first weights, from random ones."""
        return weights

    @classmethod
    @abstractmethod
    def scheduler(cls, config: Pretraining) -> dict[str, Any]:
        """Contents of its scheduler_config.json."""

    @classmethod
    def of(cls, config: Pretraining) -> Self:
        """The networks of a config.

        Raises:
          InputError: one of them cannot be built, or does not fit; names the key.
        """
        size, tokens = config.data.resolution, config.tokens
        vae = {"sample_size": size, **config.autoencoder.network}
        vae = _parsed("autoencoder.network", cls.vae_class, AutoencoderKL, vae)
        if size % (pixels := vae.downscale * cls.patch):
            raise InputError(
                f"config.data.resolution = {size}, expected a multiple of {pixels}, the pixels for "
                f"which there is one {'latent' if cls.patch == 1 else 'patch of latents'}"
            )
        text = {
            "vocab_size": tokens.vocabulary,
            "max_position_embeddings": tokens.length,
            "eos_token_id": tokens.vocabulary - 1,
            "projection_dim": config.text_encoder.get("hidden_size", CLIPTextConfig.hidden_size),
            **config.text_encoder,
            "architectures": PIPELINES[cls.pipeline_class]["text_encoder"],
        }
        text = _parsed("text_encoder", CLIPTextConfig, CLIPTextModel, text)
        if text.max_position_embeddings < tokens.length:
            raise InputError(
                f"config.text_encoder.max_position_embeddings = {text.max_position_embeddings}, "
                f"expected config.tokens.length = {tokens.length} or more"
            )
        key, (module, kind) = cls.model.denoiser_folder, cls.denoiser_classes
        follows = {
            "sample_size": size // vae.downscale,
            "in_channels": vae.latent_channels,
            "out_channels": vae.latent_channels,
            **cls.of_denoiser(vae, text, config),
        }
        given = getattr(config, key)
        for name in follows.keys() & given.keys():
            if given[name] != follows[name]:
                raise InputError(
                    f"config.{key}.{name} = {given[name]}, expected {follows[name]}, which follows "
                    "from other options; leave it out"
                )
        return cls(vae, text, _parsed(key, kind, module, {**given, **follows}))

    def with_vocabulary(self, tokens: int) -> Self:
        """The same with a vocabulary of so many tokens, the last of which ends a text."""
        text = replace(self.text_encoder, vocab_size=tokens, eos_token_id=tokens - 1)
        return replace(self, text_encoder=text)

    def fresh(self, key: Array) -> Parts:
        """The denoiser and the text encoders before training."""
        weights = self.begun(functional.init(self.denoiser_classes[0], self.denoiser, key))
        parts: Parts = {self.model.denoiser_folder: (self.denoiser, weights)}
        for n, name in enumerate(self.text_encoders):
            own = jax.random.fold_in(key, n) if n else key
            weights = functional.init(CLIPTextModel, self.text_encoder, own)
            parts[name] = self.text_encoder, weights
        return parts


def _parsed(key: str, kind: Any, module: type, values: dict[str, Any]) -> Any:
    """A network's configuration, of which its module can be built.

    Raises:
      InputError: it cannot; names the key.
    """
    try:
        network = kind.from_dict(json.loads(json.dumps(values)))
        functional.abstract_params(module, network)
    # Whatever numbers that make no sense lead to.
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        raise InputError(f"config.{key}: {' '.join(str(error).split())[:300]}") from error
    return network
