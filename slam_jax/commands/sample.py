"""slam-jax sample: draw with a distilled student in few steps, or with its teacher in many.

slam-jax sample --model runs/digits --steps 4 --prompt 3 --seed 3 --out three.png
slam-jax sample --model runs/sd --prompt "a lighthouse by the sea" --steps 4 --out sea.png
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from slam_jax.base.errors import InputError
from slam_jax.commands.command import (
    add_lora_options,
    add_size_options,
    add_version_options,
    check_counts,
    check_out,
    check_seed,
    parser_of,
    path,
    run,
)
from slam_jax.drawing import pictures
from slam_jax.drawing.draw import (
    TEACHER_GUIDANCE,
    Settings,
    choose_guidance,
    draw_all,
    make_sampler,
    said_of_teacher,
)
from slam_jax.families.family import Model
from slam_jax.parallel import runtime
from slam_jax.recipes.student import load, load_options

SHEET_COLUMNS = 10
MOST = 10_000  # pictures of a prompt, pictures at a time, steps


def read_prompts(arguments: argparse.Namespace, model: Model) -> list[str]:
    """The prompts of the command line, or of its file, one in a line; for a model of labels all of
    these, where nothing is asked for.

    Raises:
      InputError: several ways are used, or the file cannot be read or has none.
    """
    ways = {name: getattr(arguments, name) for name in ("prompt", "labels", "prompts")}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"--{' and --'.join(given)}: expected one of them")
    if not given:
        if not model.pipeline.labels:
            raise InputError("--prompt or --prompts: expected one of them")
        return list(model.pipeline.labels)
    if arguments.prompt is not None:
        return [arguments.prompt]
    if arguments.labels is not None:
        return [word.strip() for word in arguments.labels.split(",")]
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
    """The prompt of each picture, and the batch that draws them; says what of a prompt is cut.

    Raises:
      InputError: prompts or image do not fit the model.
    """
    pipeline, unique = model.pipeline, read_prompts(arguments, model)
    for prompt in dict.fromkeys(unique):
        if cut := pipeline.cut(prompt):
            print(
                f"note: the prompt is too long for the text encoder; cut off: {cut!r}",
                file=sys.stderr,
            )
    prompts = [prompt for prompt in unique for _ in range(arguments.count)]
    batch = pipeline.prompts(prompts)
    if arguments.image is not None:
        if not model.is_student:
            raise InputError(f"--image: {arguments.model} is a teacher; students go on from images")
        if (size := pipeline.image_size) is None:
            raise InputError(f"--image: {arguments.model} draws from noise only")
        image = pictures.read(arguments.image, *size)
        batch["images"] = np.broadcast_to(image, (len(prompts), *image.shape))
    return prompts, batch


def check_options(arguments: argparse.Namespace) -> None:
    """Refuses what is wrong whatever the model.

    Raises:
      InputError: names the option.
    """
    check_seed(arguments.seed)
    check_counts(arguments, "steps", "count", "batch", most=MOST)
    if arguments.labels is not None and not all(map(str.strip, arguments.labels.split(","))):
        raise InputError(f"--labels {arguments.labels!r}: expected labels between commas")
    if not 0 < arguments.strength <= 1:
        raise InputError(f"--strength {arguments.strength:g}: expected a number in (0, 1]")
    if arguments.strength < 1 and arguments.image is None:
        raise InputError("--strength: says how much of --image is redrawn; give an --image")
    is_file = arguments.out.suffix == ".png"
    if not (is_file or arguments.out.suffix == "") or (
        arguments.out.exists() and arguments.out.is_dir() == is_file
    ):
        raise InputError(f"--out {arguments.out}: expected a folder, or a file that ends in .png")
    check_out(arguments.out)


def save(out: Path, drawn: list[np.ndarray], names: list[str], facts: dict[str, Any]) -> None:
    """Writes a contact sheet, and into a folder each picture too; each PNG says how it was made."""
    sheet = pictures.sheet(drawn, SHEET_COLUMNS, scale=None)
    if out.suffix == ".png":
        pictures.save(sheet, out, {"prompts": names, **facts})
        return
    pictures.save(sheet, out / "sheet.png", {"prompts": names, **facts})
    for index, (image, name) in enumerate(zip(drawn, names, strict=True)):
        picture = pictures.sheet([image], 1, scale=None)
        pictures.save(picture, out / f"{index:05d}.png", {"prompt": name, "index": index, **facts})


def work(arguments: argparse.Namespace) -> None:
    """Draws what the command line asks for, and says where the picture or folder is."""
    check_options(arguments)
    runtime.probe()
    model = load(arguments.model, load_options(arguments))
    if model.note:
        print(f"note: {model.note}", file=sys.stderr)
    guidance = choose_guidance(model, arguments.guidance)
    prompts, batch = make_batch(model, arguments)
    settings = Settings(arguments.steps, guidance, arguments.strength, arguments.dtype)
    draw = make_sampler(model, settings)
    if said := said_of_teacher(model, guidance, arguments.steps):
        print(f"note: drawn {said} (--guidance, --steps)", file=sys.stderr)
    size = min(arguments.batch, len(prompts))
    drawn = list(draw_all(model, draw, batch, arguments.seed, size))
    facts = {
        "model": arguments.model,
        "steps": arguments.steps,
        "guidance": guidance,
        "seed": arguments.seed,
        "width": drawn[0].shape[1],
        "height": drawn[0].shape[0],
        "dtype": arguments.dtype,
    }
    if arguments.lora:
        facts["lora"] = arguments.lora
    if arguments.method:
        facts["method"] = arguments.method
    if arguments.image is not None:
        facts |= {"image": str(arguments.image), "strength": arguments.strength}
    save(arguments.out, drawn, prompts, facts)
    print(f"wrote {arguments.out}")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = parser_of("sample", "Draw with a distilled student, or with its teacher.")
    add = parser.add_argument
    add("--model", required=True, help="workdir of a finished run, folder, or hub repository")
    add_version_options(parser)
    add_lora_options(parser)
    add("--prompt", help="what to draw")
    add("--prompts", type=path, help="file with a prompt in each line")
    add("--labels", help="short prompts between commas, such as 0,1,2 for digits")
    add("--steps", type=int, default=4, help="network evaluations per picture")
    add("--seed", type=int, default=0, help="of the noise")
    add("--count", type=int, default=1, help="pictures of each prompt")
    add("--batch", type=int, default=4, help="pictures that are drawn at a time")
    add_size_options(parser)
    add("--image", type=path, help="picture to go on from (students)")
    add("--strength", type=float, default=1.0, help="how much of it is redrawn, in (0, 1]")
    add("--guidance", type=float, help=f"usual scale, of teachers only; None: {TEACHER_GUIDANCE}")
    add("--out", type=path, default=Path("samples.png"), help="PNG for a sheet, or a folder")
    run(work, parser, argv)
