"""A config file's values become the dataclasses of `options`, checked before anything runs; and two
configs are compared before a run goes on."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from slam_jax.base.errors import InputError, options_of
from slam_jax.base.options import kinds_of
from slam_jax.config.options import Config
from slam_jax.method.method import Method

T = TypeVar("T")


def freeze(values: ConfigDict | dict[str, Any], kind: type[T] = Config) -> T:
    """Checks every key and value.

    Args:
      values: of a config file.
      kind: the dataclass of options that they become.

    Raises:
      InputError: an unknown or missing key, a wrong type, or an impossible value; names the key.
    """
    if isinstance(values, ConfigDict):
        values = values.to_dict()
    return _freeze(kind, values, "config")


def _freeze(cls: type, values: dict[str, Any], path: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; valid keys: {', '.join(fields)}"
            if issubclass(cls, Method):  # perhaps only the name was changed
                hint += f"; a config file that changes the name sets all: {path} = dict(name=...)"
            raise InputError(f"{path}.{key}: no such option{hint}")
    arguments = {}
    for key, value in values.items():
        name = f"{path}.{key}"
        kind = chosen_kind(fields[key], value, name) or kinds_of(cls)[key]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise InputError(f"{name} = {value!r}, expected a group of options")
            arguments[key] = _freeze(kind, value, name)
        elif isinstance(value, list):
            arguments[key] = tuple(value)
        else:
            arguments[key] = float(value) if kind is float and type(value) is int else value
    with options_of(path):
        return cls(**arguments)


def chosen_kind(field: dataclasses.Field, value: Any, path: str) -> Any:
    """Of a group with several kinds, that whose name is in its values; None: of any other field.

    Raises:
      InputError: there is none of that name.
    """
    kinds = field.metadata.get("kinds")
    if kinds is None or not isinstance(value, dict):
        return None
    name = value.get("name")
    if not isinstance(name, str) or name not in kinds:
        raise InputError(f"{path}.name = {name!r}, expected one of {', '.join(kinds)}")
    return kinds[name]


def with_method(values: Mapping[str, Any], name: str | None = None) -> dict[str, Any]:
    """All options of a method. A method of another name keeps the options that the two share, such
    as w, and has its own defaults beside them.

    Args:
      values: options of a method, its name among them.
      name: of the method that it becomes; None: the same.

    Raises:
      InputError: there is none of that name.
    """
    chosen = values if name is None else {**values, "name": name}
    fields = {f.name: f for f in dataclasses.fields(Config)}
    defaults = dataclasses.asdict(chosen_kind(fields["method"], chosen, "config.method")())
    if chosen.get("name") != values.get("name"):
        chosen = {key: value for key, value in chosen.items() if key in defaults}
    return {**defaults, **chosen}


def method_of(info: Mapping[str, Any], path: Path) -> Method:
    """The method in a student's record.

    Raises:
      InputError: it has none that is known; names the file.
    """
    values, fields = info.get("method"), {f.name: f for f in dataclasses.fields(Config)}
    if not isinstance(values, dict):
        raise InputError(f"{path}: method is {values!r}; export the model again")
    name = f"{path}: method"
    try:
        return _freeze(chosen_kind(fields["method"], values, name), values, name)
    except InputError as error:
        raise InputError(f"{error}; export the model again") from error


def to_json(config: Any) -> str:
    """A frozen config, or a part of one, as JSON text that `freeze` reads back."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def default_of(field: dataclasses.Field) -> Any:
    """The value that a field has unless another one is given."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _in_json(value: Any) -> Any:
    """What JSON gives back of it."""
    return json.loads(json.dumps(value, default=dataclasses.asdict))


def first_change(old: dict[str, Any], new: Any, path: str = "config") -> str | None:
    """The first option that matters to a run's weights and differs, in words; None if none.

    Args:
      old: what a run began with, as nested dicts that went through JSON.
      new: the dataclass of the same options.
      path: where they are in a config.
    """
    for field in dataclasses.fields(new):
        name, value = f"{path}.{field.name}", getattr(new, field.name)
        # An option that a run did not know yet did what it does by default.
        there = old[field.name] if field.name in old else _in_json(default_of(field))
        if field.metadata.get("free"):
            continue
        if dataclasses.is_dataclass(value) and isinstance(there, dict):
            if change := first_change(there, value, name):
                return change
        elif there != (here := _in_json(value)):
            return f"{name} is {here!r} here and {there!r} there"
    return None
