"""Training on prepared latents, against torch's encoders and against encoding in every step."""

import dataclasses

import diffusers
import jax
import numpy as np
import prepared_files
import pytest
import torch
from helpers import assert_close, jit

from slam_jax.commands import prepare
from slam_jax.data import prepared
from slam_jax.data.image_text import ImageText, Transform
from slam_jax.families.pipeline import DENOISER, student_params
from slam_jax.families.stable_diffusion_folder import (
    read_pipeline,
    read_surroundings,
    read_unet,
)
from slam_jax.families.stable_diffusion_pipeline import StableDiffusionPipeline
from slam_jax.formats.diffusers_folder import fingerprints, resolve
from slam_jax.method.method import gaussian
from slam_jax.method.slam import Slam
from slam_jax.recipes import prepare as recipe
from slam_jax.recipes.distil import distillation_loss

SIZE, CAPTIONS = 64, 3
DRAWN = dict(flip=True, captions="random", empty_prompts=0.3)


class Prepared:
    """A teacher with what the command made of the pictures."""

    def __init__(self, teacher, out, *options):
        self.folder = out
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recipe, "open_examples", lambda data: prepared_files.Pictures())
            common = ["--source", "photographs", "--model", teacher, "--out", out]
            common += ["--resolution", SIZE, "--flip", "--captions", CAPTIONS, "--batch", 8]
            prepare.main([str(option) for option in [*common, *options]])
        model = resolve(str(teacher))
        self.pipeline = read_pipeline(model)
        self.frozen = read_surroundings(model, self.pipeline, "float32", "float32")
        self.unet = read_unet(model, self.pipeline, "float32")
        self.info = prepared.read_info(out)

    def rows(self):
        """All that is stored, in the source's order, by fields."""
        source, count = prepared.Prepared(self.folder), self.info["counts"]["examples"]
        rows = np.stack([source._row(index) for index in range(count)])
        return {name: rows[name] for name in rows.dtype.names}


@pytest.fixture(scope="module")
def sdxl(teachers, tmp_path_factory):
    out = tmp_path_factory.mktemp("sdxl") / "latents"
    return Prepared(teachers["sdxl"], out, "--text-embeddings")


@pytest.fixture(scope="module")
def sd15(teachers, tmp_path_factory):
    return Prepared(teachers["sd15"], tmp_path_factory.mktemp("sd15") / "latents")


def test_it_knows_the_parts_that_made_it(sdxl, sd15, teachers):
    parts = {"sd15": {"vae", "tokenizer"}}
    parts["sdxl"] = {"text_encoder", "text_encoder_2", "tokenizer_2"} | parts["sd15"]
    for family, made in (("sd15", sd15), ("sdxl", sdxl)):
        prints = fingerprints(resolve(str(teachers[family])))
        stored = made.info["model"]["fingerprints"]
        assert stored == {part: prints[part] for part in parts[family]}
        assert made.info["model"]["path"] == str(teachers[family])


def test_moments_are_those_of_the_torch_autoencoder(sdxl, teachers):
    vae = diffusers.AutoencoderKL.from_pretrained(teachers["sdxl"], subfolder="vae")
    pictures, transform, stored = prepared_files.Pictures(), Transform(SIZE), sdxl.rows()
    assert stored["moments"].dtype == np.float16
    for index in range(len(pictures)):
        crop = transform.cut(pictures[index])  # the one in the middle
        for view, image in enumerate((crop.image, crop.image[:, ::-1])):
            pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 127.5 - 1
            with torch.no_grad():
                posterior = vae.encode(pixels).latent_dist
            expected = torch.cat([posterior.mean, posterior.logvar], dim=1).permute(0, 2, 3, 1)
            assert_close(stored["moments"][index, view][None], expected.numpy(), 6e-4)
        twins = np.stack([crop.time_ids, transform.mirror(crop).time_ids])
        np.testing.assert_array_equal(stored["time_ids"][index], twins)


def test_tokens_are_those_of_the_captions_repeated(sdxl):
    pictures, stored = prepared_files.Pictures(), sdxl.rows()
    for index in range(len(pictures)):
        captions = pictures[index].captions
        assert stored["caption_count"][index] == len(captions) == 1 + index % 3
        repeated = (captions * CAPTIONS)[:CAPTIONS]
        np.testing.assert_array_equal(
            stored["tokens"][index], sdxl.pipeline.tokenize(repeated), strict=True
        )


def test_embeddings_are_those_of_the_stock_pipeline(sdxl, teachers):
    stock = diffusers.StableDiffusionXLPipeline.from_pretrained(teachers["sdxl"])
    pictures, stored = prepared_files.Pictures(), sdxl.rows()
    for index in (2, 3):
        texts = list((pictures[index].captions * CAPTIONS)[:CAPTIONS])
        hidden, _, pooled, _ = stock.encode_prompt(texts, device="cpu")
        assert_close(stored["encoder_hidden_states"][index], hidden.detach().numpy(), 6e-4)
        assert_close(stored["text_embeds"][index], pooled.detach().numpy(), 6e-4)
    # Of the empty prompt what the encoders give, for SDXL too: the zeros are guidance's.
    hidden, _, pooled, _ = stock.encode_prompt([""], device="cpu")
    batch, _ = prepared.Prepared(sdxl.folder, empty_prompts=1).read(np.arange(1), np.arange(1))
    assert_close(batch["encoder_hidden_states"], hidden.detach().numpy(), 6e-4)
    assert_close(batch["text_embeds"], pooled.detach().numpy(), 6e-4)
    np.testing.assert_array_equal(batch["tokens"], sdxl.pipeline.tokenize([""]))


def test_contexts_are_the_stored_ones_and_the_null_context_is_encoded(sdxl):
    source = prepared.Prepared(sdxl.folder, **DRAWN)
    batch, _ = source.read(np.arange(3), np.arange(3))
    batch["encoder_hidden_states"] += 1  # so that they are not what the tokens give
    batch["text_embeds"] += 1
    encoded = {name: batch[name] for name in ("tokens", "time_ids")}

    def contexts(frozen):
        return [sdxl.pipeline.contexts(frozen, inputs, 7.0) for inputs in (batch, encoded)]

    (context, null), (direct, direct_null) = jit(contexts)(sdxl.frozen)
    assert jax.tree.structure(context) == jax.tree.structure(direct)
    for name, array in {**context.pop("added_cond"), **context}.items():
        np.testing.assert_array_equal(array, batch[name].astype(np.float32), strict=True)
    jax.tree.map(np.testing.assert_array_equal, null, direct_null)
    assert sdxl.pipeline.contexts({}, batch, 0)[1] is None  # and no text encoder is asked


def inputs_of(made):
    """What the loss is given for the same examples, seeds and key: of the stored, of pictures."""
    pipeline, indices, seeds = made.pipeline, np.array([7, 2, 4, 9]), np.array([5, 1, 3, 8])
    transform = Transform(SIZE, "center", **DRAWN)
    pictures = ImageText(prepared_files.Pictures(), transform, pipeline.tokenize)
    stored = prepared.Prepared(made.folder, **DRAWN)
    batches = [source.read(indices, seeds)[0] for source in (stored, pictures)]
    for name in ("tokens", "time_ids"):
        np.testing.assert_array_equal(batches[0][name], batches[1][name], strict=True)
    key, examples = jax.random.key(3), np.arange(4)

    def inputs(frozen, batch):
        return pipeline.latents(frozen, batch, key, examples), pipeline.contexts(frozen, batch, 7.0)

    return [jit(inputs)(made.frozen, batch) for batch in batches]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_latents_and_contexts_are_those_of_encoding_in_every_step(request, family):
    """Equal but for the rounding of what is stored."""
    (latents, contexts), (direct, direct_contexts) = inputs_of(request.getfixturevalue(family))
    assert_close(latents, direct, 2e-3)
    jax.tree.map(
        lambda actual, expected: assert_close(actual, expected, 2e-3), *(contexts, direct_contexts)
    )
    assert np.any(latents != direct)  # as float16 is what was stored


@dataclasses.dataclass(frozen=True)
class Given:
    """The pipeline, but latents and contexts are the batch: the loss is compiled once for both."""

    pipeline: StableDiffusionPipeline

    def __getattr__(self, name):
        return getattr(self.pipeline, name)

    def latents(self, frozen, batch, key, examples):
        return batch[0]

    def contexts(self, frozen, batch, w):
        return batch[1]


@pytest.mark.slow  # compiles the loss
def test_losses_are_those_of_encoding_in_every_step(sdxl):
    method = Slam(w=7.0)
    student = student_params(sdxl.pipeline, method, sdxl.unet)
    loss = jit(distillation_loss(Given(sdxl.pipeline), method))
    losses = [
        loss(student, student, {DENOISER: sdxl.unet}, inputs, np.arange(4), jax.random.key(key))[0]
        for inputs in inputs_of(sdxl)
        for key in (3, 4)
    ]
    np.testing.assert_allclose(losses[:2], losses[2:], rtol=2e-3)
    assert np.all(np.abs(losses[0] / losses[1] - 1) > 1e-2)  # another key is another loss


def test_moments_of_a_batch_are_the_latents_distribution(sd15):
    """Closed form: mean + std * noise, of the noise that pictures get with the same key."""
    rng = np.random.default_rng(0)
    moments = rng.standard_normal((2, 8, 8, 8)).astype(np.float16)
    key, examples = jax.random.key(1), np.array([4, 7])
    latents = sd15.pipeline.latents({}, {"moments": moments}, key, examples)
    mean, logvar = moments[..., :4].astype(float), moments[..., 4:].astype(float)
    noise = np.asarray(gaussian(key, examples, (8, 8, 4)), np.float64)
    assert_close(latents, (mean + np.exp(logvar / 2) * noise) * 0.18215, 1e-6)
    assert latents.dtype == np.float32
