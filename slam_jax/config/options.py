"""Every option there is, with its default.

A config file in `configs/` starts from `default_config()`, a locked ConfigDict that refuses
unknown keys, and changes what it needs. `freeze` turns it into the dataclasses below, which check
their values. Only programs see a config.
"""

import dataclasses
from dataclasses import dataclass, field

from ml_collections import ConfigDict

from slam_jax.data.options import Data, check
from slam_jax.method.schedule import PREDICTION_TYPES
from slam_jax.method.slam import Method
from slam_jax.models.execution import Execution
from slam_jax.models.remat import REMAT
from slam_jax.models.unet import UNetConfig

SEEDS = 2**31
LEARNING_RATE_SCHEDULES = ("constant", "linear", "cosine")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Optimizer:
    """AdamW after clipping by global norm. The defaults are the authors'."""

    learning_rate: float = 8e-6
    schedule: str = "constant"  # or "linear", "cosine": falls to 2% at the last step
    warmup_steps: int = 0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    clip_norm: float = 1.0

    def __post_init__(self):
        check(self.learning_rate > 0, "learning_rate", self.learning_rate, "a positive number")
        check(
            self.schedule in LEARNING_RATE_SCHEDULES,
            "schedule",
            self.schedule,
            f"one of {', '.join(LEARNING_RATE_SCHEDULES)}",
        )
        check(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "0 or more")
        check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        for name in ("b1", "b2"):
            check(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number in [0, 1)")
        check(self.clip_norm > 0, "clip_norm", self.clip_norm, "a positive number")


@dataclass(frozen=True)
class Training:
    """One training run: of the student, or of the digits teacher."""

    steps: int = 1000
    batch_size: int = 12  # over all devices
    accumulation: int = 1  # parts of its rows that a device goes through one after the other
    remat: str = "none"  # or "minimal", "full": what the gradient computes again, not keeps
    teacher_passes: int = 1  # over prompts and empty prompts; 2: half the batch in each
    ema: float = 0.95
    optimizer: Optimizer = field(default_factory=Optimizer)
    log_every: int = 50
    sample_every: int = 0  # a step-ladder picture; 0: only at the end
    checkpoint_every: int = 500
    checkpoint_minutes: float = 0.0  # one more when the last is so old; 0: by steps only
    keep_checkpoints: int = 2  # the newest ones
    keep_best: int = 0  # besides, those with the lowest best_metric
    best_metric: str = "loss"  # or "rmse_to_teacher_4": of the ladder, in 4 steps
    max_skipped: int = 10  # steps whose loss or gradient is not finite; at so many a run stops

    def __post_init__(self):
        for name in (
            "steps",
            "batch_size",
            "accumulation",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "max_skipped",
        ):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("sample_every", "checkpoint_minutes", "keep_best"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        passes = self.teacher_passes
        check(passes in (1, 2), "teacher_passes", passes, "1 or 2")
        check(self.remat in REMAT, "remat", self.remat, f"one of {', '.join(REMAT)}")
        if self.keep_best:
            # Only what is measured in the step of a checkpoint can be that checkpoint's.
            measured = "log_every" if self.best_metric == "loss" else "sample_every"
            every = getattr(self, measured)
            check(
                every > 0 and self.checkpoint_every % every == 0,
                "checkpoint_every",
                self.checkpoint_every,
                f"a multiple of {measured} (of {every}), where best_metric is measured",
            )
        check(0 <= self.ema < 1, "ema", self.ema, "a number in [0, 1)")
        check(
            self.optimizer.warmup_steps < self.steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            f"less than steps = {self.steps}",
        )


@dataclass(frozen=True)
class Teacher:
    """The model that is distilled: a diffusers folder, or a repository of the Hugging Face hub.

    For the digits: the folder where their teacher is kept; empty is teacher/ in the workdir.
    """

    path: str = ""
    revision: str = ""  # commit, tag or branch on the hub; empty: its main branch
    variant: str = ""  # such as "fp16", of the weight files


@dataclass(frozen=True)
class DigitsTeacher:
    """The digits teacher, trained once, for runs with data.source = "digits"."""

    seed: int = 0
    unet: UNetConfig = field(default_factory=UNetConfig)
    prediction_type: str = "epsilon"  # or "v_prediction", "sample"
    label_dropout: float = 0.1  # share of examples trained without their label, for guidance
    training: Training = field(default_factory=Training)

    def __post_init__(self):
        check(0 <= self.seed < SEEDS, "seed", self.seed, f"0 to {SEEDS - 1}")
        check(
            self.prediction_type in PREDICTION_TYPES,
            "prediction_type",
            self.prediction_type,
            f"one of {', '.join(PREDICTION_TYPES)}",
        )
        check(
            0 <= self.label_dropout < 1, "label_dropout", self.label_dropout, "a number in [0, 1)"
        )
        for name in ("time_cond_proj_dim", "addition_embed_type"):
            given = getattr(self.unet, name)
            check(given is None, f"unet.{name}", given, "None: the digits have no such input")
        shown = self.training.sample_every
        check(shown == 0, "training.sample_every", shown, "0: a teacher has no step ladder")
        for name, only in (("remat", "none"), ("teacher_passes", 1)):
            given = getattr(self.training, name)
            check(given == only, f"training.{name}", given, f"{only}: it is for a student")


@dataclass(frozen=True)
class Precision:
    """What each network computes in. Trained weights, EMA and optimiser are float32 always.

    float16 is not offered: Stable Diffusion's VAE overflows in it, and training would need loss
    scaling.
    """

    teacher: str = "float32"
    target: str = "float32"
    student: str = "float32"
    text_encoder: str = "float32"
    vae: str = "float32"

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            check(value in DTYPES, name, value, f"one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class Mesh:
    """Devices: their number must be data * fsdp; data = -1 takes all that fsdp leaves."""

    data: int = -1  # the batch is split over data and fsdp
    fsdp: int = 1  # weights, EMA, optimiser and the frozen networks are split over fsdp

    def __post_init__(self):
        check(self.data == -1 or self.data >= 1, "data", self.data, "-1 or at least 1")
        check(self.fsdp >= 1, "fsdp", self.fsdp, "at least 1")


@dataclass(frozen=True)
class Evaluation:
    """Samples drawn after training, and from them every number of the report."""

    samples: int = 2000  # digits: pictures that a number is made of; otherwise the prompts' are
    student_steps: tuple[int, ...] = (1, 2, 4, 8)
    teacher_steps: tuple[int, ...] = (50, 8, 4, 2)
    prompts: tuple[str, ...] = (  # of the step ladder, with a text-to-image teacher
        "a photo of an astronaut riding a horse on the moon",
        "a bowl of fruit on a wooden table, oil painting",
        "a lighthouse by the sea at sunset",
        "portrait of a cat wearing a hat, highly detailed",
    )

    def __post_init__(self):
        check(
            all(isinstance(prompt, str) for prompt in self.prompts) and len(self.prompts) > 0,
            "prompts",
            self.prompts,
            "one or more texts",
        )
        check(self.samples >= 2, "samples", self.samples, "2 or more")
        for name in ("student_steps", "teacher_steps"):
            steps = getattr(self, name)
            whole = isinstance(steps, tuple) and all(type(n) is int and n >= 1 for n in steps)
            check(whole and len(steps) > 0, name, steps, "one or more whole numbers above 0")


@dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str = "run"
    seed: int = 0
    teacher: Teacher = field(default_factory=Teacher)
    digits: DigitsTeacher = field(default_factory=DigitsTeacher)
    data: Data = field(default_factory=Data)
    method: Method = field(default_factory=Method)
    training: Training = field(default_factory=Training)
    precision: Precision = field(default_factory=Precision)
    execution: Execution = field(default_factory=Execution)
    mesh: Mesh = field(default_factory=Mesh)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self):
        check(0 <= self.seed < SEEDS, "seed", self.seed, f"0 to {SEEDS - 1}")
        check(self.name.isidentifier(), "name", self.name, "letters, digits and underscores")
        check(
            self.method.w == 0 or self.digits.label_dropout > 0,
            "digits.label_dropout",
            self.digits.label_dropout,
            "more than 0, which guidance (method.w) needs",
        )
        check(
            self.data.source == "digits" or self.teacher.path != "",
            "teacher.path",
            self.teacher.path,
            f"a diffusers folder or hub repository, for data.source = {self.data.source!r}",
        )
        for name in ("revision", "variant"):
            given = getattr(self.teacher, name)
            check(
                given == "" or self.data.source != "digits",
                f"teacher.{name}",
                given,
                "nothing with data.source = 'digits': its teacher is trained here",
            )
        metrics = ["loss", *(f"rmse_to_teacher_{n}" for n in self.evaluation.student_steps)]
        best = self.training.best_metric
        check(best in metrics, "training.best_metric", best, f"one of {', '.join(metrics)}")
        best = self.digits.training.best_metric
        check(best == "loss", "digits.training.best_metric", best, "loss")
        passes = self.training.teacher_passes
        check(
            passes == 1 or self.method.w > 0,
            "training.teacher_passes",
            passes,
            "1 without guidance (method.w = 0), where there are no empty prompts",
        )
        grid = self.method.num_ddim_timesteps
        for steps in self.evaluation.student_steps:
            check(
                steps <= grid,
                "evaluation.student_steps",
                steps,
                f"at most method.num_ddim_timesteps = {grid}",
            )


def default_config() -> ConfigDict:
    """The defaults as a locked ConfigDict, for config files to start from."""
    return ConfigDict(dataclasses.asdict(Config())).lock()
