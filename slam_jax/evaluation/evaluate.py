"""One model measured on many pictures, in one or several numbers of steps."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slam_jax.base.errors import InputError
from slam_jax.drawing.draw import Settings
from slam_jax.drawing.metrics.metric import Drawn, Metric, Whose
from slam_jax.drawing.metrics.registry import METRICS, is_possible, networks_of
from slam_jax.evaluation.images import Images
from slam_jax.evaluation.parts import IMAGES, Parts, claim
from slam_jax.evaluation.pictures import Artist, draw_parts, read_prompts_of
from slam_jax.evaluation.prompts import PromptList
from slam_jax.evaluation.reference import RealPictures, from_pictures
from slam_jax.evaluation.views import view_of
from slam_jax.families.family import Model
from slam_jax.features.extract import Extractor
from slam_jax.features.network import FeatureNetwork, TextImageNetwork
from slam_jax.features.rows import Rows, Summary
from slam_jax.parallel.processes import compare, is_main, wait
from slam_jax.parallel.sharding import make_mesh

LOOKED_AT = 32  # pictures that networks on a device see at a time


@dataclasses.dataclass(frozen=True)
class Task:
    """What is measured, and how.

    Attributes:
      model: whose pictures are measured.
      steps: numbers of steps that it draws in.
      teacher: of whose pictures of the same noise some metrics tell the distance.
      teacher_steps: that it draws in.
      settings: how the model draws, its steps aside.
      teacher_guidance: the usual scale.
      prompts: of the pictures.
      per_prompt: pictures of each.
      seed: of the noise; picture i has that of (seed, i).
      batch: pictures that a device draws at a time.
      size: height and width that pictures, drawn and real, are brought to by their centre square
        and Lanczos; 0: they stay as they are.
      metrics: names.
      networks: that these metrics read.
      reference: real pictures, or what networks see in them; None: those of the family.
      record: who the models and the real pictures are, in JSON.
      paths: where the models are.
    """

    model: Model
    steps: tuple[int, ...]
    teacher: Model | None
    teacher_steps: int
    settings: Settings
    teacher_guidance: float
    prompts: PromptList
    per_prompt: int
    seed: int
    batch: int
    size: int
    metrics: tuple[str, ...]
    networks: Mapping[str, FeatureNetwork]
    reference: Images | RealPictures | None
    record: dict[str, Any]
    paths: dict[str, str]

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompt of every picture."""
        return tuple(text for text in self.prompts.texts for _ in range(self.per_prompt))

    def measured(self) -> list[Metric]:
        """The metrics."""
        return [METRICS[name] for name in self.metrics]

    def protocol(self) -> dict[str, Any]:
        """All that decides the numbers but the steps and the versions, in JSON."""
        return {
            **self.record,
            "prompts": self.prompts.record,
            "pictures_per_prompt": self.per_prompt,
            "seed": self.seed,
            "size": self.size,
            "guidance": self.settings.guidance,
            "dtype": self.settings.dtype,
            "networks": {name: network.identity for name, network in self.networks.items()},
            "texts": self._texts() or None,
        }

    def _texts(self) -> dict[str, str]:
        """How each network reads a prompt."""
        read = networks_of([metric for metric in self.measured() if metric.reads_prompts])
        networks = {name: self.networks[name] for name in read}
        return {
            name: f"{network.prefix}..."
            for name, network in networks.items()
            if isinstance(network, TextImageNetwork)
        }


def check_pictures(task: Task) -> None:
    """Refuses, before any picture is drawn, what a metric cannot be computed of.

    Raises:
      InputError: names the metric, and says what to do.
    """
    widths = {name: network.width for name, network in task.networks.items()}
    real = task.reference
    real_count = len(real) if isinstance(real, Images) else real and real.record.get("count")
    for metric in task.measured():
        counts = {"pictures": len(task.texts)}
        if metric.compares_with == "reference" and metric.networks and real_count is not None:
            counts["real pictures"] = real_count
        for what, count in counts.items():
            if count < (fewest := metric.fewest(widths)):
                raise InputError(
                    f"{count} {what}: {metric.title} takes {fewest} or more; {metric.too_few}"
                )
        if task.per_prompt < metric.of_a_prompt:
            raise InputError(
                f"--per-prompt {task.per_prompt}: {metric.name} takes {metric.of_a_prompt} or more "
                "pictures of each prompt"
            )
        if not metric.networks and task.model.pipeline.image_size is not None:
            raise InputError(
                f"--metrics {metric.name}: it is of small pictures, such as digits; leave it out"
            )
        if metric.needs_rows and isinstance(real, RealPictures):
            for name in metric.networks:
                if isinstance(rows := real.features.get(name), Summary):
                    rows.array()  # which it refuses


def evaluate(
    task: Task, out: Path, keep_pictures: bool = False
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Draws, looks and measures; what has been drawn before is not drawn again.

    All processes call it; the first one measures.

    Args:
      task: what is measured.
      out: folder of its own, shared by the processes.
      keep_pictures: whether the pictures are kept, in tars.

    Returns:
      A row of numbers for each number of steps, none in the other processes; and the protocol.

    Raises:
      InputError: the folder holds something else, or pictures cannot be read or drawn.
    """
    compare({"measurement": task.protocol(), "steps": task.steps})
    claim(task.protocol(), out)
    evaluation = Evaluation(task, out, keep_pictures)
    rows = evaluation.run()
    found = {} if evaluation.reference is None else {"reference": evaluation.reference}
    return rows, {**task.protocol(), **found, "paths": task.paths}


def compared_networks(metrics: Sequence[Metric], compared: Whose) -> list[str]:
    """The networks that metrics read which compare with real pictures, or with the teacher's."""
    return networks_of([metric for metric in metrics if metric.compares_with == compared])


class Evaluation:
    """One measurement: what networks see in each set of pictures, and what metrics make of it.

    Args:
      task: what is measured.
      out: folder of its own, shared by the processes.
      keep_pictures: whether the pictures are kept, in tars.
    """

    def __init__(self, task: Task, out: Path, keep_pictures: bool):
        self._task, self._out = task, out
        self._keep = keep_pictures
        self._mesh = make_mesh(devices=jax.local_devices())
        self._batch = task.batch * self._mesh.size
        view = view_of(task.size)
        looked_at = LOOKED_AT * self._mesh.size
        self._extractor = Extractor(task.networks, self._mesh, looked_at, view)
        self._features: dict[tuple[Whose, str], Rows] = {}
        self.reference: dict[str, Any] | None = None  # its record

    def run(self) -> list[dict[str, Any]]:
        """See `evaluate`."""
        task = self._task
        if self._networks("reference"):
            self._look_at_reference()
        if any(metric.reads_prompts for metric in task.measured()):
            prompts = self._parts("prompts")
            read_prompts_of(task.texts, prompts, self._extractor)
            self._know("prompts", prompts, prompts.names())
        teacher = None
        if any(metric.compares_with == "teacher" for metric in task.measured()):
            assert task.teacher is not None  # the command sees to it
            steps, guidance = task.teacher_steps, task.teacher_guidance
            settings = dataclasses.replace(task.settings, steps=steps, guidance=guidance)
            teacher = self._draw("teacher", task.teacher, settings, self._networks("teacher"))
        kind, rows = "student" if task.model.is_student else "teacher", []
        reference = None if task.reference else task.model.reference
        for steps in task.steps:
            settings = dataclasses.replace(task.settings, steps=steps)
            ours = self._draw("model", task.model, settings, list(task.networks))
            if is_main():
                images, others = _small(ours), teacher and _small(teacher)
                drawn = Drawn(images, task.texts, others, reference, self._features)
                row = {"model": kind, "steps": steps, "pictures": len(task.texts)}
                rows.append({**row, **_numbers(task.measured(), drawn)})
        return rows

    def _networks(self, compared: Whose) -> list[str]:
        """Those of metrics that compare with real pictures, or with the teacher's."""
        return compared_networks(self._task.measured(), compared)

    def _parts(self, name: str) -> Parts:
        drawn = name.startswith(("model", "teacher"))
        tars = self._out / "pictures" / name if self._keep and drawn else None
        return Parts(self._out / "features" / name, len(self._task.texts), tars)

    def _know(self, whose: Whose, parts: Parts, networks: Sequence[str]) -> None:
        wait(f"{parts.folder.name} is whole")
        self._features |= {(whose, name): parts.rows(name) for name in networks}

    def _draw(
        self, whose: Whose, model: Model, settings: Settings, networks: Sequence[str]
    ) -> Parts:
        parts = self._parts(f"{whose}_{settings.steps}")
        artist = Artist(model, settings, self._task.seed, self._batch, self._mesh)
        draw_parts(artist, self._task.texts, parts, self._extractor.only(networks))
        self._know(whose, parts, networks)
        return parts

    def _look_at_reference(self) -> None:
        names, real = self._networks("reference"), self._task.reference
        if isinstance(real, Images):
            folder = self._out / "features" / "reference"
            real = from_pictures(real, folder, self._extractor.only(names))
        assert real is not None  # the command sees to it
        self.reference = real.record
        self._features |= {("reference", name): real.features[name] for name in names}


def _small(parts: Parts) -> np.ndarray | None:
    """The pictures themselves, in [-1, 1], where they were kept."""
    if IMAGES not in parts.names():
        return None
    return parts.rows(IMAGES).array().astype(np.float32) / 127.5 - 1


def _numbers(metrics: Sequence[Metric], drawn: Drawn) -> dict[str, Any]:
    """What is measured of one set of pictures, with interval and choices of each number that has
    them."""
    found: dict[str, Any] = {}
    for metric in metrics:
        if not is_possible(metric, drawn):
            print(f"note: {metric.name} does not apply to these pictures", file=sys.stderr)
            continue
        found[metric.name] = metric.compute(drawn)
        if interval := metric.interval(drawn):
            found[f"{metric.name}_interval"] = list(interval)
        if choices := metric.choices(drawn):
            found[f"{metric.name}_choices"] = choices
    return found
