"""Checkpoints: every bit on any mesh, damage, failing writes, the newest and the best."""

import asyncio
import gc
import json
import os
import resource
import shutil
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from slam_jax.base.errors import InputError
from slam_jax.training.checkpoint import FORMAT, Checkpoints
from slam_jax.training.checkpoint_files import best_step, read_part, read_position, steps_in

RECORD = {"config": {"a": 1}, "teacher": {"unet": "u", "vae": "v"}}
SHAPES = {"ema": {"w": (16, 24), "b": (8,)}, "step": ()}
SPLIT = {"w": PartitionSpec("fsdp"), "b": PartitionSpec(("data", "fsdp"))}
SPECS = {"ema": SPLIT, "step": PartitionSpec()}
ON_CPU = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])


def values(seed):
    """Random bits, NaNs included, as float32 arrays."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: np.array(rng.integers(0, 2**32, shape, np.uint32)).view(np.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def bits(tree):
    return jax.tree.map(lambda a: np.asarray(a).view(np.uint32).tolist(), tree)


def shardings(data, fsdp):
    devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    mesh = jax.sharding.Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)


def save(folder, *steps, metrics=None, keep=2, **options):
    with Checkpoints(folder, keep, RECORD, **options) as checkpoints:
        for step in steps:
            found = {"kid": metrics[step]} if metrics and step in metrics else None
            checkpoints.save(step, jax.device_put(values(step)), {"next": step}, found)


def restored(folder, like=None, where=None, record=RECORD):
    like = like or values(0)
    where = where or jax.tree.map(lambda _: ON_CPU, like)
    with Checkpoints(folder, 2, record) as checkpoints:
        return checkpoints.restore(like, where)


def tree_of(folder):
    return {str(p.relative_to(folder)): p.is_file() and p.read_bytes() for p in folder.rglob("*")}


def largest(folder):
    """The file with the data of the arrays."""
    return max((p for p in folder.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize(
    ("before", "after"), [((2, 4), (1, 1)), ((1, 1), (2, 4)), ((8, 1), (2, 4))]
)
def test_every_bit_survives_another_mesh(tmp_path, before, after):
    state = values(3)
    with Checkpoints(tmp_path, 1, RECORD) as checkpoints:
        checkpoints.save(3, jax.device_put(state, shardings(*before)), {"next": 7})
    found, position = restored(tmp_path, where=shardings(*after))
    assert bits(found) == bits(state) and position == {"next": 7}
    assert jax.tree.map(lambda a: a.sharding, found) == shardings(*after)


def test_what_is_saved_is_what_was_there_when_save_was_called(tmp_path):
    """The step after it may take the state's memory, and the data may go on."""
    step_fn = jax.jit(lambda s: jax.tree.map(lambda a: a * 2 + 1, s), donate_argnums=0)
    big = {"w": np.arange(3_000_000, dtype=np.float32)}
    state, position = jax.device_put(big), {"next": [1]}
    with Checkpoints(tmp_path, 1, RECORD) as checkpoints:
        checkpoints.save(1, state, position)
        position["next"].append(2)
        state = step_fn(step_fn(state))
    found, position = restored(tmp_path, big)
    np.testing.assert_array_equal(found["w"], big["w"])
    assert position == {"next": [1]}


def test_the_newest_and_the_best_are_kept(tmp_path):
    best = dict(keep_best=1, metric="kid")
    kid = {1: 0.5, 2: 0.1, 3: 0.4, 4: np.nan, 6: 0.3}
    save(tmp_path, 1, 2, 3, metrics=kid, **best)
    assert steps_in(tmp_path) == [2, 3]
    save(tmp_path, 4, 5, 6, metrics=kid, **best)  # a new process knows the old metrics
    assert steps_in(tmp_path) == [2, 5, 6]
    assert best_step(tmp_path, "kid") == 2 and best_step(tmp_path, "fid") is None
    save(tmp_path, 7, 8, metrics={7: 0.1}, **best)  # as good, and newer
    assert steps_in(tmp_path) == [7, 8] and best_step(tmp_path, "kid") == 7
    assert restored(tmp_path)[1] == {"next": 8}
    assert restored(tmp_path / "none") is None


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "one bit": lambda folder: flip(largest(folder)),
    "cut off": lambda folder: os.truncate(largest(folder), 100),
    "gone": lambda folder: largest(folder).unlink(),
    "no state": lambda folder: shutil.rmtree(folder / "state"),
    "nothing": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
    "not JSON": lambda folder: (folder / "about/metadata").write_text("{"),
    "one digit": lambda folder: (folder / "about/metadata").write_text(
        (folder / "about/metadata").read_text().replace('"next": 4', '"next": 5')
    ),
    "no checksums": lambda folder: (folder / "checksums.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_makes_way_for_the_one_before(tmp_path, capsys, damage):
    save(tmp_path, 2, 4)
    DAMAGES[damage](tmp_path / "4")
    with Checkpoints(tmp_path, 2, RECORD) as checkpoints:
        state, position = checkpoints.restore(values(0), jax.tree.map(lambda _: ON_CPU, values(0)))
        assert bits(state) == bits(values(2)) and position == {"next": 2}
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"note: {tmp_path}/4 is damaged (") and "from step 2" in line
        assert checkpoints.latest_step == 2
        checkpoints.save(4, jax.device_put(values(44)), {"next": 44})
    assert (tmp_path / "4.damaged").is_dir() and steps_in(tmp_path) == [2, 4]
    assert bits(restored(tmp_path)[0]) == bits(values(44))


def test_readers_of_damaged_checkpoints_change_nothing(tmp_path):
    save(tmp_path, 2, 4, metrics={2: 0.2, 4: 0.1})
    like = {name: np.zeros(shape, np.float32) for name, shape in SHAPES["ema"].items()}
    assert bits(read_part(tmp_path, 4, "ema", like)) == bits(values(4)["ema"])
    flip(largest(tmp_path / "4"))
    (tmp_path / "4/about/metadata").write_text("{")
    (tmp_path / "2/checksums.json").unlink()
    before = tree_of(tmp_path)
    assert read_position(tmp_path) == {"next": 2} and best_step(tmp_path, "kid") == 2
    with pytest.raises(InputError, match=r"4: damaged \(.*choose another step"):
        read_part(tmp_path, 4, "ema", like)
    with pytest.raises(InputError, match=r"no checkpoint can be read \(step 4: .*; step 2: "):
        restored(tmp_path)
    assert tree_of(tmp_path) == before


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("shape", r"ema.w has shape \(16, 24\), expected \(2, 3\)"),
        ("key", "ema.new is missing"),
        ("type", "ema.b is float32, expected float16"),
        ("teacher", "its vae is not this run's"),
        ("no teacher", "it is not this run's"),
        ("format", rf"newer slam_jax \(format {FORMAT + 1}, this one reads {FORMAT}\); update"),
    ],
)
def test_a_checkpoint_that_is_not_this_runs_is_refused_and_kept(tmp_path, what, words):
    save(tmp_path, 1, 2)
    like, record = values(0), {**RECORD, "teacher": {**RECORD["teacher"]}}
    if what == "shape":
        like["ema"]["w"] = np.zeros((2, 3), np.float32)
    elif what == "key":
        like["ema"]["new"] = np.zeros(3, np.float32)
    elif what == "type":
        like["ema"]["b"] = np.zeros(8, np.float16)
    elif what == "teacher":
        record["teacher"]["vae"] = "another"
    elif what == "no teacher":
        record["teacher"] = None
    else:  # a newer one may do without checksums
        (tmp_path / "2/about/metadata").write_text(json.dumps({"format": FORMAT + 1}))
        (tmp_path / "2/checksums.json").unlink()
    before = tree_of(tmp_path)
    with pytest.raises(InputError, match=words) as error:
        restored(tmp_path, like, record=record)
    assert "\n" not in str(error.value) and tree_of(tmp_path) == before


def wait_until_nothing_changes(folder):
    """Writes that have failed are still tidied up; a process of its own would have ended."""
    before = None
    while before != (before := [*os.walk(folder)]):
        time.sleep(0.5)


def test_a_disk_that_takes_no_more_is_one_line_and_older_checkpoints_stay(tmp_path):
    save(tmp_path, 1)
    # So many that some are written when orbax has given up.
    many = jax.device_put({f"w{i}": np.zeros((100, 100), np.float32) for i in range(50)})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        pytest.raises(InputError, match=r"step 2 could not be saved \(File too large\); older .*"),
        Checkpoints(tmp_path, 1, RECORD) as checkpoints,
    ):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
            checkpoints.save(2, many, {})
            with pytest.raises(InputError, match="File too large") as error:
                checkpoints.save(3, many, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        raise error.value  # goes through the context manager as it would in the loop
    assert steps_in(tmp_path) == [1] and restored(tmp_path)[1] == {"next": 1}
    wait_until_nothing_changes(tmp_path)
    save(tmp_path, 3)
    assert {p.name for p in tmp_path.iterdir()} == {"1", "3"}


def test_writes_that_nobody_asks_about_any_more_say_nothing(tmp_path, caplog, recwarn):
    """As on a disk that is full before the first array is written; asyncio logs each of them, and
    Python warns of each that never began."""

    async def write():
        raise ValueError("No space left on device")

    async def two():
        asyncio.create_task(write())
        await asyncio.sleep(0)

    with Checkpoints(tmp_path, 1, RECORD):
        asyncio.run(two())
        write()
        gc.collect()
    assert not caplog.records and not recwarn.list


def test_a_folder_that_cannot_be_made_or_disappears(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written to .*; choose another workdir"):
        Checkpoints(tmp_path / "file/checkpoints", 1, RECORD)
    with Checkpoints(tmp_path / "c", 1, RECORD) as checkpoints:
        (tmp_path / "c").rmdir()
        (tmp_path / "c").touch()
        # Which of the two it is depends on what orbax's threads meet first.
        why = r"step 2 could not be saved \((Not a directory|No such file or directory)"
        with pytest.raises(InputError, match=why):
            checkpoints.save(2, jax.device_put(values(2)), {})
