"""A run in Weights & Biases (https://wandb.ai), beside metrics.jsonl and TensorBoard."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slam_jax.base.errors import InputError
from slam_jax.base.json_file import read_json, write_json
from slam_jax.parallel.processes import is_main

RECORD = "wandb.json"  # of a workdir: the project, and the id of its run there


@dataclass(frozen=True)
class Wandb:
    """Where a run is logged to.

    Attributes:
      project: "": nowhere.
      name: of the run.
      config: its options, nested dicts.
    """

    project: str
    name: str
    config: dict[str, Any]


def check_wandb(project: str) -> None:
    """Makes sure, before anything is trained, that the package is there if there is a project.

    Raises:
      InputError: it is not.
    """
    if not (project and is_main()):
        return
    try:
        from wandb import init  # noqa: F401  # a folder of that name has no `init`
    except ImportError as error:
        raise InputError(
            f"config.wandb_project = {project!r}: the package wandb cannot be imported; "
            "pip install 'slam_jax[wandb]', or leave the option out"
        ) from error


class WandbLog:
    """Logs to Weights & Biases; a run that goes on, to the same run there.

    Args:
      folder: the workdir.
      options: where to.
      logged: step of the last row that was written so far, also of rows that a killed run wrote
        after its last checkpoint: what is there already is not logged twice.

    Raises:
      InputError: wandb refuses, such as without a login.
    """

    def __init__(self, folder: Path, options: Wandb, logged: float):
        import wandb

        record, known = folder / RECORD, {}
        if record.exists():
            known = read_json(record, "remove it to log to a new run")
        again = known.get("project") == options.project
        try:
            self._run = wandb.init(
                project=options.project,
                id=known["id"] if again else None,
                resume="allow" if again else None,
                name=options.name,
                config=options.config,
                allow_val_change=True,
                dir=folder,
            )
        except wandb.Error as error:
            why = " ".join(str(error).split())
            hint = "set WANDB_MODE=offline to log to files, or leave the option out"
            raise InputError(
                f"config.wandb_project = {options.project!r}: {why}; {hint}"
            ) from error
        self._logged = logged if again else 0
        write_json(record, {"project": options.project, "id": self._run.id})

    def add(self, step: int, values: dict[str, float], picture: Path | None) -> None:
        """Logs a row of metrics, and with it the picture of a step ladder."""
        import wandb

        if step <= self._logged:
            return
        pictures = {} if picture is None else {"ladder": wandb.Image(str(picture))}
        self._run.log({**values, **pictures}, step=step)

    def close(self) -> None:
        """Waits until all of it is sent."""
        self._run.finish()
