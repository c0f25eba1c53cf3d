"""Which file of a component's folder holds its weights: safetensors, in one file or in shards, of a
variant or none. Pickles are refused."""

import re
from pathlib import Path

from slam_jax.base.errors import InputError


def find(where: Path, stem: str, variant: str) -> Path:
    """The file, or the index of several files, that holds a component's weights.

    Args:
        where: the component's folder.
        stem: of the file's name, "diffusion_pytorch_model" or "model".
        variant: such as "fp16"; "" is none.

    Raises:
        InputError: there is none; says what is there instead and what to do.
    """
    try:
        names = sorted(path.name for path in where.iterdir() if path.is_file())
    except OSError as error:
        raise InputError(f"{where}: missing, but a diffusers model folder has it") from error
    # A variant stands at one of three places, by the version of diffusers that wrote the file.
    pattern = rf"{stem}(?:\.(\w+))?\.safetensors(?:(?:\.(\w+))?\.index(?:\.(\w+))?\.json)?"
    found: dict[str, str] = {}
    for name in names:
        if match := re.fullmatch(pattern, name):
            spelled = next(filter(None, match.groups()), "")
            if spelled not in found or name.endswith(".json"):  # as diffusers prefers
                found[spelled] = name
    if variant in found:
        return where / found[variant]
    if found:
        asked, *there = (f"variant {v!r}" if v else "no variant" for v in (variant, *found))
        raise InputError(
            f"{where}: weights of {asked} are asked for, those of {' and '.join(there)} are there; "
            f"set variant to {next(iter(found))!r}"
        )
    for name in names:
        if name.endswith((".bin", ".ckpt")):
            raise InputError(
                f"{where / name}: a pickle, which can run any code, is not read; convert the model "
                "with torch, if you trust its author: "
                f"diffusers.DiffusionPipeline.from_pretrained({str(where.parent)!r}, "
                f"variant={variant or None!r}).save_pretrained(another_folder)"
            )
        if name.endswith(".msgpack"):
            raise InputError(
                f"{where / name}: weights of Flax classes, which diffusers no longer has; convert "
                "the model with diffusers 0.35: StableDiffusionPipeline.from_pretrained("
                f"{str(where.parent)!r}, from_flax=True).save_pretrained(another_folder)"
            )
    raise InputError(f"{where / stem}.safetensors: missing, and no other weights are there")
