"""How fast training data are read.

    PYTHONPATH=. python benchmarks/data.py

jpeg     JPEG files in tar shards, decoded, resized and cropped to 512 pixels, into batches of 64,
         by 2 worker processes; and by the webdataset library with a torch DataLoader of 2 worker
         processes, with the same Pillow resizing and random crop, in turns, same files
cached   prepared latents (64 x 64 x 8 float16 moments, 77 token ids) into batches of 64, in this
         process; and the memory that this takes over time (--minutes)
index    the index of a tar of 1 GB: 10,000 JPEG files with a txt and a json each
shards   opening 1,000 shards whose index is there

All of them are made first, in --folder, which is removed afterwards. `pip install webdataset torch`
for the peer. Results are in data.json and data.md in benchmarks/results/ (or --out).
"""

import argparse
import io
import json
import os
import shutil
import statistics
import tarfile
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image
from result import FOLDER, made_by, write
from table import markdown

from slam_jax.data import photographs
from slam_jax.data.batches import Batches
from slam_jax.data.image_text import ImageText, Transform
from slam_jax.data.prepared import FORMAT, Prepared, empty_dtype
from slam_jax.data.prepared_write import Store
from slam_jax.data.rejects import Rejects
from slam_jax.data.tar_shards import TarShards

PACKAGES = ("grain", "array_record", "pillow", "numpy", "webdataset", "torch")
SIZES = ((1024, 768), (768, 1024), (1280, 853), (800, 600))  # width and height
BATCH, WORKERS, RESOLUTION = 64, 2, 512


def jpeg_files(count: int, quality: int = 90, sizes=SIZES) -> list[bytes]:
    """Different crops of the bundled photographs."""
    examples, rng, files = photographs.Photographs(), np.random.default_rng(0), []
    pictures = [Image.fromarray(examples[i].image) for i in range(len(examples))]
    for i in range(count):
        picture, size = pictures[i % len(pictures)], sizes[i % len(sizes)]
        left, top = rng.random(2) * np.array(picture.size) / 4
        box = (left, top, left + picture.width * 0.75, top + picture.height * 0.75)
        file = io.BytesIO()
        picture.resize(size, Image.Resampling.BICUBIC, box).save(file, "JPEG", quality=quality)
        files.append(file.getvalue())
    return files


def write_shard(path: Path, images: list[bytes], start: int, with_json: bool = False) -> None:
    """A webdataset shard with a caption for each image."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i, image in enumerate(images, start):
            members = {"jpg": image, "txt": f"caption number {i}".encode()}
            if with_json:
                facts = {"key": f"{i:09d}", "pwatermark": 0.1, "width": 512, "height": 512}
                members["json"] = json.dumps(facts).encode()
            for extension, content in members.items():
                member = tarfile.TarInfo(f"{i:09d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def lengths_of(texts: list[str]) -> np.ndarray:
    """Stands for a tokenizer; the same on both sides."""
    return np.array([[len(text)] for text in texts], np.int32)


def rate(batches, count: int) -> float:
    """Examples per second, once the workers have started and what they had ready is used up."""
    for _ in range(count // 4):
        next(batches)
    start = time.perf_counter()
    seen = sum(len(next(batches)["images"]) for _ in range(count))
    return seen / (time.perf_counter() - start)


def ours(folder: Path, count: int) -> float:
    examples = TarShards(str(folder / "jpeg"), cache=folder / "index")
    source = ImageText(examples, Transform(RESOLUTION), lengths_of)
    with closing(Batches(source, BATCH, seed=0, workers=WORKERS).iterate(0)) as batches:
        return rate(batches, count)


def webdataset(folder: Path, count: int) -> float:
    import torch
    import webdataset as wds

    def transform(picture, caption):
        picture, rng = picture.convert("RGB"), np.random.default_rng()
        scale = RESOLUTION / min(picture.size)
        size = tuple(max(round(side * scale), RESOLUTION) for side in picture.size)
        picture = picture.resize(size, Image.Resampling.BICUBIC)
        left, top = (int(rng.integers(side - RESOLUTION + 1)) for side in size)
        square = picture.crop((left, top, left + RESOLUTION, top + RESOLUTION))
        return np.asarray(square), caption

    shards = sorted(str(path) for path in (folder / "jpeg").glob("*.tar"))
    dataset = (
        wds.WebDataset(shards, shardshuffle=len(shards), seed=0)
        .repeat()
        .shuffle(200)
        .decode("pil")
        .to_tuple("jpg", "txt")
        .map(lambda pair: transform(*pair))
        .batched(BATCH, collation_fn=collate)
    )
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=WORKERS)
    return rate(iter(loader), count)


def collate(rows) -> dict[str, np.ndarray]:
    images, captions = zip(*rows, strict=True)
    return {"images": np.stack(images), "tokens": lengths_of(list(captions))}


def measure_jpeg(folder: Path, small: bool) -> dict:
    images, shards, batches, rounds = (64, 2, 4, 1) if small else (2000, 8, 40, 5)
    files = jpeg_files(images)
    (folder / "jpeg").mkdir()
    for shard in range(shards):
        part = files[shard * images // shards : (shard + 1) * images // shards]
        write_shard(folder / "jpeg" / f"{shard:05d}.tar", part, shard * images // shards)
    rates = {"slam_jax": [], "webdataset": []}
    for _ in range(rounds):
        rates["slam_jax"].append(ours(folder, batches))
        rates["webdataset"].append(webdataset(folder, batches))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "images": images,
        "mean_bytes": sum(map(len, files)) // len(files),
        "batches_per_round": batches,
        "images_per_second": rates,
        "median": medians,
        "ratio": medians["slam_jax"] / medians["webdataset"],
    }


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure_cached(folder: Path, small: bool, minutes: float) -> dict:
    """Latents of random numbers, as many as fit into the page cache; read over and over."""
    examples = 256 if small else 8192
    fields = {
        "moments": {"dtype": "float16", "shape": [1, 64, 64, 8]},
        "time_ids": {"dtype": "float32", "shape": [1, 6]},
        "tokens": {"dtype": "int32", "shape": [1, 1, 77]},
        "caption_count": {"dtype": "int32", "shape": []},
    }
    plan = {
        **{"format": FORMAT, "source": "random", "identity": "random", "filters": {}, "model": {}},
        **{"resolution": 512, "flip": False, "crop": "center", "captions": 1, "fields": fields},
        "precision": "float32",
        **{"examples": examples, "shard_size": 1024},
    }
    store, rng = Store(folder / "cached", plan), np.random.default_rng(0)
    for number in range(store.shards):
        with store.shard(number) as shard:
            for _ in range(0, store.count(number), BATCH):
                shard.write(
                    {
                        "moments": rng.standard_normal((BATCH, 1, 64, 64, 8)).astype(np.float16),
                        "time_ids": np.full((BATCH, 1, 6), 512, np.float32),
                        "tokens": rng.integers(0, 49408, (BATCH, 1, 1, 77)),
                        "caption_count": np.ones(BATCH),
                    }
                )
    store.write_empty(np.zeros((), empty_dtype(store.dtype)))
    store.finish(Rejects(), 1.0)
    count, rows = 0, []
    batches = Batches(Prepared(folder / "cached"), BATCH, seed=0)
    with closing(batches.iterate(0)) as iterator:
        next(iterator)
        start = last = time.perf_counter()
        while last - start < 60 * minutes:
            for _ in range(20 if small else 500):
                count += len(next(iterator)["moments"])
            last = time.perf_counter()
            rows.append({"seconds": last - start, "samples": count, "resident_mb": resident_mb()})
    tenth = len(rows) // 10  # what is allocated at the beginning stays
    memory = [row["resident_mb"] for row in rows[tenth:]]
    return {
        "examples": examples,
        "seconds": last - start,
        "samples_per_second": count / (last - start),
        "resident_mb_after_a_tenth": memory[0],
        "resident_mb_at_the_end": memory[-1],
        "resident_mb_most": max(memory),
    }


def measure_index(folder: Path, small: bool) -> dict:
    files = jpeg_files(50 if small else 500, sizes=((800, 600), (600, 800)))
    path = folder / "gigabyte" / "00000.tar"
    path.parent.mkdir()
    write_shard(path, (files * 20)[: 100 if small else 10_000], 0, with_json=True)
    seconds = []
    for turn in range(1 if small else 3):
        start = time.perf_counter()
        examples = TarShards(str(path), cache=folder / f"index{turn}")
        seconds.append(time.perf_counter() - start)
    return {
        "bytes": path.stat().st_size,
        "examples": len(examples),
        "seconds": seconds,
        "median": statistics.median(seconds),
    }


def measure_shards(folder: Path, small: bool) -> dict:
    shards, files = (20 if small else 1000), jpeg_files(10, sizes=((96, 64),))
    (folder / "shards").mkdir()
    for shard in range(shards):
        write_shard(folder / "shards" / f"{shard:05d}.tar", files, 10 * shard)
    pattern, seconds = str(folder / "shards" / f"{{00000..{shards - 1:05d}}}.tar"), []
    for _ in range(2 if small else 4):  # the first one makes the index
        start = time.perf_counter()
        examples = TarShards(pattern, cache=folder / "index")
        seconds.append(time.perf_counter() - start)
    return {
        "shards": shards,
        "examples": len(examples),
        "seconds_without_index": seconds[0],
        "seconds": seconds[1:],
        "median": statistics.median(seconds[1:]),
    }


def to_markdown(report: dict) -> str:
    jpeg, cached, index, shards = (report[k] for k in ("jpeg", "cached", "index", "shards"))
    rates = jpeg["median"]
    spread = {k: f"{min(v):.0f} to {max(v):.0f}" for k, v in jpeg["images_per_second"].items()}
    rows = [
        ("JPEG tars to 512 pixels, 2 workers", f"{rates['slam_jax']:.0f} images/s"),
        ("the same, webdataset + torch DataLoader", f"{rates['webdataset']:.0f} images/s"),
        ("ratio of the medians", f"{jpeg['ratio']:.2f}x"),
        ("spread over the rounds", f"{spread['slam_jax']}; {spread['webdataset']}"),
        ("cached latents, one process", f"{cached['samples_per_second']:.0f} samples/s"),
        (
            f"memory after {cached['seconds'] / 600:.1f} and {cached['seconds'] / 60:.1f} minutes",
            f"{cached['resident_mb_after_a_tenth']:.0f} and "
            f"{cached['resident_mb_at_the_end']:.0f} MB",
        ),
        (f"index of a tar of {index['bytes'] / 1e9:.2f} GB", f"{index['median']:.1f} s"),
        (f"opening {shards['shards']} shards with an index", f"{shards['median']:.2f} s"),
        ("the same, index not there yet", f"{shards['seconds_without_index']:.1f} s"),
    ]
    return markdown(["what", "measured"], rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="for the data; default: a temporary one")
    parser.add_argument("--out", type=Path, default=FOLDER, help="for the results")
    parser.add_argument("--minutes", type=float, default=10, help="of looping over the latents")
    parser.add_argument("--small", action="store_true", help="a few examples, to try the script")
    arguments = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        report = {
            **made_by("data.py", argv, PACKAGES),
            "jpeg": measure_jpeg(folder, arguments.small),
            "index": measure_index(folder, arguments.small),
            "shards": measure_shards(folder, arguments.small),
            "cached": measure_cached(folder, arguments.small, arguments.minutes),
        }
    finally:
        shutil.rmtree(folder)
    write(report, arguments.out / "data.json")
    (arguments.out / "data.md").write_text(to_markdown(report))


if __name__ == "__main__":
    main()
