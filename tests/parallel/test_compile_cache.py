"""Programs are compiled once: across starts and --resume, after a kill, within a limit."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import pytest

from slam_jax.config.validate import freeze, to_json
from slam_jax.families.digits import SCHEDULER
from slam_jax.formats.flax_folder import SavedModel, save_model
from slam_jax.models import functional
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig
from slam_jax.parallel import compile_cache
from slam_jax.recipes.teacher import OPTIONS_FILE

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "digits.py"
# A program with a custom partitioning, as cuDNN's attention is one, over two devices.
PROGRAM = """
import warnings
warnings.simplefilter("error")
from slam_jax.parallel import runtime
runtime.configure()
import jax, numpy as np
from jax import monitoring
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
events = []
monitoring.register_event_listener(lambda event, **kwargs: events.append(event.split("/")[-1]))

@custom_partitioning
def double(x):
    return 2 * x

def partition(mesh, arguments, result):
    shardings = tuple(argument.sharding for argument in arguments)
    return mesh, lambda x: 2 * x, result.sharding, shardings

double.def_partition(
    infer_sharding_from_operands=lambda mesh, arguments, result: arguments[0].sharding,
    partition=partition,
    sharding_rule="i j -> i j",
)
mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
x = jax.device_put(np.ones((4, 3), np.float32), NamedSharding(mesh, PartitionSpec("data")))
assert jax.jit(lambda x: double(x) + 1)(x).sum() == 36
print(events.count("cache_hits"), events.count("cache_misses"))
"""


def start(*arguments, cache_home, **changes):
    """(stdout, stderr) of a process whose home has a cache of its own."""
    ours = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    inherited = {k: v for k, v in os.environ.items() if k not in ours}
    changes |= {"XDG_CACHE_HOME": str(cache_home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cache_home,
        env=inherited | changes,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """JAX has not been told about a cache; the home is a new one."""
    names = (
        "jax_compilation_cache_dir",
        "jax_enable_compilation_cache",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_remove_custom_partitioning_ptr_from_cache_key",
    )
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    yield tmp_path / "home" / "slam_jax" / "compiled"
    for name, value in before.items():
        jax.config.update(name, value)


def entry(folder, name, content=b"x" * 1000, read=0):
    """An entry as JAX writes it, last read at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-cache"
    path.write_bytes(zlib.compress(content, 0))
    os.utime(path, (read, path.stat().st_mtime))
    return path


def test_a_second_start_finds_what_the_first_compiled_also_after_a_kill(tmp_path):
    everything = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    first, _ = start("-c", PROGRAM, cache_home=tmp_path, **everything)
    hits, misses = map(int, first.split())
    assert hits == 0 and misses >= 1
    found, _ = start("-c", PROGRAM, cache_home=tmp_path, **everything)
    assert found.split() == [str(misses), "0"]
    folder = tmp_path / "slam_jax" / "compiled"
    (file,) = folder.glob("jit__lambda*-cache")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    repaired, _ = start("-c", PROGRAM, cache_home=tmp_path, **everything)
    assert repaired.split() == [str(misses - 1), "1"]
    assert len(file.read_bytes()) > len(whole) // 2


@pytest.mark.nightly
def test_training_goes_on_without_compiling_its_step_again(tmp_path):
    specification = importlib.util.spec_from_file_location("digits", CONFIG)
    specification.loader.exec_module(config := importlib.util.module_from_spec(specification))
    options = config.get_config()
    options.teacher.network.block_out_channels = (8,)
    options = freeze(options).teacher
    unet = UNetConfig.from_dict(options.network)
    params = jax.device_get(functional.init(UNet2DConditionModel, unet, jax.random.key(0)))
    scheduler = {**SCHEDULER, "prediction_type": "epsilon"}
    save_model(tmp_path / "teacher", SavedModel("digits", unet.to_dict(), params, scheduler, {}))
    (tmp_path / "teacher" / OPTIONS_FILE).write_text(to_json(options))
    small = [
        "teacher.path=teacher",
        "teacher.network.block_out_channels=(8,)",
        "training.steps=2",
        "training.checkpoint_every=1",
        "training.sample_every=0",
        "training.optimizer.warmup_steps=1",
        "method.gamma=one",
        "method.gammas_per_subpath=1",
        "evaluation.samples=50",
        "evaluation.teacher_steps=(1,)",
        "evaluation.student_steps=(1,)",
    ]
    command = ["-m", "slam_jax.main", "--config", CONFIG, "--workdir", "run"]
    command += [f"--config.{option}" for option in small]
    told = {"JAX_LOG_COMPILES": "1", "JAX_EXPLAIN_CACHE_MISSES": "1", "JAX_NUM_CPU_DEVICES": "1"}

    def programs(log, outcome):
        return re.findall(rf"(?i)persistent compilation cache {outcome} for '(\w+)'", log)

    _, log = start(*command, cache_home=tmp_path, **told)
    assert "jit_step" in programs(log, "miss") and "jit_step" not in programs(log, "hit")
    before = (tmp_path / "run" / "export" / "flax_params.safetensors").read_bytes()
    # As after a kill in the last step.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    shutil.rmtree(tmp_path / "run" / "export")
    _, log = start(*command, "--resume", cache_home=tmp_path, **told)
    assert "jit_step" in programs(log, "hit") and "jit_step" not in programs(log, "miss")
    assert (tmp_path / "run" / "export" / "flax_params.safetensors").read_bytes() == before


def test_it_is_in_the_users_cache_folder(fresh):
    compile_cache.configure(alone=True)
    assert jax.config.jax_compilation_cache_dir == str(fresh) and fresh.is_dir()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == compile_cache.MIN_SECONDS
    # A lock for every program that is read, and jax issue 39880.
    assert jax.config.jax_compilation_cache_max_size == -1


def test_the_users_own_choice_wins(fresh, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    compile_cache.configure(alone=True)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    jax.config.update("jax_compilation_cache_dir", "")
    compile_cache.configure(alone=True)
    assert jax.config.jax_compilation_cache_dir is None
    jax.config.update("jax_enable_compilation_cache", False)
    compile_cache.configure(alone=True)
    assert jax.config.jax_compilation_cache_dir is None
    assert not fresh.exists() and not (tmp_path / "mine").exists()


def test_several_processes_share_none_but_the_users_own(fresh, tmp_path):
    """What one finds in its home the others may not have: they would wait for each other."""
    compile_cache.configure(alone=False)
    assert jax.config.jax_compilation_cache_dir is None and not fresh.exists()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "shared"))
    compile_cache.configure(alone=False)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "shared")


def test_a_folder_that_cannot_be_written_stops_nothing(fresh, capsys):
    fresh.parent.parent.mkdir()
    fresh.parent.write_text("a file where the folder would be")
    compile_cache.configure(alone=True)
    said = capsys.readouterr().err
    assert said.startswith("note: ") and said.count("\n") == 1 and str(fresh) in said
    assert jax.config.jax_compilation_cache_dir is None


def test_damaged_entries_are_removed(tmp_path):
    entries = {name: entry(tmp_path, name) for name in ("whole", "half", "empty", "noise")}
    half = entries["half"].read_bytes()[:500]
    entries["half"].write_bytes(half)
    entries["empty"].write_bytes(b"")
    entries["noise"].write_bytes(b"not compressed at all")
    other = entry(tmp_path, "of_zstandard")
    other.write_bytes(compile_cache.ZSTANDARD + b"...")
    (tmp_path / "something_else").write_bytes(b"")
    compile_cache.look_after(tmp_path, 10**6)
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert left == {"whole-cache", "of_zstandard-cache", "something_else"}
    # What is older than the last look is not read again; what is written after it is.
    entries["whole"].write_bytes(half)
    os.utime(entries["whole"], (0, 0))
    entries["half"].write_bytes(half)
    compile_cache.look_after(tmp_path, 10**6)
    assert entries["whole"].exists() and not entries["half"].exists()


def test_those_not_read_for_longest_go_first(tmp_path):
    paths = [entry(tmp_path, name, read=time) for name, time in (("a", 3), ("b", 1), ("c", 2))]
    size = paths[0].stat().st_size
    compile_cache.look_after(tmp_path, 3 * size)
    assert all(path.exists() for path in paths)
    for path, time in zip(paths, (3, 1, 2), strict=True):
        os.utime(path, (time, path.stat().st_mtime))  # to look was to read
    compile_cache.look_after(tmp_path, 2 * size)
    assert [path.exists() for path in paths] == [True, False, True]


def test_another_process_may_look_after_the_same_folder(tmp_path, monkeypatch):
    path, gone = entry(tmp_path, "here"), tmp_path / "gone-cache"
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([path, gone]))
    compile_cache.look_after(tmp_path, 0)
