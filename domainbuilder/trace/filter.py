"""Which records are wanted: `--trace-filter hypercalls,events,vcpu=0,time=1.5-2,within=xen_*`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from domainbuilder.errors import BuildError
from domainbuilder.trace.record import CLASSES

EXPECTED = f"{', '.join(CLASSES)}, vcpu=N, time=[SECONDS]-[SECONDS], symbol=PATTERN, within=PATTERN"
_SECONDS = re.compile(r"\d{1,9}(?:\.\d{0,9})?")


@dataclass(frozen=True, slots=True)
class Filter:
    """`classes` and `vcpus`: None is all. `symbols` are patterns of functions, any of which will do.

    `within` are patterns, too: of functions that are not done yet, the caller's callers among them.
    """

    classes: frozenset[str] | None = None
    vcpus: frozenset[int] | None = None
    from_ns: int = 0
    to_ns: int | None = None
    symbols: tuple[str, ...] = ()
    within: tuple[str, ...] = ()

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of record that the classes have."""
        return frozenset(kind for name in self.classes or CLASSES for kind in CLASSES[name])

    def takes_symbol(self, symbol: str) -> bool:
        """Whether "function+0x12" is one of the functions."""
        return not self.symbols or _is_any(symbol, self.symbols)

    def takes_chain(self, symbols: Iterable[str]) -> bool:
        """Whether one of the functions of a call chain is one that is wanted."""
        return any(_is_any(symbol, self.within) for symbol in symbols)


def _is_any(symbol: str, patterns: tuple[str, ...]) -> bool:
    name = symbol.partition("+")[0]
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def parse_filter(text: str) -> Filter:
    """The filter that a user wrote. Raises BuildError, which names the part that cannot be."""
    classes, vcpus = set[str](), set[int]()
    names: dict[str, list[str]] = {"symbol": [], "within": []}
    first, last = 0, None
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, given, value = part.partition("=")
        if not given and key in CLASSES:
            classes.add(key)
        elif key == "vcpu" and value.isascii() and value.isdigit() and len(value) < 6:
            vcpus.add(int(value))
        elif key == "time" and (times := _times(value)) is not None:
            first, last = times
        elif key in names and value:
            names[key].append(value)
        else:
            raise BuildError("no such part of a trace filter", found=part, expected=EXPECTED)
    symbols, within = map(tuple, names.values())
    return Filter(frozenset(classes) or None, frozenset(vcpus) or None, first, last, symbols, within)


def _times(value: str) -> tuple[int, int | None] | None:
    """As nanoseconds; seconds are decimal, and either may be left out."""
    first, given, last = value.partition("-")
    if not given or any(end and not _SECONDS.fullmatch(end) for end in (first, last)):
        return None
    return _ns(first) if first else 0, _ns(last) if last else None


def _ns(seconds: str) -> int:
    whole, _, part = seconds.partition(".")
    return int(whole) * 10**9 + int(f"{part:0<9}")
