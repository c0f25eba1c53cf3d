"""Stable Diffusion 3 and 3.5 against the stock pipeline of diffusers, with and without T5; and
folders that are refused."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from diffusers import SD3Transformer2DModel
from helpers import assert_close, jit, refusal
from stock_pipeline import drawn_by_both, load_stock

from slam_jax.base.errors import InputError
from slam_jax.config.options import Precision, Teacher
from slam_jax.families.pipeline import DENOISER
from slam_jax.families.sd3 import StableDiffusion3
from slam_jax.families.stable_diffusion import StableDiffusion
from slam_jax.formats import diffusers_folder, safetensors
from slam_jax.formats.diffusers_folder import resolve
from slam_jax.method.method import gaussian
from slam_jax.recipes.student import load

FAMILIES = ("sd3", "sd35")  # without T5, and with it
PROMPTS = ["a small dog", "two cats " * 60]


@pytest.fixture(scope="module")
def models(teachers):
    return {name: load(str(teachers[name])) for name in FAMILIES}


def numpy_of(tensor):
    return tensor.detach().numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_contexts_are_those_of_the_stock_pipeline(teachers, models, family):
    pipeline, frozen = models[family].pipeline, models[family].frozen
    batch = pipeline.prompts(PROMPTS)
    assert batch["tokens"].shape == (2, 77 + 77 + 256 * pipeline.has_t5)
    context, null = jit(lambda f: pipeline.contexts(f, batch, w=3.0))(frozen)
    told = load_stock(teachers[family]).encode_prompt(PROMPTS, None, None, device="cpu")
    names = ("encoder_hidden_states", "pooled_projections")
    ours = [(context, null)[i % 2][names[i // 2]] for i in range(4)]
    for actual, expected in zip(ours, told, strict=True):
        assert_close(actual, numpy_of(expected), 3e-5)
    states = np.asarray(context["encoder_hidden_states"])
    assert states.shape == (2, 77 + 256, 96)
    assert np.any(states[:, :77, :80]) and not np.any(states[:, :77, 80:])
    assert np.any(states[:, 77:]) == pipeline.has_t5
    assert jax.eval_shape(lambda f: pipeline.contexts(f, batch, w=0), frozen)[1] is None


@pytest.mark.parametrize(
    "family", [pytest.param("sd3", marks=pytest.mark.slow), pytest.param("sd35")]
)
def test_the_teacher_draws_what_the_stock_pipeline_does(teachers, family):
    ours, theirs = drawn_by_both(teachers[family], PROMPTS, 3, scale=4.0)
    assert ours.shape == theirs.shape == (2, 64, 64, 3)
    assert np.all(theirs.std(axis=(1, 2, 3)) > 0.05) and np.abs(theirs[0] - theirs[1]).max() > 0.2
    assert np.abs(ours - theirs).max() * 255 <= 0.02  # promised are 2


def test_latents_and_images_are_those_of_the_torch_autoencoder(teachers, models):
    pipeline, frozen = models["sd35"].pipeline, models["sd35"].frozen
    vae, rng = load_stock(teachers["sd35"]).vae, np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
    key, examples = jax.random.key(5), np.array([7, 2])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor
    with torch.no_grad():
        moments = vae.encode(pixels).latent_dist
        eps = torch.from_numpy(np.array(gaussian(key, examples, (8, 8, 16)))).permute(0, 3, 1, 2)
        expected = (moments.mean + moments.std * eps - shift) * scale
        decoded = vae.decode(expected / scale + shift).sample.clamp(-1, 1)
    expected = expected.permute(0, 2, 3, 1).numpy()

    def both(frozen):
        latents = pipeline.latents(frozen, {"images": images}, key, examples)
        again = pipeline.latents(frozen, {"moments": pipeline.moments_of(expected)}, key, examples)
        return latents, again, pipeline.decode(frozen, expected)

    latents, again, image = jit(both)(frozen)
    assert_close(latents, expected, 1e-5)
    assert_close(again, expected, 1e-5)
    assert_close(image, decoded.permute(0, 2, 3, 1).numpy(), 1e-5)


def test_token_ids_of_t5_are_those_of_transformers(teachers, models):
    pipeline = models["sd35"].pipeline
    reference = transformers.T5TokenizerFast.from_pretrained(teachers["sd35"] / "tokenizer_3")
    texts = ["", "a small dog", "Ein Mädchen, 日本", "two cats " * 60]
    expected = reference(texts, padding="max_length", max_length=256, truncation=True)["input_ids"]
    np.testing.assert_array_equal(pipeline.prompts(texts)["tokens"][:, 154:], expected)


def test_what_is_cut_is_what_nobody_sees(models):
    text = "a " * 100
    assert models["sd3"].pipeline.cut(text).strip() == ("a " * 25).strip()
    assert models["sd35"].pipeline.cut(text) == ""
    assert models["sd35"].pipeline.cut("a " * 300).strip() == ("a " * 45).strip()


def test_a_folder_is_of_its_family(teachers, models, capsys):
    assert StableDiffusion3.reads(teachers["sd3"]) and not StableDiffusion3.reads(teachers["sd15"])
    assert not models["sd3"].is_student and "CLIP alone" in models["sd3"].note
    assert models["sd35"].note == ""
    path = teachers["sd15"]
    message = refusal(StableDiffusion3.open, Teacher(path=str(path)), path)
    assert "'StableDiffusionPipeline', those of config.teacher.family = 'sd3' are" in message
    message = refusal(StableDiffusion.open, Teacher(path=str(teachers["sd3"])), path)
    assert "those of config.teacher.family = 'stable_diffusion' are StableDiff" in message
    opened = StableDiffusion3.open(Teacher(path=str(teachers["sd3"])), path, 48)
    assert opened.pipeline.latent_shape == (6, 6, 16) and opened.pipeline.network.sample_size == 6
    assert "no T5 (text_encoder_3): prompts" in capsys.readouterr().err
    parts = {"transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"}
    assert opened.identity()["fingerprints"].keys() == parts | {"scheduler", "empty prompt"}


def test_there_is_no_input_for_gamma(models):
    pipeline = models["sd3"].pipeline
    for ask in (pipeline.gamma_network, lambda: pipeline.gamma_params({})):
        assert "no input for gamma" in refusal(ask)


@pytest.mark.parametrize(("size", "part"), [(40, "multiple of 16"), (112, "at most 96"), (0, "of")])
def test_sizes_that_there_are_not(teachers, size, part):
    message = refusal(StableDiffusion3.open, Teacher(path=str(teachers["sd3"])), "", size)
    assert f"height = {size}: expected" in message and part in message


def test_shards_of_a_variant(teachers, tmp_path):
    """As diffusers writes them in half precision."""
    folder = shutil.copytree(teachers["sd35"], tmp_path / "sd35")
    (folder / "transformer/diffusion_pytorch_model.safetensors").unlink()
    stock = SD3Transformer2DModel.from_pretrained(teachers["sd35"] / "transformer")
    whole = {name: array.numpy() for name, array in stock.half().state_dict().items()}
    stock.save_pretrained(folder / "transformer", variant="fp16", max_shard_size="30KB")
    assert len(list((folder / "transformer").glob("*.fp16-*.safetensors"))) > 1
    for name in ("vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        (file,) = (folder / name).glob("*.safetensors")
        file.rename(file.with_suffix(".fp16.safetensors"))
    family = StableDiffusion3.open(Teacher(path=str(folder), variant="fp16"), folder)
    params = family.weights(Precision())[DENOISER]
    kernel = params["transformer_blocks"]["1"]["attn"]["to_q"]["kernel"]
    np.testing.assert_array_equal(kernel.T, whole["transformer_blocks.1.attn.to_q.weight"])
    assert kernel.dtype == np.float32


def change(folder, part, **values):
    path = folder / part
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


T, S = "transformer/config.json", "scheduler/scheduler_config.json"
REFUSED = {
    "other channels": (T, {"in_channels": 4}, "in_channels = 4, expected 16"),
    "pooled": (T, {"pooled_projection_dim": 80}, "pooled_projection_dim = 80, expected 88"),
    "T5's width": (T, {"joint_attention_dim": 80}, "joint_attention_dim = 80, expected 96"),
    "told guidance": (T, {"guidance_embeds": True}, "guidance_embeds = True: it was distilled to"),
    "3.5 large": (
        T,
        {
            "num_layers": 38,
            "num_attention_heads": 38,
            "attention_head_dim": 64,
            "caption_projection_dim": 2432,
        },
        "num_layers = 38, of 38 heads: Stable Diffusion 3.5 large, of 8.1",
    ),
    "blocks": (T, {"dual_attention_layers": [7]}, "dual_attention_layers"),
    "DDPM": (S, {"_class_name": "PNDMScheduler"}, "PNDMScheduler: one of flow matching is exp"),
    "dynamic shift": (S, {"use_dynamic_shifting": True}, "use_dynamic_shifting: True"),
    "terminal shift": (S, {"shift_terminal": 0.1}, "shift_terminal: 0.1"),
    "few steps": (S, {"_class_name": "FlowMatchLCMScheduler"}, "there is no slam.json"),
    "another T5": ("text_encoder_3/config.json", {"model_type": "umt5"}, "model_type"),
    "its words": ("text_encoder_3/config.json", {"vocab_size": 9}, "vocab_size = 9, but its tok"),
    "half of T5": ("model_index.json", {"tokenizer_3": [None, None]}, "tokenizer_3 is None"),
    "FLUX": ("model_index.json", {"_class_name": "FluxPipeline"}, "FLUX.1-dev is told its guid"),
    "FLUX's transformer": (
        "model_index.json",
        {"transformer": ["diffusers", "FluxTransformer2DModel"]},
        "transformer is FluxTransformer2DModel (its transformer is of another kind, and FLUX.1-dev "
        "is told its guidance, which a teacher here has to be drawn with and without), supported: "
        "SD3Transformer2DModel",
    ),
    "DDIM": (S, {"_class_name": "DDIMScheduler"}, "DDIMScheduler: one of flow matching is exp"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_in_one_line(teachers, tmp_path, name):
    part, values, message = REFUSED[name]
    folder = shutil.copytree(teachers["sd35"], tmp_path / "sd35")
    change(folder, part, **values)
    said = refusal(load, str(folder))
    assert message in said and str(folder) in said


@pytest.mark.parametrize(
    "missing",
    [
        "text_encoder_3/config.json",
        "text_encoder_3/model.safetensors",
        "text_encoder_3",
        "tokenizer_3/tokenizer.json",
        "tokenizer_3",
    ],
)
def test_files_of_t5_that_are_missing(teachers, tmp_path, missing):
    """It is said what drawing without them means, and how; and so it is."""
    folder = shutil.copytree(teachers["sd35"], tmp_path / "sd35")
    path = folder / missing
    (shutil.rmtree if path.is_dir() else type(path).unlink)(path)
    said = refusal(load, str(folder))
    assert str(path.parent if path.suffix else path) in said
    assert "leave T5 out: with text_encoder_3 and tokenizer_3 set to [null, null]" in said
    assert said.endswith("prompts are read by CLIP alone")
    change(folder, "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    assert "CLIP alone" in load(str(folder)).note


def test_a_unet_with_a_scheduler_of_flow_matching(changeable):
    for more in ({"beta_schedule": None}, {}):  # a whole other config, and another class alone
        change(changeable, S, _class_name="FlowMatchEulerDiscreteScheduler", **more)
        said = refusal(load, str(changeable))
        assert "scheduler: its configuration: FlowMatchEulerDiscreteScheduler" in said
        assert "which no UNet here is" in said
        change(changeable, S, beta_schedule="scaled_linear")


def test_a_broken_tokenizer_of_t5(teachers, tmp_path):
    folder = shutil.copytree(teachers["sd35"], tmp_path / "sd35")
    (folder / "tokenizer_3/tokenizer.json").write_text("{}")
    assert "tokenizer_3: not a T5 tokenizer" in refusal(load, str(folder))


def test_a_student_is_no_teacher(teachers, tmp_path):
    folder = shutil.copytree(teachers["sd3"], tmp_path / "student")
    (folder / "slam.json").write_text('{"method": {"name": "lcm"}}')
    with pytest.raises(InputError, match="a few-step student"):
        StableDiffusion3.open(Teacher(path=str(folder)), folder)
    assert load(str(folder)).method.name == "lcm"


def test_what_is_fetched_of_the_hub(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        diffusers_folder.hub, "fetch", lambda *args: asked.extend(args[2]) or tmp_path
    )
    resolve("owner/sd3", weights=True)
    assert {"transformer/config.json", "text_encoder_3/config.json", "tokenizer_3/*.json"} <= {
        *asked
    }
    assert "transformer/diffusion_pytorch_model.safetensors" in asked
    assert "text_encoder_3/model-?????-of-?????.safetensors" in asked


def test_weights_that_are_not_those_of_the_config(teachers, tmp_path):
    folder = shutil.copytree(teachers["sd3"], tmp_path / "sd3")
    file = folder / "transformer/diffusion_pytorch_model.safetensors"
    arrays = safetensors.load_arrays(file)
    del arrays["pos_embed.pos_embed"]
    safetensors.save_arrays(file, arrays)
    assert "1 keys missing (pos_embed.pos_embed)" in refusal(load, str(folder))
