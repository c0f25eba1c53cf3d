"""How fast Stable Diffusion 1.5 loads on a CPU, and how much memory that takes.

    PYTHONPATH=. python benchmarks/load_sd15.py --folder /tmp/sd15

Writes a folder of SD 1.5's full size with random weights (4.3 GB, float32), loads its UNet, VAE
and text encoder in a fresh process, once from the disk and then from the page cache, and removes
the folder. Time and memory are in load_sd15.json in benchmarks/results/ (or --out). The peak
includes Python, JAX and the loaded parameters.
"""

import argparse
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from result import FOLDER, made_by, write

from slam_jax.formats import convert
from slam_jax.formats.diffusers_folder import read_config, read_params, resolve
from slam_jax.models import functional
from slam_jax.models.clip import CLIPTextConfig, CLIPTextModel
from slam_jax.models.unet import UNet2DConditionModel, UNetConfig
from slam_jax.models.vae import AutoencoderKL, VAEConfig
from slam_jax.parallel import runtime

PACKAGES = ("jax", "jaxlib", "flax", "numpy")
DIFFUSERS_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"
COMPONENTS = {
    "unet": (
        UNet2DConditionModel,
        UNetConfig(sample_size=64, cross_attention_dim=768),
        DIFFUSERS_STEM,
    ),
    "vae": (
        AutoencoderKL,
        VAEConfig(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            sample_size=512,
        ),
        DIFFUSERS_STEM,
    ),
    "text_encoder": (
        CLIPTextModel,
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12),
        TRANSFORMERS_STEM,
    ),
}


SMALL = {  # instead of the widths above, to try the script
    "unet": dict(block_out_channels=(32, 64, 64, 64), cross_attention_dim=64),
    "vae": dict(block_out_channels=(32, 32, 32, 32)),
    "text_encoder": dict(hidden_size=64, intermediate_size=64, num_attention_heads=2),
}


def write_component(folder: Path, name: str, rng: np.random.Generator, small: bool) -> None:
    """A config.json, and a safetensors file of random weights written one array at a time."""
    module_class, config, stem = COMPONENTS[name]
    if small:
        config = dataclasses.replace(config, **SMALL[name])
    folder = folder / name
    folder.mkdir(parents=True)
    content = config.to_dict()
    (folder / "config.json").write_text(json.dumps(content))
    shapes = {}
    for path, leaf in functional.flatten(functional.abstract_params(module_class, config)).items():
        zeros = np.broadcast_to(np.float32(0), leaf.shape)
        for key, array in convert.to_torch(functional.unflatten({path: zeros})).items():
            shapes[key] = array.shape
    header, end = {}, 0
    for key, shape in shapes.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / f"{stem}.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            rng.standard_normal(shape, np.float32).tofile(file)
        file.flush()
        os.fsync(file.fileno())  # only what is on the disk can be dropped from the cache


def load(path: Path) -> dict:
    """Loads the folder in this process; wall and CPU seconds, peaks of resident memory in GB."""
    runtime.configure()
    jax.devices()
    before = peak_gb()
    start, cpu_start = time.perf_counter(), time.process_time()
    folder = resolve(str(path))
    seconds, params = {}, {}
    for name, (module_class, config, _) in COMPONENTS.items():
        began = time.perf_counter()
        config = type(config).from_dict(read_config(folder, name))
        params[name] = jax.block_until_ready(
            read_params(folder, name, module_class, config, place=jax.device_put)
        )
        seconds[name] = round(time.perf_counter() - began, 2)
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - cpu_start, 2),
        "seconds_of": seconds,
        "parameters": functional.count_params(params),
        "peak_memory_gb": round(peak_gb(), 3),
        "peak_memory_before_gb": round(before, 3),
    }


def peak_gb() -> float:
    """The largest resident memory this process has had, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(path: Path, cached: bool) -> dict:
    """What `load` returns, from a new process, after the files were put into the cache or out."""
    files = list(path.rglob("*.safetensors"))
    for name in files:
        with name.open("rb") as file:
            if not cached:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                continue
            while file.read(1 << 24):
                pass
    command = [sys.executable, __file__, "--load", str(path)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    report = json.loads(output.splitlines()[-1])
    size = sum(file.stat().st_size for file in files) / 1e9
    ratio = round(report["peak_memory_gb"] / size, 3)
    return {**report, "file_size_gb": round(size, 3), "peak_memory_to_file_size": ratio}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="to be made, and removed; needs 4.3 GB")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--small", action="store_true", help="a folder of a few MB instead")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)  # what the new process does
    options = parser.parse_args(argv)
    if options.load:
        print(json.dumps(load(options.load)))
        return
    if options.folder and options.folder.exists():
        parser.error(f"--folder {options.folder}: exists already; it would be removed")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="sd15-"))
    try:
        for name in COMPONENTS:
            write_component(folder, name, np.random.default_rng(0), options.small)
        report = {
            **made_by("load_sd15.py", argv, PACKAGES),
            "from_disk": measure(folder, cached=False),
            "from_page_cache": measure(folder, cached=True),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write(report, options.out / "load_sd15.json")


if __name__ == "__main__":
    main()
