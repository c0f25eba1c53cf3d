"""Making folders of latents: shared work, interruptions, other plans, full disks."""

import resource
import shutil

import numpy as np
import prepared_files
import pytest

from slam_jax.base.errors import InputError
from slam_jax.data.prepared import Prepared, read_info
from slam_jax.data.prepared_write import Store
from slam_jax.data.rejects import Rejected, Rejects


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and content; not to be changed."""
    folder = tmp_path_factory.mktemp("latents") / "finished"
    return folder, prepared_files.write(folder)[0]


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "copy")


def shard(folder, number):
    return folder / f"shard-{number:05d}.arrayrecord"


def test_what_was_passed_over_is_summed(tmp_path):
    prepared_files.write(tmp_path / "x", rejected=[1, 4, 5, 6, 7], finish=False)
    store, opening = Store(tmp_path / "x", prepared_files.plan()), Rejects()
    opening.add(Rejected("no caption", "a"), 3)
    opening.add(Rejected("too small", "b", asked_for=True))
    store.finish(opening, 1.0)
    info = read_info(tmp_path / "x")
    assert [entry["count"] for entry in info["shards"]] == [3, 0, 2]
    assert info["rejects"] == {
        "counts": {"no caption": 3, "too small": 1, "broken": 5},
        "first": {"no caption": "a", "too small": "b", "broken": "picture 1"},
        "asked_for": ["too small"],
    }
    source = Prepared(tmp_path / "x")
    assert len(source) == info["counts"]["examples"] == 5
    source.read(np.arange(5), np.arange(5))  # beyond the empty shard too


def test_the_identity_is_that_of_the_content(finished, copy, tmp_path):
    same, moved = Prepared(finished[0]), Prepared(copy, flip=True)
    prepared_files.write(tmp_path / "fewer", rejected=[9])
    prepared_files.write(tmp_path / "others", dtype="bfloat16")
    others = {Prepared(tmp_path / name).identity for name in ("fewer", "others")}
    assert same.identity == moved.identity and len(others - {same.identity}) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 32}, "begun with resolution = 24, but now it is 32"),
        ({"identity": "other"}, "begun with other examples or captions (10 then, 10 now)"),
        ({"crop": "random"}, "begun with crop = 'center', but now it is 'random'"),
        ({"filters": {"min_size": 9}}, "begun with filters.min_size = 0, but now it is 9"),
        ({"dtype": "bfloat16"}, "begun with fields.moments.dtype = 'float16'"),
    ],
)
def test_another_plan_is_refused(finished, changes, message):
    with pytest.raises(InputError) as error:
        Store(finished[0], prepared_files.plan(**changes))
    assert message in str(error.value)


def test_the_same_plan_under_another_name_goes_on(finished):
    model = prepared_files.plan()["model"] | {"path": "/elsewhere"}
    store = Store(finished[0], prepared_files.plan(source="/moved", model=model))
    assert all(store.done(shard) is not None for shard in range(store.shards))


def test_a_shard_is_made_by_one_process_at_a_time(finished, copy):
    (copy / "shard-00002.json").unlink()
    one, other = (Store(copy, prepared_files.plan()) for _ in range(2))
    with one.shard(2) as writer:
        with pytest.raises(InputError, match="00002.arrayrecord: another process is making it"):
            other.shard(2).__enter__()
        writer.write({name: rows[8:] for name, rows in finished[1].items()})
    assert other.done(2) is not None
    assert shard(copy, 2).read_bytes() == shard(finished[0], 2).read_bytes()


def test_of_a_shard_that_fails_nothing_is_left(copy):
    before = {path.name for path in copy.iterdir()}
    (copy / "shard-00002.json").unlink()
    shard(copy, 2).unlink()
    with pytest.raises(KeyError), Store(copy, prepared_files.plan()).shard(2) as writer:
        writer.write({"moments": np.zeros((1, 2, 2, 3, 8))})
    left = {path.name for path in copy.iterdir()}
    assert before - left == {"shard-00002.json", "shard-00002.arrayrecord"} and left <= before


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    folder, content = tmp_path / "x", prepared_files.plan(count=400, shard_size=400)
    store, limits = Store(folder, content), resource.getrlimit(resource.RLIMIT_FSIZE)
    rows = prepared_files.random_fields(store.dtype, 400, seed=0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as if the disk were full
    try:
        with (
            pytest.raises(
                InputError, match="arrayrecord: cannot be written: .* too large"
            ) as error,
            store.shard(0) as writer,
        ):
            writer.write(rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert [path.name for path in folder.iterdir()] == ["plan.json"]
    with store.shard(0) as writer:
        writer.write(rows)
    assert store.done(0) is not None
