"""Files of networks, with random weights."""

import shutil

import pytest
import random_inception
import tiny_networks

from slam_jax.formats import safetensors


@pytest.fixture(scope="session")
def inception_arrays():
    return random_inception.published()


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
