"""Frozen values as JSON and back: dataclasses and named tuples by their fields and types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """What JSON can hold of `value`: a dataclass becomes the list of its fields, bytes become text."""
    if is_dataclass(value):
        return [to_plain(getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, Mapping):
        return [[to_plain(key), to_plain(item)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: type[T], plain: Any) -> T:
    """The value of that type which `to_plain()` was given."""
    value: T = _value(kind, plain)
    return value


@cache
def _types(cls: type[Any]) -> tuple[Any, ...]:
    hints = get_type_hints(cls)
    names = (field.name for field in fields(cls)) if is_dataclass(cls) else cls._fields
    return tuple(hints[name] for name in names)


def _value(kind: Any, plain: Any) -> Any:
    origin, of = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if plain is None else _value(next(one for one in of if one is not NoneType), plain)
    if origin is tuple:
        types = of[:1] * len(plain) if of[1:] == (...,) else of
        return tuple(_value(one, item) for one, item in zip(types, plain, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        return {_value(of[0], key): _value(of[1], item) for key, item in plain}
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        return kind(*(_value(*item) for item in zip(_types(cast(Any, kind)), plain, strict=True)))
    if kind is bytes:
        return plain.encode("latin-1")
    return kind(plain) if isinstance(kind, type) and issubclass(kind, Enum) else plain
