"""The symbols of a kernel as one value, whichever file they came from."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from domainbuilder.symbols.frames import CallFrames
    from domainbuilder.symbols.lines import SourceLines
    from domainbuilder.symbols.orc import OrcFrames

NAME_LIMIT = 80  # characters of a name that a report shows

FUNCTION, OBJECT, LABEL, ABSOLUTE = "function", "object", "label", "absolute"
_RANKS = {OBJECT: 0, LABEL: 1, FUNCTION: 2}  # of those at one address the highest is told


class Symbol(NamedTuple):
    """A name. `value` is an address, `size` bytes (0: not stated), `section` an index of the kernel's section
    headers (0: not known).
    """

    name: str
    value: int
    size: int
    kind: str
    section: int = 0


class Names(Protocol):
    """The names of a table, by index."""

    def __getitem__(self, index: int) -> str: ...
    def find(self, name: str) -> Iterator[int]:
        """The indices of that name."""


class NameList:
    """Names that are strings already."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._indices: dict[str, int] | None = None

    def __getitem__(self, index: int) -> str:
        return self._names[index]

    def find(self, name: str) -> Iterator[int]:
        """The index of the first of that name."""
        if self._indices is None:
            last = len(self._names) - 1
            self._indices = {one: last - i for i, one in enumerate(reversed(self._names))}
        if name in self._indices:
            yield self._indices[name]


class Symbols:
    """A kernel's symbols, by name and by address, with source lines and call frames where there are any.

    `origin` says where they are from. Rows are columns, and names are made when they are asked for: a kernel
    has two hundred thousand.
    """

    def __init__(
        self,
        values: Sequence[int],
        kinds: Sequence[str],
        names: Names,
        *,
        origin: str,
        sizes: Sequence[int] | None = None,
        sections: Sequence[int] | None = None,
    ) -> None:
        self.origin = origin
        self.lines: SourceLines | None = None
        self.frames: CallFrames | None = None
        self.orc: OrcFrames | None = None
        self._values, self._kinds, self._names = values, kinds, names
        self._sizes, self._sections = sizes, sections
        self._by_address: tuple[array[int], list[int]] | None = None

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Symbol]:
        return map(self._symbol, range(len(self)))

    def lookup(self, name: str) -> Symbol | None:
        """The first symbol of that name, None where there is none."""
        index = next(self._names.find(name), None)
        return None if index is None else self._symbol(index)

    def at(self, address: int) -> tuple[Symbol, int] | None:
        """The function or object at or before `address`, and how far into it; None before the first.

        Past the end of a symbol that states its size there is none either.
        """
        values, indices = self._sorted()
        at = bisect_right(values, address) - 1
        if at < 0:
            return None
        symbol = self._symbol(indices[at])
        offset = address - symbol.value
        return None if symbol.size and offset >= symbol.size else (symbol, offset)

    @property
    def have_data(self) -> bool:
        """Whether objects would be here: kallsyms tables without CONFIG_KALLSYMS_ALL have functions alone."""
        return self._sizes is not None or OBJECT in self._kinds

    def overlapping(self, start: int, end: int) -> list[Symbol]:
        """What has bytes from `start` to below `end`, by address.

        In a table that states no sizes everything reaches to the next address.
        Labels of a table that states sizes have no bytes.
        """
        values, indices = self._sorted()
        last = bisect_left(values, end)
        if self._sizes is None:
            reaching = values[max(bisect_right(values, start) - 1, 0)] if values else 0
            found = [self._symbol(i) for i in indices[bisect_left(values, reaching) : last]]
            found = [symbol._replace(size=self.extent(symbol)) for symbol in found]
        else:
            sizes = self._sizes
            kept = [i for value, i in zip(values[:last], indices, strict=False) if value + sizes[i] > start]
            found = [self._symbol(i) for i in kept]
        return [symbol for symbol in found if symbol.value + symbol.size > start and symbol.size]

    def extent(self, symbol: Symbol) -> int:
        """The size it states, or up to the next address."""
        if symbol.size or self._sizes is not None:
            return symbol.size
        values, _ = self._sorted()
        at = bisect_right(values, symbol.value)
        return values[at] - symbol.value if at < len(values) else 0

    def name(self, address: int) -> str:
        """As "function+0x12", printable; "" where there is no name."""
        found = self.at(address)
        if found is None:
            return ""
        symbol, offset = found
        shown = "".join(c if c.isprintable() else "?" for c in symbol.name[:NAME_LIMIT])
        return f"{shown}+{offset:#x}"

    def line(self, address: int) -> str:
        """As "file.c:34"; "" where the source is not known."""
        return self.lines.at(address) if self.lines is not None else ""

    def _sorted(self) -> tuple[array[int], list[int]]:
        if self._by_address is None:
            keys = [
                value << 2 | _RANKS.get(kind, 3)
                for value, kind in zip(self._values, self._kinds, strict=True)
            ]
            order = [i for i in sorted(range(len(keys)), key=keys.__getitem__) if keys[i] & 3 != 3]
            self._by_address = array("Q", [keys[i] >> 2 for i in order]), order
        return self._by_address

    def _symbol(self, index: int) -> Symbol:
        size = self._sizes[index] if self._sizes is not None else 0
        section = self._sections[index] if self._sections is not None else 0
        return Symbol(self._names[index], self._values[index], size, self._kinds[index], section)


def no_symbols() -> Symbols:
    """Those of a kernel that says nothing."""
    return Symbols((), (), NameList(()), origin="")
