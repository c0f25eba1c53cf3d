"""Small runs of the digits by their command line."""

from pathlib import Path

from slam_jax.commands import train as main

ROOT = Path(__file__).parents[2]
SMALL = [
    "--config",
    str(ROOT / "configs/digits.py"),
    "--config.teacher.network.block_out_channels=(8,)",
    "--config.teacher.training.steps=6",
    "--config.teacher.training.batch_size=16",
    "--config.teacher.training.optimizer.warmup_steps=2",
    "--config.training.steps=6",
    "--config.training.batch_size=16",
    "--config.training.sample_every=3",
    "--config.training.checkpoint_every=2",
    "--config.training.log_every=2",
    "--config.evaluation.samples=50",
    "--config.evaluation.teacher_steps=(3,)",
    "--config.evaluation.student_steps=(1,2)",
]


# The teacher among these, as `slam_jax.distill` takes it; and a distillation without a ladder.
TEACHER = {
    "network": {"block_out_channels": (8,)},
    "training": {"steps": 6, "batch_size": 16, "optimizer": {"warmup_steps": 2}},
}
SHORT = {
    "teacher": TEACHER,
    "training": {"steps": 4, "batch_size": 16, "sample_every": 0, "log_every": 1},
    "evaluation": {"samples": 50, "teacher_steps": (3,), "student_steps": (2,)},
}


def launch(workdir, *more):
    main.main([*SMALL, "--workdir", str(workdir), *more])
