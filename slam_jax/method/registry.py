"""The methods there are, by the name that `config.method.name` gives."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slam_jax.base.errors import InputError
from slam_jax.method.method import Method
from slam_jax.method.slam import Slam

METHODS: dict[str, type[Method]] = {"slam": Slam}


def method_of(info: Mapping[str, Any], path: Path) -> Method:
    """The method in a student's record.

    Raises:
      InputError: it has none that is known; names the file.
    """
    values: Any = info.get("method")
    try:
        return METHODS[values["name"]](**values)
    except (KeyError, TypeError, ValueError) as error:
        why = f"method is {values!r}, which is none of {', '.join(METHODS)} with its options"
        raise InputError(f"{path}: {why}; export the model again") from error
