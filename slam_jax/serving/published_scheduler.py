"""What can be said about the scheduler of a published student: do its settings fit?"""

from collections.abc import Iterator, Mapping
from typing import Any

from slam_jax.base.errors import InputError
from slam_jax.config.validate import method_of
from slam_jax.families.stable_diffusion_folder import FEW_STEPS, RECORD_FILE
from slam_jax.formats.diffusers_folder import Folder, read_config
from slam_jax.method.flow_matching import FlowMatching
from slam_jax.method.method import Method
from slam_jax.method.variance_preserving import (
    PREDICTION_TYPES,
    TIMESTEP_SCALING,
    VariancePreserving,
    distillation_grid,
)
from slam_jax.serving.published_denoiser import FAIL, OK, Result

BETAS = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "trained_betas": None,
}
LCM = {"timestep_scaling": TIMESTEP_SCALING, "clip_sample": False, "thresholding": False}


def check_scheduler(folder: Folder, method: Method | None) -> Result:
    """A scheduler for few steps with settings that fit the distillation, or the teacher's with its
    betas; or one of flow matching.

    Args:
      folder: the diffusers folder.
      method: how the student was distilled here, hence which scheduler it has; None: not known.
    """
    try:
        config = {**LCM, **read_config(folder, "scheduler")}  # it may leave out what is usual
        if FlowMatching.reads(config):
            return _check_flow(config, method)
        count = config.get("num_train_timesteps", 1000)
        kind, prediction = config.get("_class_name"), config.get("prediction_type", "epsilon")
        wanted, wrong, facts = BETAS, [], f"{kind}, {prediction}"
        if prediction not in PREDICTION_TYPES:
            wrong.append(f"prediction_type = {prediction!r}")
        if kind in FEW_STEPS:
            steps = config.get("original_inference_steps", 50)
            wanted, facts = (
                {**BETAS, **LCM},
                f"{facts}, original_inference_steps {steps} of {count}",
            )
            try:
                distillation_grid(count, steps)
            except (ValueError, TypeError):
                wrong.append(f"original_inference_steps = {steps!r}, expected a divisor of {count}")
        elif method is None:
            facts += ", the teacher's: give the pipeline an LCMScheduler before drawing"
        own = (
            method.diffusers_scheduler(VariancePreserving.from_config({}))["_class_name"]
            if method
            else kind
        )
        if kind != own:
            wrong.append(f"_class_name = {kind!r}, expected {own!r}")
    except InputError as error:
        return Result(FAIL, "scheduler", f"{error}")
    wrong += [
        f"{key} = {config.get(key)!r}, expected {value!r}"
        for key, value in wanted.items()
        if config.get(key) != value
    ]
    return Result(FAIL if wrong else OK, "scheduler", "; ".join(wrong) or facts)


def _check_flow(config: Mapping[str, Any], method: Method | None) -> Result:
    """A scheduler of flow matching that is read here, and the one of the student's method."""
    kind = config["_class_name"]
    try:
        schedule = FlowMatching.from_config(config)
    except ValueError as error:
        return Result(FAIL, "scheduler", str(error))
    own = kind if method is None else method.diffusers_scheduler(schedule)["_class_name"]
    if kind != own:
        return Result(FAIL, "scheduler", f"_class_name = {kind!r}, expected {own!r}")
    return Result(OK, "scheduler", f"{kind}, shift {schedule.shift:g}")


def check_sigmas(folder: Folder, record: Mapping[str, Any]) -> Iterator[Result]:
    """Of a student with a scheduler of flow matching, which the stock pipeline has to give its
    times: whether those in the record are those of its method.

    Args:
      folder: the diffusers folder.
      record: contents of its slam.json.
    """
    try:
        config, method = read_config(folder, "scheduler"), method_of(record, folder.path)
        if not FlowMatching.reads(config):
            return
        schedule = FlowMatching.from_config(config)
    except (InputError, ValueError):  # said of the scheduler, or there is no record
        return
    listed = record.get("sigmas")
    if not isinstance(listed, dict) or not listed:
        none = f"{RECORD_FILE} lists none, which the stock pipeline has to be given"
        yield Result(FAIL, "sigmas", none)
        return
    wrong = []
    for steps, sigmas in listed.items():
        try:
            own = schedule.sigmas_for(method.timesteps(int(steps), schedule))
        except ValueError as error:
            wrong.append(f"of {steps!r} steps: {error}")
            continue
        if sigmas != own:
            wrong.append(f"of {steps} steps: {sigmas}, expected {own}")
    facts = "; ".join(wrong) or f"those of {', '.join(listed)} steps"
    yield Result(FAIL if wrong else OK, "sigmas", facts)
