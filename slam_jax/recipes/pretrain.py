"""A Stable Diffusion trained from nothing: vocabulary, autoencoder, denoiser and text encoders.

    WORKDIR/autoencoder/  checkpoints and metrics of the autoencoder's training
    WORKDIR/untrained/    a whole diffusers folder with it, before the others are trained
    WORKDIR/latents/      the pictures, encoded once by it
    WORKDIR/              checkpoints and metrics of denoiser and text encoders
    WORKDIR/teacher/      the result, a diffusers folder

Each is made once; killed, the same command goes on where it was.
"""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from slam_jax.base.errors import options_of
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
from slam_jax.families.pipeline import DENOISER, with_constants, without_constants
from slam_jax.families.registry import UNTRAINED
from slam_jax.families.untrained import Untrained
from slam_jax.formats.diffusers_write import write_model
from slam_jax.formats.learn_tokenizer import learn_merges, vocabulary_of, write_tokenizer
from slam_jax.formats.model_index import tokenizer_of
from slam_jax.models import functional
from slam_jax.models.vae import AutoencoderKL
from slam_jax.parallel import runtime
from slam_jax.parallel.keys import keys_of
from slam_jax.parallel.processes import as_first, is_main, wait
from slam_jax.parallel.sharding import make_mesh, shard
from slam_jax.recipes.autoencoder import BATCH, mean_and_deviation, psnr, reconstruction_loss
from slam_jax.recipes.plain import PlainTraining
from slam_jax.recipes.prepare import Preparation, prepare
from slam_jax.recipes.teacher import denoising_loss
from slam_jax.training.step import check_batch_size
from slam_jax.training.workdir import claimed

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
    untrained = UNTRAINED[config.family].of(config)
    examples = open_examples(config.data)
    with claimed(workdir, config, resume):
        if not as_first((workdir / "untrained" / FACTS_FILE).exists()):
            _begin(config, untrained, examples, workdir, mesh)
        wait("the autoencoder is trained")
        if not as_first((workdir / "teacher" / FACTS_FILE).exists()):
            _train(config, workdir, mesh)
        wait("the teacher is written")
        return read_json(workdir / "teacher" / FACTS_FILE, "remove the folder")


def _begin(
    config: Pretraining,
    untrained: Untrained,
    examples: Examples,
    workdir: Path,
    mesh: Mesh,
) -> None:
    """Learns the vocabulary, trains the autoencoder, and writes both with the untrained rest."""
    vae, data, autoencoder = untrained.vae, config.data, config.autoencoder
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
    vae = vae.fitted(*mean_and_deviation(vae, params, source))
    captions = list(_captions(examples))
    facts = {
        "psnr": psnr(vae, params, source),
        "pictures": len(examples),
        "captions": max(map(len, captions)),
    }
    merges = learn_merges(chain(*captions), config.tokens.merges)
    used = len(vocabulary_of(merges))  # fewer than were asked for where there are few words
    parts = {"vae": (vae, params), **untrained.with_vocabulary(used).fresh(init)}
    with whole_folder(workdir / "untrained", lambda names: FACTS_FILE in names, "run") as folder:
        write_model(folder, untrained.pipeline_class, parts, untrained.scheduler(config))
        for name in untrained.text_encoders:
            write_tokenizer(folder / tokenizer_of(name), merges, config.tokens.length)
        write_json(folder / FACTS_FILE, facts)


def _captions(examples: Examples) -> Iterator[tuple[str, ...]]:
    """The captions of every usable example."""
    for index in tqdm(range(len(examples)), desc="captions", unit="", delay=2):
        try:
            yield examples[index].captions
        except Rejected:
            continue


def _train(config: Pretraining, workdir: Path, mesh: Mesh) -> None:
    """Trains denoiser and text encoders on prepared latents, and writes the teacher."""
    untrained, latents, out = (workdir / name for name in ("untrained", "latents", "teacher"))
    facts, data = read_json(untrained / FACTS_FILE, "remove the workdir"), config.data
    kind, here = UNTRAINED[config.family].model, Teacher(path=str(untrained))
    family = kind.open(here, workdir, data.resolution)
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
    vae, denoiser = weights.pop("vae"), weights[DENOISER]
    weights[DENOISER] = without_constants(pipeline, denoiser)
    constants = with_constants(pipeline, {}, denoiser)
    ema = training.train(weights, shard({DENOISER: constants}, mesh), mesh)
    ema[DENOISER] = with_constants(pipeline, ema[DENOISER], denoiser)
    if is_main():
        with whole_folder(out, lambda names: FACTS_FILE in names, "teacher") as folder:
            family.write({**ema, "vae": vae}, folder, config.dtype)
            write_json(folder / FACTS_FILE, facts)
