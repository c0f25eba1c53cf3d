"""Every option of a config in words, for `--help` and the documentation."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from slam_jax.base.options import in_words


class Description(NamedTuple):
    """An option, or a group of them.

    Attributes:
      key: such as "config.training.steps".
      default: its value unless another one is given; None: a group.
      doc: what it means.
      values: which values it takes, in words; "" where the doc says.
      free: whether it may change when a run goes on.
      read_by: the kinds of data sources that read it; empty: it is of no source.
    """

    key: str
    default: Any
    doc: str
    values: str
    free: bool
    read_by: tuple[str, ...] = ()


def describe(options: Any, path: str = "config", free: bool = False) -> Iterator[Description]:
    """Each option of a dataclass of options, groups before what is in them.

    Args:
      options: the dataclass.
      path: where it is in a config.
      free: whether all of it may change when a run goes on.
    """
    in_free_group = free
    for field in dataclasses.fields(options):
        value, facts = getattr(options, field.name), field.metadata
        key, doc, free = f"{path}.{field.name}", facts["doc"], facts.get("free", in_free_group)
        if dataclasses.is_dataclass(value):
            yield Description(key, None, doc, "", free)
            yield from describe(value, key, free)
        else:
            yield Description(key, value, doc, in_words(facts), free, facts.get("read_by", ()))


def help_text(options: Any) -> str:
    """All options with their defaults, one in a line or two."""
    lines = []
    for key, default, doc, values, *_ in describe(options):
        if default is None:
            lines.append(f"\n{key}: {doc}")
        else:
            lines.append(f"  --{key}={default!r}\n      {doc}{f' ({values})' if values else ''}")
    return "\n".join(lines)
