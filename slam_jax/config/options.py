"""Every option there is, with its default, its meaning and its range.

A config file in `configs/` starts from `default_config()`, a locked ConfigDict that refuses
unknown keys, and changes what it needs. `validate.freeze` turns it into the dataclasses below,
which check their values. Losses, solvers and networks never see a config.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from slam_jax.base.options import Options, check, group, option
from slam_jax.data.options import Data
from slam_jax.method.flow_matching import FLOW
from slam_jax.method.method import Method
from slam_jax.method.registry import METHODS
from slam_jax.method.slam import Slam
from slam_jax.method.variance_preserving import PREDICTION_TYPES
from slam_jax.models import lora
from slam_jax.models.execution import Execution
from slam_jax.models.remat import REMAT

SEEDS = 2**31
LEARNING_RATE_SCHEDULES = ("constant", "linear", "cosine")
DTYPES = ("float32", "bfloat16")
STUDENTS = ("full", "lora")


@dataclass(frozen=True)
class Optimizer(Options):
    """AdamW after clipping by global norm. The defaults are the authors'."""

    learning_rate: float = option(8e-6, "highest value of the learning rate", above=0, at_most=100)
    schedule: str = option(
        "constant",
        'course of the learning rate; "linear" and "cosine" fall to 2% at the last step',
        one_of=LEARNING_RATE_SCHEDULES,
    )
    warmup_steps: int = option(0, "steps in which the rate rises", at_least=0, at_most=10**9)
    weight_decay: float = option(0.0, "weight decay of AdamW", at_least=0, at_most=1000)
    b1: float = option(0.9, "decay of Adam's mean of gradients", at_least=0, below=1)
    b2: float = option(0.999, "decay of Adam's mean of squared gradients", at_least=0, below=1)
    clip_norm: float = option(1.0, "largest global norm of a gradient", above=0, at_most=1e9)


@dataclass(frozen=True)
class Training(Options):
    """One training run: of a student, or of a teacher that is trained here."""

    steps: int = option(1000, "number of training steps", at_least=1, at_most=10**9)
    batch_size: int = option(12, "examples in a step, over all devices", at_least=1, at_most=2**20)
    accumulation: int = option(
        1,
        "parts of its rows that a device goes through one after the other",
        at_least=1,
        at_most=2**20,
        free=True,
    )
    remat: str = option(
        "none", "what the gradient recomputes, not keeps in memory", one_of=tuple(REMAT), free=True
    )
    ema: float = option(0.95, "decay of the moving average of the weights", at_least=0, below=1)
    optimizer: Optimizer = group(Optimizer, "AdamW")
    log_every: int = option(50, "steps between metric rows", at_least=1, at_most=10**9, free=True)
    sample_every: int = option(
        0, "steps between ladders; 0: only one, at the end", at_least=0, at_most=10**9, free=True
    )
    checkpoint_every: int = option(
        500, "steps between checkpoints", at_least=1, at_most=10**9, free=True
    )
    checkpoint_minutes: float = option(
        0.0,
        "minutes after which one more is saved; 0: by steps only",
        at_least=0,
        at_most=10**6,
        free=True,
    )
    keep_checkpoints: int = option(
        2, "how many of the newest checkpoints stay", at_least=1, at_most=10**6, free=True
    )
    keep_best: int = option(
        0, "how many with the lowest best_metric stay, too", at_least=0, at_most=10**6, free=True
    )
    best_metric: str = option(
        "loss",
        'what keep_best compares: "loss", or of the step ladder as "rmse_to_teacher_4"',
        free=True,
    )
    patience: int = option(
        0,
        "measurements of best_metric, none of them the lowest, after which a run ends; 0: at steps",
        at_least=0,
        at_most=10**6,
        free=True,
    )
    max_skipped: int = option(
        10,
        "steps with a loss or gradient that is not finite, at which a run stops",
        at_least=1,
        at_most=10**9,
        free=True,
    )

    def __post_init__(self):
        super().__post_init__()
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
        if self.patience and self.best_metric != "loss":
            shown = self.sample_every
            check(shown > 0, "sample_every", shown, "1 or more, for patience to measure something")
        warmup = self.optimizer.warmup_steps
        expected = f"less than steps = {self.steps}"
        check(warmup < self.steps, "optimizer.warmup_steps", warmup, expected)


@dataclass(frozen=True)
class Teacher(Options):
    """The model that is distilled: its family, and where it is or how it is trained."""

    family: str = option("stable_diffusion", "kind of model, a name in families.registry")
    path: str = option(
        "",
        "a diffusers folder or a repository of the Hugging Face hub; for a teacher that is trained "
        "here, the folder where it is kept (empty: teacher/ in the workdir)",
        free=True,  # what is found there is compared
    )
    revision: str = option(
        "", "commit, tag or branch on the hub; empty: its main branch", free=True
    )
    variant: str = option("", 'kind of weight files, such as "fp16"; empty: the plain ones')
    # What follows is of teachers that are trained here.
    seed: int = option(0, "seed of a teacher that is trained here", at_least=0, at_most=SEEDS - 1)
    network: dict[str, Any] = field(
        default_factory=dict, metadata={"doc": "configuration of a network that is trained here"}
    )
    prediction_type: str = option(
        "epsilon",
        'what a teacher that is trained here predicts; "flow": the velocity of flow matching',
        one_of=(*PREDICTION_TYPES, FLOW),
    )
    dropout: float = option(
        0.1, "share of examples without their prompt, which guidance needs", at_least=0, below=1
    )
    training: Training = group(Training, "how a teacher is trained here")

    def __post_init__(self):
        super().__post_init__()
        shown = self.training.sample_every
        check(shown == 0, "training.sample_every", shown, "0: a teacher has no step ladder")
        best = self.training.best_metric
        check(best == "loss", "training.best_metric", best, "loss")
        remat = self.training.remat
        check(remat == "none", "training.remat", remat, "none: it is for a student")


@dataclass(frozen=True)
class StudentOptions(Options):
    """What of the student is trained: all of its weights, or a LoRA on those of its teacher."""

    kind: str = option("full", '"full": all weights; "lora": a low-rank change', one_of=STUDENTS)
    # What follows is of a LoRA. The defaults are those of the published LCM-LoRA.
    rank: int = option(64, "r, the rank of the change of each layer", at_least=1, at_most=10_000)
    alpha: float = option(
        0.0, "the change is multiplied by alpha / r; 0: alpha = r", at_least=0, at_most=10**6
    )
    targets: tuple[str, ...] = option(
        lora.TARGETS, "ends of the paths of the layers that are changed, such as to_q"
    )

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / self.rank if self.alpha else 1.0


@dataclass(frozen=True)
class Precision(Options):
    """What each network computes in. Trained weights, EMA and optimiser are float32 always.

    Student and target compute in the same: mixed, the student of the digits ended more than twice
    as far from its teacher in 1 step. float16 is not offered: Stable Diffusion's VAE overflows in
    it, and training would need loss scaling.
    """

    teacher: str = option("float32", "the frozen teacher", one_of=DTYPES)
    target: str = option("float32", "the student with its EMA weights", one_of=DTYPES)
    student: str = option("float32", "the student, its weights cast for each step", one_of=DTYPES)
    text_encoder: str = option("float32", "the text encoders", one_of=DTYPES)
    vae: str = option("float32", "the autoencoder", one_of=DTYPES)


@dataclass(frozen=True)
class Mesh(Options):
    """Devices: their number must be data * fsdp; data = -1 takes all that fsdp leaves."""

    data: int = option(
        -1, "devices that share a batch; -1: all that fsdp leaves", at_least=-1, at_most=2**20
    )
    fsdp: int = option(
        1,
        "devices that share weights, EMA, optimiser and the frozen networks",
        at_least=1,
        at_most=2**20,
    )

    def __post_init__(self):
        super().__post_init__()
        check(self.data != 0, "data", self.data, "-1 or at least 1")


@dataclass(frozen=True)
class Evaluation(Options):
    """Step ladder and report: pictures of the same prompts and noise by teacher and student."""

    prompts: tuple[str, ...] = option((), "prompts of the pictures; empty: the family's own")
    prompts_file: str = option(
        "", "in place of prompts: a text file, captions of COCO, or images with captions"
    )
    batch: int = option(
        0,
        "pictures that are drawn at a time; 0: one of each prompt, at most 20",
        at_least=0,
        at_most=10_000,
    )
    samples: int = option(
        0, "pictures for each row of the report; 0: one batch", at_least=0, at_most=10**7
    )
    pictures: int = option(
        0,
        "pictures that the metrics of networks are of; 0: those of the ladder",
        at_least=0,
        at_most=10**7,
    )
    student_steps: tuple[int, ...] = option(
        (1, 2, 4, 8), "numbers of steps of the student", at_least=1, at_most=1000
    )
    teacher_steps: tuple[int, ...] = option(
        (50, 8, 4, 2), "numbers of steps of the teacher", at_least=1, at_most=1000
    )
    metrics: tuple[str, ...] = option(
        (), "names in drawing.metrics.registry; empty: all that read no network's features"
    )
    weights: tuple[str, ...] = option(
        (), "NETWORK=PATH: where weights of networks are that metrics read, if not where published"
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("student_steps", "teacher_steps"):
            steps = getattr(self, name)
            check(len(steps) > 0, name, steps, "one or more whole numbers above 0")


@dataclass(frozen=True)
class Config(Options):
    """A whole run."""

    name: str = option("run", "name of the run, and of its folder in runs/")
    seed: int = option(0, "seed of all random draws", at_least=0, at_most=SEEDS - 1)
    wandb_project: str = option(
        "", "project of Weights & Biases that it is logged to as well; empty: none", free=True
    )
    teacher: Teacher = group(Teacher, "the model that is distilled")
    data: Data = group(Data, "the training data")
    method: Method = group(Slam, "how it is distilled", kinds=METHODS)
    student: StudentOptions = group(StudentOptions, "what of the student is trained")
    training: Training = group(Training, "how the student is trained")
    precision: Precision = group(Precision, "what networks compute in")
    execution: Execution = group(Execution, "how networks are computed", free=True)
    mesh: Mesh = group(Mesh, "the devices", free=True)
    evaluation: Evaluation = group(Evaluation, "step ladder and report", free=True)

    def __post_init__(self):
        super().__post_init__()
        named = self.name.isidentifier()
        check(named, "name", self.name, "letters, digits and underscores")
        if self.student.kind == "lora":
            has_choice = hasattr(self.method, "conditioning")
            key, other = ("conditioning", "snr") if has_choice else ("name", "slam, lcm or pcm")
            expected = f"{other}: a LoRA has no place for another input of the network"
            shown = getattr(self.method, key)
            check(not self.method.tells_gamma, f"method.{key}", shown, expected)


def default_config() -> ConfigDict:
    """The defaults as a locked ConfigDict, for config files to start from."""
    return ConfigDict(dataclasses.asdict(Config())).lock()
