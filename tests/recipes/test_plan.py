"""What a run is said to need of each device, and what is offered where that does not fit."""

import dataclasses
import re
import shlex
import shutil
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from hub_files import REPOSITORY, WANTED
from huggingface_hub.utils import filter_repo_objects

from slam_jax.commands import plan
from slam_jax.config.options import Mesh
from slam_jax.formats import diffusers_folder as folder
from slam_jax.models import functional
from slam_jax.recipes import memory
from slam_jax.recipes.open_teacher import open_teacher
from slam_jax.recipes.plan import easier

CONFIGS = Path(__file__).parents[2] / "configs"
DIGITS = ["--config", str(CONFIGS / "digits.py")]


@pytest.fixture(scope="module", autouse=True)
def devices():
    """Started before a plan asks for other numbers of them."""
    assert jax.device_count() == 8


@pytest.fixture(scope="module")
def command(teachers, tmp_path_factory):
    """A plan's arguments for a tiny SD 1.5 whose weights are not there."""
    path = tmp_path_factory.mktemp("plan") / "sd15"
    weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(teachers["sd15"], path, ignore=weights)
    options = f"--config.teacher.path={path} --config.teacher.revision= --config.data.resolution=64"
    return ["--config", str(CONFIGS / "sd.py"), *options.split()]


def run(capsys, *arguments):
    """(what a plan without compiling says, its exit status)."""
    flops = mock.patch.object(plan, "flops_per_sample", return_value=0.0)  # it takes long
    with flops, pytest.raises(SystemExit) as exit_:
        plan.main([*arguments, "--no-compile"])
    return capsys.readouterr().out, exit_.value.code


def read(command):
    """(the config of a command line, its teacher)."""
    command = plan.read_command(command)
    return command.config, open_teacher(command.config, command.workdir, weights=False)


def nbytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_the_table_of_a_stable_diffusion_run(command, capsys):
    config, family = read(command)
    parts = memory.parts_of(dataclasses.replace(config, mesh=Mesh(2, 1)), family)
    teacher = functional.count_params(family.pipeline.abstract_params(family.pipeline.network))
    gamma = 256 * 16  # weights of the student's gamma embedding
    assert parts["teacher (bfloat16)"] == (2 * teacher,) * 2
    assert parts["student"] == parts["EMA"] == (4 * (teacher + gamma),) * 2
    assert parts["optimiser"][0] == pytest.approx(8 * (teacher + gamma), abs=8)
    # Prepared: 8x8 moments of 8 channels in float16, six numbers, 77 tokens.
    assert parts["batch"] == (96 * (2 * 8 * 8 * 8 + 4 * 6 + 4 * 77), 48 * (1024 + 24 + 308))
    text, status = run(capsys, *command, "--mesh", "data=2,fsdp=1", "--memory", "64")
    assert status == 0
    assert "data: assumed to be latents that slam-jax prepare makes" in text
    head = "2 devices, data=2 x fsdp=1; batch 96, of which each device has 48 at a time; remat"
    assert head in text
    assert text.splitlines()[-3] == "activations, copies: counted, an estimate"
    assert re.search(r"^vae +[\d.]+ MiB +[\d.]+ MiB$", text, re.MULTILINE)
    assert re.search(r"^text_encoder +[\d.]+ MiB +[\d.]+ MiB$", text, re.MULTILINE)
    assert text.endswith("fits into 64.00 GiB\n")


def test_parts_of_a_batch_are_named_where_there_are_several(capsys):
    parts = "--mesh data=1,fsdp=1 --config.training.accumulation=4"
    text, _ = run(capsys, *DIGITS, *parts.split(), "--config.training.batch_size=64")
    said = "1 device, data=1 x fsdp=1; batch 64, of which each device has 16 at a time, in 4 parts;"
    assert text.startswith(said)


def test_data_with_text_embeddings_need_no_text_encoder(command, capsys):
    config = plan.read_command(command, text_embeddings=True).config
    config = dataclasses.replace(config, mesh=Mesh(2, 1))
    _, family = read(command)
    parts, (_, frozen) = memory.parts_of(config, family), memory.networks_of(config, family)
    assert not [name for name in parts if name.startswith("text_encoder")]
    # 77 tokens of 32 features; in float32 of the empty prompt, in float16 of each example.
    features = 77 * 32
    assert parts["empty_prompt"] == (4 * features,) * 2
    assert parts["batch"][0] == 96 * (2 * 8 * 8 * 8 + 4 * 6 + 4 * 77 + 2 * features)
    assert frozen["empty_prompt"]["encoder_hidden_states"].shape == (1, 77, 32)
    assert plan.read_command(command).config.data.source == memory.PREPARED
    text, message = run(capsys, *DIGITS, "--text-embeddings")
    assert text == "" and message.startswith("error: --text-embeddings: is for data that are not")


def test_images_are_encoded_where_they_are_the_data(command):
    config, family = read([*command, "--config.data.source=photographs"])
    shapes = memory.batch_of(config, family, 3)
    assert {name: (x.shape, x.dtype) for name, x in shapes.items()} == {
        "images": ((3, 64, 64, 3), np.uint8),
        "tokens": ((3, 1, 77), np.int32),
        "time_ids": ((3, 6), np.float32),
    }


@pytest.mark.slow
def test_what_is_offered_fits(command, capsys):
    """The flags, given to another plan, make the run fit."""
    command = [*command, "--config.training.batch_size=8", "--config.training.remat=none"]
    mesh = ["--mesh", "data=4,fsdp=1", "--memory", "0.005"]
    text, status = run(capsys, *command, *mesh)
    assert status == 1
    flags = shlex.split(text.splitlines()[-1])
    assert "does not fit into 5.12 MiB; this does:" in text
    assert "--config.training.remat=minimal" in flags
    values = dict(flag.removeprefix("--config.").split("=") for flag in flags)
    mesh[1] = f"data={values['mesh.data']},fsdp={values['mesh.fsdp']}"
    text, status = run(capsys, *command, *flags, *mesh)
    assert status == 0
    assert text.endswith("fits into 5.12 MiB\n")


def test_nothing_is_offered_where_nothing_fits(command, capsys):
    options = "--mesh data=1,fsdp=1 --memory 0.001 --config.training.remat=full"
    text, status = run(capsys, *command, *options.split(), "--config.training.batch_size=1")
    assert status == 1
    assert text.endswith("nor does anything else on as many devices\n")


def test_easier_configs_come_in_the_order_of_their_price():
    config = plan.read_command([*DIGITS, "--config.training.batch_size=96"]).config
    config = dataclasses.replace(config, mesh=Mesh(8, 1))

    def steps(held, memory):
        return [
            (c.mesh.fsdp, c.training.remat, c.training.accumulation)
            for c in easier(config, held, memory)
        ]

    last = [(1, "minimal", n) for n in (1, 2, 4, 12)] + [(1, "full", 12)]
    assert steps({1: 40, 2: 30, 4: 20, 8: 10}, 100) == [*last, (8, "full", 12)]
    assert steps({1: 60, 2: 51, 4: 20, 8: 10}, 100)[:2] == [(4, "none", 1), (4, "minimal", 1)]
    assert steps({1: 90, 2: 80, 4: 70, 8: 60}, 100)[0] == (8, "none", 1)


@pytest.mark.slow
def test_activations_are_counted_for_each_example(command):
    """Twice the examples, twice the activations; weights in bfloat16 are copies beside them."""
    config, family = read(command)

    def counted(size):
        training = dataclasses.replace(config.training, batch_size=size * 3, accumulation=3)
        changed = dataclasses.replace(config, training=training, mesh=Mesh(1, 1))
        return memory.counted_bytes(changed, family)

    two, four, eight = counted(2), counted(4), counted(8)
    assert eight - four == 2 * (four - two)
    params, _ = memory.networks_of(config, family)
    copies = 2 * nbytes(params) // 2
    assert copies < two - (four - two) < 1.1 * copies


@pytest.mark.slow
def test_a_compiled_plan(capsys):
    with pytest.raises(SystemExit) as exit_:
        plan.main([*DIGITS, "--mesh", "data=1,fsdp=2", "--memory", "1"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    lines = {line[:28].strip(): line[28:].split() for line in text.splitlines()}
    gradients, step = (float(lines[n][-2]) for n in ("gradients", "activations, copies"))
    # 32 rows of 4x4 maps of 32 channels are a sixteenth of a MiB, and there are some twenty; the
    # whole weights and their average are there for a while.
    assert 20 / 16 + 4 * gradients < step < 200 / 16 + 8 * gradients
    assert lines["sum"][-1] == "MiB"
    # Teacher twice, target, student, and twice that of the student for its gradient; and what is
    # no product of matrices. Two gammas need two students: 3 + 2 * 3 forward passes.
    flops = float(re.search(r"([\d.e-]+) TFLOP per sample", text)[1]) * 1e12
    assert 0.85 < flops / (9 * forward_flops()) < 1.6


def forward_flops():
    """Of the digits' UNet and one example, in matrix products and convolutions, as torch counts."""
    import diffusers
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = plan.read_command(DIGITS).config.teacher.network
    model = diffusers.UNet2DConditionModel.from_config(network)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 4, 4, 4), torch.zeros(1), torch.zeros(1, 2, 12))
    return counter.get_total_flops()


WRONG = {
    "--mesh fsdp=8": "--mesh fsdp=8: expected data=N or data=N,fsdp=M",
    "--mesh fsdp=2,data=4": "--mesh fsdp=2,data=4: expected data=N",
    "--mesh data=0,fsdp=8": "--mesh data=0,fsdp=8: expected data=N",
    "--mesh data=-1,fsdp=8": "--mesh data=-1,fsdp=8: expected data=N",
    "--mesh data=5,fsdp=1": "config.training.batch_size = 64, expected a multiple of the 5 dev",
    "--mesh data=2,fsdp=1 --config.training.accumulation=3": "accumulation = 3",
    "--memory lots": "--memory lots: expected a device's memory in GiB, as 80",
    "--memory 0": "--memory 0: expected",
    "--memory nan": "--memory nan: expected",
    "--config.mesh.fsdp=16": "config.mesh: data = 1 times fsdp = 16, but 8 devices are here",
    "--config.method.num_ddim_timesteps=37": "config.method.num_ddim_timesteps = 37",
    "--config.training.remat=most": "config.training.remat = 'most', expected one of none",
    "--colour blue": "colour",
    "--config.data.source=nowhere": "config.data: source = 'nowhere', expected 'digits'",
    "--config.teacher.family=flux": "config.teacher.family = 'flux', expected one of stable_",
    "--config.teacher.family=stable_diffusion": "a teacher of stable_diffusion is not trained here",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_arguments_are_refused_in_a_line(arguments, capsys):
    text, message = run(capsys, *DIGITS, *arguments.split())
    assert text == ""
    assert message.startswith("error: ") and "\n" not in message
    assert WRONG[arguments] in message


def test_a_teacher_that_is_not_there_is_refused(command, capsys):
    text, message = run(capsys, *command, "--config.teacher.path=no/where/else")
    assert text == "" and "no/where/else" in message and "\n" not in message


def test_no_weights_are_fetched_from_the_hub(monkeypatch, tmp_path):
    asked = []

    def fetch(name, revision, patterns):
        asked.append(set(filter_repo_objects(sorted(REPOSITORY), allow_patterns=patterns)))
        return tmp_path

    monkeypatch.setattr(folder.hub, "fetch", fetch)
    folder.resolve("owner/name", weights=False)
    folder.resolve("owner/name")
    assert asked[0] == WANTED
    assert asked[1] > WANTED
