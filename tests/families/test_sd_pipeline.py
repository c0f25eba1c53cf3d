"""What surrounds Stable Diffusion's UNet, against the stock pipelines of diffusers; and folders
whose parts do not fit each other."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tiny_students
from helpers import assert_close, jit

from slam_jax.base.errors import InputError
from slam_jax.drawing.samplers import student_sampler
from slam_jax.families.family import LoadOptions
from slam_jax.families.stable_diffusion_folder import read_pipeline, read_surroundings
from slam_jax.formats.diffusers_folder import resolve
from slam_jax.method.method import gaussian
from slam_jax.method.slam import Slam
from slam_jax.parallel.keys import keys_of
from slam_jax.recipes.student import load

PROMPTS = ["a small dog", "", "two cats " * 60]


def ours(path):
    folder = resolve(str(path))
    pipeline = read_pipeline(folder)
    return pipeline, read_surroundings(folder, pipeline, "float32", "float32")


@pytest.fixture(scope="module")
def stock(teachers):
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    return {
        "sd15": StableDiffusionPipeline.from_pretrained(teachers["sd15"]),
        "sdxl": StableDiffusionXLPipeline.from_pretrained(teachers["sdxl"]),
    }


def test_contexts_of_sd15_are_those_of_the_stock_pipeline(teachers, stock):
    pipeline, frozen = ours(teachers["sd15"])
    batch = pipeline.prompts(PROMPTS)
    context, null = jit(lambda f: pipeline.contexts(f, batch, w=8.0))(frozen)
    cond, uncond = stock["sd15"].encode_prompt(PROMPTS, "cpu", 1, True)
    assert context.keys() == null.keys() == {"encoder_hidden_states"}
    assert_close(context["encoder_hidden_states"], cond.detach().numpy(), 1e-5)
    assert_close(null["encoder_hidden_states"], uncond.detach().numpy(), 1e-5)
    assert jit(lambda f: pipeline.contexts(f, batch, w=0))(frozen)[1] is None


@pytest.mark.parametrize("zeros", [True, False])
def test_contexts_of_sdxl_are_those_of_the_stock_pipeline(teachers, stock, tmp_path, zeros):
    folder = shutil.copytree(teachers["sdxl"], tmp_path / "sdxl")
    index = json.loads((folder / "model_index.json").read_text())
    index["force_zeros_for_empty_prompt"] = zeros
    (folder / "model_index.json").write_text(json.dumps(index))
    stock["sdxl"].register_to_config(force_zeros_for_empty_prompt=zeros)
    pipeline, frozen = ours(folder)
    batch = pipeline.prompts(PROMPTS)
    batch["time_ids"] = np.arange(18, dtype=np.float32).reshape(3, 6)
    context, null = jit(lambda f: pipeline.contexts(f, batch, w=7.0))(frozen)
    cond, uncond, pooled, uncond_pooled = (
        tensor.detach().numpy() for tensor in stock["sdxl"].encode_prompt(PROMPTS, device="cpu")
    )
    assert_close(context["encoder_hidden_states"], cond, 1e-5)
    assert_close(context["added_cond"]["text_embeds"], pooled, 1e-5)
    assert_close(null["encoder_hidden_states"], uncond, 1e-5)
    assert_close(null["added_cond"]["text_embeds"], uncond_pooled, 1e-5)
    for told in (context, null):
        np.testing.assert_array_equal(told["added_cond"]["time_ids"], batch["time_ids"])
    assert bool(np.any(uncond)) != zeros


def test_prompts_of_sdxl_tell_the_size_as_the_stock_pipeline_does(teachers, stock):
    pipeline = read_pipeline(resolve(str(teachers["sdxl"])), height=48, width=80)
    assert pipeline.latent_shape == (6, 10, 4) and pipeline.image_size == (48, 80)
    size, dtype = (48, 80), stock["sdxl"].unet.dtype
    told = stock["sdxl"]._get_add_time_ids(size, (0, 0), size, dtype, 56)
    np.testing.assert_array_equal(pipeline.prompts(["a", "b"])["time_ids"], np.tile(told, (2, 1)))


@pytest.mark.parametrize("latents", [[8, 8], [6, 10]])
def test_a_height_and_a_width_of_the_config_are_those_of_the_stock_pipeline(changeable, latents):
    from diffusers import StableDiffusionPipeline

    change(changeable, "unet/config.json", sample_size=latents)
    stock = StableDiffusionPipeline.from_pretrained(changeable)
    stock.set_progress_bar_config(disable=True)
    drawn = stock("a cat", num_inference_steps=1, output_type="np").images
    pipeline = read_pipeline(resolve(str(changeable)))
    assert pipeline.image_size == drawn.shape[1:3] == tuple(8 * side for side in latents)
    assert read_pipeline(resolve(str(changeable)), width=16).latent_shape == (latents[0], 2, 4)


def test_latents_and_images_are_those_of_the_torch_autoencoder(teachers, stock):
    import torch

    pipeline, frozen = ours(teachers["sdxl"])
    rng, key, examples = np.random.default_rng(0), jax.random.key(5), np.array([7, 2])
    images = rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
    latents = jit(lambda f: pipeline.latents(f, {"images": images}, key, examples))(frozen)
    vae = stock["sdxl"].vae
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        moments = vae.encode(pixels).latent_dist
        eps = torch.from_numpy(np.array(gaussian(key, examples, (8, 8, 4)))).permute(0, 3, 1, 2)
        expected = (moments.mean + moments.std * eps) * vae.config.scaling_factor
        decoded = vae.decode(expected / vae.config.scaling_factor).sample.clamp(-1, 1)
    expected = expected.permute(0, 2, 3, 1).numpy()
    assert_close(latents, expected, 1e-5)
    image = jit(pipeline.decode)(frozen, expected)
    assert_close(image, decoded.permute(0, 2, 3, 1).numpy(), 1e-5)


def change(folder, part, **values):
    path = folder / part
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("family", "part", "values", "message"),
    [
        ("sd15", "unet/config.json", {"cross_attention_dim": 48}, "cross_attention_dim = 48, exp"),
        ("sd15", "unet/config.json", {"in_channels": 9}, "in_channels = 9, expected 4"),
        ("sd15", "unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("sd15", "unet/config.json", {"norm_num_groups": 0}, "unet: its configuration"),
        ("sd15", "unet/config.json", {"block_out_channels": [None, 3]}, "unet: its configuration"),
        ("sd15", "vae/config.json", {"latent_channels": 16}, "expected 16"),
        ("sd15", "vae/config.json", {"shift_factor": 0.1}, "shift_factor"),
        ("sd15", "text_encoder/config.json", {"hidden_act": "relu"}, "hidden_act"),
        ("sd15", "scheduler/scheduler_config.json", {"beta_schedule": "x"}, "beta_schedule"),
        ("sd15", "scheduler/scheduler_config.json", {"beta_schedule": None}, "DDPM noise schedule"),
        ("sd15", "tokenizer/tokenizer_config.json", {"model_max_length": 99}, "max_position_emb"),
        ("sd15", "text_encoder/config.json", {"vocab_size": 300}, "vocab_size = 300"),
        ("sd15", "model_index.json", {"unet": ["diffusers", "UNet3D"]}, "unet is UNet3D"),
        ("sd15", "model_index.json", {"_class_name": "FluxPipeline"}, "FluxPipeline"),
        (
            "sdxl",
            "unet/config.json",
            {"projection_class_embeddings_input_dim": 7},
            "projection_class_embeddings_input_dim = 7, expected 104",
        ),
        ("sdxl", "model_index.json", {"text_encoder_2": [None, None]}, "text_encoder_2"),
    ],
)
def test_parts_that_do_not_fit_are_named_in_one_line(
    teachers, tmp_path, family, part, values, message
):
    folder = shutil.copytree(teachers[family], tmp_path / family)
    change(folder, part, **values)
    with pytest.raises(InputError, match=message) as caught:
        load(str(folder))
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_truncated_file_is_named_before_a_run_begins(teachers, tmp_path):
    folder = shutil.copytree(teachers["sd15"], tmp_path / "sd15")
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="vae/diffusion_pytorch_model.safetensors: truncated"):
        load(str(folder))


def test_students_are_told_from_teachers(teachers, tmp_path):
    teacher = load(str(teachers["sd15"]))
    assert not teacher.is_student and teacher.info == {}
    folder = shutil.copytree(teachers["sd15"], tmp_path / "student")
    changes = {"_class_name": "LCMScheduler", "original_inference_steps": 25}
    change(folder, "scheduler/scheduler_config.json", **changes)
    assert load(str(folder)).method == Slam(num_ddim_timesteps=25)
    method = Slam(num_ddim_timesteps=20, w=3.0, conditioning="snr")
    record = {"method": dataclasses.asdict(method)}
    (folder / "slam.json").write_text(json.dumps(record))
    student = load(str(folder), LoadOptions(dtype="bfloat16"))
    assert student.is_student and student.method == method and student.info == record
    assert {leaf.dtype.name for leaf in jax.tree.leaves(student.params)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(student.frozen["vae"])} == {"float32"}
    for text, message in (
        ("{", r"slam\.json: damaged"),
        ('{"gamma": 1}', r"slam\.json: method is None; export the model again"),
        ('{"method": {"name": "dmd"}}', r"method\.name = 'dmd', expected one of slam, .*; export"),
        ('{"method": {"w": 8.0, "loss": "huber"}}', "export the model again"),
    ):
        (folder / "slam.json").write_text(text)
        with pytest.raises(InputError, match=message):
            load(str(folder))
    (folder / "slam.json").unlink()
    for steps in ("50", 30, 0):
        change(folder, "scheduler/scheduler_config.json", original_inference_steps=steps)
        with pytest.raises(InputError, match="original_inference_steps = "):
            load(str(folder))


def test_image_to_image_is_lcm_from_the_noised_image(teachers, tmp_path, monkeypatch):
    """Against the UNet, VAE and LCMScheduler of torch, from the same noise."""
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.schedulers import scheduling_lcm

    student, family = tiny_students.make(teachers["sd15"])
    family.export(student, tmp_path / "student")
    model, seed, steps, strength = load(str(tmp_path / "student")), 4, 3, 0.5
    image = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), np.uint8)
    batch = {**model.pipeline.prompts(["a small dog"]), "images": image}
    draw = student_sampler(model.pipeline, model.pipeline.network, model.method)
    ours = draw(model.frozen, model.params, batch, (seed, 0), steps=steps, strength=strength)

    keys, shape = keys_of(seed), model.pipeline.latent_shape

    def noise(key):
        drawn = np.array(gaussian(key, np.array([0]), shape))
        return torch.from_numpy(drawn).permute(0, 3, 1, 2)

    between = iter([noise(key) for key in jax.random.split(keys.steps, steps)])
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: next(between))
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "student")
    scheduler, scale = stock.scheduler, stock.vae.config.scaling_factor
    scheduler.set_timesteps(steps, strength=strength)
    with torch.no_grad():
        moments = stock.vae.encode(torch.from_numpy(image).permute(0, 3, 1, 2) / 127.5 - 1)
        x0 = moments.latent_dist.mean + moments.latent_dist.std * noise(keys.encode)
        x = scheduler.add_noise(x0 * scale, noise(keys.noise), scheduler.timesteps[:1])
        context, _ = stock.encode_prompt(["a small dog"], "cpu", 1, False)
        gamma = stock.get_guidance_scale_embedding(torch.zeros(1), embedding_dim=256)
        for t in scheduler.timesteps:
            output = stock.unet(x, t, context, timestep_cond=gamma).sample
            x, d = scheduler.step(output, t, x, return_dict=False)
        expected = stock.vae.decode(d / scale).sample.clamp(-1, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(np.asarray(ours) - expected).max() * 127.5 <= 0.05
