"""The example that serves an exported sampler: the sampler's own pictures, and refusals."""

import io
import runpy
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from small_digits import PIPELINE, UNET

from slam_jax.families.family import Model
from slam_jax.method.slam import Slam
from slam_jax.serving import artifact, artifact_draw

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples/serve_artifact.py"))


@contextmanager
def served(folder):
    """The address at which the sampler in a folder is served."""
    server = EXAMPLE["server_of"](EXAMPLE["Sampler"](folder), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fetched(address):
    with urllib.request.urlopen(address, timeout=60) as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())))


def refused(address):
    """Status and text of a refusal."""
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(address, timeout=60)
    with error.value as answer:
        return answer.code, answer.read().decode()


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    """A folder with a sampler of digits, two at a time."""
    params = jax.device_get(PIPELINE.init(UNET, jax.random.key(0)))
    model, out = Model(PIPELINE, {}, params, Slam()), tmp_path_factory.mktemp("samplers") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact, "_compile", lambda folder, environment: None)
        artifact.write_artifact(model, "digits", out, artifact.Options(1, (2,), ("cpu",)), {})
    return out


def test_the_pictures_of_the_sampler_and_one_line_for_what_is_wrong(sampler):
    draw = artifact_draw.load(sampler)
    with served(sampler) as address:
        for label, seed in ((7, 3), (2, 0)):
            expected = draw([[11, label]] * 2, seed)[0].squeeze()
            more = f"&seed={seed}" if seed else ""
            np.testing.assert_array_equal(fetched(f"{address}/?label={label}{more}"), expected)
        for query, line in (
            ("?label=12", "tokens: expected integers from 0 to 11"),
            ("?label=x", "label='x': expected a whole number"),
            ("?label=1&seed=-1", "seed='-1': expected a whole number"),
            ("?label=1&seed=2147483648", "seed 2147483648, first 0: expected 0 to 2147483647"),
            ("?prompt=7", "expected /?label=...&seed=..., got ['prompt']"),
            ("", "expected /?label=...&seed=..., got []"),
        ):
            assert refused(f"{address}/{query}") == (400, f"{line}\n")
        assert refused(f"{address}/favicon.ico")[0] == 404
        assert fetched(f"{address}/?label=7").shape == (8, 8)  # it lives on


def test_a_folder_that_holds_no_sampler_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}: expected a folder that slam-jax export"):
        EXAMPLE["Sampler"](tmp_path)
