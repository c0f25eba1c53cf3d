"""slam-jax check of LoRAs of Stable Diffusion 3: files, and what a model predicts with them."""

import numpy as np
import peft
import pytest
import tiny_loras
import torch
from check_run import run
from diffusers import StableDiffusion3Pipeline
from peft.utils import get_peft_model_state_dict

from slam_jax.formats.safetensors import load_arrays, save_arrays
from slam_jax.serving import lora_on_base, stock_networks

RANK, ALPHA = 3, 5.0
# What diffusers' training script for SD 3 changes, and the widths of the published models.
TARGETS = [
    *("attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out"),
    *("attn.to_k", "attn.to_out.0", "attn.to_q", "attn.to_v"),
]
WIDTH = 1536


def pairs(layers, width=WIDTH):
    """A file's arrays: square layers of the transformer."""
    rng, arrays = np.random.default_rng(0), {}
    for layer in layers:
        for side, shape in (("A", (RANK, width)), ("B", (width, RANK))):
            array = rng.standard_normal(shape).astype(np.float32)
            arrays[f"transformer.transformer_blocks.{layer}.lora_{side}.weight"] = array
    return arrays


@pytest.fixture(scope="module")
def style(teachers, tmp_path_factory):
    """A LoRA that peft made and diffusers wrote."""
    with tiny_loras.any_peft():
        transformer = StableDiffusion3Pipeline.from_pretrained(teachers["sd35"]).transformer
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
        transformer.add_adapter(config)
        generator = torch.Generator().manual_seed(0)
        for name, parameter in transformer.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data = 0.5 * noise / parameter[0].numel() ** 0.5
        state = get_peft_model_state_dict(transformer)
        about = {**config.to_dict(), "target_modules": TARGETS}
    folder = tmp_path_factory.mktemp("style")
    StableDiffusion3Pipeline.save_lora_weights(
        folder, transformer_lora_layers=state, transformer_lora_adapter_metadata=about
    )
    return folder


@pytest.fixture
def without_drawing(monkeypatch):
    monkeypatch.setattr(lora_on_base, "draw_samples", lambda *_: iter(()))


@pytest.mark.slow  # the shapes of the published models
def test_a_file_for_both_medium_models(tmp_path, capsys):
    save_arrays(tmp_path / "x.safetensors", pairs(f"{n}.{t}" for n in (0, 22) for t in TARGETS))
    statuses, facts, code = run(capsys, tmp_path)
    assert code == 0 and set(statuses.values()) == {"ok"}
    assert facts["lora layout"] == "diffusers'"
    assert facts["lora base"] == "for SD 3 medium or SD 3.5 medium: 16 of 16 pairs fit"
    assert facts["lora targets"] == "16 layers of the transformer"


@pytest.mark.slow
def test_the_second_attention_is_of_35(tmp_path, capsys):
    layers = ["0.attn.add_k_proj", "0.attn.to_q", "12.attn2.to_q"]
    save_arrays(tmp_path / "x.safetensors", pairs(layers))
    statuses, facts, code = run(capsys, tmp_path)
    assert code == 0 and set(statuses.values()) == {"ok"}
    assert facts["lora base"] == "for SD 3.5 medium: 3 of 3 pairs fit"


@pytest.mark.slow  # the shapes of all published models
def test_a_file_for_a_larger_transformer_fails(tmp_path, capsys):
    """The keys of FLUX and SD 3.5 large are the same."""
    save_arrays(tmp_path / "x.safetensors", pairs([f"0.{t}" for t in TARGETS], width=2432))
    statuses, facts, code = run(capsys, tmp_path)
    assert statuses["lora base"] == statuses["lora shapes"] == "FAIL" and code
    assert "looks like a LoRA for a transformer of 2432 features" in facts["lora shapes"]


def test_predictions_are_those_of_peft(teachers, style, capsys, without_drawing):
    statuses, facts, code = run(capsys, teachers["sd35"], "--lora", f"{style}:0.7")
    assert code == 0 and set(statuses.values()) == {"ok"}
    assert float(facts["prediction"].split()[-1]) < 1e-5
    assert facts["lora base"].startswith("for this model: ")
    assert facts["lora alpha"].startswith("5, in the header")
    assert facts["lora targets"].endswith(" layers of the transformer")


@pytest.mark.slow
def test_a_lora_that_torch_has_not_fails(teachers, style, capsys, monkeypatch, without_drawing):
    monkeypatch.setattr(stock_networks, "add_loras", lambda network, loras: None)
    statuses, _, code = run(capsys, teachers["sd35"], "--lora", style)
    assert statuses["prediction"] == "FAIL" and code


def test_a_lora_for_a_unet_fails(teachers, style, tmp_path, capsys):
    arrays = load_arrays(next(style.glob("*.safetensors")))
    renamed = {
        k.replace("transformer.transformer_blocks", "unet.mid"): a for k, a in arrays.items()
    }
    save_arrays(tmp_path / "x.safetensors", renamed)
    statuses, facts, code = run(capsys, teachers["sd35"], "--lora", tmp_path / "x.safetensors")
    assert statuses["lora base"] == "FAIL" and "not for this model" in facts["lora base"] and code
    assert statuses["prediction"] == statuses["samples"] == "skipped"
