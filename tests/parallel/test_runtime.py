"""The CPU flag is set where it applies and nowhere else; the probe sees wrong numbers."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from unittest import mock

import jax
import jaxlib
import numpy as np
import pytest

from slam_jax.base.errors import BackendError
from slam_jax.models.attention import attention
from slam_jax.parallel import runtime

FLAG = f"--{runtime.CPU_FLAG}="
HIDING = "--xla_gpu_enable_latency_hiding_scheduler=true"


@pytest.fixture
def environment(monkeypatch):
    """A machine with a CPU only, whose jaxlib knows the flag, and an empty environment."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(runtime, "ACCELERATOR_PACKAGES", {})
    monkeypatch.setattr(runtime, "jaxlib_knows", lambda flag: True)
    return monkeypatch


def flags():
    return os.environ.get("XLA_FLAGS")


def test_flag_is_set_on_a_cpu_machine(environment):
    runtime.configure()
    assert flags() == FLAG
    runtime.configure()
    assert flags() == FLAG


def test_flag_keeps_other_flags_and_the_users_own_choice(environment):
    environment.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/x")
    runtime.configure()
    assert flags().split() == ["--xla_dump_to=/tmp/x", FLAG]
    environment.setenv("XLA_FLAGS", FLAG + "LIBRARY_FUSION_TYPE_DOT")
    runtime.configure()
    assert flags() == FLAG + "LIBRARY_FUSION_TYPE_DOT"


@pytest.mark.parametrize(
    ("platforms", "expected"),
    [("cpu", FLAG), ("cpu,cuda", FLAG), ("cuda,cpu", HIDING), ("rocm", HIDING), ("tpu", None)],
)
def test_flag_follows_the_platform_that_the_user_asks_for(environment, platforms, expected):
    environment.setenv("JAX_PLATFORMS", platforms)
    runtime.configure()
    assert flags() == expected


def test_flag_is_not_set_beside_an_accelerator(environment, tmp_path):
    environment.setattr(runtime, "ACCELERATOR_PACKAGES", {"no_such_package": "gpu", "jax": "tpu"})
    environment.setattr(runtime, "DEVICES", tmp_path)
    (tmp_path / "accel0").touch()
    runtime.configure()
    assert flags() is None
    (tmp_path / "accel0").unlink()
    runtime.configure()
    assert flags() == FLAG  # its compiler alone is installed
    environment.delenv("XLA_FLAGS")
    environment.setattr(runtime, "ACCELERATOR_PACKAGES", {"jax": "gpu"})
    runtime.configure()
    assert flags() == HIDING


def test_flag_is_not_set_where_jaxlib_would_abort_on_it(environment):
    environment.setattr(runtime, "jaxlib_knows", lambda flag: False)
    runtime.configure()
    assert flags() is None


def test_jaxlib_is_asked_for_the_flags_that_it_knows():
    assert runtime.jaxlib_knows("xla_cpu_enable_fast_math")
    assert not runtime.jaxlib_knows("xla_cpu_enable_no_such_thing")
    assert not runtime.jaxlib_knows("xla_cpu_enable_fast")  # a part of a name is no flag


def test_probe_passes_here():
    runtime.probe()


def test_probe_of_others_than_cpus_has_the_attention_of_large_pictures(monkeypatch):
    monkeypatch.setattr(runtime, "devices", lambda: [types.SimpleNamespace(platform="tpu")])
    seen = {}

    def run(function):
        def compute(*arguments):
            name = getattr(function, "keywords", {}).get("implementation")
            seen[name] = arguments[0].shape, arguments[0].dtype.name
            if name == "cudnn":
                raise jax.errors.JaxRuntimeError("CUDNN_STATUS_NOT_SUPPORTED")
            return jax.jit(function)(*arguments)

        return compute

    runtime.probe(run, "splash")  # on this CPU XLA's
    assert seen["splash"] == ((1, 4096, 1, 40), "bfloat16")
    with pytest.raises(BackendError) as error:
        runtime.probe(run, "cudnn")
    assert "cannot compute an example of attention: CUDNN_STATUS_NOT_SUPPORTED; in training" in str(
        error.value
    )


@pytest.mark.parametrize("wrong", ["reduction", "convolution", "attention"])
@pytest.mark.parametrize("spoil", [lambda y: 1.05 * y, lambda y: y * np.nan])
def test_probe_refuses_a_backend_that_computes_wrongly(wrong, spoil):
    spoiled_functions = {
        "reduction": runtime._sum_of_squares,
        "convolution": runtime._convolution,
        "attention": attention,
    }

    def run(function):
        right = jax.jit(function)
        is_spoiled = getattr(function, "func", function) is spoiled_functions[wrong]
        return lambda *args: spoil(right(*args)) if is_spoiled else right(*args)

    with pytest.raises(BackendError, match=f"cpu backend of jaxlib .* computes a {wrong} wrongly"):
        runtime.probe(run)


def run_python(code, *arguments, **environment):
    """Runs a program from the repository's root in a fresh process, with one CPU device."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).parents[2],
        env={**inherited, "JAX_NUM_CPU_DEVICES": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.skipif(jaxlib.__version__ != "0.10.2", reason="the defect is of jaxlib 0.10.2")
def test_without_the_flag_the_probe_sees_the_defect_of_this_jaxlib():
    probe = "from slam_jax.parallel import runtime; runtime.probe()"
    result = run_python(probe, JAX_PLATFORMS="cpu")
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert "BackendError: the cpu backend of jaxlib 0.10.2 computes a reduction wrongly" in message
    assert FLAG in message


def test_start_makes_a_fresh_process_compute_rightly():
    result = run_python(
        "from slam_jax.parallel import runtime; runtime.configure(); runtime.probe()",
        JAX_PLATFORMS="cpu",
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


COMMANDS = [
    ["slam_jax.main", "--config", "configs/digits.py", "--workdir"],
    ["slam_jax", "sample", "--model"],
    ["slam_jax", "plan", "--config", "configs/digits.py", "--workdir"],
    ["slam_jax", "replay", "--workdir"],
    ["slam_jax", "export", "--workdir"],
]
# Starts each as python -m does, and says its exit status.
ONE_AFTER_ANOTHER = """
import json, runpy, sys
for module, *arguments in json.loads(sys.argv[1]):
    sys.argv = ["", *arguments]
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as stop:
        print(json.dumps(stop.code))
"""


@pytest.mark.parametrize(
    ("platform", "why"),
    [("cuda", "no package for them"), ("quantum", "Unable to initialize backend 'quantum'")],
)
def test_a_platform_that_is_not_there_is_one_line(tmp_path, platform, why):
    """Of every command that computes; in one process, as none of them finds a device."""
    commands = json.dumps([[*command, str(tmp_path / "x")] for command in COMMANDS])
    result = run_python(ONE_AFTER_ANOTHER, commands, JAX_PLATFORMS=platform)
    assert (result.returncode, result.stderr) == (0, "")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == len(COMMANDS)
    for line in lines:
        assert line.startswith(f"error: JAX finds no devices (JAX_PLATFORMS: {platform}): {why}")
        assert line.endswith("; install JAX for them, or unset JAX_PLATFORMS to take what there is")
        assert "\n" not in line
    assert not list(tmp_path.iterdir())


def test_operations_are_counted_on_the_cpu_which_must_not_be_left_out(monkeypatch):
    assert runtime.cpu().platform == "cpu"
    monkeypatch.setattr(jax, "local_devices", mock.Mock(side_effect=RuntimeError("no cpu")))
    with pytest.raises(BackendError, match="leaves out the CPU, on which operations are counted"):
        runtime.cpu()
