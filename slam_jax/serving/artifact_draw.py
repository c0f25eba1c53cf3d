"""Draws with the sampler in this folder. It needs jax, and flatbuffers to read jax's programs:

    pip install jax flatbuffers
    python draw.py --seed 3 --out picture.npy

From another program, with this folder on its path or these lines copied:

    draw = load("path/to/the/folder")
    images = draw(tokens, seed=3)  # uint8 [B, H, W, C]

README.md beside this file says how texts become tokens.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import sys
import zlib
from pathlib import Path

import jax
import numpy as np
from jax import export

DTYPES = {"F32": np.dtype("float32"), "BF16": jax.numpy.dtype("bfloat16")}
ZSTANDARD = b"\x28\xb5\x2f\xfd"  # how its data begin
# XLA's "ynn" fusions compute some reductions wrongly on CPU; an empty list of them is none.
CPU_OPTIONS: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": ""}


def load(folder):
    """draw(tokens, seed=0, first=0) -> uint8 images [B, H, W, C].

    Picture i has the noise of (seed, first + i), whatever else is in its batch. A batch size is
    compiled when it is first used, or read from compiled/ where `python draw.py --compile` was run
    on a machine like this one.

    Raises:
      ValueError: a file is damaged, or this platform is not one that it was exported for; from
        `draw`, tokens that do not fit, or a picture that is not finite.
    """
    folder = Path(folder)
    about = read_about(folder)
    weights = jax.device_put(read_weights(folder, about))
    program = functools.cache(lambda count: compile_program(folder, about, count))

    def draw(tokens, seed=0, first=0):
        check_tokens(about, tokens)
        if not (0 <= seed < 2**31 and 0 <= first < 2**31):
            raise ValueError(f"seed {seed}, first {first}: expected 0 to {2**31 - 1}")
        images, finite = program(len(tokens))(
            weights, np.asarray(tokens, np.int32), np.int32(seed), np.int32(first)
        )
        if not np.asarray(finite).all():
            raise ValueError(f"seed {seed}: a picture is not finite; the weights are damaged")
        return np.asarray(images)

    return draw


def read_about(folder):
    """What artifact.json says, where it is one for this platform."""
    try:
        about = json.loads((folder / "artifact.json").read_text())
        platforms = about["platforms"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}/artifact.json: no exported sampler ({error})") from error
    try:
        here = export.default_export_platform()
    except (RuntimeError, AssertionError) as error:  # what JAX_PLATFORMS asks for is not there
        reason = (str(error).splitlines() or ["no device"])[0]
        asked = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(f"JAX_PLATFORMS={asked}: {reason}") from error
    if here not in platforms:
        raise ValueError(
            f"{folder}: exported for {', '.join(platforms)}, but jax computes on {here} here; "
            f"set JAX_PLATFORMS, or export it again with --platforms {here}"
        )
    return about


def check_tokens(about, tokens):
    """Refuses tokens of another shape or kind than the program takes."""
    sizes, tokens = about["batch_sizes"], np.asarray(tokens)
    expected = [[count, *about["inputs"]["tokens"]["shape"][1:]] for count in sizes]
    if list(tokens.shape) not in expected:
        raise ValueError(
            f"tokens {list(tokens.shape)}: expected {' or '.join(map(str, expected))}; for another "
            "batch size export it again with --batch-sizes"
        )
    end = about["vocabulary"]
    if tokens.dtype.kind not in "iu" or tokens.min() < 0 or tokens.max() >= end:
        raise ValueError(f"tokens: expected integers from 0 to {end - 1}")


def read_weights(folder, about):
    """The arrays of a safetensors file, mapped into memory and not read yet."""
    path = checked(folder, about, "weights.safetensors")
    start = 8 + int.from_bytes(np.fromfile(path, np.uint8, 8).tobytes(), "little")
    header = json.loads(np.fromfile(path, np.uint8, start - 8, offset=8).tobytes())
    content, arrays = np.memmap(path, np.uint8, "r", start), {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            array = content[begin:end].view(DTYPES[entry["dtype"]])
            arrays[name] = array.reshape(entry["shape"])
    return arrays


def compile_program(folder, about, count):
    """The program for a batch size, compiled or from compiled/."""
    platform = export.default_export_platform()
    name = f"program_{platform}_{count}.bin"
    content = checked(folder, about, name).read_bytes()
    if hashlib.sha256(content).hexdigest() != about["files"][name]["sha256"]:
        raise ValueError(f"{folder}/{name}: damaged; copy it or export it again")
    cache = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if cache is None:  # a service may have one of its own
        remove_torn(folder / "compiled")
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        # They would make the folder's place a part of the key.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    exported = export.deserialize(bytearray(content))
    shapes, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    lowered = jax.jit(exported.call).lower(*shapes)
    if platform == "cpu":
        try:
            return lowered.compile(compiler_options=CPU_OPTIONS)
        except jax.errors.JaxRuntimeError as error:
            if "No such compile option" not in str(error):
                raise
    return lowered.compile()


def remove_torn(compiled):
    """Removes programs that were not written to their end, which jax would not replace."""
    for path in compiled.glob("*-cache"):
        # Another process may be faster, and the folder may be somebody else's.
        with contextlib.suppress(OSError):
            if not is_whole(path.read_bytes()):
                path.unlink()


def is_whole(content):
    """Whether zlib's data have their end; Zstandard's, which jax writes where it can, pass."""
    stream = zlib.decompressobj()
    with contextlib.suppress(zlib.error):
        stream.decompress(content)
    return stream.eof or content.startswith(ZSTANDARD)


def checked(folder, about, name):
    """The path of a file that has the size that it was written with."""
    path, size = folder / name, about["files"][name]["bytes"]
    if not path.is_file() or path.stat().st_size != size:
        found = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
        raise ValueError(f"{path}: {found}, expected {size} bytes; copy it or export it again")
    return path


def read_tokens(path):
    """Token ids from .npy or JSON."""
    try:
        if path.suffix == ".npy":
            return np.load(path)
        return np.asarray(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path}: expected token ids, as .npy or JSON ({error})") from error


def main():
    """The command line."""
    folder = Path(__file__).parent
    parser = argparse.ArgumentParser(description="Draw with the sampler in this folder.")
    parser.add_argument("--tokens", type=Path, help="JSON or .npy; default: those of the example")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("images.npy"), help=".npy, or .png")
    parser.add_argument(
        "--compile", action="store_true", help="only compile for this machine, into compiled/"
    )
    arguments = parser.parse_args()
    out = arguments.out
    try:
        if out.suffix not in (".npy", ".png") or not out.absolute().parent.is_dir():
            raise ValueError(f"--out {out}: expected a .npy or .png in a folder that is there")
        about = read_about(folder)
        if arguments.compile:
            for count in about["batch_sizes"]:
                compile_program(folder, about, count)
            return
        tokens = about["example"]["tokens"]
        if arguments.tokens is not None:
            tokens = read_tokens(arguments.tokens)
        images = load(folder)(tokens, arguments.seed)
        if out.suffix == ".png":
            from PIL import Image  # pip install pillow

            Image.fromarray(np.concatenate(images, axis=1).squeeze()).save(out)
        else:
            np.save(out, images)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
