"""Start-up: XLA's flags for the platform, where compiled programs are kept, and a probe of whatever
backend there is.

jaxlib 0.10.2 and 0.11.0 miscompile some small reductions on CPU through the "ynn" fusions (jax
issue 39103). An empty `--xla_cpu_experimental_ynn_fusion_type=` turns these off. An unknown XLA
flag aborts the process, so one is set only where the installed jaxlib knows it, and only on the
platform that it is for.
"""

import importlib.util
import mmap
import os
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from slam_jax import __version__
from slam_jax.base.errors import BackendError
from slam_jax.models.attention import attention
from slam_jax.parallel import compile_cache

CPU_FLAG = "xla_cpu_experimental_ynn_fusion_type"
FLAGS = {
    "cpu": {CPU_FLAG: ""},
    # Arrays are gathered, and gradients summed, while others are being computed; a TPU does so
    # without being asked.
    "gpu": {"xla_gpu_enable_latency_hiding_scheduler": "true"},
    "tpu": {},
}
ACCELERATOR_PACKAGES = {
    "jax_cuda12_plugin": "gpu",
    "jax_cuda13_plugin": "gpu",
    "jax_rocm7_plugin": "gpu",
    "libtpu": "tpu",
}
# What a TPU is on its host. libtpu is installed elsewhere, too: it compiles without one.
DEVICES, TPU_FILES = Path("/dev"), ("accel*", "vfio/[0-9]*")


def configure(alone: bool = True) -> None:
    """Sets the platform's FLAGS in XLA_FLAGS, but for those that are there, and turns the cache of
    compiled programs on. Call it before the first JAX computation.

    Args:
      alone: this is the run's only process.
    """
    for name, value in FLAGS[_platform()].items():
        flags = os.environ.get("XLA_FLAGS", "")
        if name not in flags and jaxlib_knows(name):
            os.environ["XLA_FLAGS"] = f"{flags} --{name}={value}".strip()
    compile_cache.configure(alone)


def devices() -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    """The devices of all processes.

    Raises:
      BackendError: JAX refuses the platform that the user asks for.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: cuda, and no plugin for it
        asked = jax.config.jax_platforms or "not set"  # pyright: ignore[reportAttributeAccessIssue]
        why = " ".join(str(error).split(" (set JAX_PLATFORMS")[0].split()).rstrip(".")
        raise BackendError(
            f"JAX finds no devices (JAX_PLATFORMS: {asked}): {why or 'no package for them'}; "
            "install JAX for them, or unset JAX_PLATFORMS to take what there is"
        ) from error


def cpu() -> jax.Device:  # pyright: ignore[reportInvalidTypeForm]
    """The host as a device, for which XLA counts operations; plugins for accelerators do not.

    Raises:
      BackendError: JAX_PLATFORMS leaves it out.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        asked = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        raise BackendError(
            f"JAX_PLATFORMS={asked} leaves out the CPU, on which operations are counted; "
            f"set JAX_PLATFORMS={asked},cpu"
        ) from error


def versions() -> dict[str, str]:
    """Of what decides the numbers of a run."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"slam_jax": __version__, **{name: metadata.version(name) for name in packages}}


def probe(run: Callable = jax.jit, implementation: str = "auto") -> None:
    """Compares a reduction, a convolution and an attention on the backend with numpy; on a GPU or
    TPU the attention of large pictures, which has a kernel of its own there.

    Args:
      run: how a function is compiled; tests pass a broken one.
      implementation: of attention.

    Raises:
      BackendError: there is none, it cannot compute, or a result is off by more than rounding;
        training on would give wrong weights silently.
    """
    platform = devices()[0].platform
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((32769, 3)).astype(np.float32)
    x = generator.standard_normal((1, 6, 6, 2)).astype(np.float32)
    kernel = generator.standard_normal((3, 3, 2, 2)).astype(np.float32)
    tokens, dtype = (5, "float32") if platform == "cpu" else (4096, "bfloat16")
    q, k, v = qkv = generator.standard_normal((3, 1, tokens, 1, 40)).astype(dtype)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    wide_q, wide_k, wide_v = qkv.astype(np.float32)
    scores = np.exp(np.einsum("bqhd,bkhd->bhqk", wide_q, wide_k) / np.sqrt(40))
    cases = {
        "reduction": (_sum_of_squares, (rows,), np.sum(rows.astype(np.float64) ** 2, axis=1)),
        "convolution": (_convolution, (x, kernel), np.einsum("bhwcij,ijco->bhwo", windows, kernel)),
        "attention": (
            partial(attention, implementation=implementation),
            (q, k, v),
            np.einsum("bhqk,bkhd->bqhd", scores / scores.sum(-1, keepdims=True), wide_v),
        ),
    }
    for name, (function, arguments, expected) in cases.items():
        other = ""
        if name == "attention" and platform != "cpu":
            other = "; in training --config.execution.attention=xla may do without it"
        try:
            result = np.asarray(run(function)(*arguments), np.float32)
        except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
            why = " ".join(str(error).split())[:200]
            raise BackendError(
                f"the {platform} backend of jaxlib {metadata.version('jaxlib')} cannot compute "
                f"an example of {name}: {why}{other}"
            ) from error
        error = np.max(np.abs(result - expected)) / np.max(np.abs(expected))
        # GPUs and TPUs multiply float32 in lower precision unless told otherwise. A CPU does not,
        # and there the known defect is as small as 8e-3 on some.
        if not error < (1e-4 if platform == "cpu" else 2e-2):
            raise BackendError(
                f"the {platform} backend of jaxlib {metadata.version('jaxlib')} computes "
                f"a {name} wrongly (relative error {error:.1e}); install another jaxlib, or on "
                f"a CPU set JAX_PLATFORMS=cpu and XLA_FLAGS=--{CPU_FLAG}={other}"
            )


def _sum_of_squares(rows):
    return jax.vmap(lambda r: jnp.sum((jnp.eye(3) @ r) ** 2))(rows)


def _convolution(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _platform() -> str:
    """What will compute, a key of FLAGS: what the user asks for, or else what is installed."""
    asked = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
    if asked:
        return asked if asked in FLAGS else "gpu"  # named cuda or rocm, too
    found = {k for name, k in ACCELERATOR_PACKAGES.items() if importlib.util.find_spec(name)}
    if "tpu" in found and not any(any(DEVICES.glob(files)) for files in TPU_FILES):
        found.remove("tpu")
        if not found:  # JAX would look for a TPU, long and loudly
            jax.config.update("jax_platforms", "cpu")
    return next(iter(sorted(found)), "cpu")


def jaxlib_knows(flag: str) -> bool:
    """Whether a shared library of jaxlib has the flag.

    Its name is then a string of its own; that of a flag that was retired is part of a longer one.
    """
    folder = Path(str(metadata.distribution("jaxlib").locate_file("jaxlib")))
    for library in sorted(folder.glob("*.so*"), key=lambda p: -p.stat().st_size)[:2]:
        with (
            library.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            if content.find(b"\0" + flag.encode() + b"\0") >= 0:
                return True
    return False
