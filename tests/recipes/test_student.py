"""What a run's record says of its student is what the student is drawn with."""

import dataclasses

import jax
import pytest
from small_digits import CONFIG, PIPELINE, UNET

from slam_jax.base.errors import InputError
from slam_jax.config.validate import freeze
from slam_jax.formats.flax_folder import SavedModel
from slam_jax.models import functional
from slam_jax.models.execution import Execution
from slam_jax.models.unet import UNet2DConditionModel
from slam_jax.recipes.distil import info_of
from slam_jax.recipes.student import as_model


def test_it_is_computed_as_the_run_computed_it():
    execution = Execution(attention="xla", norm="two_pass")
    assert execution != Execution()
    params = functional.init(UNet2DConditionModel, UNET, jax.random.key(0))
    info = info_of(dataclasses.replace(CONFIG, execution=execution))
    student = SavedModel(UNET, params, PIPELINE.scheduler, info)
    assert as_model(student, None).pipeline.execution == execution
    older = {name: value for name, value in info.items() if name != "execution"}
    student = dataclasses.replace(student, info=older)
    assert as_model(student, None).pipeline.execution == Execution()


def test_two_passes_of_the_teacher_need_guidance():
    values = dataclasses.asdict(CONFIG)
    values["training"]["teacher_passes"] = 2
    assert freeze(values).training.teacher_passes == 2
    values["method"]["w"] = 0.0
    with pytest.raises(InputError, match=r"training.teacher_passes = 2, expected 1 without guid"):
        freeze(values)
