"""A small run of the digits that is measured once; indices of tar shards stay out of the user's
cache."""

import colours
import numpy as np
import pytest
from digits_runs import launch
from evaluated import options
from PIL import Image

from slam_jax.commands import evaluate
from slam_jax.data import digits
from slam_jax.evaluation import parts


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def registered():
    """The network and the metrics of `colours`, and small parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART", 16)
        colours.register(patch.setitem)
        yield


@pytest.fixture(scope="session")
def run(made_once):
    return made_once("finished_digits", launch)


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """Eighty real digits as PNGs of three channels."""
    folder = tmp_path_factory.mktemp("real")
    for index, image in enumerate(digits.load()[0][:80]):
        grey = np.round((image[..., 0] + 1) * 127.5).astype(np.uint8)
        Image.fromarray(grey).convert("RGB").save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="session")
def measured(registered, run, real, tmp_path_factory):
    out = tmp_path_factory.mktemp("measured") / "out"
    evaluate.main(options(run, real, out, "--save-pictures"))
    return out
