"""A model folder of the digits with a damaged config.json: one line that names it, and no wait."""

import json

import jax
import pytest
from small_digits import CONFIG, PIPELINE

from slam_jax.base.errors import InputError
from slam_jax.formats.flax_folder import SavedModel, save_model
from slam_jax.recipes.student import load


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "model"
    network, params = PIPELINE.network, PIPELINE.init(PIPELINE.network, jax.random.key(0))
    method = {"name": "slam", **vars(CONFIG.method)}
    info = {"method": method}
    save_model(folder, SavedModel("digits", network.to_dict(), params, PIPELINE.scheduler, info))
    load(str(folder))
    return folder


@pytest.mark.parametrize(
    "content", [b"\x8f\x00\xff", b"[1]", b"null", b'{"family": "di', b"[" * 100_000, b"3"]
)
def test_a_file_that_is_no_record_is_named(model, content):
    path = model / "config.json"
    whole = path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(InputError) as stop:
        load(str(model))
    path.write_bytes(whole)
    assert str(stop.value).startswith(f"{path}: damaged (") and "\n" not in str(stop.value)


@pytest.mark.parametrize(
    ("keys", "value", "line"),
    [
        (("network",), 3, "network is 3, expected a dict"),
        (("info",), [], "info is [], expected a dict"),
        (("info", "method", "num_ddim_timesteps"), "fifty", "expected a whole number"),
        (("info", "method", "name"), [], "method.name = [], expected one of slam"),
        (("scheduler", "prediction_type"), "x", "prediction_type: 'x' is not one of"),
        (("network", "layers_per_block"), 10**7, "layers_per_block = 10000000, supported: 1 to"),
        (("network", "layers_per_block"), -1, "layers_per_block = -1, supported: 1 to 1000"),
        (("network", "transformer_layers_per_block"), 10**7, "supported: 1 to 1000"),
        (("network", "attention_head_dim"), 0, "attention_head_dim = 0, supported: one integer"),
        (("network", "sample_size"), 0, "sample_size = 0, supported: 1 to 16384"),
        (("network", "sample_size"), 10**6, "sample_size = 1000000, supported: 1 to 16384"),
        (("network", "block_out_channels"), "x", "supported: lists of whole numbers"),
    ],
)
def test_a_value_that_cannot_be_is_named(model, keys, value, line):
    path = model / "config.json"
    whole = path.read_text()
    record = json.loads(whole)
    place = record
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(record))
    with pytest.raises(InputError) as stop:
        load(str(model))
    path.write_text(whole)
    assert str(stop.value).startswith(f"{path}: ") and line in str(stop.value)
    assert len(str(stop.value)) < 400
