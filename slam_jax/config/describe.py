"""Every option of a config in words, for `--help` and the documentation."""

import dataclasses
from collections.abc import Iterator, Mapping
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
            named = f"one of {', '.join(facts['kinds'])}" if "kinds" in facts else ""
            for found in describe(value, key, free):
                of_name = bool(named) and found.key == f"{key}.name"
                yield found._replace(values=named) if of_name else found
        else:
            yield Description(key, value, doc, in_words(facts), free, facts.get("read_by", ()))


def help_text(options: Any) -> str:
    """All options with their defaults, one in a line or two."""
    return "\n".join(map(_in_help, describe(options)))


def help_of_kinds(kinds: Mapping[str, type], known: Any, path: str) -> str:
    """What the other kinds of a group of options have beside those that one kind has.

    Args:
      kinds: by name.
      known: options of the one that is described elsewhere.
      path: of the group.
    """
    there, lines = {found.key for found in describe(known, path)}, []
    for name, kind in kinds.items():
        if kind is not type(known):
            lines.append(f"\n{path}.name={name}")
            own = (found for found in describe(kind(), path) if found.key not in there)
            lines += map(_in_help, own)
    return "\n".join(lines)


def _in_help(found: Description) -> str:
    if found.default is None:
        return f"\n{found.key}: {found.doc}"
    values = f" ({found.values})" if found.values else ""
    return f"  --{found.key}={found.default!r}\n      {found.doc}{values}"
