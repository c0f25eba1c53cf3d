"""A teacher's own pictures to distil it on: drawn as the stock pipelines draw, and once."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from helpers import assert_close, files_in, interrupt_in_step
from own_pictures_runs import COUNT, SEED, SHARD, STEPS, W, options
from tiny_runs import flags, launch

from slam_jax.base.errors import InputError
from slam_jax.commands import inspect
from slam_jax.config.command_line import parse
from slam_jax.data import prepared_write
from slam_jax.data.prepared import Prepared
from slam_jax.method.method import gaussian
from slam_jax.parallel.keys import keys_of
from slam_jax.parallel.sharding import make_mesh
from slam_jax.recipes import own_pictures, run
from slam_jax.recipes.open_teacher import open_teacher

ROOT = Path(__file__).parents[2]
TEXTS = ["two cats on a sofa", "the old city at night", "a bowl of fruit", ""]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """A file of three prompts: the fourth text is an empty line."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(TEXTS))
    return path


def opened(teacher, workdir, *more, config="sd"):
    command = parse(flags(teacher, workdir, *more, config=config))
    family = open_teacher(command.config, workdir)
    return own_pictures.own_pictures(command.config, workdir, family)


def one_device():
    return make_mesh(1, 1, jax.local_devices()[:1])


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(own_pictures, "SHARD_SIZE", SHARD)


@pytest.fixture(scope="module")
def drawn(teachers, prompts, tmp_path_factory):
    """What eight devices drew, and the examples; not to be changed."""
    workdir = tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_pictures, "SHARD_SIZE", SHARD)
        pictures = opened(teachers["sd15"], workdir, *options(prompts))
        return pictures, pictures.draw(make_mesh())


def stock_latents(teacher, texts, noise):
    """What the stock pipeline draws from the noise with DDIM."""
    from diffusers import DDIMScheduler, DiffusionPipeline

    stock = DiffusionPipeline.from_pretrained(teacher)
    stock.scheduler = DDIMScheduler.from_config(
        stock.scheduler.config,
        **{"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False},
    )
    stock.set_progress_bar_config(disable=True)
    found = stock(
        texts,
        num_inference_steps=STEPS,
        guidance_scale=W + 1,
        latents=torch.from_numpy(np.array(noise)).movedim(-1, 1),
        output_type="latent",
        **{"height": 64, "width": 64},
    )
    return found.images.movedim(1, -1).numpy()


def assert_drawn_like_the_stock_pipeline(teacher, pipeline, source):
    index = np.arange(5)
    batch, rejects = source.read(index, index)
    noise = gaussian(keys_of(SEED).own, index, pipeline.latent_shape)
    expected = stock_latents(teacher, (TEXTS[:3] * 2)[:5], noise)
    assert batch["moments"].dtype == np.float16 and rejects.total == 0
    # With any noise of the VAE's, of which training draws another in each step.
    latents = pipeline.latents({}, batch, jax.random.key(9), index)
    assert_close(latents, expected, 1e-3)
    np.testing.assert_array_equal(batch["time_ids"], [[64, 64, 0, 0, 64, 64]] * 5)


@pytest.mark.slow  # compiles the teacher
def test_training_gets_the_latents_that_the_stock_pipeline_draws(teachers, drawn):
    pictures, source = drawn
    assert_drawn_like_the_stock_pipeline(teachers["sd15"], pictures.pipeline, source)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["zero_snr", "sdxl"])
def test_so_it_does_with_v_prediction_and_with_sdxl(teachers, prompts, tmp_path, family):
    config, flag = ("sdxl" if family == "sdxl" else "sd"), options(prompts, count=5)
    pictures = opened(teachers[family], tmp_path, *flag, config=config)
    source = pictures.draw(make_mesh())
    assert_drawn_like_the_stock_pipeline(teachers[family], pictures.pipeline, source)


@pytest.mark.slow
def test_a_batch_is_as_the_plan_of_a_run_expects(drawn):
    pictures, source = drawn
    batch, _ = source.read(np.arange(3), np.arange(3))
    shapes = pictures.family.batch_shapes(pictures.config.data, 3)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in shapes.items()
    }


@pytest.mark.slow
def test_prompts_may_be_left_out_as_of_prepared_latents(teachers, drawn, prompts):
    pictures, _ = drawn
    flag = [*options(prompts), "--config.data.empty_prompts=1.0"]
    source = opened(teachers["sd15"], pictures.store.folder.parent, *flag).draw(make_mesh())
    batch, _ = source.read(np.arange(3), np.arange(3))
    empty = transformers.CLIPTokenizer.from_pretrained(teachers["sd15"] / "tokenizer")("").input_ids
    assert batch["tokens"][:, 0, : len(empty)].tolist() == [empty] * 3


@pytest.mark.slow
def test_one_device_goes_on_after_a_kill_and_eight_end_in_the_same_bytes(
    teachers, prompts, drawn, tmp_path, monkeypatch
):
    def again():
        return opened(teachers["sd15"], tmp_path, *options(prompts))

    write = prepared_write.ShardWriter.write

    def killed(writer, fields):
        if list(tmp_path.rglob("shard-*.json")):
            raise KeyboardInterrupt
        write(writer, fields)

    monkeypatch.setattr(prepared_write.ShardWriter, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        again().draw(one_device())
    assert again().missing() == [1, 2]
    monkeypatch.setattr(prepared_write.ShardWriter, "write", write)
    source = again().draw(make_mesh())
    assert files_in(tmp_path) == files_in(drawn[0].store.folder.parent)
    assert source.identity == drawn[1].identity and len(source) == COUNT

    monkeypatch.setattr(own_pictures, "on_mesh", None)  # nothing can be drawn any more
    assert again().draw(make_mesh()).identity == source.identity
    (tmp_path / "teacher_pictures/shard-00001.arrayrecord").write_bytes(b"damaged")
    assert again().missing() == [1]
    monkeypatch.undo()
    monkeypatch.setattr(own_pictures, "SHARD_SIZE", SHARD)
    assert again().draw(make_mesh()).identity == source.identity


TWO = """
import sys
from pathlib import Path
from slam_jax.parallel import processes, runtime
runtime.configure(alone=False)
processes.join()
from slam_jax.config.command_line import parse
from slam_jax.parallel.sharding import make_mesh
from slam_jax.recipes import open_teacher, own_pictures
own_pictures.SHARD_SIZE = int(sys.argv[1])
command = parse(sys.argv[2:])
family = open_teacher.open_teacher(command.config, command.workdir)
with processes.together():
    pictures = own_pictures.own_pictures(command.config, command.workdir, family)
    assert len(pictures.draw(make_mesh())) == 10
"""


@pytest.mark.nightly
def test_two_processes_draw_the_same_but_for_rounding(teachers, prompts, drawn, tmp_path):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    command = [sys.executable, "-c", TWO, str(SHARD)]
    command += flags(teachers["sd15"], tmp_path, *options(prompts))
    cache = jax.config.jax_compilation_cache_dir
    two = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={
                **os.environ,
                **shared,
                "JAX_PROCESS_ID": str(index),
                "JAX_NUM_CPU_DEVICES": "4",
                "JAX_COMPILATION_CACHE_DIR": cache,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    for process in two:
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said
    found = Prepared(tmp_path / "teacher_pictures").read(np.arange(COUNT), np.arange(COUNT))[0]
    expected = drawn[1].read(np.arange(COUNT), np.arange(COUNT))[0]
    # The threads of a process are as many as its devices, and divide sums among them.
    assert_close(found.pop("moments"), expected.pop("moments").astype(np.float64), 1e-3)
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], strict=True)


@pytest.mark.slow
def test_a_run_trains_on_what_it_has_drawn(teachers, prompts, tmp_path, monkeypatch, capsys):
    """Up to where training begins."""
    found = []

    def enough(run, source):
        found.append(source)
        raise InputError("enough")

    monkeypatch.setattr(run, "_run", enough)
    for more in ([], ["--resume"]):
        with pytest.raises(SystemExit, match="enough"):
            launch(teachers["sd15"], tmp_path / "run", *options(prompts), *more)
    assert found[0].identity == found[1].identity and len(found[0]) == COUNT
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["data"]["source"] == f"teacher:{prompts}"
    inspect.main([str(tmp_path / "run/teacher_pictures")])
    said = capsys.readouterr().out
    assert f"teacher:{prompts}, 10 examples" in said
    assert "with teacher_steps = 2, teacher_w = 1.5, seed = 3" in said

    prompts_file = tmp_path / "others.txt"
    prompts_file.write_text("a dog")
    other = shutil.copytree(teachers["sd15"], tmp_path / "other")
    path = other / "unet/diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1  # a bit of the last weight's exponent
    path.write_bytes(content)
    for teacher, flag, message in (
        (teachers["sd15"], options(prompts_file), "begun with other examples or captions"),
        (
            teachers["sd15"],
            options(prompts, count=9),
            "with teacher_count = 10, but now it is 9",
        ),
        (
            teachers["sd15"],
            options(prompts, w=2.5),
            "with teacher_w = 1.5, but now it is 2.5",
        ),
        (
            teachers["sd15"],
            options(prompts, steps=4),
            "with teacher_steps = 2, but now it is 4",
        ),
        (other, options(prompts), "begun with teacher.unet = "),
    ):
        before = files_in(tmp_path / "run")
        with pytest.raises(SystemExit) as exit_:
            launch(teacher, tmp_path / "run", *flag, "--resume")
        assert message in str(exit_.value) and "\n" not in str(exit_.value)
        assert files_in(tmp_path / "run") == before


@pytest.mark.nightly
def test_a_stopped_run_goes_on_with_the_same_pictures(teachers, prompts, tmp_path, monkeypatch):
    small = [f"--config.training.{name}" for name in ("steps=3", "sample_every=0", "log_every=1")]
    flag = [*options(prompts), *small]
    interrupt_in_step(monkeypatch, 2)
    with pytest.raises(SystemExit) as exit_:
        launch(teachers["sd15"], tmp_path / "run", *flag)
    assert exit_.value.code == 130
    monkeypatch.undo()
    before = files_in(tmp_path / "run/teacher_pictures")
    monkeypatch.setattr(own_pictures, "SHARD_SIZE", SHARD)
    launch(teachers["sd15"], tmp_path / "run", *flag, "--resume")
    assert files_in(tmp_path / "run/teacher_pictures") == before
    rows = [json.loads(row) for row in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3] and all(row["loss"] > 0 for row in rows)
    assert (tmp_path / "run/export/unet").is_dir()
