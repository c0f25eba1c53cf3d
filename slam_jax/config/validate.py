"""A config file's values become the dataclasses of `config`, checked before anything runs; and two
configs are compared before a run goes on."""

import dataclasses
import difflib
import json
from typing import Any

from ml_collections import ConfigDict

from slam_jax.base.errors import InputError, options_of
from slam_jax.config.options import Config

# What may change when a run goes on: nothing that its weights depend on.
FREE = (
    "config.mesh",
    "config.execution",
    "config.evaluation",
    "config.teacher.path",  # what is found there is compared instead
    "config.teacher.revision",
    "config.data.data_dir",
    "config.data.index",
    "config.data.max_rejects",
    "config.data.workers",
    *(
        f"config.{training}.{option}"
        for training in ("training", "digits.training")
        for option in (
            "accumulation",
            "remat",
            "teacher_passes",
            "log_every",
            "sample_every",
            "checkpoint_every",
            "checkpoint_minutes",
            "keep_checkpoints",
            "keep_best",
            "best_metric",
            "max_skipped",
        )
    ),
)


def freeze(values: ConfigDict | dict[str, Any]) -> Config:
    """Checks every key and value.

    Raises:
      InputError: an unknown or missing key, a wrong type, or an impossible value; names the key.
    """
    if isinstance(values, ConfigDict):
        values = values.to_dict()
    return _freeze(Config, values, "config")


def _freeze(cls: type, values: dict[str, Any], path: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; valid keys: {', '.join(fields)}"
            raise InputError(f"{path}.{key}: no such option{hint}")
    arguments = {}
    for key, value in values.items():
        kind = fields[key].type
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise InputError(f"{path}.{key} = {value!r}, expected a group of options")
            arguments[key] = _freeze(kind, value, f"{path}.{key}")
        else:
            arguments[key] = _typed(value, kind, f"{path}.{key}")
    with options_of(path):
        return cls(**arguments)


def _typed(value: Any, kind: Any, path: str) -> Any:
    """`value` as the annotated type: lists become tuples, and whole numbers floats where asked."""
    if isinstance(value, list):
        value = tuple(value)
    if kind is float and type(value) is int:
        value = float(value)
    simple = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    if kind in simple and type(value) is not kind:
        raise InputError(f"{path} = {value!r}, expected {simple[kind]}")
    return value


def to_json(config: Any) -> str:
    """A frozen config, or a part of one, as JSON text that `freeze` reads back."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def first_change(old: dict[str, Any], new: dict[str, Any], path: str = "config") -> str | None:
    """The first option that matters to a run's weights and differs, in words; None if none.

    Args:
      old, new: configs, or the same part of two, as nested dicts that went through JSON.
      path: where they are in a config.
    """
    for key in [*old, *(k for k in new if k not in old)]:
        name = f"{path}.{key}"
        a, b = old.get(key), new.get(key)
        if name in FREE or (name == "config.data.source" and "digits" not in (a, b)):
            continue  # of a moved source, what is found there is compared
        if isinstance(a, dict) and isinstance(b, dict):
            if change := first_change(a, b, name):
                return change
        elif a != b:
            return f"{name} is {b!r} here and {a!r} there"
    return None
