"""Files that torch wrote, and what is refused."""

import sys

import numpy as np
import pytest

from slam_jax.base.errors import InputError
from slam_jax.formats import torch_file


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {"a.weight": rng.standard_normal((3, 2)).astype(np.float32), "b": np.ones(4, np.float32)}


def save(path, content, **options):
    import torch

    torch.save(content, path, **options)
    return path


def tensors(arrays):
    import torch

    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def program(arrays):
    """A program in TorchScript that has these as its parameters."""
    import warnings

    import torch

    module = torch.nn.Module()
    module.a = torch.nn.Module()
    module.a.weight = torch.nn.Parameter(torch.from_numpy(arrays["a.weight"]))
    module.b = torch.nn.Parameter(torch.from_numpy(arrays["b"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(module)


def refusal(function, path):
    with pytest.raises(InputError) as error:
        function(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for key, array in actual.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[key])


# pytorch-fid's file is of the older kind, which is no zip.
@pytest.mark.parametrize("is_zip", [True, False])
def test_state_dicts(tmp_path, arrays, is_zip):
    file = save(tmp_path / "weights.pth", tensors(arrays), _use_new_zipfile_serialization=is_zip)
    assert not torch_file.is_script(file)
    assert_same(torch_file.load_arrays(file), arrays)


def test_other_dtypes_become_float32(tmp_path, arrays):
    halves = {key: tensor.bfloat16() for key, tensor in tensors(arrays).items()}
    file = save(tmp_path / "weights.bin", halves)
    expected = {key: tensor.float().numpy() for key, tensor in halves.items()}
    assert_same(torch_file.load_arrays(file), expected)


def test_programs(tmp_path, arrays):
    file = tmp_path / "program.pt"
    program(arrays).save(str(file))
    assert torch_file.is_script(file)
    assert_same(torch_file.load_script(file), arrays)


class Malicious:
    def __reduce__(self):
        return (sys.exit, ("run",))


def test_no_code_is_run(tmp_path):
    file = save(tmp_path / "weights.pth", {"a": Malicious()})
    assert "no weights that torch saved" in refusal(torch_file.load_arrays, file)


@pytest.mark.parametrize("content", ["empty", "text", "truncated", "truncated older"])
def test_damaged_files_are_refused(tmp_path, arrays, content):
    file = tmp_path / "weights.pth"
    save(file, tensors(arrays), _use_new_zipfile_serialization=content != "truncated older")
    whole = file.read_bytes()
    parts = {"empty": b"", "text": b"not weights"}
    file.write_bytes(parts.get(content, whole[: len(whole) * 2 // 3]))
    assert not torch_file.is_script(file)
    assert "damaged" in refusal(torch_file.load_arrays, file)


def test_missing_file_is_refused(tmp_path):
    message = refusal(torch_file.load_arrays, tmp_path / "weights.pth")
    assert "No such file" in message


def test_other_contents_are_refused(tmp_path, arrays):
    file = save(tmp_path / "weights.pth", {"state_dict": tensors(arrays), "epoch": 3})
    assert "expected a state dict" in refusal(torch_file.load_arrays, file)


def test_without_torch_it_says_what_to_do(tmp_path, arrays, monkeypatch):
    file = save(tmp_path / "weights.pth", tensors(arrays))
    monkeypatch.setitem(sys.modules, "torch", None)
    message = refusal(torch_file.load_arrays, file)
    assert "pip install torch" in message and "safetensors" in message
