"""The command line that draws, with a student in few steps or with its teacher in many.

slam-jax sample --model runs/digits --steps 4 --labels 0,1,2 --seed 3 --out grid.png
slam-jax sample --model runs/sd --prompt "a lighthouse by the sea" --steps 4 --out sea.png
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from slam_jax.base.errors import BackendError, InputError
from slam_jax.config.options import DTYPES, SEEDS
from slam_jax.data import digits
from slam_jax.drawing import pictures
from slam_jax.drawing.draw import TEACHER_GUIDANCE, choose_guidance, draw_all, make_sampler
from slam_jax.families.digits_pipeline import DigitsPipeline
from slam_jax.families.load import Model, load
from slam_jax.parallel import runtime

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
        prog="slam-jax sample",
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
