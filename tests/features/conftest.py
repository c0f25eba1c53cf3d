"""Files of networks, with random weights."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import random_inception
import tiny_networks

from slam_jax.formats import safetensors

GOLDEN = Path(__file__).parents[1] / "models/golden/inception.npz"


@pytest.fixture(scope="session")
def inception_arrays():
    with np.load(GOLDEN) as golden:
        shapes = [tuple(int(n) for n in shape if n) for shape in golden["shapes"]]
        return random_inception.state_dict(dict(zip(golden["names"].tolist(), shapes, strict=True)))


@pytest.fixture(scope="session")
def inception_file(inception_arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "model.safetensors"
    safetensors.save_arrays(path, inception_arrays)
    return path


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tiny_networks.clip_folder(folder, width=12, image_size=24, patch_size=8)
    return folder


@pytest.fixture(scope="session")
def dinov2_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinov2")
    tiny_networks.dinov2_folder(folder, hidden_size=24, image_size=224)
    return folder


@pytest.fixture
def changeable(clip_folder, tmp_path):
    return shutil.copytree(clip_folder, tmp_path / "clip")
