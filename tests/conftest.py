"""Strict tests: 8 fake CPU devices, no rank promotion; compiled programs are kept in .cache/. And
the tiny teachers that several tests read."""

import fcntl
import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch: idle threads spin on tiny layers
# Of processes that tests start, too.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache/jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

from slam_jax.parallel import runtime  # noqa: E402

# Compiling takes most of the time here; the arithmetic is the same without LLVM's optimisations and
# XLA's newer kernels, and with each program in one piece.
flags = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
for name, value in (
    ("xla_cpu_use_fusion_emitters", "false"),
    ("xla_cpu_parallel_codegen_split_count", "1"),
):
    if runtime.jaxlib_knows(name):
        flags.append(f"--{name}={value}")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()
runtime.configure()

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes many objects, and with torch imported a look through all of them takes long.
gc.set_threshold(100_000, 20, 100)


def pytest_collection_finish():
    """What the imports made stays: looking through it takes a second each time."""
    gc.freeze()


class Teachers(dict):
    """Family -> folder of its tiny teacher, made when it is first asked for; not to be changed.

    "zero_snr" is sd21_v with a schedule that ends without signal.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> Path:
        import tiny_sd3
        import tiny_stable_diffusion

        if name in tiny_sd3.FAMILIES:
            self[name] = tiny_sd3.make(self._folder / name, name)
            return self[name]
        zero_snr = name == "zero_snr"
        family = "sd21_v" if zero_snr else name
        self[name] = tiny_stable_diffusion.make(self._folder / name, family, zero_snr)
        return self[name]


@pytest.fixture(scope="session")
def teachers(tmp_path_factory) -> Teachers:
    return Teachers(tmp_path_factory.mktemp("teachers"))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """(name, make) -> a copy of the folder that `make(folder)` makes, once for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def copy(name: str, make: Callable[[Path], None]) -> Path:
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shared / name).exists():
                make(shared / f"{name}.unfinished")
                (shared / f"{name}.unfinished").rename(shared / name)
        return shutil.copytree(shared / name, tmp_path_factory.mktemp("copies") / name)

    return copy


@pytest.fixture(scope="session")
def digits_teacher(made_once) -> dict:
    """The trained teacher of `digits_runs`, as `slam_jax.distill` takes it."""
    import digits_runs

    run = made_once("finished_digits", digits_runs.launch)
    return {**digits_runs.TEACHER, "path": str(run / "teacher")}


@pytest.fixture(scope="session")
def finished_sd(teachers, made_once) -> Path:
    """A run of four steps from the teacher "sd15", made where torch is not found."""
    import tiny_runs

    def make(workdir):
        tiny_runs.run_without_torch(["train", *tiny_runs.flags(teachers["sd15"], workdir)])

    return made_once("finished_sd", make)


@pytest.fixture
def changeable(teachers, tmp_path) -> Path:
    """A teacher of SD 1.5 that a test may change."""
    return shutil.copytree(teachers["sd15"], tmp_path / "sd15")
