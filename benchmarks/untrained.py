r"""What of a student's pictures is training, and what its sampler: a student beside itself before
the first step.

    PYTHONPATH=. python benchmarks/untrained.py digits --student runs/digits/export \
        --teacher runs/digits/teacher
    PYTHONPATH=. python benchmarks/untrained.py emoji --student runs/emoji/export \
        --teacher assets/emoji_teacher

An untrained student has the teacher's weights and draws without guidance, as students do. All draw
the same prompts from the same noise: 2,000 digits, or 1,300 emoji that the teacher was trained on.
Distances to the teacher are to its pictures in 50 steps. The FD of emoji is in the features of
EfficientNet-Lite0.
Writes untrained_TASK.json and .md into benchmarks/results/ (or --out).
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from methods_measure import STUDENT_STEPS, TEACHER_STEPS, Images, draw
from methods_tasks import SEED
from result import FOLDER, made_by, write

import slam_jax
from slam_jax.drawing.metrics.metric import Drawn, Whose
from slam_jax.drawing.metrics.registry import measure
from slam_jax.drawing.pictures import to_uint8
from slam_jax.drawing.samplers import student_sampler, teacher_sampler
from slam_jax.evaluation.prompts import read_prompts
from slam_jax.families.family import Model
from slam_jax.families.pipeline import student_config, student_params
from slam_jax.features.choose import open_networks
from slam_jax.features.extract import Extractor
from slam_jax.features.rows import Rows, in_memory
from slam_jax.parallel import runtime
from slam_jax.parallel.sharding import make_mesh

PROMPTS = Path(__file__).parents[1] / "assets/emoji_teacher/prompts.txt"
NETWORK = "efficientnet_lite0"
EMOJI, DIGITS = 1300, 2000  # pictures; no fewer emoji than features
NAMES = {
    "fd_to_teacher": "FD to teacher",
    "fd_efficientnet_to_teacher": "FD EfficientNet-Lite0 to teacher",
    "rmse_to_teacher": "RMSE to teacher",
    "fd_pixels": "FD pixels",
}
# (prompts, pictures, the teacher's pictures) -> numbers by name.
Compare = Callable[[Sequence[str], Images, Images], dict[str, float]]


def digits(teacher: Model) -> tuple[list[str], Compare]:
    """Prompts, and how their pictures are compared."""

    def compare(texts: Sequence[str], images: Images, best: Images) -> dict[str, float]:
        drawn = Drawn(images, tuple(texts), best, teacher.reference)
        return measure(drawn, [name for name in NAMES if name != "fd_efficientnet_to_teacher"])

    return [str(i % 10) for i in range(DIGITS)], compare


def emoji(teacher: Model) -> tuple[list[str], Compare]:
    """As `digits`."""
    del teacher
    mesh = make_mesh(devices=jax.local_devices())
    extractor = Extractor(open_networks((NETWORK,), [], "--weights"), mesh, 32 * mesh.size)

    def features(images: Images) -> Rows:
        return in_memory(extractor.images(list(to_uint8(images)))[NETWORK])

    theirs: list[Rows] = []  # which are always the same

    def compare(texts: Sequence[str], images: Images, best: Images) -> dict[str, float]:
        if not theirs:
            theirs.append(features(best))
        known: dict[tuple[Whose, str], Rows] = {
            ("model", NETWORK): features(images),
            ("teacher", NETWORK): theirs[0],
        }
        drawn = Drawn(images, tuple(texts), best, features=known)
        return measure(drawn, ["fd_efficientnet_to_teacher", "rmse_to_teacher"])

    texts = np.random.default_rng(SEED).permutation(read_prompts(PROMPTS).texts)
    return texts[:EMOJI].tolist(), compare


TASKS = {"digits": digits, "emoji": emoji}


def untrained(student: Model, teacher: Model) -> Model:
    """The student at step 0."""
    params = student_params(teacher.pipeline, student.method, teacher.params)
    network = student_config(teacher.pipeline, student.method)
    return Model(replace(teacher.pipeline, network=network), teacher.frozen, params, student.method)


def measured(
    student: Model, teacher: Model, texts: Sequence[str], compare: Compare
) -> list[dict[str, Any]]:
    """A row for each model and number of steps."""
    sampler, rows = teacher_sampler(teacher.pipeline, student.method.w), []
    weights = jax.device_put((teacher.frozen, teacher.params))
    best = draw(sampler, teacher.pipeline, weights, texts, TEACHER_STEPS[0], SEED)

    def row(name: str, steps: int, images: Images) -> None:
        rows.append({"model": name, "steps": steps, **compare(texts, images, best)})

    for steps in TEACHER_STEPS[1:]:
        row("teacher", steps, draw(sampler, teacher.pipeline, weights, texts, steps, SEED))
    for name, model in (("student, untrained", untrained(student, teacher)), ("student", student)):
        sampler = student_sampler(model.pipeline, model.pipeline.network, model.method)
        weights = jax.device_put((model.frozen, model.params))
        for steps in STUDENT_STEPS:
            row(name, steps, draw(sampler, model.pipeline, weights, texts, steps, SEED))
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown."""
    names = [name for name in NAMES if name in rows[0]]
    head = ["model", "steps", *(NAMES[name] for name in names)]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        lines.append([row["model"], str(row["steps"]), *(f"{row[name]:.3f}" for name in names)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("task", choices=TASKS)
    add("--student", required=True, help="its export")
    add("--teacher", required=True, help="its folder")
    add("--out", type=Path, default=FOLDER, help="folder of the result")
    options = parser.parse_args(argv)
    made = made_by("untrained.py", argv, ("jax", "flax", "numpy"))
    runtime.configure()
    student, teacher = slam_jax.load(options.student), slam_jax.load(options.teacher)
    texts, compare = TASKS[options.task](teacher)
    rows = measured(student, teacher, texts, compare)
    write(
        {**made, "pictures": len(texts), "rows": rows},
        options.out / f"untrained_{options.task}.json",
    )
    (options.out / f"untrained_{options.task}.md").write_text(table(rows))


if __name__ == "__main__":
    main()
