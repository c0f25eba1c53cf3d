"""Inception against torch-fidelity's, with the same weights; and the names in its files."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_inception
from helpers import assert_close, jit

from slam_jax.formats import convert
from slam_jax.models import functional, inception

LAST_LAYER = {"fc.weight", "fc.bias"}


@functools.cache
def golden():
    """What torch-fidelity computed (golden/make_inception.py): features, names, shapes."""
    with np.load(Path(__file__).parent / "golden/inception.npz") as file:
        shapes = [tuple(int(n) for n in shape if n) for shape in file["shapes"]]
        return file["features"], dict(zip(file["names"].tolist(), shapes, strict=True))


@functools.cache
def state_dict():
    return random_inception.state_dict(golden()[1])


@pytest.mark.slow
def test_features_match_torch_fidelity():
    abstract = functional.abstract_params(inception.InceptionV3, None)
    params, missing, extra = convert.from_torch(state_dict(), abstract)
    assert not missing and set(extra) == LAST_LAYER
    apply = jit(functional.apply_fn(inception.InceptionV3, None))
    actual = apply(params, random_inception.pictures().astype(np.float32))
    assert actual.dtype == jnp.float32
    assert_close(actual, golden()[0], 1e-5)


def test_names_and_sizes_are_those_of_the_published_file():
    abstract = functional.abstract_params(inception.InceptionV3, None)
    shapes = {
        key: array.shape for key, array in convert.to_torch(jax.tree.map(_zeros, abstract)).items()
    }
    assert shapes == {k: shape for k, shape in golden()[1].items() if k not in LAST_LAYER}
    statistics = sum(np.prod(s) for k, s in shapes.items() if "running" in k)
    # torchvision's inception_v3 has 23,834,568 without AuxLogits, 2,049,000 in its last layer.
    assert functional.count_params(abstract) - statistics == 23_834_568 - 2_049_000


def _zeros(leaf):
    return np.zeros(leaf.shape, leaf.dtype)


@pytest.mark.parametrize("kind", ["average", "max"])
def test_pools_at_the_border_match_torch(kind):
    import torch
    from torch.nn.functional import avg_pool2d, max_pool2d

    x = np.random.default_rng(0).standard_normal((2, 6, 7, 3)).astype(np.float32) - 3
    nchw = torch.from_numpy(x.transpose(0, 3, 1, 2))
    if kind == "average":
        actual = inception.averaged(x)
        expected = avg_pool2d(nchw, 3, stride=1, padding=1, count_include_pad=False)
    else:
        actual, expected = inception.halved(x), max_pool2d(nchw, 3, stride=2)
    assert_close(actual, expected.numpy().transpose(0, 2, 3, 1), 1e-6)


# Names of TensorFlow's graph and of pytorch-fid, from the program that torch-fidelity made its file
# with: all in one block of each kind, then one in each of the other blocks.
TENSORFLOW = """
conv Conv2d_1a_3x3
conv_1 Conv2d_2a_3x3
conv_2 Conv2d_2b_3x3
conv_3 Conv2d_3b_1x1
conv_4 Conv2d_4a_3x3
mixed/conv Mixed_5b.branch1x1
mixed/tower/conv Mixed_5b.branch5x5_1
mixed/tower/conv_1 Mixed_5b.branch5x5_2
mixed/tower_1/conv Mixed_5b.branch3x3dbl_1
mixed/tower_1/conv_1 Mixed_5b.branch3x3dbl_2
mixed/tower_1/conv_2 Mixed_5b.branch3x3dbl_3
mixed/tower_2/conv Mixed_5b.branch_pool
mixed_3/conv Mixed_6a.branch3x3
mixed_3/tower/conv Mixed_6a.branch3x3dbl_1
mixed_3/tower/conv_1 Mixed_6a.branch3x3dbl_2
mixed_3/tower/conv_2 Mixed_6a.branch3x3dbl_3
mixed_4/conv Mixed_6b.branch1x1
mixed_4/tower/conv Mixed_6b.branch7x7_1
mixed_4/tower/conv_1 Mixed_6b.branch7x7_2
mixed_4/tower/conv_2 Mixed_6b.branch7x7_3
mixed_4/tower_1/conv Mixed_6b.branch7x7dbl_1
mixed_4/tower_1/conv_1 Mixed_6b.branch7x7dbl_2
mixed_4/tower_1/conv_2 Mixed_6b.branch7x7dbl_3
mixed_4/tower_1/conv_3 Mixed_6b.branch7x7dbl_4
mixed_4/tower_1/conv_4 Mixed_6b.branch7x7dbl_5
mixed_4/tower_2/conv Mixed_6b.branch_pool
mixed_8/tower/conv Mixed_7a.branch3x3_1
mixed_8/tower/conv_1 Mixed_7a.branch3x3_2
mixed_8/tower_1/conv Mixed_7a.branch7x7x3_1
mixed_8/tower_1/conv_1 Mixed_7a.branch7x7x3_2
mixed_8/tower_1/conv_2 Mixed_7a.branch7x7x3_3
mixed_8/tower_1/conv_3 Mixed_7a.branch7x7x3_4
mixed_9/conv Mixed_7b.branch1x1
mixed_9/tower/conv Mixed_7b.branch3x3_1
mixed_9/tower/mixed/conv Mixed_7b.branch3x3_2a
mixed_9/tower/mixed/conv_1 Mixed_7b.branch3x3_2b
mixed_9/tower_1/conv Mixed_7b.branch3x3dbl_1
mixed_9/tower_1/conv_1 Mixed_7b.branch3x3dbl_2
mixed_9/tower_1/mixed/conv Mixed_7b.branch3x3dbl_3a
mixed_9/tower_1/mixed/conv_1 Mixed_7b.branch3x3dbl_3b
mixed_9/tower_2/conv Mixed_7b.branch_pool
mixed_1/tower_2/conv Mixed_5c.branch_pool
mixed_2/tower_2/conv Mixed_5d.branch_pool
mixed_5/tower_2/conv Mixed_6c.branch_pool
mixed_6/tower_2/conv Mixed_6d.branch_pool
mixed_7/tower_2/conv Mixed_6e.branch_pool
mixed_10/tower_2/conv Mixed_7c.branch_pool
"""


def nvidias(name):
    """A name of TensorFlow's as the modules in NVIDIA's program are called."""
    block, *path = name.split("/")
    between = "_" if block in ("mixed_9", "mixed_10") else "."
    return ".".join(["layers", block, *([between.join(path)] if path else [])])


@pytest.mark.parametrize(
    ("theirs", "ours"), [line.split() for line in TENSORFLOW.strip().splitlines()]
)
def test_tensorflow_names(theirs, ours):
    arrays = {name: np.full(2, i) for i, name in enumerate(("weight", "beta", "mean", "var"))}
    given = {f"{nvidias(theirs)}.{name}": array for name, array in arrays.items()}
    renamed = convert.from_tensorflow_names(given)
    assert renamed.keys() == {
        f"{ours}.{name}"
        for name in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    }
    assert renamed[f"{ours}.conv.weight"] is arrays["weight"]
    assert renamed[f"{ours}.bn.bias"] is arrays["beta"]
    assert renamed[f"{ours}.bn.running_mean"] is arrays["mean"]
    assert renamed[f"{ours}.bn.running_var"] is arrays["var"]
    assert renamed[f"{ours}.bn.weight"].tolist() == [1, 1]


def test_tensorflow_names_of_the_rest():
    given = {"output.weight": 1, "layers.conv.what": 2, "layers.mixed_11.conv.beta": 3}
    expected = {"fc.weight": 1, "layers.conv.what": 2, "layers.mixed_11.conv.beta": 3}
    assert convert.from_tensorflow_names(given) == expected
