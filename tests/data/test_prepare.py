"""The command that prepares latents: shared, killed, gone on with, refused."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import files_in
from prepared_files import Pictures

from slam_jax.commands import prepare
from slam_jax.data.image_text import Transform
from slam_jax.data.prepared import Prepared, read_info
from slam_jax.data.rejects import Rejected
from slam_jax.data.views import Cutter, Views, groups
from slam_jax.families.stable_diffusion_folder import read_pipeline
from slam_jax.formats import safetensors as weights
from slam_jax.formats.diffusers_folder import resolve
from slam_jax.recipes import prepare as recipe
from slam_jax.recipes.encode import Encoder

ROOT = Path(__file__).parents[2]
VAE = "vae/diffusion_pytorch_model.safetensors"


def arguments_of(teacher, out, *options):
    common = ["--source", "photographs", "--model", teacher, "--out", out, "--resolution", 16]
    common += ["--shard-size", 2, "--batch", 8, "--max-rejects", 0.3]
    return [str(value) for value in [*common, *options]]


@pytest.fixture
def run(teachers, monkeypatch, capsys):
    """Runs the command with `Pictures`; returns what it says at the end."""

    def run(out, *options, pictures=None, teacher=teachers["sd15"]):
        monkeypatch.setattr(recipe, "open_examples", lambda data: pictures or Pictures())
        prepare.main(arguments_of(teacher, out, *options))
        return capsys.readouterr().out

    return run


@pytest.fixture
def error_of(run):
    """What the command says, in one line, when it fails."""

    def error_of(out, *options, **more):
        with pytest.raises(SystemExit) as stop:
            run(out, *options, **more)
        assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
        return stop.value.code

    return error_of


@pytest.fixture(scope="module")
def finished(teachers, tmp_path_factory):
    """A folder of 5 shards, made in one go, not to be changed; "pictures", with two broken."""
    out = tmp_path_factory.mktemp("latents") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "open_examples", lambda data: broken())
        prepare.main(arguments_of(teachers["sd15"], out))
    return out


def broken():
    return Pictures(broken={3: "damaged image", 7: "damaged image"})


def test_what_cannot_be_used_is_counted_in_its_shard(finished):
    info = read_info(finished)
    assert info["counts"] == {"examples": 8, "source": 10, "shards": 5}
    assert [shard["count"] for shard in info["shards"]] == [2, 1, 2, 1, 2]
    assert info["rejects"] == {
        "counts": {"damaged image": 2},
        "first": {"damaged image": "picture 3"},
        "asked_for": [],
    }
    batch, _ = Prepared(finished).read(np.arange(8), np.arange(8))
    sizes = [Pictures()[index].image.shape[:2] for index in (0, 1, 2, 4, 5, 6, 8, 9)]
    np.testing.assert_array_equal(batch["time_ids"][:, :2], sizes)  # and in order


def test_what_is_not_finished_is_made_and_nothing_else(finished, run, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "x")
    for name in ("info.json", "shard-00001.json", "shard-00003.arrayrecord"):
        (folder / name).unlink()
    (folder / "shard-00001.arrayrecord").write_bytes(b"an older one")
    (folder / ".shard-00001.arrayrecord.tmp").write_bytes(b"half of")
    (folder / "shard-00004.json").write_text("{")
    kept = [folder / f"shard-{shard:05d}.arrayrecord" for shard in (0, 2)]
    before = [path.stat().st_mtime_ns for path in kept]
    assert run(folder, pictures=broken()) == f"wrote {folder}: 8 of 10 examples\n"
    assert files_in(folder) == files_in(finished)
    assert [path.stat().st_mtime_ns for path in kept] == before


def test_parts_are_made_one_by_one(finished, run, tmp_path):
    out = tmp_path / "x"
    said = run(out, "--part", "1/2", pictures=broken())
    assert said == f"part 1/2 of {out} is done; others are not yet\n"
    assert {path.stem for path in out.glob("*.arrayrecord")} == {"shard-00001", "shard-00003"}
    assert not (out / "info.json").exists()
    run(out, "--part", "0/2", pictures=broken())
    assert files_in(out) == files_in(finished)


def command(teacher, out, code="", *options):
    """The command in a process of its own, with `broken()` for its source."""
    code = f"""
import os, prepared_files
from slam_jax.commands import prepare
from slam_jax.data import prepared_write
from slam_jax.recipes import prepare as recipe
if __name__ == "__main__":
    broken = {{3: "damaged image", 7: "damaged image"}}
    recipe.open_examples = lambda data: prepared_files.Pictures(broken=broken)
    {code}
    prepare.main({arguments_of(teacher, out, *options)!r})
"""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests/support")))
    cache = jax.config.jax_compilation_cache_dir
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, "JAX_COMPILATION_CACHE_DIR": cache},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


KILLED = """
    write = prepared_write.ShardWriter.write
    def write_and_die(self, fields):
        write(self, fields)
        if "00002" in self._path.name:
            self.close()
            os.kill(os.getpid(), 9)
    prepared_write.ShardWriter.write = write_and_die
"""


@pytest.mark.nightly  # processes
def test_after_a_kill_the_same_command_goes_on(finished, teachers, run, tmp_path):
    killed = command(teachers["sd15"], tmp_path / "x", KILLED.strip())
    _, said = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, said
    made = {path.name for path in (tmp_path / "x").iterdir()}
    assert {"shard-00001.json", ".shard-00002.arrayrecord.tmp"} <= made
    assert not {"shard-00002.json", "info.json"} & made
    run(tmp_path / "x", pictures=broken())
    assert files_in(tmp_path / "x") == files_in(finished)


@pytest.mark.nightly  # processes
def test_parts_are_made_by_processes_at_once(finished, teachers, tmp_path):
    parts = [
        command(teachers["sd15"], tmp_path / "x", "", "--part", f"{part}/2", "--workers", part)
        for part in range(2)
    ]
    said = [part.communicate() for part in parts]
    assert [part.returncode for part in parts] == [0, 0], said
    assert any("wrote" in out for out, _ in said)
    assert files_in(tmp_path / "x") == files_in(finished)


def test_too_much_damage_stops(error_of, run, tmp_path):
    pictures = Pictures(24, {n: "damaged image" if n % 3 else "no image" for n in range(4, 16)})
    said = error_of(tmp_path / "x", "--max-rejects", "0.1", pictures=pictures)
    assert said.startswith("error: photographs: 12 of 16 examples cannot be used")
    assert "(first: picture 4)" in said and "no image (first: picture 6)" in said
    done = {path.stem for path in (tmp_path / "x").glob("shard*")}
    assert done == {f"shard-{shard:05d}" for shard in range(7)}
    # What was passed over before counts when it goes on, and what is done is kept.
    said = error_of(tmp_path / "x", pictures=pictures)
    assert said.startswith("error: pictures: 12 of 24 examples cannot be used")
    assert not (tmp_path / "x/info.json").exists()
    run(tmp_path / "x", "--max-rejects", "1", pictures=pictures)
    assert read_info(tmp_path / "x")["counts"]["examples"] == 12


def changed_vae(teacher, folder, change):
    folder = shutil.copytree(teacher, folder)
    arrays = dict(weights.load_arrays(folder / VAE))
    bias = np.array(arrays["quant_conv.bias"])
    bias[0] = change
    weights.save_arrays(folder / VAE, arrays | {"quant_conv.bias": bias})
    return folder


def test_numbers_that_cannot_be_stored_are_refused(teachers, error_of, run, tmp_path):
    large = changed_vae(teachers["sd15"], tmp_path / "large", 1e5)
    said = error_of(tmp_path / "x", teacher=large)
    assert "moments: too large for float16; use --dtype bfloat16" in said
    assert not list((tmp_path / "x").glob("*shard*"))
    run(tmp_path / "y", "--dtype", "bfloat16", teacher=large)
    batch, _ = Prepared(tmp_path / "y").read(np.arange(3), np.arange(3))
    np.testing.assert_allclose(batch["moments"][..., 0].astype(float), 1e5, rtol=0.01)
    nan = changed_vae(teachers["sd15"], tmp_path / "nan", np.nan)
    assert "the model gives NaN or infinity in float32" in error_of(tmp_path / "z", teacher=nan)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--part", "3/2"], "--part 3/2: expected I/N"),
        (["--part", "2/2"], "--part 2/2: expected I/N"),
        (["--part", "one"], "--part one: expected I/N"),
        (["--captions", "0"], "--captions 0: expected 1 or more"),
        (["--shard-size", "0"], "--shard-size 0: expected 1 or more"),
        (["--batch", "-1"], "--batch -1: expected 1 or more"),
        (["--seed", "-1", "--crop", "random"], "--seed -1: expected 0 to"),
        (["--seed", "7"], "--seed: decides random crops only"),
        (["--resolution", "20"], "--resolution 20: height = 20: expected a positive multiple of 8"),
        (["--resolution", "0"], "--resolution 0: height = 0: expected a positive multiple of 8"),
        (["--workers", "-1"], "--workers = -1, expected a number at least 0"),
        (["--model", "no/such/model"], "no/such/model"),
    ],
)
def test_impossible_options_are_refused(error_of, tmp_path, options, message):
    assert message in error_of(tmp_path / "x", *options)
    assert not (tmp_path / "x").exists()


def test_a_model_that_cannot_be_read_leaves_no_folder(error_of, changeable, tmp_path):
    (changeable / VAE).write_bytes(b"")
    assert VAE in error_of(tmp_path / "x", teacher=changeable)
    assert not (tmp_path / "x").exists()


def test_folders_that_hold_something_else_are_refused(error_of, finished, changeable, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    (tmp_path / "file").write_text("")
    for name in ("mine", "file"):
        said = error_of(tmp_path / name, "--model", "no/such/model")  # before all that takes long
        assert f"{name}: not empty, and nothing that slam-jax prepare began" in said
    assert "file/x: cannot be written: [Errno 20] Not a directory" in error_of(
        tmp_path / "file" / "x"
    )
    said = error_of(finished, "--resolution", "24", pictures=broken())
    assert "begun with resolution = 16, but now it is 24" in said
    shutil.rmtree(changeable / "vae")
    assert "vae" in error_of(tmp_path / "x", teacher=changeable)


def test_groups_do_not_reach_over_shards():
    stream = iter(["a", "b", Rejected("bad", "c"), "d", "e", "f", Rejected("bad", "g"), "h", "i"])
    made = list(groups(stream, {3: 5, 5: 1, 6: 1, 7: 2}, size=2))
    assert [(group.shard, group.views, group.read, group.rejects.total) for group in made] == [
        (3, ["a", "b"], 2, 0),
        (3, ["d", "e"], 3, 1),
        (5, ["f"], 1, 0),
        (6, [], 1, 1),
        (7, ["h", "i"], 2, 0),
    ]


def test_a_random_crop_is_decided_by_seed_and_index(finished):
    cutter = Cutter(Pictures(), Transform(16, "random", flip=True), seed=5)
    shapes = [Pictures()[index].image.shape[:2] for index in range(10)]
    longer = [round(max(shape) * 16 / min(shape)) for shape in shapes]
    places = [np.random.default_rng((5, index)).random() for index in range(10)]
    offsets = [int(place * (side - 15)) for place, side in zip(places, longer, strict=True)]
    views = [cutter(index) for index in range(10)]
    assert [view.time_ids[0, 2:4].sum() for view in views] == offsets and len(set(offsets)) > 3
    for view in views:
        np.testing.assert_array_equal(view.images[1], view.images[0, :, ::-1])


def test_pictures_that_are_no_whole_patches_are_refused(error_of, teachers, tmp_path):
    assert "multiple of 16" in error_of(tmp_path, "--resolution=24", teacher=teachers["sd3"])


def test_the_batch_is_split_over_devices_and_has_one_shape(teachers):
    model = resolve(str(teachers["sd15"]))
    pipeline = read_pipeline(model, 16, 16)
    fields = pipeline.prepared_fields(1, 2, embeddings=False, dtype="float16")
    encoder = Encoder(pipeline, model, "float32", fields, batch=11)
    assert encoder.batch == 16 and jax.local_device_count() == 8
    rng = np.random.default_rng(0)
    views = [
        Views(rng.integers(0, 256, (1, 16, 16, 3), np.uint8), np.zeros((1, 6)), ("a", "b", "c"))
        for _ in range(16)
    ]
    full, one = (encoder.start(views[:count]) for count in (16, 1))
    shards = one.results["moments"].addressable_shards
    assert len({shard.device for shard in shards}) == 8 and shards[0].data.shape == (2, 2, 2, 8)
    assert encoder._moments._cache_size() == 1
    full, one = encoder.finish(full), encoder.finish(one)
    for name in fields:
        assert full[name].shape == (16, *fields[name]["shape"])
        np.testing.assert_array_equal(one[name], full[name][:1], strict=True)
    assert full["caption_count"].tolist() == [2] * 16
