"""Kinds of plain values: what a value of a saved state has to be, and whether it is.

A value is as save.py's pack() writes it: plain, or a list that begins with what it was.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hvcore.errors import StateError

_U16, _U32, _U64 = (1 << 16) - 1, (1 << 32) - 1, (1 << 64) - 1
_MOST_ITEMS = 1 << 22

Plain = Any  # None, bool, int, str, bytes, and lists and dicts of these
Fits = Callable[[Plain], bool]


@dataclass(frozen=True, slots=True)
class Kind:
    """What a value has to be, in words, and whether one is."""

    words: str
    fits: Fits


def number(low: int = 0, high: int = _U64) -> Kind:
    """An int of that range, and no bool."""
    return Kind(f"a number from {low:#x} to {high:#x}", lambda v: type(v) is int and low <= v <= high)


def text(most: int = 1 << 16) -> Kind:
    """A str."""
    return Kind(f"text of at most {most} characters", lambda v: type(v) is str and len(v) <= most)


def data(least: int, most: int) -> Kind:
    """Bytes, from so many to so many."""
    return Kind(f"{least} to {most} bytes", lambda v: type(v) is bytes and least <= len(v) <= most)


def one_of(*kinds: Kind) -> Kind:
    """Any of them."""
    return Kind(" or ".join(k.words for k in kinds), lambda v: any(k.fits(v) for k in kinds))


def row(*kinds: Kind) -> Kind:
    """A plain list of these, in order."""
    words = "[" + ", ".join(k.words for k in kinds) + "]"
    return Kind(words, lambda v: type(v) is list and len(v) == len(kinds) and _each(kinds, v))


def _each(kinds: tuple[Kind, ...], values: list[Plain]) -> bool:
    return all(kind.fits(value) for kind, value in zip(kinds, values, strict=True))


def items(tag: str, kind: Kind, most: int = _MOST_ITEMS) -> Kind:
    """A list, tuple or set as pack() writes it."""

    def fits(v: Plain) -> bool:
        return (
            type(v) is list
            and len(v) == 2
            and v[0] == tag
            and type(v[1]) is list
            and len(v[1]) <= most
            and all(map(kind.fits, v[1]))
        )

    return Kind(f"a {tag} of at most {most}, each {kind.words}", fits)


def table(key: Kind, value: Kind, most: int = _MOST_ITEMS) -> Kind:
    """A dict."""
    pairs = items("dict", row(key, value), most)
    return Kind(
        f"a dict of at most {most}, {key.words} to {value.words}",
        lambda v: pairs.fits(v) and len({repr(pair[0]) for pair in v[1]}) == len(v[1]),
    )


def queue(kind: Kind, maxlen: int | None, most: int = _MOST_ITEMS) -> Kind:
    """A deque."""
    inner = items("list", kind, most if maxlen is None else maxlen)
    return Kind(
        f"a deque, each {kind.words}",
        lambda v: (
            type(v) is list
            and len(v) == 3
            and v[0] == "deque"
            and type(v[1]) is type(maxlen)
            and v[1] == maxlen
            and inner.fits(["list", v[2]])
        ),
    )


def raw(tag: str, least: int, most: int) -> Kind:
    """Words or a bytearray."""
    return Kind(
        f"{tag} of {least} to {most} bytes",
        lambda v: type(v) is list and len(v) == 2 and v[0] == tag and data(least, most).fits(v[1]),
    )


def numbers(code: str, count: int | None = None, high: int | None = None) -> Kind:
    """An array of that type code, of `count` items (None: any), none of them above `high`."""
    size = array(code).itemsize

    def fits(v: Plain) -> bool:
        if type(v) is not list or len(v) != 3 or v[0] != "array" or v[1] != code or type(v[2]) is not bytes:
            return False
        if len(v[2]) % size or (count is not None and len(v[2]) != count * size):
            return False
        return high is None or max(array(code, v[2]), default=0) <= high

    return Kind(f"an array {code}" + (f" of {count}" if count is not None else ""), fits)


def record(name: str, *kinds: Kind) -> Kind:
    """One of save.py's records, by its fields in order."""
    inner = row(*kinds)
    return Kind(
        f"a {name}",
        lambda v: type(v) is list and len(v) == 3 and v[0] == "record" and v[1] == name and inner.fits(v[2]),
    )


def fields(**kinds: Kind) -> Kind:
    """A plain dict with these keys."""
    words = ", ".join(f"{name}: {kind.words}" for name, kind in kinds.items())
    return Kind(
        words,
        lambda v: type(v) is dict and set(v) == set(kinds) and all(kinds[name].fits(v[name]) for name in v),
    )


def items_in(tag: str, *kinds: Kind) -> Kind:
    """A tuple of these, in order, as pack() writes it."""
    inner = row(*kinds)
    return Kind(
        f"a {tag} of {inner.words}",
        lambda v: type(v) is list and len(v) == 2 and v[0] == tag and inner.fits(v[1]),
    )


FLAG = Kind("true or false", lambda v: type(v) is bool)
NOTHING = Kind("nothing", lambda v: v is None)
U16, U32, U64 = number(0, _U16), number(0, _U32), number()
SIGNED = number(-(1 << 63), _U64)
A_DICT = Kind("a dict with names", lambda v: type(v) is dict and all(type(key) is str for key in v))


def require(kind: Kind, value: Plain, where: str) -> None:
    """Raise StateError unless the value is of that kind."""
    if not kind.fits(value):
        raise StateError(where, shown(value), kind.words)


def shown(value: Plain) -> str:
    """The value for an error, cut short."""
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:57]}..."
