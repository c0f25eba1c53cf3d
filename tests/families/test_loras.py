"""LoRA files in every layout: what is drawn with them is what stock diffusers draws.

The files are made by peft, diffusers, or by hand where no library writes that layout any more.
diffusers reads them all.
"""

import json
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import tiny_loras
import tiny_students
from diffusers import DiffusionPipeline, LCMScheduler
from lora_layouts import ALPHA, RANK, of_2023, of_diffusers, of_kohya, of_stability, without_alpha

from slam_jax.base.errors import InputError
from slam_jax.families.family import LoadOptions
from slam_jax.formats import convert
from slam_jax.formats.lora_file import FILE, kohya_arrays
from slam_jax.formats.lora_names import stability_names
from slam_jax.formats.safetensors import save_arrays
from slam_jax.models import functional, lora
from slam_jax.models.published_networks import UNETS
from slam_jax.models.unet import UNet2DConditionModel
from slam_jax.recipes.student import load
from slam_jax.serving import stock_pipeline


@pytest.fixture(scope="module", autouse=True)
def any_peft():
    with tiny_loras.any_peft():
        yield


@pytest.fixture(scope="module")
def students(teachers, tmp_path_factory):
    """Family -> an exported student."""
    out = {}
    for family in ("sd15", "sdxl"):
        out[family] = tmp_path_factory.mktemp("students") / family
        tiny_students.export(tiny_students.make(teachers[family], "snr"), out[family])
    return out


@pytest.fixture(scope="module")
def styles(students):
    """Family -> state dicts of a LoRA, by part; and its configurations."""
    return {
        family: tiny_loras.style(DiffusionPipeline.from_pretrained(folder), RANK, ALPHA)
        for family, folder in students.items()
    }


LAYOUTS = [
    ("sd15", of_diffusers),
    ("sd15", without_alpha),
    ("sd15", of_kohya),
    ("sd15", of_2023),
    ("sdxl", of_diffusers),
    ("sdxl", of_kohya),
    ("sdxl", of_stability),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "write"), LAYOUTS)
def test_the_stock_pipeline_draws_our_pictures(students, styles, tmp_path, family, write):
    path = tmp_path / "style.safetensors"
    write(*styles[family], path)

    def prepare(pipeline):
        pipeline.load_lora_weights(tmp_path, weight_name=path.name, adapter_name="style")
        pipeline.set_adapters(["style"], [0.7])

    ours = load(str(students[family]), LoadOptions(loras=(f"{path}:0.7",)))
    images = stock_pipeline.compare(
        ours, students[family], stock_pipeline.PROMPTS, (2,), prepare=prepare
    )
    plain = stock_pipeline.compare(
        load(str(students[family])), students[family], stock_pipeline.PROMPTS, (2,)
    )
    assert np.abs(images[2][0] - images[2][1]).max() * 127.5 <= 0.05
    assert np.abs(images[2][0] - plain[2][0]).max() * 127.5 > 5  # it matters


@pytest.mark.parametrize(
    ("base", "published"), [("sd15", "SD 1.5"), ("sd15", "SD 2.x"), ("sdxl", "SDXL")]
)
def test_comfyui_finds_a_layer_for_every_key(base, published):
    """What its `unet_to_diffusers` (comfy/utils.py, commit 09708ee) maps for the published UNets:
    it reads "lora_unet_" and either name with underscores."""
    golden = json.loads((Path(__file__).parent / "golden/comfyui_layers.json").read_text())[base]
    shapes = functional.abstract_params(UNet2DConditionModel, UNETS[published])
    ours = {layer for layer, _ in lora.layers_of(shapes, lora.TARGETS)}
    assert ours < golden.keys() and len(ours) > 250
    known = {f"lora_unet_{layer.replace('.', '_')}" for layer in golden}
    ones = jax.tree.map(lambda leaf: np.zeros(leaf.shape), lora.abstract_adapters(shapes, 1))
    assert {key.split(".")[0] for key in kohya_arrays(ones)} < known
    layers = {path.removesuffix(".kernel") for path in functional.flatten(shapes)}
    names = {layer: name for name, layer in stability_names(layers & golden.keys(), 2).items()}
    assert names == {layer: golden[layer] for layer in names} and names.keys() > ours


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # of the second
def test_few_steps_and_style_at_once(teachers, styles, tmp_path):
    """A step-LoRA makes its teacher a student; a style comes on top, as in diffusers."""
    out, path = tmp_path / "student", tmp_path / "style.safetensors"
    made = tiny_loras.make(teachers["sd15"])
    made[1].export(made[0], out)
    of_kohya(*styles["sd15"], path)

    def prepare(pipeline):
        pipeline.load_lora_weights(out, weight_name=FILE, adapter_name="steps")
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name="style")
        pipeline.set_adapters(["steps", "style"], [1.0, 0.7])
        pipeline.scheduler = LCMScheduler.from_pretrained(out / "scheduler")

    ours = load(str(teachers["sd15"]), LoadOptions(loras=(str(out), f"{path}:0.7")))
    assert ours.method == tiny_loras.CONFIG.method
    prompts = stock_pipeline.PROMPTS
    images = stock_pipeline.compare(ours, teachers["sd15"], prompts, (1, 2), prepare=prepare)
    for mine, stock in images.values():
        assert np.abs(mine - stock).max() * 127.5 <= 0.5
    with pytest.raises(InputError, match="makes few steps of many, but the model is a student"):
        load(str(out), LoadOptions(loras=(str(out),)))


@pytest.mark.slow
def test_a_folder_of_peft_is_scaled_as_peft_scales(students, styles, tmp_path):
    """With rslora, alpha / sqrt(r); the first pattern that fits decides."""
    states, _ = styles["sd15"]
    network = DiffusionPipeline.from_pretrained(students["sd15"]).unet
    options = dict(r=RANK, lora_alpha=ALPHA, target_modules=tiny_loras.IN_UNET, use_rslora=True)
    patterns = {"mid_block.*to_q": 4.0, "to_q": 8.0}
    model = peft.get_peft_model(network, peft.LoraConfig(**options, alpha_pattern=patterns))
    peft.set_peft_model_state_dict(
        model, {f"base_model.model.{key}": value for key, value in states["unet"].items()}
    )
    model.save_pretrained(tmp_path / "peft")
    merged = convert.to_torch(
        load(str(students["sd15"]), LoadOptions(loras=(str(tmp_path / "peft"),))).params
    )
    expected = model.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(merged[key], value.numpy(), atol=2e-6, err_msg=key)


def changed(states, **changes):
    """The UNet's arrays of a LoRA without alpha, some of them others."""
    flat = {f"unet.{key}": value.numpy().copy() for key, value in states["unet"].items()}
    return {key: array for key, array in {**flat, **changes}.items() if array is not None}


DOWN = "unet.mid_block.resnets.0.conv1.lora_A.weight"
REFUSALS = {
    "another base": (
        {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (3, 768)},
        r"attn2\.to_k\.lora_A\.weight has shape \(3, 768\), this model's is \(3, 32\); it looks "
        r"like a LoRA for SD 1\.x$",
    ),
    "half a pair": ({DOWN: None}, r"mid_block\.resnets\.0\.conv1 has no lora_down; get the file"),
    "unknown layer": (
        {"unet.more.lora_A.weight": (3, 4)},
        r": 1 keys are of no layer of this model: unet\.more\.lora_A\.weight; --allow-unused",
    ),
    "LoHa": ({"lora_unet_mid_block.hada_w1_a": (3, 4)}, "a LoHa, which is not supported"),
    "alpha": ({"unet.mid_block.resnets.0.conv1.alpha": (2,)}, r"conv1\.alpha is no finite number"),
    "no rank": (
        {DOWN: (0, 32, 3, 3), DOWN.replace("_A", "_B"): (32, 0, 1, 1)},
        r"conv1\.lora_B\.weight has rank 0, expected 1 or more; get the file again$",
    ),
    "a vector": ({DOWN: (3,)}, r"conv1\.lora_A\.weight has shape \(3,\), this model's is \(3, 32"),
    "twice": (
        {DOWN.replace("lora_A", "lora_A.default"): (3, 64, 3, 3)},
        r"mean the same; get the file again",
    ),
    "a bias": (
        {DOWN.replace("weight", "bias"): (3,)},
        r"conv1\.lora_A\.bias is a kind of change that is not read; expected a LoRA",
    ),
    "DoRA": ({"lora_unet_mid_block.dora_scale": (3, 4)}, "a DoRA, which is not supported"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_no_lora_for_this_model_is_refused(students, styles, tmp_path, name):
    changes, expected = REFUSALS[name]
    arrays = {
        key: None if shape is None else np.zeros(shape, np.float32)
        for key, shape in changes.items()
    }
    path = tmp_path / "style.safetensors"
    save_arrays(path, changed(styles["sd15"][0], **arrays))
    with pytest.raises(InputError, match=expected) as error:
        load(str(students["sd15"]), LoadOptions(loras=(str(path),)))
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    if name == "unknown layer":
        load(str(students["sd15"]), LoadOptions(loras=(str(path),), allow_unused=True))


def test_a_rank_above_the_layers_is_drawn_with(students, tmp_path):
    """Files of one rank for all layers have it, as LoCon's of rank 64 for conv_out, which has 4."""
    path, rng = tmp_path / "style.safetensors", np.random.default_rng(0)
    down, up = (
        rng.normal(size=shape).astype(np.float32) for shape in ((33, 32, 3, 3), (32, 33, 1, 1))
    )
    save_arrays(path, {DOWN: down, DOWN.replace("_A", "_B"): up})
    without, merged = (
        convert.to_torch(load(str(students["sd15"]), LoadOptions(loras=loras)).params)
        for loras in ((), (str(path),))
    )
    key = DOWN.removeprefix("unet.").replace("lora_A.", "")
    expected = without[key] + np.einsum("or,riyx->oiyx", up[:, :, 0, 0], down)
    np.testing.assert_allclose(merged[key], expected, rtol=1e-5, atol=1e-4)


def test_numbers_that_are_not_finite_are_refused(students, styles, tmp_path):
    arrays, path = changed(styles["sd15"][0]), tmp_path / "style.safetensors"
    arrays[DOWN][0, 0] = np.nan
    save_arrays(path, arrays)
    with pytest.raises(InputError, match=r"conv1\.lora_A\.weight has an infinity or a NaN"):
        load(str(students["sd15"]), LoadOptions(loras=(str(path),)))


@pytest.mark.parametrize(
    ("spelled", "expected"),
    [
        ("no/such.safetensors", "^--lora no/such.safetensors: no such file; a file, "),
        ("style.safetensors:much", "^--lora style.safetensors:much: 'much' is no weight; file:0.7"),
        (".", r"^--lora \.: expected one \.safetensors in it, found none"),
    ],
)
def test_a_file_that_is_not_there(students, tmp_path, monkeypatch, spelled, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=expected):
        load(str(students["sd15"]), LoadOptions(loras=(spelled,)))
