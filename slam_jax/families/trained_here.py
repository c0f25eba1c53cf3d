"""Families whose teachers are trained here: a model is the two files of `formats.flax_folder`."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from slam_jax.base.errors import InputError, options_of
from slam_jax.base.options import OptionError
from slam_jax.base.out_folder import whole_folder
from slam_jax.config.options import Precision, Teacher
from slam_jax.config.validate import method_of
from slam_jax.families.family import Family, LoadOptions, Model
from slam_jax.families.pipeline import DENOISER, Frozen, Params, Pipeline
from slam_jax.formats import safetensors
from slam_jax.formats.flax_folder import (
    CONFIG_FILE,
    PARAMS_FILE,
    SavedModel,
    family_of,
    load_model,
    save_model,
)
from slam_jax.models.functional import first_difference


class TrainedHere(Family):
    """A teacher that is trained here, in a folder of its own."""

    trains = True

    def __init__(self, pipeline: Pipeline, folder: Path):
        self.pipeline, self.folder = pipeline, folder

    @classmethod
    @abstractmethod
    def make(cls, network: dict[str, Any], prediction_type: str) -> Pipeline:
        """The pipeline with such a denoiser.

        Raises:
          OptionError: there is none; names "network", or "network" and a key of it.
        """

    @classmethod
    def open(
        cls, teacher: Teacher, folder: Path, size: int | None = None, weights: bool = True
    ) -> Self:
        with options_of("config.teacher"):
            for name in ("revision", "variant"):
                if given := getattr(teacher, name):
                    raise OptionError(name, given, "nothing: this teacher is trained here")
            pipeline = cls.make(teacher.network, teacher.prediction_type)
        return cls(pipeline, Path(teacher.path) if teacher.path else folder)

    @classmethod
    def reads(cls, folder: Path) -> bool:
        return family_of(folder) == cls.name

    @classmethod
    def load(cls, name: str, options: LoadOptions) -> Model:
        for option in ("revision", "variant", "height", "width"):
            if given := getattr(options, option):
                raise InputError(f"{name}: a model of this family has no {option} {given!r}")
        for option, given in (("lora", options.loras[:1]), ("method", options.method)):
            if given:
                raise InputError(f"--{option}: {name} is of a family without LoRA files")
        folder, saved = Path(name), load_model(name)
        path = folder / CONFIG_FILE
        try:
            prediction_type = saved.scheduler["prediction_type"]
            pipeline = cls.make(saved.network, prediction_type)
        except (ValueError, KeyError) as error:
            raise InputError(f"{path}: {error}; export the model again") from error
        params = _checked(pipeline, folder, saved)
        method = method_of(saved.info, path) if "method" in saved.info else None
        return Model(pipeline, {}, params, method, saved.info, reference=cls.reference())

    def weights(self, precision: Precision) -> Frozen:
        return {DENOISER: _checked(self.pipeline, self.folder, load_model(self.folder))}

    def identity(self) -> dict[str, Any]:
        prints = {"denoiser": safetensors.open_arrays(self.folder / PARAMS_FILE).fingerprint()}
        return {**load_model(self.folder).info, "fingerprints": prints}

    def export(
        self, student: SavedModel, out: Path, checks: Sequence[Callable[[Path], None]] = ()
    ) -> None:
        with whole_folder(
            out, lambda names: names == {CONFIG_FILE, PARAMS_FILE}, "export"
        ) as folder:
            save_model(folder, student)
            for check in checks:
                check(folder)


def _checked(pipeline: Pipeline, folder: Path, saved: SavedModel) -> Params:
    """The weights, which are those of the configuration.

    Raises:
      InputError: they are not; names the file and the first array that differs.
    """
    expected = pipeline.abstract_params(pipeline.network)
    if difference := first_difference(expected, saved.params):
        path = folder / PARAMS_FILE
        raise InputError(f"{path}: {difference}; the weights are not those of {CONFIG_FILE}")
    return saved.params
