"""Looking again at a step that was passed over: it names the example, with the run's numbers."""

import json
import re
import shutil
from contextlib import closing

import numpy as np
import pytest
from helpers import interrupt_in_step
from test_main import launch

from slam_jax import replay
from slam_jax.data import digits
from slam_jax.data.batches import Batches
from slam_jax.jobs.digits import DigitsJob
from slam_jax.models.weights import load_arrays, save_arrays

STEP, ROW, BATCH, TEACHER_STEPS = 3, 5, 16, 6
OPTIONS = ["--config.training.log_every=1", "--config.training.sample_every=0"]


class Recording(digits.Source):
    """The digits; says which were read."""

    def __init__(self):
        super().__init__()
        self.read_indices = []

    def read(self, indices, seeds):
        self.read_indices.append(indices)
        return super().read(indices, seeds)


class Holed(digits.Source):
    """The digits, one of them with a NaN in it."""

    bad = -1

    def read(self, indices, seeds):
        batch, rejects = super().read(indices, seeds)
        latents = batch["latents"].copy()
        latents[indices == self.bad, 0, 0, 0] = np.nan
        return {**batch, "latents": latents}, rejects


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(workdir of a run that skipped STEP, the loss that STEP has without the NaN, its batch)."""
    folder, source = tmp_path_factory.mktemp("runs"), Recording()
    with closing(Batches(source, BATCH, seed=0).iterate(0)) as batches:
        clean = [next(batches) for _ in range(STEP)][-1]
    with pytest.MonkeyPatch.context() as patch:
        interrupt_in_step(patch, TEACHER_STEPS + STEP)
        with pytest.raises(SystemExit):
            launch(folder / "clean", *OPTIONS)
    rows = [json.loads(row) for row in (folder / "clean/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == STEP
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Holed, "bad", source.read_indices[STEP - 1][ROW])
        patch.setattr(DigitsJob, "source", lambda job: Holed())
        teacher = f"--config.teacher.path={folder / 'clean/teacher'}"
        with pytest.raises(SystemExit, match="1 steps of the student were not finite"):
            launch(folder / "holed", *OPTIONS, teacher, "--config.training.max_skipped=1")
    return folder / "holed", rows[-1]["loss"], clean


@pytest.fixture
def workdir(runs, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(runs[0], tmp_path / "run")


def kept(workdir, step=STEP, process=0):
    return workdir / f"replay/step_{step:06d}.process_{process}.safetensors"


def found(workdir, capsys, *arguments):
    """(first line, {index: (loss, whether it is said to be finite)}, the lines after them)."""
    capsys.readouterr()
    replay.main(["--workdir", str(workdir), *arguments])
    first, *lines = capsys.readouterr().out.splitlines()
    examples = {}
    for line in [line for line in lines if line.startswith("example ")]:
        index, loss = re.match(r"example +(\d+) +loss (\S+)", line).groups()
        examples[int(index)] = float(loss), not line.endswith("NOT FINITE")
    return first, examples, lines[len(examples) :]


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_it_names_the_example_and_writes_nothing(runs, capsys):
    workdir, _, _ = runs
    before = files_of(workdir)
    first, examples, rest = found(workdir, capsys)
    assert f"step {STEP} of" in first and f"weights of that step (checkpoint {STEP - 1})" in first
    assert list(examples) == list(range(BATCH))
    assert [index for index, (_, finite) in examples.items() if not finite] == [ROW]
    assert np.isnan(examples[ROW][0])
    assert rest[0].startswith("not finite: the gradients of") and "conv_in.kernel" in rest[0]
    assert files_of(workdir) == before


def test_losses_are_those_of_the_step(runs, workdir, capsys):
    """With the NaN mended their mean is what a run logged that never had it."""
    _, logged, clean = runs
    assert np.isnan(load_arrays(kept(workdir))["latents"][ROW]).any()
    save_arrays(kept(workdir), clean)
    _, examples, rest = found(workdir, capsys, "--step", str(STEP))
    losses = [loss for loss, _ in examples.values()]
    assert np.mean(losses) == pytest.approx(logged, rel=1e-4)
    assert all(finite for _, finite in examples.values())
    assert rest == ["the gradient of each example is finite"]


def test_rows_of_several_processes_follow_one_another(runs, workdir, capsys):
    clean = runs[2]
    save_arrays(kept(workdir), clean)
    _, whole, _ = found(workdir, capsys)
    halves = [{k: v[half] for k, v in clean.items()} for half in (slice(8), slice(8, 16))]
    save_arrays(kept(workdir), halves[0])
    save_arrays(kept(workdir, process=1), halves[1])
    assert found(workdir, capsys)[1] == whole
    kept(workdir).unlink()
    _, second, rest = found(workdir, capsys)
    assert second == {index: whole[index] for index in range(8, 16)}
    assert rest[0].startswith("8 more examples")


@pytest.mark.parametrize(
    ("there", "chosen", "words"),
    [
        ((2, 4), 4, "with older weights (checkpoint 4)"),
        ((3, 6), 6, "with the weights of that step (checkpoint 6)"),
        ((4, 5, 9), 5, "with the weights of that step"),
        ((8, 12), 8, "with newer weights (checkpoint 8)"),
        ((), None, ""),
    ],
)
def test_checkpoint_is_the_newest_that_is_not_after_the_step(tmp_path, there, chosen, words):
    for step in there:
        (tmp_path / str(step)).mkdir()
    assert replay.nearest(tmp_path, 6) == chosen
    if chosen:
        assert words in replay.which_weights(6, chosen)


def damaged(workdir):
    kept(workdir).write_bytes(b"\x08")


def of_another_run(workdir):
    save_arrays(kept(workdir), {"images": np.zeros((BATCH, 2))})


def of_a_larger_batch(workdir):
    save_arrays(kept(workdir), {"latents": np.zeros((2 * BATCH, 4, 4, 4))})


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda w: shutil.rmtree(w), [], "config.json: cannot be read"),
        (lambda w: (w / "config.json").write_text("{"), [], "config.json: damaged"),
        (lambda w: shutil.rmtree(w / "replay"), [], "no step of this run was skipped"),
        (lambda w: None, ["--step", "4"], "--step 4: .* it has those of 3"),
        (damaged, [], "step_000003.process_0.safetensors: damaged"),
        (of_another_run, [], "the batch of step 3 is not one of this run"),
        (of_a_larger_batch, [], "not this process's rows of a batch of 16"),
        (lambda w: shutil.rmtree(w / "checkpoints"), [], "checkpoints: no checkpoint in it"),
        (lambda w: (w / "checkpoints/2/checksums.json").unlink(), [], "checkpoints/2: damaged"),
    ],
)
def test_bad_input_is_refused_in_one_line(workdir, change, arguments, message):
    change(workdir)
    with pytest.raises(SystemExit, match=message) as exit_:
        replay.main(["--workdir", str(workdir), *arguments])
    assert str(exit_.value).startswith("error: ") and "\n" not in str(exit_.value)
