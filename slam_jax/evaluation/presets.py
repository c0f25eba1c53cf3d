"""Protocols that papers measure with, by name: which prompts, which reference, which sizes, and
where the files come from.

What they follow: GigaGAN (evaluation/evaluation.py) and DMD2 (main/coco_eval/) compare pictures of
30,000 captions with all of COCO's val2014, each cut to its centre square and resized to 256 pixels
with Lanczos, by clean-fid's Inception. PCM compares with the teacher's own pictures.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from slam_jax.base.errors import InputError
from slam_jax.evaluation.images import count_images

COCO = "http://images.cocodataset.org"


class Archive(NamedTuple):
    """A file that is published.

    Attributes:
      url: where.
      md5: of it, in hexadecimal.
    """

    url: str
    md5: str


# MD5s as public programs compare with them: mlverse/torchvision (R/dataset-coco.R) has all four,
# LAVIS, PaddlePaddle and others have some.
ARCHIVES = {
    "val2014.zip": Archive(f"{COCO}/zips/val2014.zip", "a3d79f5ed8d289b7a7554ce06a5782b3"),
    "val2017.zip": Archive(f"{COCO}/zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80"),
    "annotations_trainval2014.zip": Archive(
        f"{COCO}/annotations/annotations_trainval2014.zip", "0a379cfc70b0e71301e0f377548639bd"
    ),
    "annotations_trainval2017.zip": Archive(
        f"{COCO}/annotations/annotations_trainval2017.zip", "f4bbac642086de4f52a3fdda2de5fa2c"
    ),
}
WHOLE_FOLDER = ("",)  # what the user names is read itself, whatever is in it
CAPTIONS_2014 = (
    "captions_coco14_test.txt",
    "annotations/captions_val2014.json",
    "captions_val2014.json",
    "annotations_trainval2014.zip",
)
CAPTIONS_2017 = (
    "annotations/captions_val2017.json",
    "captions_val2017.json",
    "annotations_trainval2017.zip",
)
DMD2_LIST = "github.com/tianweiy/DMD2, main/coco_eval/captions_coco14_test.txt"


@dataclass(frozen=True)
class Preset:
    """A protocol.

    Attributes:
      name: its key in PRESETS.
      about: what it is, in a line.
      count: how many prompts are drawn.
      prompts: where they may be below the user's folder; the first that is there is read.
      reference: where the real pictures may be; empty: the teacher's own pictures of the prompts
        take their place.
      pictures: how many the whole reference has; 0: not known.
      picture_size: pixels of a side that pictures are cut and resized to (`center_crop_lanczos`).
      metrics: which are measured unless the user names others.
      student_steps, teacher_steps: numbers of steps unless the user names others.
      guidance: the teacher's scale, as `guidance_scale` of diffusers.
      where: how to get the files, in a line.
    """

    name: str
    about: str
    count: int
    prompts: tuple[str, ...]
    reference: tuple[str, ...]
    pictures: int
    where: str
    picture_size: int = 256
    metrics: tuple[str, ...] = ("fid", "clip_score", "cmmd")
    student_steps: tuple[int, ...] = (1, 2, 4, 8)
    teacher_steps: tuple[int, ...] = (50,)
    guidance: float = 7.5

    @property
    def of_teacher(self) -> bool:
        """Whether the reference is drawn by the teacher."""
        return not self.reference


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "coco2014_30k",
            "30,000 captions of COCO-2014 val, compared with all 40,504 pictures of it",
            count=30_000,
            prompts=CAPTIONS_2014,
            reference=("val2014", "images/val2014", "val2014.zip"),
            pictures=40_504,
            guidance=3.0,  # of the teacher in DMD2's table
            where="val2014.zip and annotations_trainval2014.zip of COCO, zipped or not; for DMD2's "
            f"own list of prompts also {DMD2_LIST}",
        ),
        Preset(
            "coco2017_5k",
            "a caption for each of the 5,000 pictures of COCO-2017 val, compared with these",
            count=5_000,
            prompts=CAPTIONS_2017,
            reference=("val2017", "images/val2017", "val2017.zip"),
            pictures=5_000,
            where="val2017.zip and annotations_trainval2017.zip of COCO, zipped or not",
        ),
        Preset(
            "laion_5k",
            "5,000 captions of images of your own, such as of LAION-Aesthetics, compared with all "
            "of these; the SLAM paper does not list its LAION set, so that no number is comparable",
            count=5_000,
            prompts=WHOLE_FOLDER,
            reference=WHOLE_FOLDER,
            pictures=0,
            where="a folder or tar shards of images with captions, such as img2dataset writes",
        ),
        Preset(
            "teacher_5k",
            "a caption for each picture of COCO-2017 val, compared with the teacher's pictures of "
            "the same 5,000 captions",
            count=5_000,
            prompts=CAPTIONS_2017,
            reference=(),
            pictures=0,
            where="annotations_trainval2017.zip of COCO, zipped or not",
        ),
        Preset(
            "teacher_30k",
            "30,000 captions of COCO-2014 val, compared with the teacher's pictures of the same "
            "captions, as PCM has it",
            count=30_000,
            prompts=CAPTIONS_2014,
            reference=(),
            pictures=0,
            where="annotations_trainval2014.zip of COCO, zipped or not",
        ),
    )
}


class Found(NamedTuple):
    """A preset's files.

    Attributes:
      prompts: for `read_prompts`.
      reference: for `open_images`; "": the teacher draws it.
    """

    prompts: str
    reference: str


def preset_of(name: str) -> Preset:
    """The preset of that name.

    Raises:
      InputError: there is none.
    """
    if name not in PRESETS:
        raise InputError(f"{name}: no such preset, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def find(preset: Preset, data: str | Path) -> Found:
    """The files of a preset: folders of COCO as they are unpacked, or its zips as they are.

    Args:
      preset: whose.
      data: the folder that they are in; laion_5k takes a pattern of tar shards, too.

    Raises:
      InputError: one is missing, not whole, or not what was published.
    """
    if preset.prompts == WHOLE_FOLDER:
        return Found(str(data), str(data))
    if not os.path.isdir(data):  # noqa: PTH112 - a pattern is no path
        raise InputError(f"{data}: no such folder; {preset.name} needs {preset.where}")
    folder, missing = Path(data), []
    prompts, reference = (_first(folder, names) for names in (preset.prompts, preset.reference))
    if prompts is None:
        missing.append(_described(preset.prompts))
    if reference is None and preset.reference:
        missing.append(_described(preset.reference))
    if missing:
        raise InputError(
            f"{folder}: {preset.name} needs {' and '.join(missing)} in it; put the files there"
        )
    for path in (prompts, reference):
        if path is not None and path.name in ARCHIVES:
            _check(path)
    if reference is not None and (count := count_images(reference)) != preset.pictures:
        raise InputError(
            f"{reference}: {count} pictures, expected {preset.pictures}; unpack "
            f"{preset.reference[-1]} again"
        )
    return Found(str(prompts), str(reference or ""))


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def _described(names: Sequence[str]) -> str:
    """Where a missing file may be and what it can be made of."""
    archive = ARCHIVES[names[-1]]
    return f"{', '.join(names[:-1])} or {names[-1]} ({archive.url}, MD5 {archive.md5})"


def _check(path: Path) -> None:
    """Compares a zip with the published one."""
    archive = ARCHIVES[path.name]
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if found != archive.md5:
        raise InputError(
            f"{path}: MD5 {found}, expected {archive.md5}: it is cut off or another file; download "
            f"{archive.url} again"
        )
