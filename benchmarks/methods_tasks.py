"""What methods are compared on, and what is measured there; of methods.py."""

import argparse
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict
from result import positive

from slam_jax.base.errors import InputError
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
    """

    name: str
    texts: tuple[str, ...]


class Task(ABC):
    """What the methods are compared on.

    Attributes:
      recipe: of the students.
      sets: what is drawn; the first SHOWN pictures of the first one are shown.
    """

    recipe: ClassVar[str]
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
    def measure(self, name: str, images: Images, teacher: Images, whole: bool) -> Numbers:
        """What is measured of the pictures of a set.

        Args:
          name: of the set.
          images: one for each prompt.
          teacher: the teacher's, of the same noise.
          whole: whether slow measurements are made too.
        """

    def protocol(self) -> dict[str, Any]:
        """What the numbers depend on, in JSON."""
        return {"recipe": self.recipe, "noise": SEED, **{s.name: len(s.texts) for s in self.sets}}


class DigitsTask(Task):
    """The handwritten digits, by the metrics of their report."""

    recipe = "digits"

    def __init__(self, options: argparse.Namespace):
        self._teacher = Path(options.runs) / "teacher"
        self.sets = [Prompts("pictures", tuple(str(i % 10) for i in range(2000)))]
        self._reference = Digits.reference()

    def prepare(self, values: ConfigDict) -> None:
        values.teacher.path = str(self._teacher)

    def measure(self, name: str, images: Images, teacher: Images, whole: bool) -> Numbers:
        del name, whole
        return measure(Drawn(images, self.sets[0].texts, teacher, self._reference))


class EmojiTask(Task):
    """Emoji, in the features of EfficientNet-Lite0, in their colours, and by captions.

    `fd_colours` is that of small pictures, see `colours`: of the pixels themselves there are more
    than pictures.
    """

    recipe = "emoji"
    TRAIN, HELD_OUT = "captions", "held-out captions"
    NETWORKS = ("efficientnet_lite0", "clip_own")
    NAMES = ("green apple", "octopus", "sunflower", "hamburger", "rocket")

    def __init__(self, options: argparse.Namespace):
        for flag in ("data", "latents", "judge"):
            if getattr(options, flag) is None:
                raise InputError(f"--{flag}: the emoji need it; see --help")
        self._latents = options.latents
        rng, self._real, self.sets = np.random.default_rng(SEED), {}, []
        for name, split in ((self.TRAIN, "train"), (self.HELD_OUT, "held_out")):
            examples = open_examples(Data(options.data, 32, "center", split=split))
            captions, pictures = looked_at(examples)
            if not (count := min(options.pictures, len(captions)) // CHOICES * CHOICES):
                few = f"fewer than {CHOICES} pictures of {split} to draw"
                raise InputError(f"{options.data}, --pictures {options.pictures}: {few}")
            first = [f"{style} emoji of {n}" for n in self.NAMES for style in ("noto", "fluent")]
            others = [captions[i] for i in rng.permutation(len(captions))]
            shown = first if name == self.TRAIN else []
            texts = [*shown, *(text for text in others if text not in shown)]
            self.sets.append(Prompts(name, tuple(texts[:count])))
            self._real[name] = pictures
        mesh = make_mesh(devices=jax.local_devices())
        weights = [f"clip_own={options.judge}"]
        networks = open_networks(self.NETWORKS, weights, "--judge")
        self._extractor = Extractor(networks, mesh, 32 * mesh.size)
        self._features: dict[tuple[str, Whose], dict[str, np.ndarray]] = {}

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--data", help="emoji: the pictures to compare with, as emoji:data/emoji")
        add("--latents", help="emoji: what slam-jax prepare made of them with the teacher")
        add("--judge", help="emoji: what benchmarks/train_judge.py made")
        # More than EfficientNet-Lite0 has features.
        add("--pictures", type=positive, default=1300, help="emoji: drawn of each split, at most")

    def prepare(self, values: ConfigDict) -> None:
        values.data = ConfigDict({**vars(Data(self._latents, values.data.resolution))})

    def measure(self, name: str, images: Images, teacher: Images, whole: bool) -> Numbers:
        texts, real = dict(self.sets)[name], self._real[name]
        small, theirs, reference = (colours(x) for x in (images, teacher, real))
        small = Drawn(small, texts, theirs, Reference(reference, ()))
        found = measure(Drawn(images, texts, teacher), ["rmse_to_teacher"])
        in_colours = measure(small, ["fd_pixels", "fd_to_teacher"])
        found["fd_colours"] = in_colours["fd_pixels"]
        found["fd_colours_to_teacher"] = in_colours["fd_to_teacher"]
        if not whole:
            return found
        seen_by = self.NETWORKS if name == self.TRAIN else self.NETWORKS[1:]
        ours = self._extractor.only(seen_by).images(list(to_uint8(images)))
        found["retrieval"] = self._retrieval(texts, ours["clip_own"])
        if name == self.TRAIN:  # of the others there are fewer pictures than features
            network = self.NETWORKS[0]
            sets: dict[Whose, Images] = {"teacher": teacher, "reference": real}
            features: dict[tuple[Whose, str], Rows] = {("model", network): in_memory(ours[network])}
            for whose, others in sets.items():
                features[whose, network] = in_memory(self._look(name, whose, others))
            distances = "fd_efficientnet", "fd_efficientnet_to_teacher"
            found |= measure(Drawn(None, texts, features=features), distances)
        return found

    def _look(self, name: str, whose: Whose, images: Images) -> np.ndarray:
        """Features of pictures that are always the same, looked at once."""
        if (name, whose) not in self._features:
            network = self._extractor.only(self.NETWORKS[:1])
            self._features[name, whose] = network.images(list(to_uint8(images)))
        return self._features[name, whose][self.NETWORKS[0]]

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
        networks = self._extractor.networks.items()
        return {**super().protocol(), "networks": {name: x.identity for name, x in networks}}


TASKS: dict[str, type[Task]] = {"digits": DigitsTask, "emoji": EmojiTask}


def looked_at(examples: Examples) -> tuple[list[str], Images]:
    """First captions and pictures of 32 pixels, of all examples."""
    cut, found = Transform(32, "center").cut, [examples[i] for i in range(len(examples))]
    pictures = np.stack([cut(example).image for example in found])
    return [example.captions[0] for example in found], pictures / np.float32(127.5) - 1


def colours(images: Images, side: int = 8) -> Images:
    """Means of squares of pixels, [N, side, side, C]."""
    count, size, _, channels = images.shape
    n = size // side
    return images.reshape(count, side, n, side, n, channels).mean(axis=(2, 4))
