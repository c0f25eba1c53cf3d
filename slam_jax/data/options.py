"""The options of `config.data`."""

from dataclasses import dataclass

from slam_jax.base.options import Options, check, option
from slam_jax.data.image_text import CAPTIONS, CROPS

# What a kind of source may be: see `sources`. An option that a source does not read is refused.
DRAWN = ("photographs", "folder", "tar", "tfds", "emoji", "prepared")
PROMPTED = (*DRAWN, "teacher")
PICTURES = ("photographs", "folder", "tar", "tfds", "emoji")
FILES = ("folder", "tar", "tfds")
OF_TEACHER = ("teacher",)


@dataclass(frozen=True)
class Data(Options):
    """What is trained on.

    A source is "digits"; "photographs" (those bundled with scikit-learn and scikit-image); shards
    of webdataset, as "data/{00000..00331}.tar", "gs://bucket/*.tar" or a folder of them; a folder
    of images with captions; "tfds:NAME" of tensorflow-datasets; "emoji:FOLDER" of slam-jax prepare
    emoji; what slam-jax prepare made; or "teacher:PROMPTS", pictures that the teacher draws of
    these prompts at the start of the run.
    """

    source: str = option(
        "photographs", "name of the source of examples", free=True
    )  # their identity counts
    resolution: int = option(
        512,
        "pixels of a side: the shorter one is resized to it, a square is cropped",
        at_least=8,
        at_most=16_384,
        read_by=PROMPTED,
    )
    crop: str = option("random", "where the square is cropped", one_of=CROPS, read_by=PICTURES)
    flip: bool = option(False, "mirror half of the examples", read_by=DRAWN)
    captions: str = option(
        "random", "which caption of an example with several", one_of=CAPTIONS, read_by=PROMPTED
    )
    empty_prompts: float = option(
        0.0, "share of examples without their caption", at_least=0, at_most=1, read_by=PROMPTED
    )
    min_size: int = option(
        0,
        "leave out images whose shorter side has fewer pixels",
        at_least=0,
        at_most=10**6,
        read_by=FILES,
    )
    max_watermark: float = option(
        1.0,
        'leave out images with a larger "pwatermark"; below 1, those with none too',
        at_least=0,
        at_most=1,
        read_by=FILES,
    )
    max_rejects: float = option(
        0.1,
        "share of damaged examples at which a run stops",
        at_least=0,
        at_most=1,
        free=True,
        read_by=(*FILES, "prepared", "teacher"),
    )
    caption_key: str = option(
        "",
        "name of captions in .json, metadata.jsonl or TFDS; empty: the usual ones",
        read_by=FILES,
    )
    image_key: str = option("image", "name of images in TFDS", read_by=("tfds",))
    split: str = option(
        "train",
        'split of TFDS, such as "train[:10%]"; of emoji: train or held_out',
        read_by=("tfds", "emoji"),
    )
    data_dir: str = option(
        "", "folder of TFDS; empty: ~/tensorflow_datasets", free=True, read_by=("tfds",)
    )
    index: str = option(
        "",
        "folder for indices of tar shards; empty: ~/.cache/slam_jax/tar_index",
        free=True,
        read_by=("tar", "emoji"),
    )
    teacher_count: int = option(
        10_000, "pictures that the teacher draws", at_least=1, at_most=10**9, read_by=OF_TEACHER
    )
    teacher_steps: int = option(
        50, "DDIM steps in which it draws each", at_least=1, at_most=1000, read_by=OF_TEACHER
    )
    teacher_w: float = option(
        6.5,
        "its guidance for them: the usual scale minus 1, as config.method.w counts it",
        at_least=0,
        at_most=1000,
        read_by=OF_TEACHER,
    )
    teacher_text_embeddings: bool = option(
        False,
        "keep what the text encoders make of the prompts: training then holds none of them",
        read_by=OF_TEACHER,
    )
    teacher_batch: int = option(
        8,
        "how many each device draws at a time",
        at_least=1,
        at_most=10_000,
        free=True,
        read_by=OF_TEACHER,
    )
    workers: int = option(
        0, "processes that read; 0: a thread", at_least=0, at_most=1000, free=True
    )

    def __post_init__(self):
        super().__post_init__()
        kinds = (
            "digits, photographs, tfds:NAME, emoji:FOLDER, teacher:PROMPTS, a folder, or a pattern "
            "of .tar shards"
        )
        check(self.source != "", "source", self.source, kinds)
        check(self.resolution % 8 == 0, "resolution", self.resolution, "a positive multiple of 8")
