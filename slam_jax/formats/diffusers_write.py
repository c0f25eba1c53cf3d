"""Writes students into folders in the layout of diffusers, with a teacher's frozen parts copied.

Reading is in `diffusers_folder`. Whatever the teacher's files are (a variant, shards), the copies
are one file each, with the name that diffusers looks for first, in the dtypes that they had: the T5
of Stable Diffusion 3 has 4.8 billion weights.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slam_jax.base.json_file import read_json, write_json
from slam_jax.formats import convert, weight_files
from slam_jax.formats import safetensors as weights
from slam_jax.formats.diffusers_folder import Folder, read_config
from slam_jax.formats.model_index import (
    CLASSES,
    CLASSES_XL,
    NOT_USED,
    PIPELINES,
    STEMS,
    TOKENIZERS,
    class_of,
    tokenizer_of,
)
from slam_jax.method.flow_matching import FlowMatching
from slam_jax.models.functional import Params, cast

DENOISERS = ("unet", "transformer")
OF_DIFFUSERS = (*DENOISERS, "vae")  # whose classes are its own
TOKENIZER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "spiece.model",
)


def model_index(teacher: dict[str, Any], scheduler: str) -> dict[str, Any]:
    """The student's model_index.json from its teacher's: a text-to-image pipeline of torch classes
    with the student's scheduler, and nothing that judges pictures."""
    classes = PIPELINES[teacher["_class_name"]]
    index: dict[str, Any] = {
        "_class_name": next(name for name, kinds in PIPELINES.items() if kinds is classes),
        "_diffusers_version": teacher.get("_diffusers_version", "0.22.0"),
        "scheduler": ["diffusers", scheduler],
    }
    for component in classes:
        index[component] = teacher.get(component, [None, None])
    for component in sorted(NOT_USED if classes is CLASSES else NOT_USED - {"safety_checker"}):
        index[component] = [None, None]
    if classes is CLASSES_XL:
        zeros = bool(teacher.get("force_zeros_for_empty_prompt", False))
        return {**index, "force_zeros_for_empty_prompt": zeros}
    return {**index, "requires_safety_checker": False} if classes is CLASSES else index


def student_scheduler(teacher: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The scheduler_config.json with which diffusers samples as the student's method does.

    Args:
      teacher: contents of its scheduler_config.json.
      own: class and options that the method gives.
    """
    if FlowMatching.reads(own):
        return own
    # A key that the teacher leaves out has another default in the student's class: all are written.
    return {
        "num_train_timesteps": teacher.get("num_train_timesteps", 1000),
        "beta_start": teacher.get("beta_start", 1e-4),
        "beta_end": teacher.get("beta_end", 0.02),
        "beta_schedule": teacher.get("beta_schedule", "linear"),
        "trained_betas": teacher.get("trained_betas"),
        "prediction_type": teacher.get("prediction_type", "epsilon"),
        "rescale_betas_zero_snr": teacher.get("rescale_betas_zero_snr", False),
        "clip_sample": False,
        "thresholding": False,
        # Those of LCM and TCD do not read what follows: it is for others that a user may make of
        # this config.
        "set_alpha_to_one": teacher.get("set_alpha_to_one", True),
        "steps_offset": teacher.get("steps_offset", 0),
        "timestep_spacing": "leading",
        **own,
    }


def write_network(to: Path, component: str, network: Any, params: Params) -> None:
    """Writes config.json and the weights, in the dtype that they have.

    Args:
      to: the component's folder.
      component: its name, one of STEMS.
      network: its configuration, with `to_dict`.
      params: its weights.
    """
    write_json(to / "config.json", network.to_dict())
    weights.save_arrays(to / f"{STEMS[component]}.safetensors", convert.to_torch(params))


def write_model(
    to: Path,
    pipeline: str,
    parts: Mapping[str, tuple[Any, Params]],
    scheduler: dict[str, Any],
    dtype: str = "float32",
) -> None:
    """Writes a model that no other one was the teacher of, all but its tokenizers.

    Args:
      to: the folder.
      pipeline: the class that draws with it, one of PIPELINES.
      parts: such as "unet", "vae" and "text_encoder" -> configuration and weights; those of the
        pipeline that are optional may be left out.
      scheduler: contents of its scheduler_config.json.
      dtype: of the weights in the files.
    """
    texts = [name for name in parts if name.startswith("text_encoder")]
    there = {*parts, *map(tokenizer_of, texts)}
    classes = {
        name: ["diffusers" if name in OF_DIFFUSERS else "transformers", kinds[0]]
        for name, kinds in PIPELINES[pipeline].items()
        if name in there
    }
    index = model_index({"_class_name": pipeline, **classes}, scheduler["_class_name"])
    write_json(to / "model_index.json", index)
    write_json(to / "scheduler" / "scheduler_config.json", scheduler)
    for name, (network, params) in parts.items():
        write_network(to / name, name, network, cast(params, dtype))
    for name in texts:
        config = to / name / "config.json"
        # transformers would load it in the files' dtype, and diffusers the denoiser in float32.
        write_json(config, {**read_json(config, "write it again"), "torch_dtype": "float32"})


def copy_surroundings(teacher: Folder, index: dict[str, Any], to: Path) -> None:
    """Copies all that `index` has beside denoiser and scheduler.

    Raises:
      InputError: a file of the teacher is missing or damaged; names it.
      OSError: a file cannot be copied.
    """
    for component in STEMS:
        if component not in DENOISERS and class_of(index.get(component)) is not None:
            _copy_network(teacher, component, to / component)
    copy_tokenizers(teacher, index, to)


def copy_tokenizers(teacher: Folder, index: dict[str, Any], to: Path) -> None:
    """Copies the files of the tokenizers that `index` has.

    Raises:
      OSError: a file cannot be copied.
    """
    for component in TOKENIZERS:
        if class_of(index.get(component)) is not None:
            (to / component).mkdir()
            for name in TOKENIZER_FILES:
                if (source := teacher.path / component / name).is_file():
                    shutil.copyfile(source, to / component / name)


def _copy_network(teacher: Folder, component: str, to: Path) -> None:
    """Copies config and weights. They are to be loaded in float32, whatever the file has: the
    denoiser is, and a pipeline wants one dtype. diffusers does; transformers has to be told."""
    config, stem = read_config(teacher, component), STEMS[component]
    if stem == STEMS["text_encoder"]:
        names = config.keys() & {"dtype", "torch_dtype"} or {"torch_dtype"}
        config = {**config, **dict.fromkeys(names, "float32")}
    write_json(to / "config.json", config)
    source = weight_files.find(teacher.path / component, stem, teacher.variant)
    weights.save_arrays(to / f"{stem}.safetensors", dict(weights.open_arrays(source)))
