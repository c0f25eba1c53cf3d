"""The check of a LoRA file: ok on each layout for each base, FAIL on each thing broken."""

import dataclasses
import json
from functools import partial

import lora_layouts
import numpy as np
import peft
import pytest
import tiny_stable_diffusion
import torch
from broken_loras import SIDE, arrays, halves, header, ones, other, patterns, renamed, zero
from check_run import run
from helpers import sd_schedule
from lora_layouts import ALPHA, RANK

from slam_jax.commands import check
from slam_jax.formats.lora_names import Names
from slam_jax.formats.safetensors import load_arrays, save_arrays
from slam_jax.method.pcm import Pcm
from slam_jax.method.slam import Slam
from slam_jax.models.published_networks import UNETS, published_layers
from slam_jax.serving.published_lora import Base

ATTENTION = "down_blocks.{}.attentions.0.transformer_blocks.0"
# Some layers of the published models and the shapes of their weights in torch.
IN_SD15 = {
    f"{ATTENTION.format(0)}.attn1.to_q": (320, 320),
    f"{ATTENTION.format(0)}.attn2.to_k": (320, 768),
    "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj": (10240, 1280),
    "down_blocks.0.attentions.0.proj_in": (320, 320, 1, 1),
    "mid_block.resnets.0.conv1": (1280, 1280, 3, 3),
}
IN_SD2 = {
    **IN_SD15,
    f"{ATTENTION.format(0)}.attn2.to_k": (320, 1024),
    "down_blocks.0.attentions.0.proj_in": (320, 320),
}
IN_SDXL = {
    f"{ATTENTION.format(1)}.attn1.to_q": (640, 640),
    "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_v": (1280, 2048),
    "mid_block.resnets.0.conv1": (1280, 1280, 3, 3),
}
TEXT_L = {"encoder.layers.11.self_attn.q_proj": (768, 768)}
LAYERS = {
    "SD 1.5": {"unet": IN_SD15, "text_encoder": TEXT_L},
    "SD 2.x": {"unet": IN_SD2, "text_encoder": {"encoder.layers.22.mlp.fc1": (4096, 1024)}},
    "SDXL": {
        "unet": IN_SDXL,
        "text_encoder": TEXT_L,
        "text_encoder_2": {"encoder.layers.31.mlp.fc2": (1280, 5120)},
    },
}
BESIDE, HEADER, NOWHERE = "beside the pairs", "in the header", "nowhere, which means the rank"
LAYOUTS = [
    (lora_layouts.of_kohya, "SD 1.5", "kohya's, diffusers' names", BESIDE),
    (lora_layouts.of_kohya, "SDXL", "kohya's, diffusers' names", BESIDE),
    (
        partial(lora_layouts.of_stability, layers_per_block=2),
        "SDXL",
        "kohya's, StabilityAI's names",
        BESIDE,
    ),
    (lora_layouts.of_diffusers, "SD 2.x", "diffusers'", HEADER),
    (lora_layouts.of_peft, "SD 1.5", "peft's", "in adapter_config.json"),
    (lora_layouts.of_2023, "SD 1.5", "diffusers' of 2023", NOWHERE),
    (lora_layouts.without_alpha, "SD 2.x", "diffusers'", NOWHERE),
]
KINDS = {  # of LCM-LoRA's, among the layers above
    "SD 1.5": "5 layers of the UNet, 5 (to_q, to_k, proj_in, ff.net.0.proj, conv1) of LCM-LoRA's",
    "SDXL": "3 layers of the UNet, 3 (to_q, to_v, conv1) of LCM-LoRA's 14 kinds",
}


def states_of(base):
    """State dicts of a LoRA on some layers of a published model, and their configurations."""
    rng, states, configs = np.random.default_rng(0), {}, {}
    for part, layers in LAYERS[base].items():
        states[part] = {}
        for layer, (outputs, *inputs) in layers.items():
            for side, shape in (
                ("A", (RANK, *inputs)),
                ("B", (outputs, RANK, *[1] * len(inputs[1:]))),
            ):
                array = rng.standard_normal(shape).astype(np.float32)
                states[part][f"{layer}.lora_{side}.weight"] = torch.from_numpy(array)
        configs[part] = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(layers))
    return states, configs


@pytest.fixture
def style(tmp_path):
    """A LoRA for SD 1.5, in kohya's layout."""
    path = tmp_path / "lora" / "style.safetensors"
    path.parent.mkdir()
    lora_layouts.of_kohya(*states_of("SD 1.5"), path)
    return path


@pytest.fixture
def sd15_alone(monkeypatch):
    """The shapes of the others take seconds."""
    config = UNETS["SD 1.5"]
    layers = published_layers("SD 1.5")
    base = Base("SD 1.5", layers, Names(layers, config.layers_per_block))
    monkeypatch.setattr(check, "published_bases", lambda _: (base,))


@pytest.mark.slow
@pytest.mark.parametrize(("write", "base", "layout", "place"), LAYOUTS)
def test_layouts_and_bases(tmp_path, capsys, write, base, layout, place):
    path = tmp_path / "style.safetensors"
    write(*states_of(base), path)
    statuses, facts, code = run(capsys, tmp_path)
    assert code == 0 and set(statuses.values()) == {"ok"}
    assert facts["lora layout"] == layout and place in facts["lora alpha"]
    if write is lora_layouts.of_2023:  # attention alone
        assert facts["lora base"] == "for SD 1.5: 2 of 2 pairs fit"
    else:
        assert facts["lora base"].startswith(f"for {base}: ")
    scaled = place != NOWHERE
    assert facts["lora ranks"] == "3"
    assert facts["lora alpha"].startswith("5, " if scaled else "3, ")
    assert ("alpha / rank = 1.667" if scaled else "alpha / rank = 1") in facts["lora alpha"]
    unread = scaled and place != BESIDE
    assert ("ComfyUI does not read it there" in facts["lora alpha"]) == unread
    if write is lora_layouts.of_kohya:
        assert facts["lora targets"].startswith(KINDS[base])
        assert facts["lora targets"].endswith(
            "; 1 layers of text_encoder"
            + ("; 1 layers of text_encoder_2" if base == "SDXL" else "")
        )
    assert facts["lora dtypes"].endswith("of float32")


@pytest.mark.slow
def test_what_fits_two_bases_is_said_so(tmp_path, capsys):
    states, configs = states_of("SD 1.5")
    unet = {key: value for key, value in states["unet"].items() if "attn2" not in key}
    lora_layouts.of_kohya({"unet": unet}, configs, tmp_path / "style.safetensors")
    _, facts, code = run(capsys, tmp_path / "style.safetensors")
    assert code == 0 and facts["lora base"] == "for SD 1.5 or SD 2.x: 4 of 4 pairs fit"


@pytest.mark.parametrize("method", [Slam(conditioning="snr"), Pcm()])
def test_a_students_method_and_scheduler(style, capsys, sd15_alone, method):
    folder = style.parent
    scheduler = {**tiny_stable_diffusion.BETAS, **method.diffusers_scheduler(sd_schedule())}
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "slam.json").write_text(json.dumps({"method": dataclasses.asdict(method)}))
    statuses, facts, code = run(capsys, folder)
    assert code == 0 and facts["lora method"] == method.title
    assert facts["lora scheduler"].startswith(scheduler["_class_name"])
    (folder / "scheduler/scheduler_config.json").write_text(
        json.dumps({**scheduler, "beta_end": 0.02})
    )
    statuses, facts, code = run(capsys, folder)
    assert code and statuses["lora scheduler"] == "FAIL" and "beta_end" in facts["lora scheduler"]


NAN = np.full((RANK, 1280, 3, 3), np.nan, np.float32)
# What is done to the file, the check that fails, and what it says.
BROKEN = {
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        "lora file",
        "truncated or no safetensors file",
    ),
    "header": (header("{"), "lora file", "lora_adapter_metadata in its header is no JSON"),
    "LoHa": (other(f"{SIDE}.hada_w1_a"), "lora layout", "a LoHa, which is not supported"),
    "LoKr": (other(f"{SIDE}.lokr_w1"), "lora layout", "a LoKr, which is not supported"),
    "DoRA": (other(f"{SIDE}.dora_scale"), "lora layout", "a DoRA, which is not supported"),
    "bias": (other(f"{SIDE}.bias"), "lora layout", f"{SIDE}.bias is a kind of change"),
    "empty": (lambda path: save_arrays(path, {}), "lora layout", "nothing in it"),
    "twice": (
        other("unet.mid_block.resnets.0.conv1.lora_A.weight"),
        "lora keys",
        "mean the same",
    ),
    "another network": (
        renamed,
        "lora base",
        "not for SD 1.5: 2 of 6 pairs fit; no layer for lora_unet_down_double_blocks_0_attent",
    ),
    "no layer": (
        other("lora_unet_more.lora_down.weight"),
        "lora keys",
        "1 are of no layer (lora_unet_more.lora_down.weight); --allow-unused",
    ),
    "half a pair": (
        arrays(lora_down__weight=None),
        "lora pairs",
        "1 incomplete: mid_block.resnets.0.conv1 has no lora_down",
    ),
    "shape": (
        arrays(lora_down__weight=ones(3, 640, 3, 3)),
        "lora shapes",
        f"first {SIDE}.lora_down.weight has shape (3, 640, 3, 3), SD 1.5's is (3, 1280, 3, 3); it "
        "looks like a LoRA for SD 1.x",
    ),
    "rank 0": (
        arrays(lora_down__weight=ones(0, 1280, 3, 3), lora_up__weight=ones(1280, 0, 1, 1)),
        "lora shapes",
        f"{SIDE}.lora_up.weight has rank 0",
    ),
    "patterns": (patterns, "lora alpha", "alpha_pattern is no object"),
    "alpha": (arrays(alpha=ones(2)), "lora alpha", f"{SIDE}.alpha is no finite number"),
    "NaN": (arrays(lora_down__weight=NAN), "lora finite", f"first {SIDE}.lora_down.weight"),
    "never trained": (zero, "lora trained", "it was never trained"),
    "record": (
        lambda path: (path.parent / "slam.json").write_text('{"method": {"name": "none"}}'),
        "lora method",
        "slam.json: method",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_in_a_lora_fails(style, capsys, sd15_alone, case):
    change, name, text = BROKEN[case]
    change(style)
    statuses, facts, code = run(capsys, style)
    assert statuses[name] == "FAIL" and text in facts[name]
    assert isinstance(code, str) and "failed" in code
    assert list(statuses.values()).count("FAIL") == 1 + (case == "another network")  # keys, too


def test_a_file_of_half_pairs_is_for_nothing(style, capsys, sd15_alone):
    halves(style)
    statuses, facts, code = run(capsys, style)
    assert statuses["lora base"] == "FAIL" and code
    assert facts["lora base"] == "not for SD 1.5: 0 of 0 pairs fit; each pair lacks a side"


def test_keys_of_no_layer_can_be_passed_over(style, capsys, sd15_alone):
    content = load_arrays(style)
    for side in ("down", "up"):
        content[f"lora_unet_more.lora_{side}.weight"] = ones(3, 3)
    content["lora_te_encoder.alpha"] = ones(1)
    save_arrays(style, content)
    statuses, facts, code = run(capsys, style, "--allow-unused")
    assert code == 0 and statuses["lora keys"] == "ok"
    assert facts["lora keys"].startswith(
        "3 are of no layer (lora_te_encoder.alpha, lora_unet_more."
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere.safetensors"], "nowhere.safetensors: no such file"),
        (["{style}", "--variant", "fp16"], "--variant fp16: is of a model"),
        (["{style}", "--out", "sheet.png"], "--out sheet.png: is of a model"),
        (["{style}", "--revision", "main"], "is no repository of the hub"),
        (["{style}", "--method", "lcm"], "--method lcm: is of LoRAs; give a model and a --lora"),
        (["{style}", "--lora", "other"], "--lora other: expected a model before it"),
        (["{style.parent.parent}", "--allow-unused"], "--allow-unused: is of LoRAs"),
    ],
)
def test_refused_command_lines_for_a_lora(style, capsys, arguments, text):
    statuses, _, code = run(capsys, *(a.format(style=style) for a in arguments))
    assert statuses == {} and code.startswith("error: ") and text in code and "\n" not in code


def test_a_folder_with_several_files_names_them(style, capsys):
    (style.parent / "other.safetensors").write_bytes(style.read_bytes())
    statuses, _, code = run(capsys, style.parent)
    assert statuses == {} and "expected one .safetensors in it, found other" in code
