"""Prepared latents and text embeddings of Stable Diffusion 3: against the stock pipeline, and runs
that hold no text encoder."""

import gc
import json
import shutil

import jax
import numpy as np
import prepared_files
import pytest
import tiny_runs
from helpers import assert_close, jit, refusal
from own_pictures_runs import options
from stock_pipeline import load_stock

from slam_jax.base.errors import InputError
from slam_jax.commands import prepare
from slam_jax.config.command_line import parse
from slam_jax.config.options import Data, Precision, Teacher
from slam_jax.data.prepared import Prepared
from slam_jax.families.latent_pipeline import EMPTY
from slam_jax.families.pipeline import DENOISER
from slam_jax.families.sd3 import StableDiffusion3
from slam_jax.method.slam import Slam
from slam_jax.parallel.sharding import make_mesh
from slam_jax.recipes import own_pictures, run
from slam_jax.recipes import prepare as recipe
from slam_jax.recipes.distil import distillation_loss
from slam_jax.recipes.open_teacher import open_teacher

CAPTIONS, SIZE = 2, 64
METHOD = Slam(sigma="linear", conditioning="snr", w=3.0)
NAMES = ("encoder_hidden_states", "text_embeds")


def prepared(teacher, out, *options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "open_examples", lambda data: prepared_files.Pictures(5))
        common = ["--source", "photographs", "--model", teacher, "--out", out, "--batch", 8]
        common += ["--resolution", SIZE, "--captions", CAPTIONS]
        prepare.main([str(option) for option in [*common, *options]])
    return out


@pytest.fixture(scope="module")
def stored(teachers, tmp_path_factory):
    out = tmp_path_factory.mktemp("sd35") / "latents"
    return prepared(teachers["sd35"], out, "--text-embeddings")


@pytest.fixture(scope="module")
def family(teachers):
    return StableDiffusion3.open(Teacher(path=str(teachers["sd35"])), "")


def test_what_is_stored_is_what_the_stock_pipeline_makes(stored, teachers, family):
    stock, source = load_stock(teachers["sd35"]), Prepared(stored, captions="first")
    batch, _ = source.read(np.arange(5), np.arange(5))
    assert source.has_embeddings and batch["tokens"].shape == (5, 77 + 77 + 256)
    assert {batch[name].dtype for name in ("moments", *NAMES)} == {np.dtype(np.float16)}
    shapes = family.batch_shapes(Data(source=str(stored), resolution=SIZE), 5)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in shapes.items()
    }
    texts = [prepared_files.Pictures()[index].captions[0] for index in range(5)]
    empty, _ = Prepared(stored, empty_prompts=1).read(np.arange(1), np.arange(1))
    for found, prompts in ((batch, texts), (empty, [""])):
        told = load_stock_texts(stock, prompts)
        for name, expected in zip(NAMES, told, strict=True):
            assert_close(found[name], expected, 1e-3)
    assert np.abs(batch[NAMES[0]][0] - batch[NAMES[0]][1]).max() > 0.1


def load_stock_texts(stock, prompts):
    hidden, _, pooled, _ = stock.encode_prompt(prompts, None, None, device="cpu")
    return [array.detach().numpy() for array in (hidden, pooled)]


@pytest.mark.slow  # compiles the loss
def test_losses_are_those_of_texts_that_are_encoded_in_every_step(stored, family):
    """Equal but for the rounding of what is stored; and no text encoder is asked for it."""
    pipeline, weights = family.pipeline, family.weights(Precision())
    batch, _ = Prepared(stored).read(np.arange(4), np.arange(4))
    encoded = {name: array for name, array in batch.items() if name not in NAMES}
    empty = jit(pipeline.embed_empty)(weights)
    few = {name: weights[name] for name in (DENOISER, "vae")} | {EMPTY: empty}
    student = dict(weights[DENOISER])
    del student["pos_embed"]["pos_embed"]
    loss, index, key = distillation_loss(pipeline, METHOD), np.arange(4), jax.random.key(3)
    weights = family.weights(Precision())
    found, expected = (
        np.asarray(jit(loss)(student, student, frozen, inputs, index, key)[0])
        for frozen, inputs in ((few | {DENOISER: weights[DENOISER]}, batch), (weights, encoded))
    )
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    assert np.any(found != expected) and np.all(expected > 0)


def frozen_of_run(teachers, workdir, monkeypatch, source):
    """What is on the devices when training begins, and the prompts' context that is drawn with."""
    seen = []

    def enough(what, *_):
        seen.append((what, [array.shape for array in jax.live_arrays()]))
        raise InputError("enough")

    gc.collect()  # what earlier tests left
    monkeypatch.setattr(run, "distil", enough)
    drawn_by = run.Ladder
    monkeypatch.setattr(run, "Ladder", lambda artists, *more: seen.append(artists) or artists)
    flags = ["--config.method.conditioning=snr", f"--config.data.source={source}"]
    flags += ["--config.method.sigma=linear", "--config.evaluation.prompts=('a small dog',)"]
    flags += ["--config.data.crop=random"]
    with pytest.raises(SystemExit, match="enough"):
        tiny_runs.launch(teachers["sd35"], workdir, *flags, config="sd35")
    monkeypatch.setattr(run, "Ladder", drawn_by)
    return seen


def test_a_run_on_stored_embeddings_holds_no_text_encoder(
    stored, teachers, family, tmp_path, monkeypatch
):
    """Neither when training begins, nor to draw with: their prompts' features are kept."""
    artists, (what, alive) = frozen_of_run(teachers, tmp_path / "run", monkeypatch, stored)
    assert what.frozen.keys() == {DENOISER, "vae", EMPTY}
    of_texts = {
        shape.shape
        for name, shapes in family.pipeline.shapes_around(Precision()).items()
        if name.startswith("text_encoder")
        for shape in jax.tree.leaves(shapes)
        if len(shape.shape) > 1
    }
    others = {array.shape for array in jax.tree.leaves({**what.frozen, "params": what.params})}
    assert len(of_texts - others) > 5
    assert not (of_texts - others) & {*alive}
    batch, stock = artists.prompts(["a small dog"]), load_stock(teachers["sd35"])
    for text, found in (("a small dog", batch), ("", what.frozen[EMPTY])):
        for name, expected in zip(NAMES, load_stock_texts(stock, [text]), strict=True):
            assert_close(found[name], expected, 3e-5)
    context, null = what.pipeline.contexts(what.frozen, batch, w=3.0)
    np.testing.assert_array_equal(context["pooled_projections"], batch["text_embeds"])
    np.testing.assert_array_equal(null["pooled_projections"], what.frozen[EMPTY]["text_embeds"])


def change(folder, part, **values):
    path = folder / part
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def without_t5(teacher, folder):
    folder = shutil.copytree(teacher, folder)
    none = [None, None]
    change(folder, "model_index.json", text_encoder_3=none, tokenizer_3=none)
    return folder


def test_embeddings_of_another_model_are_refused(stored, teachers, tmp_path, capsys):
    said = {}
    small = shutil.copytree(teachers["sd3"], tmp_path / "narrow")
    change(small, "transformer/config.json", joint_attention_dim=88)
    for name, teacher in (
        ("none", without_t5(teachers["sd35"], tmp_path / "none")),
        ("narrow", small),
    ):
        other = StableDiffusion3.open(Teacher(path=str(teacher)), "")
        said[name] = refusal(other.source, Data(source=str(stored), resolution=SIZE, crop="random"))
    assert "made with the text_encoder_3 of" in said["none"]
    assert f"is not the text_encoder_3 of {tmp_path / 'none'}" in said["none"]
    assert f"{stored}: made with the " in said["narrow"]
    less = prepared(tmp_path / "none", tmp_path / "less", "--text-embeddings")
    whole = StableDiffusion3.open(Teacher(path=str(teachers["sd35"])), "")
    message = refusal(whole.source, Data(source=str(less), resolution=SIZE, crop="random"))
    assert f"none, which has no text_encoder_3, as {teachers['sd35']} has; train with" in message


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("40", "--resolution 40: height = 40: expected a positive multiple of 16"),
        ("112", "--resolution 112: height = 112: expected at most 96"),
    ],
)
def test_sizes_that_the_transformer_has_no_places_for(teachers, tmp_path, size, message):
    with pytest.raises(SystemExit) as stop:
        prepared(teachers["sd35"], tmp_path / "out", "--resolution", size)
    assert message in str(stop.value) and not (tmp_path / "out").exists()


@pytest.mark.slow  # compiles the teacher
def test_a_teachers_own_pictures_keep_their_embeddings(teachers, tmp_path):
    path, texts = tmp_path / "prompts.txt", ["two cats on a sofa", "the old city at night"]
    path.write_text("\n".join(texts))
    flags = tiny_runs.flags(teachers["sd35"], tmp_path, *options(path, count=3), config="sd35")
    flags += ["--config.data.teacher_text_embeddings=True", "--config.method.conditioning=snr"]
    config = parse(flags).config
    family = open_teacher(config, tmp_path)
    source = own_pictures.own_pictures(config, tmp_path, family).draw(make_mesh())
    batch, _ = source.read(np.arange(3), np.arange(3))
    shapes = family.batch_shapes(config.data, 3)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in shapes.items()
    }
    empty, _ = Prepared(tmp_path / "teacher_pictures", empty_prompts=1).read(
        np.arange(1), np.arange(1)
    )
    stock = load_stock(teachers["sd35"])
    for found, prompts in ((batch, [*texts, texts[0]]), (empty, [""])):
        for name, expected in zip(NAMES, load_stock_texts(stock, prompts), strict=True):
            assert_close(found[name], expected, 1e-3)
