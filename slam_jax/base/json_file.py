"""JSON files: read with every refusal in one line, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

from slam_jax.base.errors import InputError
from slam_jax.base.files import write_whole


def parse_json(content: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
      ValueError: it is none, or nested too deeply; UnicodeDecodeError is one, too.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
      path: the file.
      hint: what to do where it cannot be read.

    Raises:
      InputError: it cannot be read, or holds something else; names the file.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {hint}") from error
    except ValueError as error:
        why = " ".join(str(error).split())
        raise InputError(f"{path}: damaged ({why}); {hint}") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise InputError(f"{path}: damaged (expected a JSON object, found a {kind}); {hint}")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file, and its folder where that is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=2))
