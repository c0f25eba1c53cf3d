"""LoRAs on a Stable Diffusion that was loaded: style, or the few steps of a student, or both."""

import dataclasses
import math
import sys
from pathlib import Path

from slam_jax.base.errors import InputError
from slam_jax.base.files import sha256
from slam_jax.base.json_file import read_json
from slam_jax.config.validate import method_of
from slam_jax.families.family import LoadOptions, Model, other_part
from slam_jax.families.pipeline import DENOISER
from slam_jax.families.stable_diffusion_folder import RECORD_FILE, read_record
from slam_jax.formats import hub
from slam_jax.formats.diffusers_folder import Folder, fingerprints, resolve
from slam_jax.formats.lora_file import FILE
from slam_jax.formats.lora_header import PEFT_FILE
from slam_jax.formats.lora_hub import SUFFIX, fetch_lora, is_on_hub
from slam_jax.formats.lora_read import read_lora
from slam_jax.method.method import Method
from slam_jax.method.registry import METHODS
from slam_jax.method.slam import Slam
from slam_jax.models import lora
from slam_jax.models.functional import cast


def with_loras(model: Model, options: LoadOptions) -> Model:
    """The model with LoRAs merged into its weights, one after the other.

    A file beside a slam.json, as an export is, makes a teacher a student of that method.

    Args:
      model: a teacher or a student, in float32.
      options: which LoRAs; a method, for one without a record; and what dtype the weights get, but
        for the VAE's.

    Raises:
      InputError: a LoRA cannot be found or read, or is for another base; or a second one would make
        a student of few steps of what is one.
    """
    parts = {DENOISER: model.params, **{n: p for n, p in model.frozen.items() if n != "vae"}}
    method, records = model.method, []
    if options.method:
        if method is not None:
            raise InputError(
                f"--method {options.method}: the model is a student already; leave it out"
            )
        method = method_called(options.method)
    for spelled in options.loras:
        path, factor = locate(spelled)
        found = read_lora(path, parts, getattr(model.pipeline.network, "layers_per_block", None))
        if found.unused:
            some = ", ".join(found.unused[:3])
            count = f"{path}: {len(found.unused)} keys are of no layer of this model: {some}"
            if not options.allow_unused:
                raise InputError(f"{count}; --allow-unused passes them over")
            print(f"note: {count}; passed over", file=sys.stderr)
        own = method_beside(path)
        if own is not None and options.method:
            raise InputError(
                f"--method {options.method}: {path} has a record of its method; leave it out"
            )
        if own is not None and method is not None:
            raise InputError(f"{path}: makes few steps of many, but the model is a student already")
        method = method or own
        for part, adapters in found.adapters.items():
            parts[part] = lora.merged(parts[part], adapters, factor)
        records.append({"file": str(path), "sha256": sha256(path), "weight": factor})
    parts = {name: cast(params, options.dtype) for name, params in parts.items()}
    changes = {"params": parts.pop(DENOISER), "frozen": {**model.frozen, **parts}}
    return dataclasses.replace(model, **changes, method=method, loras=tuple(records))


def method_called(name: str) -> Method:
    """A method by its name, with its defaults, as a LoRA can have been distilled.

    Raises:
      InputError: there is none of that name, or it gives the network an input for gamma.
    """
    methods = {known: kind() for known, kind in METHODS.items()}
    methods["slam"] = Slam(conditioning="snr")
    possible = [known for known, method in methods.items() if not method.tells_gamma]
    if name not in possible:
        raise InputError(f"--method {name}: expected one of {', '.join(possible)}")
    return methods[name]


def method_beside(path: Path) -> Method | None:
    """The method of a student's LoRA, from the record in its folder; None: it has none.

    Raises:
      InputError: the record is damaged.
    """
    record = path.with_name(RECORD_FILE)
    return method_of(read_json(record, "export it again"), record) if record.exists() else None


def is_lora(folder: Folder) -> bool:
    """Whether a folder is an export of a LoRA alone."""
    return bool(read_record(folder)) and not (folder.path / "model_index.json").exists()


def base_of(folder: Folder, options: LoadOptions) -> tuple[Folder, LoadOptions]:
    """The model that an exported LoRA is for, its teacher; and how it is loaded with the LoRA.

    Args:
      folder: the export.
      options: how the student is loaded.

    Raises:
      InputError: the teacher is not where the record says, or another one is there.
    """
    record, where = read_record(folder), str(folder.path)
    teacher, size = record.get("teacher"), record.get("image_size", [None, None])
    advice = f"say where it is with --model BASE --lora {folder.name}"
    if not (isinstance(teacher, dict) and isinstance(teacher.get("path"), str)):
        raise InputError(f"{folder.path / RECORD_FILE}: it names no teacher; {advice}")
    if not (isinstance(size, list) and len(size) == 2):
        raise InputError(f"{folder.path / RECORD_FILE}: no image_size; export the LoRA again")
    path, variant = teacher["path"], options.variant or teacher.get("variant", "")
    try:
        base = resolve(path, teacher.get("revision", ""), variant)
        other = other_part(teacher, {"fingerprints": fingerprints(base)})
    except InputError as error:
        raise InputError(f"{folder.name}: a LoRA for {path!r}: {error}; {advice}") from error
    if other:
        raise InputError(
            f"{folder.name}: a LoRA for {path!r}, whose {other} is another one now; {advice}"
        )
    if folder.revision:  # of the hub, from which the file was not fetched yet
        where = str(hub.fetch(folder.name, folder.revision, [FILE]))
    changes = {"height": options.height or size[0], "width": options.width or size[1]}
    return base, dataclasses.replace(options, loras=(where, *options.loras), **changes)


def locate(spelled: str, option: str = "--lora ", revision: str = "") -> tuple[Path, float]:
    """The file that is meant, and its weight.

    Args:
      spelled: a file, a folder, a repository of the hub or a file in one, and perhaps ":weight".
      option: what stands before it in the command line, for messages.
      revision: of a repository; "" is the main branch.

    Raises:
      InputError: there is none.
    """
    name, factor = spelled, 1.0
    before, colon, after = spelled.rpartition(":")
    if colon and not Path(spelled).exists():
        try:
            name, factor = before, float(after)
        except ValueError as error:
            raise InputError(f"{option}{spelled}: {after!r} is no weight; file:0.7") from error
        if not math.isfinite(factor):
            raise InputError(f"{option}{spelled}: {after!r} is no weight; file:0.7")
    path = Path(name).expanduser()
    if not path.exists():
        if not is_on_hub(name):
            what = f"a file, a folder, owner/name or owner/name/FILE{SUFFIX}"
            raise InputError(f"{option}{name}: no such file; {what}")
        return fetch_lora(name, revision), factor
    if (path / "export").is_dir():  # of a run
        path = path / "export"
    if path.is_dir():
        files = sorted(path.glob(f"*{SUFFIX}"))
        known = [file for file in files if file.name in (FILE, PEFT_FILE)] or files
        if len(known) != 1:
            there = ", ".join(file.name for file in known) or "none"
            raise InputError(
                f"{option}{name}: expected one {SUFFIX} in it, found {there}; give the file"
            )
        path = known[0]
    return path, factor
