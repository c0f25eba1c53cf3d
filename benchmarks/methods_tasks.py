"""What methods are compared on, and what is measured there; of methods.py."""

import argparse
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from slam_jax.base.errors import InputError
from slam_jax.base.json_file import read_json
from slam_jax.config.options import Data
from slam_jax.data.examples import Examples
from slam_jax.data.image_text import Transform
from slam_jax.data.reference import Reference
from slam_jax.data.sources import open_examples
from slam_jax.drawing.metrics.metric import Drawn, Whose
from slam_jax.drawing.metrics.registry import METRICS, measure
from slam_jax.drawing.pictures import to_uint8
from slam_jax.families.digits import Digits
from slam_jax.features.choose import open_networks
from slam_jax.features.extract import Extractor
from slam_jax.features.rows import Rows, in_memory
from slam_jax.parallel.sharding import make_mesh

SEED = 2**30  # of the noise and of the choice of prompts: no training has it
CHOICES = 100  # captions among which the judge finds that of a picture
SHOWN = 10  # the first pictures, which a person looks at

Images = Float[np.ndarray, "N H W C"]  # in [-1, 1]
Numbers = dict[str, float]


class Prompts(NamedTuple):
    """Prompts that pictures are drawn for.

    Attributes:
      name: of the set.
      texts: one for each picture.
      quick: whether all checkpoints are measured with it, at the times of the grid and between
        them, and not the last one alone.
    """

    name: str
    texts: tuple[str, ...]
    quick: bool


class Task(ABC):
    """What the methods are compared on.

    Attributes:
      recipe: of the students.
      left_out: methods that its teachers cannot be distilled by.
      other_noise: whether the teacher draws twice, to compare its pictures with each other.
      sets: what is drawn; the first SHOWN pictures of the first one are shown.
    """

    recipe: ClassVar[str]
    left_out: ClassVar[tuple[str, ...]] = ()
    other_noise: ClassVar[bool] = True
    sets: Sequence[Prompts]

    @abstractmethod
    def __init__(self, options: argparse.Namespace):
        """Opens what the command line names.

        Raises:
          InputError: something is missing, or cannot be read.
        """

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Flags of its own."""
        del parser

    @abstractmethod
    def prepare(self, values: ConfigDict) -> None:
        """Changes options of the recipe, where the comparison trains on something else."""

    @abstractmethod
    def measure(self, prompts: Prompts, images: Images, teacher: Images) -> Numbers:
        """What is measured of the pictures of a set.

        Args:
          prompts: one of the sets.
          images: one for each prompt.
          teacher: the teacher's, of the same noise.
        """

    def protocol(self) -> dict[str, Any]:
        """What the numbers depend on, in JSON."""
        texts = {
            prompts.name: {
                "count": len(prompts.texts),
                "sha256": sha256(*prompts.texts),
                "quick": prompts.quick,
            }
            for prompts in self.sets
        }
        return {"recipe": self.recipe, "noise": SEED, "prompts": texts}


class DigitsTask(Task):
    """The handwritten digits, by the metrics of their report."""

    recipe = "digits"

    def __init__(self, options: argparse.Namespace):
        self._teacher = Path(options.runs) / "teacher"
        self.sets = [Prompts("pictures", tuple(str(i % 10) for i in range(2000)), quick=True)]
        self._reference = Digits.reference()

    def prepare(self, values: ConfigDict) -> None:
        values.teacher.path = str(self._teacher)

    def measure(self, prompts: Prompts, images: Images, teacher: Images) -> Numbers:
        return measure(Drawn(images, prompts.texts, teacher, self._reference))


class EmojiTask(Task):
    """Emoji, in the features of EfficientNet-Lite0, in their colours, and by captions.

    `fd_colours` is that of small pictures, see `colours`: of the pixels themselves there are more
    than pictures. No FD is of fewer pictures than numbers that describe one.
    """

    recipe = "emoji"
    QUICK, TRAIN, HELD_OUT = "300 captions", "captions", "held-out captions"
    COUNTS = {QUICK: 300, TRAIN: 1300, HELD_OUT: 1300}
    NETWORKS = ("efficientnet_lite0", "clip_own")
    NAMES = ("green apple", "octopus", "sunflower", "hamburger", "rocket")

    def __init__(self, options: argparse.Namespace):
        for flag in ("data", "latents", "judge"):
            if getattr(options, flag) is None:
                raise InputError(f"--{flag}: the emoji need it; see --help")
        self._latents, rng, self.sets = options.latents, np.random.default_rng(SEED), []
        for split, names in (("train", (self.QUICK, self.TRAIN)), ("held_out", (self.HELD_OUT,))):
            examples = open_examples(Data(options.data, 32, "center", split=split))
            captions, pictures = looked_at(examples)
            if len(captions) < CHOICES:
                raise InputError(f"{options.data}: {split} has fewer than {CHOICES} pictures")
            first = [f"{style} emoji of {n}" for n in self.NAMES for style in ("noto", "fluent")]
            others = [captions[i] for i in rng.permutation(len(captions))]
            shown = first if split == "train" else []
            texts = [*shown, *(text for text in others if text not in shown)]
            for name in (name for name in names if name in self.COUNTS):
                count = min(self.COUNTS[name], len(captions)) // CHOICES * CHOICES
                self.sets.append(Prompts(name, tuple(texts[:count]), name == self.QUICK))
            if split == "train":
                self._real = pictures
        mesh = make_mesh(devices=jax.local_devices())
        weights = [f"clip_own={options.judge}"]
        if options.efficientnet:
            weights.append(f"{self.NETWORKS[0]}={options.efficientnet}")
        networks = open_networks(self.NETWORKS, weights, "--judge")
        self._extractor = Extractor(networks, mesh, 32 * mesh.size)
        self._judged = read_json(Path(options.judge) / "judge.json", "make it again")
        self._kept: dict[bytes, np.ndarray] = {}

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--data", help="emoji: the pictures to compare with, as emoji:data/emoji")
        add("--latents", help="emoji: what slam-jax prepare made of them with the teacher")
        add("--judge", help="emoji: what benchmarks/train_judge.py made")
        add("--efficientnet", help="emoji: its weights; default: those of the installed package")

    def prepare(self, values: ConfigDict) -> None:
        values.data = ConfigDict({**vars(Data(self._latents, values.data.resolution))})

    def measure(self, prompts: Prompts, images: Images, teacher: Images) -> Numbers:
        found = measure(Drawn(images, prompts.texts, teacher), ["rmse_to_teacher"])
        if prompts.name != self.HELD_OUT:  # of which there are few
            small, theirs, real = (colours(x) for x in (images, teacher, self._real))
            small = Drawn(small, prompts.texts, theirs, Reference(real, ()))
            distances = measure(small, ["fd_pixels", "fd_to_teacher"])
            found["fd_colours"] = distances["fd_pixels"]
            found["fd_colours_to_teacher"] = distances["fd_to_teacher"]
        if not prompts.quick:
            found["retrieval"] = self._retrieval(prompts.texts, self._look("clip_own", images))
        if prompts.name == self.TRAIN:
            network = self.NETWORKS[0]
            sets: dict[Whose, Images] = {
                "model": images,
                "teacher": teacher,
                "reference": self._real,
            }
            features: dict[tuple[Whose, str], Rows] = {
                (whose, network): in_memory(self._look(network, pictures, whose != "model"))
                for whose, pictures in sets.items()
            }
            names = "fd_efficientnet", "fd_efficientnet_to_teacher"
            found |= measure(Drawn(None, prompts.texts, features=features), names)
        return found

    def _look(self, network: str, images: Images, keep: bool = False) -> np.ndarray:
        """Features of pictures; those that are asked for again are kept."""
        key = hashlib.sha256(images.tobytes()).digest() if keep else b""
        if keep and key in self._kept:
            return self._kept[key]
        found = self._extractor.only([network]).images(list(to_uint8(images)))[network]
        if keep:
            self._kept[key] = found
        return found

    def _retrieval(self, texts: tuple[str, ...], seen: np.ndarray) -> float:
        """The share of pictures whose caption is found, among CHOICES each time."""
        read, shares = self._extractor.texts(texts)["clip_own"], []
        for first in range(0, len(texts), CHOICES):
            some = slice(first, first + CHOICES)
            features: dict[tuple[Whose, str], Rows] = {
                ("model", "clip_own"): in_memory(seen[some]),
                ("prompts", "clip_own"): in_memory(read[some]),
            }
            drawn = Drawn(None, texts[some], features=features)
            shares.append(METRICS["retrieval"].compute(drawn))
        return float(np.mean(shares))

    def protocol(self) -> dict[str, Any]:
        networks = {name: x.identity for name, x in self._extractor.networks.items()}
        real = {name: self._judged[name]["retrieval"] for name in ("train", "held_out")}
        pictures = {"count": len(self._real), "sha256": sha256(self._real)}
        about = {"networks": networks, "retrieval_of_real_pictures": real, "real": pictures}
        return {**super().protocol(), **about}


class EmojiFlowTask(EmojiTask):
    """The same of a teacher by flow matching, which is slower: without captions that were held
    out, and without pictures from other noise."""

    recipe = "emoji_flow"
    left_out = ("SLAM, published",)  # which is defined for the other schedule
    other_noise = False
    COUNTS = {name: EmojiTask.COUNTS[name] for name in (EmojiTask.QUICK, EmojiTask.TRAIN)}

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        del parser  # those of the emoji


TASKS: dict[str, type[Task]] = {
    "digits": DigitsTask,
    "emoji": EmojiTask,
    "emoji_flow": EmojiFlowTask,
}


def looked_at(examples: Examples) -> tuple[list[str], Images]:
    """First captions and pictures of 32 pixels, of all examples."""
    cut, found = Transform(32, "center").cut, [examples[i] for i in range(len(examples))]
    pictures = np.stack([cut(example).image for example in found])
    return [example.captions[0] for example in found], pictures / np.float32(127.5) - 1


def sha256(*parts: str | np.ndarray) -> str:
    """Of texts or arrays, one behind the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0" if isinstance(part, str) else part.tobytes())
    return digest.hexdigest()


def colours(images: Images, side: int = 8) -> Images:
    """Means of squares of pixels, [N, side, side, C]."""
    count, size, _, channels = images.shape
    n = size // side
    return images.reshape(count, side, n, side, n, channels).mean(axis=(2, 4))
