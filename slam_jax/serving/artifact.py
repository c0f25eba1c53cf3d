"""A sampler that draws without this package: its program, its weights, and a loader beside them.

    artifact.json                 what it is: inputs, steps, platforms, batch sizes, versions, files
    program_cpu_1.bin, ...        for each platform and batch size, token ids and a seed -> uint8
                                  pictures: text encoders, UNet steps and VAE in one StableHLO
                                  program (jax.export)
    weights.safetensors           one copy for all programs, in the dtypes that they compute in
    draw.py                       reads these with jax alone; also a command
    compiled/                     XLA's executables for the kind of machine that exported it
    tokenizer/, tokenizer_2/      of text-to-image models: texts to token ids
    README.md

A program has one batch size and not a symbolic one: XLA compiles for each size anyhow, and kernels
such as cuDNN's attention depend on shapes. It is for one platform, as JAX cannot lower cuDNN's
attention for several at once. Without the weights a program is small.
"""

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Int

from slam_jax.base.errors import InputError
from slam_jax.base.files import sha256, write_whole
from slam_jax.base.json_file import write_json
from slam_jax.base.out_folder import whole_folder
from slam_jax.drawing.draw import Settings, choose_guidance, make_sampler
from slam_jax.families.family import Model
from slam_jax.families.pipeline import DENOISER
from slam_jax.formats import safetensors
from slam_jax.formats.diffusers_write import TOKENIZERS
from slam_jax.models import functional
from slam_jax.parallel.runtime import versions
from slam_jax.recipes.student import MANIFEST
from slam_jax.serving import artifact_draw

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
WEIGHTS, LOADER, COMPILED = "weights.safetensors", "draw.py", "compiled"
CUDNN_ATTENTION = "__cudnn$fmhaSoftmax"
Arrays = dict[str, Any]  # "unet.conv_in.kernel": the weights of all networks in one dict

README = """# A sampler of {model}

Token ids to pictures ({size}) in {steps} steps at guidance {guidance:g}, exported by slam_jax for
{platforms} and batches of {batches}. It needs jax and flatbuffers, and was exported with jax {jax}:

```bash
pip install jax flatbuffers
python draw.py --seed 3 --out picture.npy
```

draws the example of artifact.json. From another program, with draw.py beside it:

```python
{program}
```

Picture i of a batch has the noise of (seed, first + i). The first start on a kind of machine
compiles; `python draw.py --compile` does that ahead. compiled/ is used where jaxlib, the machine
and XLA_FLAGS are the same, and JAX_COMPILATION_CACHE_DIR does not name another folder; who can
write there can make draw.py run code. artifact.json has each file's SHA-256; draw.py checks that of
the programs, and the weights' size.
"""
OF_TOKENS = """from draw import load

draw = load("path/to/this/folder")
images = draw({tokens}, seed=3)  # token ids; uint8 [B, H, W, C]"""
OF_TEXTS = """import numpy as np
from draw import load
from transformers import CLIPTokenizer  # pip install transformers

folder = "path/to/this/folder"
draw = load(folder)
ids = [
    CLIPTokenizer.from_pretrained(f"{{folder}}/{{name}}")(
        ["a lighthouse by the sea"], padding="max_length", truncation=True, max_length={length}
    )["input_ids"]
    for name in {names}
]
images = draw(np.stack(ids, axis=1), seed=3)  # tokens [B, E, L]; uint8 [B, H, W, 3]"""


@dataclass(frozen=True)
class Options:
    """What an artifact is made for.

    Attributes:
      steps: of the sampler.
      batch_sizes: pictures at a time; a program for each.
      platforms: some of PLATFORMS.
      dtype: of the UNet and the text encoders, as in `load`.

    Raises:
      InputError: an impossible value; names it.
    """

    steps: int = 4
    batch_sizes: tuple[int, ...] = (1, 4)
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")
    dtype: str = "float32"

    def __post_init__(self):
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise InputError("--batch-sizes: expected positive numbers between commas, as in 1,4")
        if unknown := set(self.platforms) - set(PLATFORMS):
            wrong, known = ", ".join(sorted(unknown)), ", ".join(PLATFORMS)
            raise InputError(f"--platforms: {wrong}, expected some of {known}")


def write_artifact(
    model: Model, name: str, out: Path, options: Options, environment: Mapping[str, str]
) -> None:
    """Writes an artifact, whole or not at all; replaces an earlier one.

    Args:
      model: a student, or a teacher (with the usual guidance).
      name: of the model, for the record.
      out: the folder to make.
      options: what it is made for.
      environment: of a process that is to draw with it; compiled/ is filled for that.

    Raises:
      InputError: `out` holds something else or cannot be written, or the model cannot be exported.
    """
    model.pipeline.vocabulary  # noqa: B018 - refused now, where the family has none
    guidance = choose_guidance(model, None)
    sampler = make_sampler(model, Settings(options.steps, guidance, 1.0, options.dtype))
    params = functional.cast(model.params, options.dtype)
    arrays = functional.flatten({DENOISER: params, **model.frozen})
    program = _program(model, sampler, arrays)
    (_, tokens), sizes = example_of(model), sorted(set(options.batch_sizes))
    with whole_folder(out, _is_artifact, "artifact") as folder:
        # What no program reads is left out, such as the VAE's encoder.
        any_of_them = _export(program, arrays, tokens, sizes[0], options.platforms[0])
        arrays = _used(arrays, any_of_them)
        safetensors.save_arrays(folder / WEIGHTS, arrays)
        for platform, count in itertools.product(options.platforms, sizes):
            exported = _export(program, arrays, tokens, count, platform)
            content = bytes(exported.serialize())
            write_whole(folder / f"program_{platform}_{count}.bin", content)
            if platform == "cuda" and count == sizes[0]:
                _say_what_attends(model, content, options)
        about = _about(model, name, tokens, exported, options) | {"guidance": guidance}
        shutil.copyfile(artifact_draw.__file__, folder / LOADER)
        _write_surroundings(model, folder, about)
        files = filter(Path.is_file, sorted(folder.iterdir()))
        about["files"] = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
        }
        write_json(folder / MANIFEST, about)
        _compile(folder, environment)


def example_of(model: Model) -> tuple[str, Int[np.ndarray, "1 ..."]]:
    """A prompt of the model, and its token ids."""
    prompts = model.pipeline.example_prompts
    prompt = prompts[len(prompts) // 2]
    return prompt, model.pipeline.prompts([prompt])["tokens"]


def _program(model: Model, sampler: Callable, shapes: Arrays) -> Callable:
    """(arrays, tokens, seed, first) -> uint8 pictures, and whether each was finite before.

    Args:
      model: whose weights the arrays are.
      sampler: of `make_sampler`.
      shapes: all arrays of the networks; those that the program is not given must not matter.
    """
    missing = {key: (a.shape, a.dtype) for key, a in shapes.items()}
    prompt, _ = example_of(model)

    def sample(arrays, tokens, seed, first):
        zeros = {key: jnp.zeros(*missing[key]) for key in missing.keys() - arrays.keys()}
        frozen = functional.unflatten({**arrays, **zeros})
        params = frozen.pop(DENOISER)
        # Of the example's prompt all but the tokens is kept, such as the picture's size.
        batch = model.pipeline.prompts([prompt] * len(tokens))
        return sampler(frozen, params, {**batch, "tokens": tokens}, (seed, first))

    return sample


def _export(
    program: Callable, arrays: Arrays, tokens: np.ndarray, count: int, platform: str
) -> export.Exported:
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)
    ids = jax.ShapeDtypeStruct((count, *tokens.shape[1:]), np.int32)
    number = jax.ShapeDtypeStruct((), np.int32)
    try:
        return export.export(
            jax.jit(program),
            platforms=[platform],
            # JAX does not promise that later versions know it.
            disabled_checks=[export.DisabledSafetyCheck.custom_call(CUDNN_ATTENTION)],
        )(shapes, ids, number, number)
    except (ValueError, NotImplementedError) as error:
        why = " ".join(str(error).split())[:300]
        raise InputError(f"--artifact: jax cannot export this sampler: {why}") from error


def _used(arrays: Arrays, exported: export.Exported) -> Arrays:
    """The arrays that a program with all of them reads."""
    indices = jax.tree.unflatten(exported.in_tree, range(len(exported.in_avals)))[0][0]
    kept = set(exported.module_kept_var_idx)
    return {key: array for key, array in arrays.items() if indices[key] in kept}


def _about(
    model: Model, name: str, tokens: np.ndarray, exported: export.Exported, options: Options
) -> dict[str, Any]:
    """What the manifest says, but for the files."""
    (prompt, _), sizes = example_of(model), sorted(set(options.batch_sizes))
    height, width, channels = exported.out_avals[0].shape[1:]
    return {
        "what": "a sampler, for draw.py beside it",
        "model": name,
        "kind": "student" if model.is_student else "teacher",
        "steps": options.steps,
        "dtype": options.dtype,
        "platforms": list(options.platforms),
        "batch_sizes": sizes,
        "inputs": {
            "tokens": {"dtype": "int32", "shape": ["B", *tokens.shape[1:]]},
            "seed": {"dtype": "int32", "shape": []},
            "first": {"dtype": "int32", "shape": []},
        },
        "outputs": {"images": {"dtype": "uint8", "shape": ["B", height, width, channels]}},
        "vocabulary": model.pipeline.vocabulary,
        "example": {
            "prompt": prompt,
            "tokens": np.repeat(tokens, sizes[0], axis=0).tolist(),
        },
        "versions": versions(),
        "info": model.info,
        "loras": list(model.loras),
    }


def _write_surroundings(model: Model, folder: Path, about: dict[str, Any]) -> None:
    """Writes the tokenizers, and the README that tells how to use them."""
    names, length = model.pipeline.save_tokenizers(folder), about["inputs"]["tokens"]["shape"][-1]
    readme = README.format(
        model=about["model"],
        steps=about["steps"],
        guidance=about["guidance"],
        size="x".join(map(str, about["outputs"]["images"]["shape"][1:3])),
        platforms=", ".join(about["platforms"]),
        batches=", ".join(map(str, about["batch_sizes"])),
        jax=about["versions"]["jax"],
        program=OF_TEXTS.format(length=length, names=names)
        if names
        else OF_TOKENS.format(tokens=about["example"]["tokens"]),
    )
    write_whole(folder / "README.md", readme.rstrip())


def _say_what_attends(model: Model, program: bytes, options: Options) -> None:
    """Says so where NVIDIA's GPUs will not get their own attention, which float32 never gets."""
    wanted = model.pipeline.execution.attention in ("auto", "cudnn")
    if wanted and options.dtype == "bfloat16" and CUDNN_ATTENTION.encode() not in program:
        print(
            "note: on cuda the program has XLA's attention; to get cuDNN's, export on a machine "
            "with an NVIDIA GPU",
            file=sys.stderr,
        )


def _compile(folder: Path, environment: Mapping[str, str]) -> None:
    """Fills compiled/ in a process like those that will draw: flags are a part of XLA's keys."""
    environment = {k: v for k, v in environment.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # this process may hold most memory
    done = subprocess.run(
        [sys.executable, "-B", folder / LOADER, "--compile"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        print(f"note: not compiled ahead, so the first start will: {why}", file=sys.stderr)


def _is_artifact(names: set[str]) -> bool:
    """Whether these are the files of an earlier artifact, which may have been used."""
    ours = {MANIFEST, WEIGHTS, LOADER, COMPILED, "README.md", "__pycache__", *TOKENIZERS}
    return MANIFEST in names and all(n in ours or n.startswith("program_") for n in names)
