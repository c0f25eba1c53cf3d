"""An exported sampler of a model with LoRAs."""

import hashlib
import json

import numpy as np
import pytest
import tiny_loras

import slam_jax
from slam_jax.commands import export
from slam_jax.formats.lora_file import FILE, kohya_arrays
from slam_jax.formats.safetensors import save_arrays
from slam_jax.serving import artifact, artifact_draw


@pytest.fixture(scope="module")
def loras(teachers, tmp_path_factory):
    """A LoRA for few steps, in its folder; and a style with a key that no layer has."""
    folder = tmp_path_factory.mktemp("loras")
    student, family = tiny_loras.make(teachers["sd15"])
    family.export(student, folder / "steps")
    style = kohya_arrays(tiny_loras.make(teachers["sd15"], seed=1)[0].lora)
    style["lora_unet_more.alpha"] = np.float16(1)
    save_arrays(folder / "style.safetensors", style)
    return folder / "steps", folder / "style.safetensors"


@pytest.mark.slow
def test_it_draws_the_pictures_of_the_model_with_loras(teachers, loras, tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "_compile", lambda folder, environment: None)
    (steps, style), base, out = loras, str(teachers["sd15"]), tmp_path / "out"
    given = [str(steps), f"{style}:0.7"]
    options = ["--steps", "2", "--batch-sizes", "1", "--platforms", "cpu", "--allow-unused"]
    options += [word for name in given for word in ("--lora", name)]
    export.main(["--artifact", "--model", base, "--out", str(out), *options])
    model = slam_jax.load(base, loras=given, allow_unused=True)
    prompt = ["a red fox"]
    drawn = artifact_draw.load(out)(model.pipeline.tokenize(prompt), seed=3)
    np.testing.assert_array_equal(drawn, slam_jax.sample(model, prompt, steps=2, seed=3))
    assert drawn.std() > 5
    about = json.loads((out / "artifact.json").read_text())
    assert about["kind"] == "student" and about["guidance"] == 1
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (steps / FILE, style)]
    assert [(found["sha256"], found["weight"]) for found in about["loras"]] == [
        (digests[0], 1.0),
        (digests[1], 0.7),
    ]


@pytest.mark.parametrize(("method", "guidance"), [("", 7.5), ("lcm", 1)])
def test_a_base_without_a_lora_for_few_steps_is_a_teacher(
    teachers, loras, tmp_path, monkeypatch, method, guidance
):
    """Unless it is said that it is one."""
    found = []

    def export_nothing(program, arrays, tokens, count, platform):
        raise KeyboardInterrupt

    def make_sampler(model, settings):
        found.append((model, settings))

    monkeypatch.setattr(artifact, "_export", export_nothing)
    monkeypatch.setattr(artifact, "make_sampler", make_sampler)
    options = ["--lora", str(loras[1]), "--allow-unused", *(["--method", method] if method else [])]
    with pytest.raises(SystemExit):
        export.main(
            ["--artifact", "--model", str(teachers["sd15"]), "--out", str(tmp_path / "o"), *options]
        )
    ((model, settings),) = found
    assert model.is_student == bool(method) and settings.guidance == guidance
    assert len(model.loras) == 1
