"""What goes into a computed layout and what comes out of it: pieces, contents, sections, symbols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from . import ast
from .evaluate import Known, Unknown, Value


class Piece(NamedTuple):
    """An input section: size and alignment in bytes, and the file it is from."""

    name: str
    file: str
    size: int
    alignment: int


class Contents(NamedTuple):
    """What an output section holds: pieces for each of its input descriptions, in order, and orphans.

    `dropped` tells that the linker made no such section; `thread_zero` that it takes no addresses (.tbss),
    `loaded` that the file has bytes for it. `alignment` is what the section has at least,
    `writable` what ONLY_IF_RO and ONLY_IF_RW ask for, `code` whether it can be executed (None: not known).
    `twice` tells that the link has two of this name, `thread` that it is thread-local, `kept` that the linked
    file shows it allocated without contents: when it holds nothing, `.` has moved in it in some pass.
    """

    by_spec: tuple[tuple[Piece, ...], ...]
    orphans: tuple[Piece, ...] = ()
    dropped: bool = False
    thread_zero: bool = False
    allocated: bool = True
    loaded: bool = True
    alignment: int = 1
    writable: bool = False
    code: bool | None = None
    twice: bool = False
    thread: bool = False
    kept: bool = False


class Target(NamedTuple):
    """What depends on the target and the link: bytes, None when not known."""

    headers: int | None = None
    max_page: int | None = None
    common_page: int | None = None
    relro: bool | None = None

    def constant(self, name: str) -> Value:
        """Return MAXPAGESIZE or COMMONPAGESIZE."""
        value = {"MAXPAGESIZE": self.max_page, "COMMONPAGESIZE": self.common_page}.get(name)
        return Unknown(f"{name} depends on the target") if value is None else Known(value, number=True)


class Extent(Protocol):
    """A memory region, whatever a linker's passes note beside."""

    origin: Value
    length: Value


def extent(region: Extent | None, name: str) -> tuple[Value, Value]:
    """Return origin and length of the region called `name`, unknown where there is none."""
    if region is None:
        unknown = Unknown(f"there is no memory region '{name}'")
        return unknown, unknown
    return region.origin, region.length


class Section(NamedTuple):
    """An output section of the computed layout; `size` is None when it is not known."""

    name: str
    address: Value
    load_address: Value
    size: int | None
    alignment: int
    orphan: bool
    pieces: tuple[tuple[Piece, int], ...]


class Layout(NamedTuple):
    """The computed layout: sections in order, every symbol the script assigns, bytes used of each region."""

    sections: tuple[Section, ...]
    symbols: Mapping[str, Value]
    used: Mapping[str, Value] = {}


NOTHING = Contents((), dropped=True, allocated=False)


def applies(node: ast.OutputSection, contents: Contents) -> bool:
    """Tell whether ONLY_IF_RO or ONLY_IF_RW lets the section be made."""
    asked = {"ONLY_IF_RO": False, "ONLY_IF_RW": True}.get(node.constraint)
    return asked is None or contents.writable is asked
