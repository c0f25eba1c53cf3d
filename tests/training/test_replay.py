"""Looking again at a step that was passed over: it names the example, with the run's numbers."""

import json
import re
import shutil
from contextlib import closing

import numpy as np
import pytest
from digits_runs import launch

from slam_jax.commands import replay as command
from slam_jax.data import digits
from slam_jax.data.batches import Batches
from slam_jax.families.digits import Digits
from slam_jax.formats.safetensors import save_arrays
from slam_jax.recipes import replay

STEP, ROW, BATCH = 3, 5, 16
HALVES = slice(0, BATCH // 2), slice(BATCH // 2, BATCH)
OPTIONS = [
    "--config.training.max_skipped=1",
    "--config.training.log_every=1",
    "--config.training.sample_every=0",
    "--config.training.checkpoint_every=1",
    "--config.training.keep_checkpoints=9",
]


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
def stopped(tmp_path_factory):
    """(workdir of a run that skipped STEP and stopped, the batch of the step before)."""
    workdir, source = tmp_path_factory.mktemp("runs") / "digits", Recording()
    with closing(Batches(source, BATCH, seed=0).iterate(0)) as batches:
        taken = [next(batches) for _ in range(STEP)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Holed, "bad", source.read_indices[STEP - 1][ROW])
        patch.setattr(Digits, "source", lambda family, data: Holed())
        with pytest.raises(SystemExit, match="1 steps of the student were not finite"):
            launch(workdir, *OPTIONS)
    return workdir, taken[STEP - 2]


@pytest.fixture
def workdir(stopped, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(stopped[0], tmp_path / "run")


def kept(workdir, step=STEP, process=0, processes=1):
    return workdir / f"replay/step_{step:06d}.process_{process}_of_{processes}.safetensors"


def found(workdir, capsys, *arguments):
    """(first line, {index: (loss, whether it is said to be finite)}, the lines after them)."""
    capsys.readouterr()
    command.main(["--workdir", str(workdir), *arguments])
    first, *lines = capsys.readouterr().out.splitlines()
    examples = {}
    for line in [line for line in lines if line.startswith("example ")]:
        index, loss = re.match(r"example +(\d+) +loss (\S+)", line).groups()
        examples[int(index)] = float(loss), not line.endswith("NOT FINITE")
    return first, examples, lines[len(examples) :]


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_it_names_the_example_and_writes_nothing(stopped, capsys):
    workdir, _ = stopped
    before = files_of(workdir)
    first, examples, rest = found(workdir, capsys)
    assert f"step {STEP} of" in first and f"weights of that step (checkpoint {STEP})" in first
    assert list(examples) == list(range(BATCH))
    assert [index for index, (_, finite) in examples.items() if not finite] == [ROW]
    assert np.isnan(examples[ROW][0])
    assert rest[0].startswith("not finite: the gradients of") and "conv_in.kernel" in rest[0]
    assert files_of(workdir) == before


def test_losses_are_those_that_the_run_logged(stopped, workdir, capsys):
    """Of the step before, which was finite: as if its batch had been kept, and before its end."""
    batch, step = stopped[1], STEP - 1
    shutil.rmtree(workdir / "checkpoints" / str(step))
    save_arrays(kept(workdir, step), batch)
    first, examples, rest = found(workdir, capsys, "--step", str(step))
    assert f"weights of that step (checkpoint {step - 1})" in first
    losses = [loss for loss, _ in examples.values()]
    rows = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
    (logged,) = (row["loss"] for row in rows if row["step"] == step)
    assert np.mean(losses) == pytest.approx(logged, rel=1e-4)
    assert all(finite for _, finite in examples.values())
    assert rest == ["the gradient of each example is finite"]
    # The second half of the rows, as the second of two processes keeps them.
    halves = ({k: v[half] for k, v in batch.items()} for half in HALVES)
    for process, half in enumerate(halves):
        save_arrays(kept(workdir, step, process, 2), half)
    assert sorted(replay.read_kept(workdir / "replay", step, BATCH)[1]) == [0, BATCH // 2]
    kept(workdir, step, 0, 2).unlink()
    _, of_second, rest = found(workdir, capsys, "--step", str(step))
    assert list(of_second) == list(range(BATCH // 2, BATCH))
    assert [loss for loss, _ in of_second.values()] == losses[BATCH // 2 :]
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
        (damaged, [], "step_000003.process_0_of_1.safetensors: damaged"),
        (of_another_run, [], "the batch of step 3 is not one of this run"),
        (of_a_larger_batch, [], "not this process's rows of a batch of 16"),
        (lambda w: shutil.rmtree(w / "checkpoints"), [], "checkpoints: no checkpoint in it"),
        (lambda w: (w / "checkpoints/3/checksums.json").unlink(), [], "checkpoints/3: damaged"),
    ],
)
def test_bad_input_is_refused_in_one_line(workdir, change, arguments, message):
    change(workdir)
    with pytest.raises(SystemExit, match=message) as exit_:
        command.main(["--workdir", str(workdir), *arguments])
    assert str(exit_.value).startswith("error: ") and "\n" not in str(exit_.value)
