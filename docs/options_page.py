"""The options of a run as Markdown, made from the dataclasses that check them."""

from collections.abc import Iterable
from typing import Any

from slam_jax.config.describe import Description, describe
from slam_jax.method.registry import METHODS

HEAD = "| option | default | meaning | values |\n| --- | --- | --- | --- |"


def markdown(options: Any) -> str:
    """A section for each group of options; those of each method have one of their own.

    Args:
      options: a dataclass of them.
    """
    top, groups = [], []
    for found in describe(options):
        if found.default is None:
            groups.append((found, []))
        elif found.key.count(".") == 1:
            top.append(found)
        else:
            group = found.key.rpartition(".")[0]
            next(rows for head, rows in groups if head.key == group).append(found)
    parts = [section("config", "The run.", top)]
    for head, rows in groups:
        if head.key == "config.method":
            parts += [
                section(f"config.method of {name}", head.doc, describe(method(), head.key))
                for name, method in METHODS.items()
            ]
        else:
            parts.append(section(head.key, head.doc, rows))
    return "\n".join(parts)


def section(title: str, doc: str, rows: Iterable[Description]) -> str:
    """A heading and a table."""
    lines = [f"## `{title}`", "", sentence(doc), "", HEAD]
    return "\n".join([*lines, *map(row, rows), ""])


def row(found: Description) -> str:
    """An option as a row of a table."""
    resumes = " \\*" if found.free else ""
    doc = found.doc
    if found.read_by:
        doc += f"; read by {', '.join(found.read_by)}"
    name = found.key.rpartition(".")[2]
    cells = [f"`{name}`{resumes}", f"`{shown(found.default)}`", doc, found.values]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def shown(value: Any) -> str:
    """A default as one would write it on the command line."""
    return f'"{value}"' if isinstance(value, str) else repr(value)


def sentence(doc: str) -> str:
    """A phrase as a sentence."""
    text = doc[0].upper() + doc[1:]
    return text if text.endswith(".") else f"{text}."
