"""The same computed by torch and diffusers, to compare with. Nothing else here needs these two:
they are imported when a comparison is asked for.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from slam_jax.base.errors import InputError
from slam_jax.base.json_file import read_json
from slam_jax.drawing.samplers import student_sampler
from slam_jax.families.family import LoadOptions, Model
from slam_jax.families.stable_diffusion_lora import base_of, is_lora
from slam_jax.formats.diffusers_folder import Folder
from slam_jax.formats.lora_file import FILE
from slam_jax.formats.model_index import NOT_USED, left_out
from slam_jax.method.method import gaussian
from slam_jax.parallel import runtime
from slam_jax.parallel.keys import keys_of

STEPS = (1, 2, 4, 8)
PROMPTS = ("a lighthouse by the sea at sunset", "portrait of a cat wearing a hat, oil painting")
TOLERANCE = 2.0  # largest difference of a pixel, in 1/255


def missing_libraries(*others: str) -> list[str]:
    """Which of the two, or of others, are not installed."""
    names = ("torch", "diffusers", *others)
    return [name for name in names if importlib.util.find_spec(name) is None]


def require(option: str, *more: str) -> None:
    """Raises InputError where torch or diffusers, or one of more libraries, is not installed."""
    if missing := missing_libraries(*more):
        names = " and ".join(missing)
        raise InputError(f"{option}: needs {names}; pip install {' '.join(missing)}")


@contextmanager
def quiet():
    """diffusers and transformers say nothing below an error, and show no progress bars."""
    import diffusers
    import transformers

    levels = []
    for library in (diffusers, transformers):
        levels.append((library.utils.logging, library.utils.logging.get_verbosity()))
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging, level in levels:
            logging.set_verbosity(level)
            logging.enable_progress_bar()


def stock_sampler(
    folder: Path, prepare: Callable[[Any], None] = lambda pipeline: None, variant: str = ""
) -> Callable[..., Float[np.ndarray, "B H W 3"]]:
    """(prompts, x [B, H, W, C], zs [n - 1, B, H, W, C], sigmas) -> pictures in [-1, 1], drawn in n
    steps by the stock pipeline of a diffusers folder: from noise x, with zs between the steps, and
    at sigmas, if these are not None.

    Args:
      folder: of diffusers.
      prepare: called with the pipeline that was loaded.
      variant: such as "fp16", of the weight files.

    Raises:
      InputError: diffusers cannot load the folder.
    """
    import torch
    from diffusers import DiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

    with quiet():
        try:
            # Cast afterwards: the option's name differs between versions of diffusers.
            without = dict.fromkeys([*NOT_USED, *left_out(folder / "model_index.json")])
            options = {"variant": variant or None, **without}
            loaded: Any = DiffusionPipeline.from_pretrained(folder, **options)
            pipeline = loaded.to(torch.float32)
        # It raises whatever its parts do.
        except Exception as error:
            why = " ".join(str(error).split())
            raise InputError(f"{folder}: diffusers cannot load it: {why}") from error
    pipeline.set_progress_bar_config(disable=True)
    pipeline.watermark = None  # SDXL's, which it draws where a library for it is installed
    prepare(pipeline)

    def as_torch(x):
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))

    # Where its scheduler, if it adds noise, looks for it.
    module = vars(importlib.import_module(type(pipeline.scheduler).__module__))

    def draw(
        prompts: Sequence[str], x: np.ndarray, zs: np.ndarray, sigmas: list[float] | None = None
    ) -> np.ndarray:
        noise = iter([*zs, x])  # that of the last step is multiplied by 0
        height, width = (side * pipeline.vae_scale_factor for side in x.shape[1:3])
        original, given = module.get("randn_tensor"), {} if sigmas is None else {"sigmas": sigmas}
        module["randn_tensor"] = lambda *_, **__: as_torch(next(noise))
        try:
            with quiet():
                images = pipeline(
                    list(prompts),
                    height=height,
                    width=width,
                    num_inference_steps=len(zs) + 1,
                    guidance_scale=1,
                    latents=as_torch(x),
                    output_type="np",
                    **given,
                ).images
        finally:
            module["randn_tensor"] = original
        return 2 * images - 1

    return draw


def compare(
    model: Model,
    folder: Path,
    prompts: Sequence[str],
    steps: Sequence[int],
    prepare: Callable[[Any], None] = lambda pipeline: None,
    variant: str = "",
) -> dict[int, tuple[Float[np.ndarray, "B H W 3"], Float[np.ndarray, "B H W 3"]]]:
    """Steps -> pictures in [-1, 1] of the same prompts and noise, ours and the stock pipeline's.

    Args:
      model: the student, float32.
      folder: what was exported of it.
      prompts: B of them.
      steps: step counts.
      prepare: called with the stock pipeline.
      variant: such as "fp16", of the folder's weight files.

    Raises:
      InputError: diffusers cannot load the folder.
    """
    assert model.method is not None  # it is a student
    pipeline = model.pipeline
    draw = student_sampler(pipeline, pipeline.network, model.method)
    draw_stock, keys = stock_sampler(folder, prepare, variant), keys_of(0)
    batch, examples = pipeline.prompts(prompts), jnp.arange(len(prompts))
    x = np.asarray(gaussian(keys.noise, examples, pipeline.latent_shape))
    images = {}
    for count in steps:
        # The noise that `sample_consistency` draws; its last step has none.
        step_keys = jax.random.split(keys.steps, count)[:-1]
        zs = [np.asarray(gaussian(key, examples, pipeline.latent_shape)) for key in step_keys]
        ours = draw(model.frozen, model.params, batch, (0, 0), steps=count)
        sigmas = pipeline.schedule.sigmas_for(model.method.timesteps(count, pipeline.schedule))
        images[count] = np.asarray(ours), draw_stock(prompts, x, zs, sigmas)
    return images


def verify(model: Model, folder: Path) -> None:
    """Prints how far our pictures are from the stock pipeline's, for 1, 2, 4 and 8 steps.

    Args:
      model: the student as it was before it was exported, float32.
      folder: what was exported of it; to a LoRA alone belongs the teacher in its record.

    Raises:
      InputError: diffusers cannot load the folder, or a pixel is off by more than 2 of 255.
      BackendError: the backend of JAX computes wrongly.
    """
    runtime.probe()
    base, options = Folder(folder, str(folder)), {}
    if is_lora(base):
        base, _ = base_of(base, LoadOptions())
        options = {"prepare": partial(add_lora, folder=folder), "variant": base.variant}
    print("drawing with the stock pipeline of diffusers too ...", file=sys.stderr, flush=True)
    # Accelerators multiply float32 in lower precision unless told otherwise.
    with jax.default_matmul_precision("highest"):
        images = compare(model, base.path, PROMPTS, STEPS, **options)
    print("steps  largest difference of a pixel from the stock pipeline's, of 255")
    differences = {}
    for count, (ours, stock) in images.items():
        differences[count] = float(np.abs(ours - stock).max()) * 127.5
        print(f"{count:5}  {differences[count]:.3f}")
    # Also true for NaN.
    if wrong := [count for count, value in differences.items() if not value <= TOLERANCE]:
        raise InputError(
            f"pictures of {', '.join(map(str, wrong))} steps differ from the stock pipeline's by "
            f"more than {TOLERANCE:g} of 255; the export was not kept"
        )


def add_lora(pipeline: Any, folder: Path) -> None:
    """Gives a stock pipeline an exported LoRA and its scheduler, as the model card says."""
    import diffusers

    config = read_json(folder / "scheduler" / "scheduler_config.json", "export it again")
    pipeline.load_lora_weights(folder, weight_name=FILE)
    pipeline.scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
