"""Draws what methods.py compares, by students and their teacher, and has it measured."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from methods_tasks import SEED, SHOWN, Images, Numbers, Prompts, Task
from tqdm import tqdm

from slam_jax.base.json_file import read_json, write_json
from slam_jax.config.options import Config
from slam_jax.drawing.draw import batches_of
from slam_jax.drawing.pictures import grid, save
from slam_jax.drawing.samplers import Sampler, student_sampler, teacher_sampler
from slam_jax.families.pipeline import DENOISER, Pipeline
from slam_jax.formats.safetensors import load_arrays, save_arrays
from slam_jax.method.schedule import Schedule
from slam_jax.method.sub_path import SubPathMethod
from slam_jax.recipes.student import as_model, find_teacher, from_checkpoint

STUDENT_STEPS, TEACHER_STEPS = (1, 2, 4, 8), (50, 8, 4, 2, 1)
BATCH = 100  # pictures that are drawn at a time
SHOWN_FILE, SHOWN_STEPS = "shown.safetensors", (1, 2, 4)
GRID, BETWEEN = "grid", "between"  # the times at which a student draws, see `between`


class Measure:
    """Draws and measures.

    Args:
      task: what.
      config: of a run; its w is the teacher's.
      runs: folder of all runs; the teacher's pictures are kept in it.
      dtype: what students draw in; the teacher draws in float32.
    """

    def __init__(self, task: Task, config: Config, runs: Path, dtype: str):
        self._task, self._runs, self._w, self._dtype = task, runs, config.method.w, dtype
        steps = {"student_steps": STUDENT_STEPS, "teacher_steps": TEACHER_STEPS}
        self._teachers = as_json({**task.protocol(), **steps, "w": config.method.w})
        self.protocol = {**self._teachers, "dtype": dtype}
        self._samplers: dict[str, dict[str, Sampler]] = {}
        self._teacher: dict[str, Images] = {}

    def student(self, workdir: Path, config: Config, step: int, whole: bool) -> list[dict]:
        """A row for each number of steps at the times of the grid, and between them.

        Args:
          workdir: of a run.
          config: of it.
          step: of a checkpoint.
          whole: whether that is measured too which is not quick.
        """
        saved, family = from_checkpoint(workdir, step)
        model = as_model(saved, config, family)
        pipeline, key = model.pipeline, f"{config.method} {saved.network}"
        if key not in self._samplers:
            self._samplers[key] = {
                times: student_sampler(pipeline, pipeline.network, method, self._dtype)
                for times, method in ((GRID, config.method), (BETWEEN, between(config.method)))
            }
        weights = jax.device_put((model.frozen, model.params))
        teacher = self._pictures(workdir, config, TEACHER_STEPS[0])
        rows, shown = [], {}
        for times, sampler in self._samplers[key].items():
            sets = [x for x in self._task.sets if x.quick or (whole and times == GRID)]
            for steps in STUDENT_STEPS:
                drawn = draw_sets(sampler, pipeline, weights, sets, steps)
                found: dict[str, Numbers] = {
                    x.name: self._task.measure(x, drawn[x.name], teacher[x.name]) for x in sets
                }
                if times == GRID:
                    shown[str(steps)] = drawn[sets[0].name][:SHOWN]
                rows.append({"steps": steps, "times": times, **found})
        if whole:
            save_arrays(workdir / SHOWN_FILE, shown)
        return rows

    def show(self, workdirs: dict[str, Path], path: Path) -> None:
        """Writes a picture: the teacher's row, then those of each student."""
        first = self._task.sets[0].name
        teacher = self._teacher[first][:SHOWN]
        rows = {f"teacher, {TEACHER_STEPS[0]}": teacher}
        for name, workdir in workdirs.items():
            shown = load_arrays(workdir / SHOWN_FILE)
            rows |= {f"{name}, {steps}": shown[str(steps)] for steps in SHOWN_STEPS}
        save(grid(rows, scale=64 // teacher.shape[1]), path)

    def teacher(self, workdir: Path, config: Config) -> list[dict]:
        """A row for each number of steps, and where the task asks for it one of most steps
        from other noise: what a student whose sampler draws noise of its own could reach."""
        rows, most = [], self._pictures(workdir, config, TEACHER_STEPS[0])
        others = [(TEACHER_STEPS[0], SEED + 1)] if self._task.other_noise else []
        for steps, seed in (*((steps, SEED) for steps in TEACHER_STEPS), *others):
            drawn = self._pictures(workdir, config, steps, seed)
            sets = {prompts.name: prompts for prompts in self._task.sets}
            found = {n: self._task.measure(x, drawn[n], most[n]) for n, x in sets.items()}
            rows.append({"steps": steps, "other_noise": seed != SEED, **found})
        return rows

    def _pictures(
        self, workdir: Path, config: Config, steps: int, seed: int = SEED
    ) -> dict[str, Images]:
        """The teacher's, of each set; drawn once."""
        usual = steps == TEACHER_STEPS[0] and seed == SEED
        if usual and self._teacher:
            return self._teacher
        name = f"teacher_{steps}" + ("" if seed == SEED else "_other_noise")
        path, record = (self._runs / f"{name}{end}" for end in (".safetensors", ".json"))
        if not path.exists() or read_json(record, "remove it") != self._teachers:
            family = find_teacher(workdir, config)
            frozen = family.weights(config.precision)
            weights = jax.device_put((frozen, frozen[DENOISER]))
            sampler = teacher_sampler(family.pipeline, self._w)
            drawn = draw_sets(sampler, family.pipeline, weights, self._task.sets, steps, seed)
            save_arrays(path, drawn)
            write_json(record, self._teachers)
        found = load_arrays(path)
        if usual:
            self._teacher = found
        return found


def as_json(value: Any) -> Any:
    """What is read again of it."""
    return json.loads(json.dumps(value))


def between(method: SubPathMethod) -> SubPathMethod:
    """The same method, drawing at times in the middle between those of its grid: each t is half a
    sub-path smaller. The first step still starts from pure noise."""

    class Between(type(method)):
        def timesteps(self, steps: int, schedule: Schedule, strength: float = 1.0) -> np.ndarray:
            half = schedule.num_train_timesteps // self.num_ddim_timesteps // 2
            return super().timesteps(steps, schedule, strength) - half

    return Between(**vars(method))


def draw_sets(
    sampler: Sampler,
    pipeline: Pipeline,
    weights: Any,
    sets: Sequence[Prompts],
    steps: int,
    seed: int = SEED,
) -> dict[str, Images]:
    """The pictures of each set; where one begins another they are the same, and drawn once."""
    drawn: dict[tuple[str, ...], Images] = {}
    for texts in sorted({prompts.texts for prompts in sets}, key=len, reverse=True):
        longer = next((other for other in drawn if other[: len(texts)] == texts), None)
        if longer is None:
            drawn[texts] = draw(sampler, pipeline, weights, texts, steps, seed)
        else:
            drawn[texts] = drawn[longer][: len(texts)]
    return {prompts.name: drawn[prompts.texts] for prompts in sets}


def draw(
    sampler: Sampler,
    pipeline: Pipeline,
    weights: Any,
    texts: Sequence[str],
    steps: int,
    seed: int = SEED,
) -> Images:
    """A picture for each prompt; picture i has the noise of (seed, i)."""
    frozen, params = weights
    size, drawn = min(BATCH, len(texts)), []
    with tqdm(desc=f"{steps} steps", total=len(texts), unit="picture", leave=False) as bar:
        for first, count, batch in batches_of(pipeline.prompts(texts), size):
            images = sampler(frozen, params, batch, (seed, first), steps=steps)
            drawn.append(np.asarray(images)[:count])
            bar.update(count)
    return np.concatenate(drawn)
