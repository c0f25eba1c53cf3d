"""Configs that speak the config.json of diffusers, and refuse by name what is not supported."""

import dataclasses
import functools
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

DEEPEST = 1000  # layers; building more of them would take hours
LARGEST = 16_384  # pixels or latents along a side
MOST = 10**7  # of any number of things
KINDS = {
    int: f"whole numbers up to {MOST}",
    float: f"numbers up to {MOST}",
    str: "texts",
    bool: "true and false",
    NoneType: "null",
}


def require(config: Any, name: str, ok: bool, supported: str) -> None:
    """Refuses a config's value by name where it is not `ok`.

    Raises:
        ValueError: says what is supported.
    """
    if not ok:
        raise ValueError(f"{name} = {getattr(config, name)!r}, supported: {supported}")


def require_kinds(config: Any) -> None:
    """Refuses a config with a value of another kind than its field's, or with a number that is not
    finite or absurd: what is left when all that has words of its own was refused.

    Raises:
        ValueError: says what is supported.
    """
    kinds = _kinds_of(type(config))
    for field in dataclasses.fields(config):
        kind = kinds[field.name]
        require(config, field.name, _is(getattr(config, field.name), kind), _in_words(kind))


@functools.cache
def _kinds_of(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _is(value: Any, kind: Any) -> bool:
    if get_origin(kind) is UnionType:
        return any(_is(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is(item, get_args(kind)[0]) for item in value)
    if kind is float:
        right = isinstance(value, int | float) and not isinstance(value, bool)
        return right and abs(value) <= MOST  # which NaN is not, either
    return type(value) is kind and not (kind is int and abs(value) > MOST)


def _in_words(kind: Any) -> str:
    if get_origin(kind) is UnionType:
        return " or ".join(map(_in_words, get_args(kind)))
    return f"lists of {KINDS[get_args(kind)[0]]}" if get_origin(kind) is tuple else KINDS[kind]


def require_counts(config: Any, *names: str) -> None:
    """Refuses a config in which one of these values is no number of things.

    Raises:
        ValueError: says what is supported.
    """
    for name in names:
        value = getattr(config, name)
        require(config, name, type(value) is int and value > 0, "whole numbers above 0")


def require_depths(config: Any, *names: str) -> None:
    """Refuses a config with a number of layers, or one for each level, that no network has.

    Raises:
        ValueError: says what is supported.
    """
    for name in names:
        value = getattr(config, name)
        depths = value if isinstance(value, tuple) else (value,)
        ok = all(type(depth) is int and 0 < depth <= DEEPEST for depth in depths)
        require(config, name, ok, f"1 to {DEEPEST}")


def require_side(config: Any) -> None:
    """Refuses a config whose `sample_size` is no side of a picture or of its latents, and not its
    height and width.

    Raises:
        ValueError: says what is supported.
    """
    side = config.sample_size
    sides = side if isinstance(side, tuple) else () if side is None else (side,)
    ok = all(type(side) is int and 0 < side <= LARGEST for side in sides)
    ok &= not isinstance(side, tuple) or len(side) == 2
    require(config, "sample_size", ok, f"1 to {LARGEST}, or a height and a width")


@dataclasses.dataclass(frozen=True)
class PublishedConfig:
    """A frozen dataclass whose fields are the keys of a config.json that may vary.

    Attributes:
        CLASS: the class of diffusers whose config it is.
        FIXED: the keys that have one supported value, and that value.
    """

    CLASS: ClassVar[str]
    FIXED: ClassVar[Mapping[str, Any]]

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Self:
        """The config of a config.json; keys beginning with "_" are ignored.

        Raises:
            ValueError: a key or value that is not supported.
        """
        values = {}
        for key, value in mapping.items():
            if key in cls.__dataclass_fields__:
                values[key] = tuple(value) if isinstance(value, list) else value
            elif key in cls.FIXED and value != cls.FIXED[key]:
                raise ValueError(f"{cls.CLASS}: {key} = {value!r}, supported: {cls.FIXED[key]!r}")
            elif key not in cls.FIXED and not key.startswith("_"):
                raise ValueError(f"{cls.CLASS}: unknown key {key} = {value!r}, supported: none")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """A complete config.json; `from_dict` reads it back."""
        values = dataclasses.asdict(self)
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {"_class_name": self.CLASS, **self.FIXED, **values}
