"""The options of `config.data`."""

from dataclasses import dataclass
from typing import Any

from slam_jax.data.image_text import CAPTIONS, CROPS


def check(condition: bool, key: str, value: Any, expected: str) -> None:
    if not condition:
        raise ValueError(f"{key} = {value!r}, expected {expected}")


@dataclass(frozen=True)
class Data:
    """What is trained on.

    A source is "digits"; "photographs" (those bundled with scikit-learn and scikit-image); shards
    of webdataset, as "data/{00000..00331}.tar", "gs://bucket/*.tar" or a folder of them; a folder
    of images with captions; "tfds:NAME" of tensorflow-datasets; or what slam-jax prepare made.
    """

    source: str = "digits"
    resolution: int = 512  # the shorter side is resized to it, and a square is cropped
    crop: str = "random"  # or "center"
    flip: bool = False  # mirror half of the examples
    captions: str = "random"  # or "first": which one of an example that has several
    empty_prompts: float = 0.0  # share of the examples that are trained without their caption
    min_size: int = 0  # leave out images whose shorter side has fewer pixels
    max_watermark: float = 1.0  # leave out images with a larger "pwatermark", or below 1 with none
    max_rejects: float = 0.1  # share of damaged examples at which a run stops
    caption_key: str = ""  # where captions are in json, metadata.jsonl or TFDS; empty: as usual
    image_key: str = "image"  # where images are in TFDS
    split: str = "train"  # of TFDS, such as "train[:10%]"
    data_dir: str = ""  # of TFDS; empty: ~/tensorflow_datasets
    index: str = ""  # folder for what is known of tar shards; empty: ~/.cache/slam_jax/tar_index
    workers: int = 0  # processes that read; 0: a thread

    def __post_init__(self):
        kinds = "digits, photographs, tfds:NAME, a folder, or a pattern of .tar shards"
        check(self.source != "", "source", self.source, kinds)
        check(
            self.resolution >= 8 and self.resolution % 8 == 0,
            "resolution",
            self.resolution,
            "a positive multiple of 8",
        )
        check(self.crop in CROPS, "crop", self.crop, f"one of {', '.join(CROPS)}")
        check(self.captions in CAPTIONS, "captions", self.captions, f"one of {', '.join(CAPTIONS)}")
        for name in ("empty_prompts", "max_watermark", "max_rejects"):
            check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number in [0, 1]")
        for name in ("min_size", "workers"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
