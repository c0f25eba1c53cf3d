"""The command line that draws, with a student in few steps or with its teacher in many.

python -m slam_jax.sample --model runs/digits --steps 4 --labels 0,1,2 --seed 3 --out grid.png
python -m slam_jax.sample --model runs/sd --prompt "a lighthouse by the sea" --steps 4 --out sea.png
"""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from slam_jax import pictures, runtime
from slam_jax.config import DTYPES, SEEDS
from slam_jax.data import digits
from slam_jax.draw import Sampler, student_sampler, teacher_sampler
from slam_jax.errors import BackendError, InputError
from slam_jax.models.digits_pipeline import DigitsPipeline
from slam_jax.models.load import Model, load
from slam_jax.models.pipeline import Batch
from slam_jax.sampler import consistency_timesteps, ddim_timesteps

TEACHER_GUIDANCE = 7.5
SHEET_COLUMNS = 10
DIGITS_SCALE = 5


def parse_labels(text: str) -> list[str]:
    """Labels from a list such as "0,1,2".

    Raises:
      InputError: something other than digits 0 to 9 between commas.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word in set("0123456789") for word in words):
        raise InputError(f"--labels {text}: expected digits 0 to 9 between commas, such as 0,1,2")
    return words


def read_prompts(arguments: argparse.Namespace) -> list[str]:
    """The prompts of the command line, or of its file, one in a line.

    Raises:
      InputError: neither or both are given, or the file cannot be read or has none.
    """
    if (arguments.prompt is None) == (arguments.prompts is None):
        raise InputError("--prompt or --prompts: expected one of them, for a text-to-image model")
    if arguments.prompt is not None:
        return [arguments.prompt]
    try:
        lines = arguments.prompts.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompts {arguments.prompts}: cannot be read: {error}") from error
    if not (prompts := [line.strip() for line in lines if line.strip()]):
        raise InputError(f"--prompts {arguments.prompts}: no prompt in it; expected one in a line")
    return prompts


def choose_guidance(model: Model, asked: float | None) -> float:
    """The usual guidance scale: a teacher's default is 7.5, a student's is 1 and nothing else.

    Raises:
      InputError: guidance for a student.
    """
    if not model.is_student:
        guidance = TEACHER_GUIDANCE if asked is None else asked
        if guidance < 1:
            raise InputError(f"--guidance {guidance:g}: expected 1 (none) or more")
        return guidance
    if "LatentConsistency" in model.pipeline_class and not model.info:
        print(
            "note: to an LCM whose guidance is an input, a student's gamma = 1 means none",
            file=sys.stderr,
        )
    if asked not in (None, 1.0):
        told = f"told another gamma, {1 - (asked - 1) / 10:g} in place of 1"
        told = told if model.pipeline.unet.time_cond_proj_dim is not None else "guided twice"
        raise InputError(
            f"--guidance {asked:g}: a student has its guidance built in; it would be {told}; leave "
            "the option out"
        )
    return 1.0


def make_sampler(model: Model, guidance: float, steps: int, strength: float, dtype: str) -> Sampler:
    """A function of (frozen, params, batch, seed, first) that draws in one program: uint8 images,
    and whether each was finite before.

    Raises:
      InputError: impossible numbers of steps.
    """
    timesteps = model.pipeline.schedule.num_train_timesteps
    try:
        if model.is_student:
            consistency_timesteps(steps, model.num_ddim_timesteps, timesteps, strength)
        else:
            ddim_timesteps(steps, timesteps)
    except ValueError as error:
        raise InputError(f"--{error}") from error
    if model.is_student:
        draw = student_sampler(model.pipeline, model.pipeline.unet, model.num_ddim_timesteps, dtype)
        draw = partial(draw, steps=steps, strength=strength)
    else:
        draw = partial(teacher_sampler(model.pipeline, guidance - 1, dtype), steps=steps)

    @jax.jit
    def draw_uint8(frozen, params, batch, seed, first):
        images = draw(frozen, params, batch, seed, first)
        finite = jnp.isfinite(images).all(axis=(1, 2, 3))
        return jnp.round((images + 1) * 127.5).astype(jnp.uint8), finite

    return draw_uint8


def batches_of(batch: Batch, size: int) -> Iterator[tuple[int, int, Batch]]:
    """(first, count, rows first .. first + size - 1); the last batch repeats its end to be full."""
    total = len(batch["tokens"])
    for first in range(0, total, size):
        rows = np.minimum(np.arange(first, first + size), total - 1)
        yield first, min(size, total - first), {name: a[rows] for name, a in batch.items()}


def draw_all(
    model: Model, draw: Sampler, batch: Batch, seed: int, size: int
) -> Iterator[np.ndarray]:
    """The pictures one by one, uint8 [H, W, C]; row i has the noise of (seed, i).

    Raises:
      InputError: a picture is not finite.
    """
    params, frozen = jax.device_put((model.params, model.frozen))
    with tqdm(desc="drawing", total=len(batch["tokens"]), unit="picture") as bar:
        for first, count, part in batches_of(batch, size):
            images, finite = jax.device_get(draw(frozen, params, part, seed, first))
            if not finite.all():
                raise InputError(
                    f"picture {first + int(finite.argmin())} is not finite: the weights are "
                    "damaged, or --dtype is too coarse for them"
                )
            bar.update(count)
            yield from images[:count]


def make_batch(
    model: Model, arguments: argparse.Namespace
) -> tuple[list[str], dict[str, np.ndarray]]:
    """A name for each picture, and the batch that draws them; says what of a prompt is cut.

    Raises:
      InputError: prompts, labels or image do not fit the model.
    """
    is_digits = isinstance(model.pipeline, DigitsPipeline)
    for option in ("labels", "prompt", "prompts"):
        if getattr(arguments, option) is not None and is_digits != (option == "labels"):
            kind = "draws digits: use --labels" if is_digits else "draws from text: use --prompt"
            raise InputError(f"--{option}: {arguments.model} {kind}")
    if is_digits:
        for option in ("image", "height", "width"):
            if getattr(arguments, option) is not None:
                raise InputError(f"--{option}: {arguments.model} draws digits of 8x8 from noise")
        labels = parse_labels(arguments.labels or "0,1,2,3,4,5,6,7,8,9")
        names = np.repeat(labels, arguments.count)
        return list(names), {"tokens": digits.tokenize(names.astype(int))}
    prompts = [p for p in read_prompts(arguments) for _ in range(arguments.count)]
    for prompt in dict.fromkeys(prompts):
        if cut := model.pipeline.cut(prompt):
            print(
                f"note: the prompt is too long for the text encoder; cut off: {cut!r}",
                file=sys.stderr,
            )
    batch = model.pipeline.prompts(prompts)
    if arguments.image is not None:
        if not model.is_student:
            raise InputError(f"--image: {arguments.model} is a teacher; students go on from images")
        image = pictures.read(arguments.image, *model.pipeline.image_size)
        batch["images"] = np.broadcast_to(image, (len(prompts), *image.shape))
    return prompts, batch


def check_options(arguments: argparse.Namespace) -> None:
    """Refuses what is wrong whatever the model.

    Raises:
      InputError: names the option.
    """
    if not 0 <= arguments.seed < SEEDS:
        raise InputError(f"--seed {arguments.seed}: expected 0 to {SEEDS - 1}")
    for option in ("steps", "count", "batch"):
        if getattr(arguments, option) < 1:
            raise InputError(f"--{option} {getattr(arguments, option)}: expected 1 or more")
    if not 0 < arguments.strength <= 1:
        raise InputError(f"--strength {arguments.strength:g}: expected a number in (0, 1]")
    if arguments.strength < 1 and arguments.image is None:
        raise InputError("--strength: says how much of --image is redrawn; give an --image")
    is_file = arguments.out.suffix == ".png"
    if not (is_file or arguments.out.suffix == "") or (
        arguments.out.exists() and arguments.out.is_dir() == is_file
    ):
        raise InputError(f"--out {arguments.out}: expected a folder, or a file that ends in .png")


def save(
    out: Path, drawn: list[np.ndarray], names: list[str], scale: int, facts: dict[str, Any]
) -> None:
    """Writes a contact sheet, and into a folder each picture too; each PNG says how it was made."""
    sheet = pictures.sheet(drawn, SHEET_COLUMNS, scale)
    if out.suffix == ".png":
        pictures.save(sheet, out, {"prompts": names, **facts})
        return
    pictures.save(sheet, out / "sheet.png", {"prompts": names, **facts})
    for index, (image, name) in enumerate(zip(drawn, names, strict=True)):
        picture = pictures.sheet([image], 1, scale)
        pictures.save(picture, out / f"{index:05d}.png", {"prompt": name, "index": index, **facts})


def run(arguments: argparse.Namespace) -> Path:
    """Draws what the command line asks for, and returns the path of the picture or folder."""
    check_options(arguments)
    runtime.probe()
    size = {"height": arguments.height, "width": arguments.width}
    model = load(
        arguments.model, arguments.revision, arguments.variant, **size, dtype=arguments.dtype
    )
    guidance = choose_guidance(model, arguments.guidance)
    names, batch = make_batch(model, arguments)
    draw = make_sampler(model, guidance, arguments.steps, arguments.strength, arguments.dtype)
    drawn = list(draw_all(model, draw, batch, arguments.seed, min(arguments.batch, len(names))))
    facts = {
        "model": arguments.model,
        "steps": arguments.steps,
        "guidance": guidance,
        "seed": arguments.seed,
        "width": drawn[0].shape[1],
        "height": drawn[0].shape[0],
        "dtype": arguments.dtype,
    }
    if arguments.image is not None:
        facts |= {"image": str(arguments.image), "strength": arguments.strength}
    scale = DIGITS_SCALE if isinstance(model.pipeline, DigitsPipeline) else 1
    save(arguments.out, drawn, names, scale, facts)
    return arguments.out


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m slam_jax.sample",
        description="Draw with a distilled student, or with its teacher.",
    )
    parser.add_argument(
        "--model", required=True, help="workdir of a finished run, folder, or hub repository"
    )
    parser.add_argument("--revision", default="", help="commit, tag or branch of a repository")
    parser.add_argument("--variant", default="", help='such as "fp16", of the weight files')
    parser.add_argument("--prompt", help="what to draw")
    parser.add_argument("--prompts", type=Path, help="file with a prompt in each line")
    parser.add_argument("--labels", help="digits to draw, such as 0,1,2")
    parser.add_argument("--steps", type=int, default=4, help="network evaluations per picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1, help="pictures of each prompt")
    parser.add_argument("--batch", type=int, default=4, help="pictures that are drawn at a time")
    parser.add_argument("--width", type=int, help="in pixels; default: what it was trained on")
    parser.add_argument("--height", type=int, help="in pixels; default: what it was trained on")
    parser.add_argument("--image", type=Path, help="picture to go on from (students)")
    parser.add_argument(
        "--strength", type=float, default=1.0, help="how much of it is redrawn, in (0, 1]"
    )
    parser.add_argument(
        "--guidance", type=float, help=f"usual guidance scale, teachers only ({TEACHER_GUIDANCE})"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the networks")
    parser.add_argument(
        "--out", type=Path, default=Path("samples.png"), help="PNG for a sheet, or a folder"
    )
    runtime.configure()
    try:
        print(f"wrote {run(parser.parse_args(argv))}")
    except (InputError, BackendError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
