"""A Stable Diffusion trained from nothing: vocabulary, autoencoder, UNet and text encoder.

    WORKDIR/autoencoder/  checkpoints and metrics of the autoencoder's training
    WORKDIR/untrained/    a whole diffusers folder with it, before UNet and text encoder are trained
    WORKDIR/latents/      the pictures, encoded once by it
    WORKDIR/              checkpoints and metrics of UNet and text encoder
    WORKDIR/teacher/      the result, a diffusers folder

Each is made once; killed, the same command goes on where it was.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from slam_jax.base.errors import InputError, options_of
from slam_jax.base.json_file import read_json, write_json
from slam_jax.base.out_folder import whole_folder
from slam_jax.config.options import Precision, Teacher
from slam_jax.config.pretraining import Pretraining
from slam_jax.config.validate import to_json
from slam_jax.data.examples import Examples
from slam_jax.data.image_text import ImageText, Transform
from slam_jax.data.options import Data
from slam_jax.data.rejects import Rejected
from slam_jax.data.sources import open_examples
from slam_jax.families.pipeline import DENOISER
from slam_jax.families.stable_diffusion import StableDiffusion
from slam_jax.formats.diffusers_write import write_stable_diffusion
from slam_jax.formats.learn_tokenizer import learn_merges, vocabulary_of, write_tokenizer
from slam_jax.models import functional
from slam_jax.models.clip import CLIPTextConfig, CLIPTextModel
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig
from slam_jax.models.vae import AutoencoderKL, VAEConfig
from slam_jax.parallel import runtime
from slam_jax.parallel.keys import keys_of
from slam_jax.parallel.processes import as_first, is_main, wait
from slam_jax.parallel.sharding import make_mesh
from slam_jax.recipes.autoencoder import BATCH, psnr, reconstruction_loss, scaling_factor
from slam_jax.recipes.plain import PlainTraining
from slam_jax.recipes.prepare import Preparation, prepare
from slam_jax.recipes.teacher import denoising_loss
from slam_jax.training.step import check_batch_size
from slam_jax.training.workdir import claimed

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "timestep_spacing": "trailing",  # the steps of `Schedule.teacher_timesteps`, to alpha = 1
    "set_alpha_to_one": True,
    "steps_offset": 1,  # of no effect here; diffusers warns of any other
}
FACTS_FILE = "facts.json"  # what was measured of a teacher, beside its model_index.json


def pretrain(config: Pretraining, workdir: Path, resume: bool = False) -> dict[str, Any]:
    """Trains it; returns what was measured.

    Args:
      config: the run.
      workdir: its folder.
      resume: whether it may go on with a run that is there.

    Raises:
      InputError: something in the config, the data or the workdir does not fit.
      Interrupted: Ctrl-C; the state is saved.
    """
    runtime.probe()
    with options_of("config"):
        mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    for name, training in (
        ("training", config.training),
        ("autoencoder.training", config.autoencoder.training),
    ):
        with options_of(f"config.{name}"):
            check_batch_size(training, mesh)
    networks = _networks(config)
    examples = open_examples(config.data)
    with claimed(workdir, config, resume):
        if not as_first((workdir / "untrained" / FACTS_FILE).exists()):
            _begin(config, networks, examples, workdir, mesh)
        wait("the autoencoder is trained")
        if not as_first((workdir / "teacher" / FACTS_FILE).exists()):
            _train(config, workdir, mesh)
        wait("the teacher is written")
        return read_json(workdir / "teacher" / FACTS_FILE, "remove the folder")


def _networks(config: Pretraining) -> tuple[VAEConfig, CLIPTextConfig, UNetConfig]:
    """Their configurations, as they are told and as they follow from one another.

    Raises:
      InputError: one of them cannot be built; names the key.
    """
    size, tokens = config.data.resolution, config.tokens

    def parsed(key, parse, module, values):
        try:
            network = parse(json.loads(json.dumps(values)))
            functional.abstract_params(module, network)
        # Whatever numbers that make no sense lead to.
        except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
            raise InputError(f"config.{key}: {' '.join(str(error).split())[:300]}") from error
        return network

    vae = {"sample_size": size, **config.autoencoder.network}
    vae = parsed("autoencoder.network", VAEConfig.from_dict, AutoencoderKL, vae)
    if size % vae.downscale:
        raise InputError(
            f"config.data.resolution = {size}, expected a multiple of {vae.downscale}, the pixels "
            "for which the autoencoder has one latent"
        )
    text = {
        "vocab_size": tokens.vocabulary,
        "max_position_embeddings": tokens.length,
        "eos_token_id": tokens.vocabulary - 1,
        **config.text_encoder,
    }
    text = parsed("text_encoder", CLIPTextConfig.from_dict, CLIPTextModel, text)
    if text.max_position_embeddings < tokens.length:
        raise InputError(
            f"config.text_encoder.max_position_embeddings = {text.max_position_embeddings}, "
            f"expected config.tokens.length = {tokens.length} or more"
        )
    unet = {
        "sample_size": size // vae.downscale,
        "in_channels": vae.latent_channels,
        "out_channels": vae.latent_channels,
        "cross_attention_dim": text.hidden_size,
        **config.unet,
    }
    return vae, text, parsed("unet", UNetConfig.from_dict, UNet2DConditionModel, unet)


def _begin(
    config: Pretraining,
    networks: tuple[VAEConfig, CLIPTextConfig, UNetConfig],
    examples: Examples,
    workdir: Path,
    mesh: Mesh,
) -> None:
    """Learns the vocabulary, trains the autoencoder, and writes both with the untrained rest."""
    vae, text, unet = networks
    data, autoencoder = config.data, config.autoencoder
    transform = Transform(data.resolution, data.crop, data.flip)
    source = ImageText(examples, transform, lambda texts: np.zeros((len(texts), 1, 1), np.int32))
    training = PlainTraining(
        reconstruction_loss(vae, autoencoder.kl_weight),
        source,
        autoencoder.training,
        config.seed,
        data.workers,
        workdir / "autoencoder",
        "autoencoder",
        json.loads(to_json(config)),
    )
    init = keys_of(config.seed).init
    params = training.train(functional.init(AutoencoderKL, vae, init), {}, mesh)
    if not is_main():
        return
    vae = replace(vae, scaling_factor=scaling_factor(vae, params, source))
    captions = list(_captions(examples))
    facts = {
        "psnr": psnr(vae, params, source),
        "pictures": len(examples),
        "captions": max(map(len, captions)),
    }
    merges = learn_merges(chain(*captions), config.tokens.merges)
    used = len(vocabulary_of(merges))  # fewer than were asked for where there are few words
    text = replace(text, vocab_size=used, eos_token_id=used - 1)
    parts = {
        "vae": (vae, params),
        "text_encoder": (text, functional.init(CLIPTextModel, text, init)),
        "unet": (unet, functional.init(UNet2DConditionModel, unet, init)),
    }
    with whole_folder(workdir / "untrained", lambda names: FACTS_FILE in names, "run") as folder:
        scheduler = {**SCHEDULER, "prediction_type": config.prediction_type}
        write_stable_diffusion(folder, parts, scheduler)
        write_tokenizer(folder / "tokenizer", merges, config.tokens.length)
        write_json(folder / FACTS_FILE, facts)


def _captions(examples: Examples) -> Iterator[tuple[str, ...]]:
    """The captions of every usable example."""
    for index in tqdm(range(len(examples)), desc="captions", unit="", delay=2):
        try:
            yield examples[index].captions
        except Rejected:
            continue


def _train(config: Pretraining, workdir: Path, mesh: Mesh) -> None:
    """Trains UNet and text encoder on prepared latents, and writes the teacher."""
    untrained, latents, out = (workdir / name for name in ("untrained", "latents", "teacher"))
    facts, data = read_json(untrained / FACTS_FILE, "remove the workdir"), config.data
    family = StableDiffusion.open(Teacher(path=str(untrained)), workdir, data.resolution)
    pipeline, weights = family.pipeline, family.weights(Precision())
    if is_main():
        how = Preparation(data, captions=facts["captions"], seed=config.seed, batch=BATCH)
        prepare(how, family.folder, pipeline, latents)
    wait("the latents are prepared")
    kept = ("resolution", "flip", "captions", "empty_prompts", "workers")
    of_latents = Data(source=str(latents), **{name: getattr(data, name) for name in kept})
    training = PlainTraining(
        denoising_loss(pipeline, config.dropout),
        family.source(of_latents),
        config.training,
        config.seed,
        data.workers,
        workdir,
        "teacher",
        json.loads(to_json(config)),
    )
    trained = {name: weights[name] for name in (DENOISER, "text_encoder")}
    ema = training.train(trained, {}, mesh)
    if is_main():
        parts = {
            "vae": (pipeline.vae, weights["vae"]),
            "text_encoder": (pipeline.text_encoders[0], ema["text_encoder"]),
            "unet": (pipeline.network, ema[DENOISER]),
        }
        with whole_folder(out, lambda names: FACTS_FILE in names, "teacher") as folder:
            write_stable_diffusion(folder, parts, pipeline.scheduler, config.dtype)
            shutil.copytree(untrained / "tokenizer", folder / "tokenizer")
            write_json(folder / FACTS_FILE, facts)
