"""The models that are timed: named sizes, with random weights that are the same for every subject.

tiny    two levels of 16 and 32 channels, 64 pixels: what the tests distil
small   the layout of SD 1.5, four levels, a tenth of its channels, 128 pixels
sd15, sd21, sd21_768, sdxl   the published sizes, at 512, 512, 768 and 1024 pixels
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from slam_jax.families.pipeline import DENOISER, Params, student_config, student_params
from slam_jax.families.stable_diffusion_pipeline import TEXT_ENCODERS, StableDiffusionPipeline
from slam_jax.formats.tokenizer import Tokenizer
from slam_jax.method.slam import Slam
from slam_jax.method.variance_preserving import VariancePreserving
from slam_jax.models import functional
from slam_jax.models.clip import CLIPTextConfig, CLIPTextModel
from slam_jax.models.published_networks import CLIP_L, OPEN_CLIP_BIG_G, OPEN_CLIP_H, UNETS
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig
from slam_jax.models.vae import AutoencoderKL, VAEConfig

LENGTH = 77  # of a prompt, in tokens
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}
ENCODER, DECODER = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
VAE = dict(down_block_types=ENCODER, up_block_types=DECODER, layers_per_block=2)
FULL_VAE = VAEConfig(**VAE, block_out_channels=(128, 256, 512, 512))
XL_VAE = VAEConfig(**VAE, block_out_channels=(128, 256, 512, 512), scaling_factor=0.13025)


@dataclass(frozen=True)
class Shapes:
    """A model's size, and how much of it is computed at a time.

    Attributes:
      unet, vae, text_encoders: configurations; unet.sample_size is the latents' side.
      train_batch: rows of a training step.
      sample_batches: pictures that are drawn at a time.
      prediction_type: of the teacher.
    """

    unet: UNetConfig
    vae: VAEConfig
    text_encoders: tuple[CLIPTextConfig, ...]
    train_batch: int
    sample_batches: tuple[int, ...]
    prediction_type: str = "epsilon"


SHAPES = {
    "tiny": Shapes(
        UNetConfig(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=32,
            attention_head_dim=4,
        ),
        VAEConfig(
            **{**VAE, "layers_per_block": 1},
            block_out_channels=(8, 16, 16, 16),
            norm_num_groups=4,
        ),
        (
            CLIPTextConfig(
                vocab_size=604,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                eos_token_id=603,
            ),
        ),
        train_batch=8,
        sample_batches=(1, 4),
    ),
    "small": Shapes(
        UNetConfig(sample_size=16, block_out_channels=(32, 64, 128, 128), cross_attention_dim=128),
        VAEConfig(**VAE, block_out_channels=(32, 64, 128, 128)),
        (
            CLIPTextConfig(
                vocab_size=4096,
                hidden_size=128,
                intermediate_size=512,
                num_hidden_layers=6,
                num_attention_heads=4,
                eos_token_id=4095,
            ),
        ),
        train_batch=4,
        sample_batches=(1, 4),
    ),
    "sd15": Shapes(
        replace(UNETS["SD 1.5"], sample_size=64),
        FULL_VAE,
        (CLIP_L,),
        train_batch=32,
        sample_batches=(1, 8),
    ),
    "sd21": Shapes(
        replace(UNETS["SD 2.x"], sample_size=64),
        FULL_VAE,
        (OPEN_CLIP_H,),
        train_batch=32,
        sample_batches=(1, 8),
    ),
    "sd21_768": Shapes(
        replace(UNETS["SD 2.x"], sample_size=96, upcast_attention=True),
        FULL_VAE,
        (OPEN_CLIP_H,),
        train_batch=12,
        sample_batches=(1, 4),
        prediction_type="v_prediction",
    ),
    "sdxl": Shapes(
        replace(UNETS["SDXL"], sample_size=128),
        XL_VAE,
        (CLIP_L, OPEN_CLIP_BIG_G),
        train_batch=4,
        sample_batches=(1, 4),
    ),
}


@dataclass(frozen=True)
class Model:
    """A teacher with what surrounds it, a student, and the average of a student.

    Attributes:
      name: of SHAPES.
      shapes: its entry.
      pipeline: the teacher's surroundings.
      frozen: weights of the teacher (DENOISER), the VAE and the text encoders: numpy, float32.
      student, ema: unlike the teacher and each other in a few arrays, so that a mix-up shows.
      network: the student's configuration.
    """

    name: str
    shapes: Shapes
    pipeline: StableDiffusionPipeline
    frozen: dict[str, Params]
    student: Params
    ema: Params
    network: UNetConfig


def pipeline_of(shapes: Shapes) -> StableDiffusionPipeline:
    """What surrounds a model of these shapes; its tokenizers need no files."""
    scheduler = {**SCHEDULER, "prediction_type": shapes.prediction_type}
    side = shapes.unet.sample_size
    return StableDiffusionPipeline(
        network=shapes.unet,
        scheduler=scheduler,
        schedule=VariancePreserving.from_config(scheduler),
        latent_shape=(side, side, shapes.vae.latent_channels),
        vae=shapes.vae,
        text_encoders=shapes.text_encoders,
        tokenizers=tuple(Tokenizer(Words(c.vocab_size), LENGTH) for c in shapes.text_encoders),
        zeros_for_empty_prompt=len(shapes.text_encoders) == 2,
    )


def make_model(name: str) -> Model:
    """The model of a size, the same every time; predictions and pictures are of order one."""
    shapes, rng = SHAPES[name], np.random.default_rng(0)
    pipeline = pipeline_of(shapes)
    teacher = _random(UNet2DConditionModel, shapes.unet, rng)
    teacher["conv_out"]["kernel"] *= 1.6  # what SiLU takes away
    frozen = {DENOISER: teacher, "vae": _random_vae(shapes.vae, rng)}
    for part, config in zip(TEXT_ENCODERS, shapes.text_encoders, strict=False):
        frozen[part] = _random(CLIPTextModel, config, rng)
    student, ema = (_moved(student_params(pipeline, Slam(), teacher), rng) for _ in range(2))
    network = student_config(pipeline, Slam())
    return Model(name, shapes, pipeline, frozen, student, ema, network)


def make_batch(model: Model, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A training batch with pictures, their moments as if from the VAE, and token ids."""
    pipeline, rng = model.pipeline, np.random.default_rng(seed)
    batch = pipeline.prompts(
        [f"picture number {i} of a lighthouse by the sea" for i in range(count)]
    )
    height, width = pipeline.image_size
    coarse = rng.integers(0, 256, (count, height // 8, width // 8, 3), np.uint8)
    mean = rng.standard_normal((count, *pipeline.latent_shape)) / pipeline.vae.scaling_factor
    logvar = rng.standard_normal(mean.shape) - 8
    return {
        **batch,
        "images": coarse.repeat(8, axis=1).repeat(8, axis=2),
        "moments": np.concatenate([mean, logvar], axis=-1).astype(np.float16),
    }


class Words:
    """A tokenizer without files: every word is one id, and the last two ids are start and end."""

    def __init__(self, vocabulary: int):
        self._vocabulary = vocabulary

    def __len__(self) -> int:
        return self._vocabulary

    def __call__(self, texts: Sequence[str], max_length: int, **_: Any) -> dict[str, Any]:
        start, end = self._vocabulary - 2, self._vocabulary - 1
        rows = []
        for text in texts:
            words = [zlib.crc32(word.encode()) % start for word in text.split()]
            row = [start, *words[: max_length - 2], end]
            rows.append(row + [end] * (max_length - len(row)))
        return {"input_ids": rows}


def _random(module_class: type, config: Any, rng: np.random.Generator) -> Params:
    """Weights that keep activations of order one."""

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        values = rng.standard_normal(leaf.shape, np.float32)
        if name == "bias":
            return 0.1 * values
        if name == "scale":
            return 1 + 0.1 * values
        if name == "embedding":
            return values
        return values / np.float32(math.sqrt(math.prod(leaf.shape[:-1])))

    abstract = functional.abstract_params(module_class, config)
    return jax.tree_util.tree_map_with_path(draw, abstract)


def _random_vae(config: VAEConfig, rng: np.random.Generator) -> Params:
    """Means of order one once they are scaled, with little noise about them; pictures in about
    [-1, 1]."""
    params, factor = _random(AutoencoderKL, config, rng), np.float32(config.scaling_factor)
    channels = config.latent_channels
    kernel, bias = (params["quant_conv"][name] for name in ("kernel", "bias"))
    kernel[..., :channels] *= 2 / factor
    kernel[..., channels:] *= np.float32(0.3)
    bias[channels:] -= 3
    params["post_quant_conv"]["kernel"] *= factor
    for name in ("kernel", "bias"):
        params["decoder"]["conv_out"][name] *= np.float32(0.25)
    return params


def _moved(params: Params, rng: np.random.Generator) -> Params:
    """The weights with other biases and norms, and small ones for gamma in the place of zeros."""

    def move(path: Any, leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        if path[-1].key == "kernel" and not any(entry.key == "cond_proj" for entry in path):
            return leaf
        return leaf + np.float32(0.03) * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(move, params)
