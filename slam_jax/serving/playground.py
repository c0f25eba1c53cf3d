"""What the page of slam-jax playground shows: pictures that are drawn one at a time, and the
command lines that draw the same."""

import dataclasses
import shlex
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8

from slam_jax.base.errors import InputError
from slam_jax.base.values import expected_of
from slam_jax.drawing import pictures
from slam_jax.drawing.draw import Draw, Settings, draw_finite, make_sampler, said_of_teacher
from slam_jax.families.family import Model

UPLOADS = 8  # that are kept in the size of the model's pictures


@dataclass(frozen=True)
class Wish:
    """A picture that somebody asks for.

    Attributes:
      prompt: what is in it.
      steps: network evaluations.
      seed: of the noise.
      image: a picture to go on from; None: from noise.
      strength: how much of that is drawn anew, in (0, 1].
    """

    prompt: str
    steps: int
    seed: int = 0
    image: Path | None = None
    strength: float = 1.0


@dataclass(frozen=True)
class Drawn:
    """A picture that was drawn.

    Attributes:
      png: the contents of the file.
      seconds: that it took.
      command: the line that draws the same picture.
      cut: the end of the prompt, which the model did not see; "" where it saw all.
      teacher: what to know of a teacher's pictures; "" of a student's.
    """

    png: bytes
    seconds: float
    command: str
    cut: str
    teacher: str


@dataclass
class _Program:
    """Of some Settings, from noise or from pictures. Its lock lets one thread compile it."""

    draw: Draw
    lock: threading.Lock = field(default_factory=threading.Lock)
    compiled: bool = False


class Artist:
    """Draws with one model, whose weights stay on the device; each Settings' program is compiled
    once, when it is first needed. Several threads may ask.

    Args:
      model: a student or a teacher.
      options: of slam-jax sample, which say what the model is and how it draws.
      guidance: the usual scale, of teachers only.
      dtype: what the denoiser computes in.
    """

    def __init__(self, model: Model, options: Sequence[str], guidance: float, dtype: str):
        self.model, self._options = model, tuple(options)
        self._settings = Settings(guidance=guidance, dtype=dtype)
        self._weights = jax.device_put((model.frozen, model.params))
        self._programs: dict[tuple[Settings, bool], _Program] = {}
        self._lock = threading.Lock()
        self._uploaded = lru_cache(UPLOADS)(self._read)

    @property
    def takes_images(self) -> bool:
        """Whether it goes on from pictures."""
        return self.model.is_student and self.model.pipeline.image_size is not None

    def compiles(self, wish: Wish) -> bool:
        """Whether a picture has to wait for its program.

        Raises:
          InputError: the number of steps is impossible.
        """
        return not self._program(wish).compiled

    def draw(self, wish: Wish) -> Drawn:
        """One picture: the very one that `slam-jax sample` draws.

        Raises:
          InputError: the prompt is none of this model's, the image cannot be read, the numbers are
            impossible, or the picture is not finite.
        """
        start = time.perf_counter()
        if expected := expected_of(wish.prompt):
            raise InputError(f"prompt {ascii(wish.prompt[:80])}: expected {expected}")
        pipeline = self.model.pipeline
        with self._lock:  # a tokenizer keeps the length that it was last asked for
            batch, cut = pipeline.prompts([wish.prompt]), pipeline.cut(wish.prompt)
        if wish.image is not None:
            batch["images"] = self._uploaded(wish.image)[None]
        program = self._program(wish)
        with program.lock:
            drawn = draw_finite(program.draw, self._weights, batch, (wish.seed, 0))
            program.compiled = True
        picture = pictures.sheet(list(drawn), 1, scale=None)
        return Drawn(
            png=pictures.as_png(picture),
            seconds=time.perf_counter() - start,
            command=self._command(wish),
            cut=cut,
            teacher=said_of_teacher(self.model, self._settings.guidance, wish.steps),
        )

    def _program(self, wish: Wish) -> "_Program":
        from_image = wish.image is not None
        strength = wish.strength if from_image else 1.0
        settings = dataclasses.replace(self._settings, steps=wish.steps, strength=strength)
        with self._lock:
            if (key := (settings, from_image)) not in self._programs:
                self._programs[key] = _Program(make_sampler(self.model, settings))
            return self._programs[key]

    def _read(self, path: Path) -> UInt8[np.ndarray, "H W 3"]:
        assert (size := self.model.pipeline.image_size) is not None
        try:
            return pictures.read(path, *size)
        except InputError as error:  # the folder is the server's
            raise InputError(str(error).replace(f"{path.parent}/", "")) from error

    def _command(self, wish: Wish) -> str:
        words = [*self._options, *option("prompt", wish.prompt)]
        words += ["--steps", str(wish.steps), "--seed", str(wish.seed)]
        if wish.image is not None:
            words += [*option("image", wish.image.name), "--strength", str(wish.strength)]
        return shlex.join(["slam-jax", "sample", *words, "--out", "picture.png"])


def option(name: str, value: str) -> list[str]:
    """An option of a command line, whatever its value begins with."""
    return [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]
