"""The step of a distillation: what its networks compute in."""

import dataclasses

import jax
from small_digits import CONFIG, PIPELINE, UNET

from slam_jax.config.options import Precision, Training
from slam_jax.data import digits
from slam_jax.families.pipeline import DENOISER
from slam_jax.method.slam import Slam
from slam_jax.parallel.sharding import make_mesh
from slam_jax.recipes.distil import student_step


def test_each_precision_decides_what_its_network_computes_in():
    """Of the student and its target; the teacher's is decided by its weights."""
    config = dataclasses.replace(
        CONFIG, method=Slam(conditioning="snr", w=0.0), training=Training(batch_size=1)
    )
    mesh, params = make_mesh(devices=jax.devices()[:1]), PIPELINE.abstract_params(UNET)
    batch = PIPELINE.prompts(["3"]) | {"latents": digits.Source().read([0], [0])[0]["latents"]}

    def convolutions(**precision):
        options = dataclasses.replace(config, precision=Precision(**precision))
        step, init = student_step(options, PIPELINE, mesh)
        state = jax.eval_shape(init, params)
        made = str(jax.make_jaxpr(step)(state, {DENOISER: params}, batch)).splitlines()
        made = [line for line in made if "conv_general_dilated[" in line]
        return len(made), sum("bf16[" in line for line in made)

    total, none = convolutions()
    of_student, of_target = ({name: "bfloat16"} for name in ("student", "target"))
    (_, student), (_, target) = convolutions(**of_student), convolutions(**of_target)
    assert none == 0 and target > 10
    # Two more for each: the gradient with respect to the input, but the first's, and to the kernel.
    assert student == 3 * target - 1
    assert convolutions(**of_student, **of_target) == (total, student + target)
