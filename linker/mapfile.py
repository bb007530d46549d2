"""Link maps of GNU ld (`-Map`) and lld (`--Map`): output sections, input sections in order, patterns.

The formats are those printed by binutils 2.40, ld/ldlang.c (print_output_section_statement and what it
calls), and by LLVM 14, lld/ELF/MapFile.cpp. A map is read line by line and may be any size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .ast import DATA_SIZES
from .errors import LayoutInputError

MAX_MAP = 1 << 30
MAX_LINE = 1 << 16
# What GNU ld lists before the first heading: archive members and who needed them, common symbols.
MAX_PREAMBLE = 64 << 20


class MapInput(NamedTuple):
    """An input section in the map; `pattern` is the description that took it, empty when none did."""

    name: str
    address: int
    size: int
    file: str
    line: int
    pattern: str
    alignment: int = 0


class MapPattern(NamedTuple):
    """An input description as the map prints it, and how many sections it took."""

    text: str
    line: int
    taken: int


class MapSymbol(NamedTuple):
    """An assignment in the map and the value it gave."""

    text: str
    address: int
    line: int


class MapFill(NamedTuple):
    """Padding that ld put between two input sections."""

    address: int
    size: int
    line: int


class MapOutput(NamedTuple):
    """An output section: addresses and size in bytes, everything else in order."""

    name: str
    address: int
    size: int
    load_address: int
    line: int
    inputs: tuple[MapInput, ...]
    patterns: tuple[MapPattern, ...]
    symbols: tuple[MapSymbol, ...]
    fills: tuple[MapFill, ...]
    alignment: int = 0


class MapRegion(NamedTuple):
    """A line of the memory configuration."""

    name: str
    origin: int
    length: int


class LinkMap(NamedTuple):
    """A link map. `flavor` is "gnu" or "lld"."""

    path: str
    flavor: str
    outputs: tuple[MapOutput, ...]
    regions: tuple[MapRegion, ...]
    discarded: tuple[MapInput, ...]
    symbols: tuple[MapSymbol, ...]


class _Open:
    """The output section being read."""

    def __init__(self, name: str, line: int) -> None:
        self.name = name
        self.line = line
        self.address = self.size = self.load_address = self.alignment = 0
        self.inputs: list[MapInput] = []
        self.patterns: list[tuple[str, int]] = []
        self.taken: list[int] = []
        self.symbols: list[MapSymbol] = []
        self.fills: list[MapFill] = []

    def pattern(self, text: str, line: int) -> None:
        self.patterns.append((text, line))
        self.taken.append(0)

    def input(self, name: str, address: int, size: int, file: str, line: int, alignment: int = 0) -> None:
        pattern = ""
        if self.patterns:
            pattern = self.patterns[-1][0]
            self.taken[-1] += 1
        self.inputs.append(MapInput(name, address, size, file, line, pattern, alignment))

    def close(self) -> MapOutput:
        patterns = tuple(
            MapPattern(text, line, taken)
            for (text, line), taken in zip(self.patterns, self.taken, strict=True)
        )
        return MapOutput(
            self.name, self.address, self.size, self.load_address, self.line, tuple(self.inputs), patterns,
            tuple(self.symbols), tuple(self.fills), self.alignment,
        )  # fmt: skip


_NUMBERS = re.compile(r"\s*0x([0-9a-f]+)\s+0x([0-9a-f]+)(?:\s+(.*))?")
_LOAD = re.compile(r"load address 0x([0-9a-f]+)")
_VALUE = re.compile(r"\s*(?:0x([0-9a-f]+)|\[(!provide|unresolved)\]|\*undef\*)\s+(\S.*)")
_REGION = re.compile(r"(\S+)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)")
_ASSIGN = re.compile(r"[^()]+?\s*(?:<<|>>|[-+*/&|^])?=[^=]|PROVIDE|HIDDEN|ASSERT")


class _GnuReader:
    """Reads the map of GNU ld, one line after the other."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.outputs: list[MapOutput] = []
        self.regions: list[MapRegion] = []
        self.discarded: list[MapInput] = []
        self.symbols: list[MapSymbol] = []
        self._open: _Open | None = None
        self._part: Callable[[int, str], None] = self._preamble
        self._pending = ""
        self._pending_line = 0

    def read(self, lines: Iterable[tuple[int, str]]) -> LinkMap:
        for number, line in lines:
            self._part(number, line)
        self._close()
        return LinkMap(
            self.path, "gnu", tuple(self.outputs), tuple(self.regions), tuple(self.discarded),
            tuple(self.symbols),
        )  # fmt: skip

    def switch(self, line: str) -> bool:
        """Change to another part of the map when the line is its heading."""
        if line.startswith("Memory Configuration"):
            self._part = self._memory
        elif line.startswith("Linker script and memory map"):
            self._part = self._body
            self._pending = ""
        elif line.startswith("Discarded input sections"):
            self._part = self._discarded
        else:
            return False
        return True

    def _preamble(self, _number: int, line: str) -> None:
        self.switch(line)

    def _memory(self, _number: int, line: str) -> None:
        if self.switch(line):
            return
        match = _REGION.match(line)
        if match:
            self.regions.append(MapRegion(match[1], int(match[2], 16), int(match[3], 16)))

    def _discarded(self, number: int, line: str) -> None:
        if line[:1] != " " and self.switch(line):
            return
        parts = self._numbers(number, line)
        if parts is not None:
            name, address, size, rest = parts
            self.discarded.append(MapInput(name, address, size, rest, number, ""))

    def _numbers(self, number: int, line: str) -> tuple[str, int, int, str] | None:
        """Return name, address, size and the rest of a line, joined with a name on a line of its own."""
        text = line.strip()
        name, _, rest = text.partition(" ")
        if self._pending and line.startswith("      ") and text.startswith("0x"):
            name, rest = self._pending, text
        elif not rest:
            self._pending, self._pending_line = name, number
            return None
        self._pending = ""
        match = _NUMBERS.match(rest)
        if match is None:
            return None
        return name, int(match[1], 16), int(match[2], 16), match[3] or ""

    def _close(self) -> None:
        if self._open is not None:
            self.outputs.append(self._open.close())
            self._open = None

    def _body(self, number: int, line: str) -> None:
        first = line[:1]
        if first == " ":
            if line[1:2] == " ":
                self._inner(number, line)
            elif self._open is not None:
                self._member(number, line)
            return
        self._pending = ""
        if not first or first in "\r\n":
            return
        if line.startswith(("LOAD ", "OUTPUT(", "START GROUP", "END GROUP", "TARGET(")):
            return
        if line.startswith(("Cross Reference Table", "NOCROSSREFS")):
            self._close()
            self._part = self._preamble
            return
        self._close()
        name, _, rest = line.partition(" ")
        self._open = _Open(name, number)
        if rest.strip():
            self._head(rest)

    def _head(self, rest: str) -> None:
        match = _NUMBERS.match(rest)
        if match is None or self._open is None:
            return
        self._open.address = self._open.load_address = int(match[1], 16)
        self._open.size = int(match[2], 16)
        load = _LOAD.search(match[3] or "")
        if load:
            self._open.load_address = int(load[1], 16)

    def _inner(self, number: int, line: str) -> None:
        """Read an indented line: numbers of a name above, a symbol, or an assignment."""
        current = self._open
        if current is not None and not current.address and not current.size and number == current.line + 1:
            match = _NUMBERS.match(line)
            if match:
                self._head(line)
                return
        if self._pending and current is not None:
            match = _NUMBERS.match(line)
            if match:
                if self._pending == "*fill*":
                    current.fills.append(MapFill(int(match[1], 16), int(match[2], 16), number))
                else:
                    current.input(
                        self._pending, int(match[1], 16), int(match[2], 16), match[3] or "",
                        self._pending_line,
                    )  # fmt: skip
                self._pending = ""
                return
        self._pending = ""
        if "=" not in line and "PROVIDE" not in line:
            return
        value = _VALUE.match(line)
        if value and value[1] and _ASSIGN.match(value[3]):
            symbol = MapSymbol(value[3].rstrip(), int(value[1], 16), number)
            (current.symbols if current is not None else self.symbols).append(symbol)

    def _member(self, number: int, line: str) -> None:
        """Read a line indented by one: a pattern, an input section, or padding."""
        text = line[1:].rstrip()
        current = self._open
        if current is None:
            return
        self._pending = ""
        name, _, rest = text.partition(" ")
        if "(" in name or name.startswith("KEEP"):
            current.pattern(text, number)
            return
        if not rest:
            self._pending, self._pending_line = name, number
            return
        match = _NUMBERS.match(rest)
        if match is None:
            if "(" in text:
                current.pattern(text, number)
            return
        if name == "*fill*":
            current.fills.append(MapFill(int(match[1], 16), int(match[2], 16), number))
        elif not name.startswith("*") and name not in DATA_SIZES:
            current.input(name, int(match[1], 16), int(match[2], 16), match[3] or "", number)


_LLD = re.compile(r"\s*([0-9a-f]+)\s+([0-9a-f]+)\s+([0-9a-f]+)\s+([0-9]+) ( *)(\S.*)")


class _LldReader:
    """Reads the map of lld: VMA, LMA, size, alignment, then a name whose indentation says what it is."""

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self, lines: Iterable[tuple[int, str]]) -> LinkMap:
        outputs: list[MapOutput] = []
        symbols: list[MapSymbol] = []
        current: _Open | None = None
        for number, line in lines:
            match = _LLD.match(line)
            if match is None:
                continue
            address, load, size = (int(match[index], 16) for index in (1, 2, 3))
            indent, text = len(match[5]), match[6].rstrip()
            if indent == 0 and "=" not in text:
                if current is not None:
                    outputs.append(current.close())
                current = _Open(text, number)
                current.address, current.load_address, current.size = address, load, size
                current.alignment = int(match[4])
            elif _ASSIGN.match(text) and "(" not in text.split("=", 1)[0]:
                symbol = MapSymbol(text, address, number)
                (current.symbols if current is not None else symbols).append(symbol)
            elif current is not None and indent < 16 and ":(" in text:
                file, _, name = text.rpartition(":(")
                current.input(name.rstrip(")"), address, size, file, number, int(match[4]))
        if current is not None:
            outputs.append(current.close())
        return LinkMap(self.path, "lld", tuple(outputs), (), (), tuple(symbols))


def _numbered(lines: Iterable[bytes], start: int) -> Iterable[tuple[int, str]]:
    for number, line in enumerate(lines, start):
        yield number, line[:MAX_LINE].decode("utf-8", errors="replace").rstrip("\r\n")


def parse_map(path: str, lines: Iterable[bytes]) -> LinkMap:
    """Read a map from its lines; raises LayoutInputError when it is none."""
    iterator = iter(lines)
    for seen, line in enumerate(iterator, 1):
        if b"VMA" in line and b"LMA" in line and b"Align" in line:
            return _LldReader(path).read(_numbered(iterator, seen + 1))
        head = line[:MAX_LINE].decode("utf-8", errors="replace")
        if head.startswith(_GNU_HEADS):
            reader = _GnuReader(path)
            reader.switch(head)
            return reader.read(_numbered(iterator, seen + 1))
        if b"\0" in line:
            raise LayoutInputError("this is no link map", file=path, line=seen, found="a zero byte")
    raise LayoutInputError(
        "this is no link map", file=path, found="no heading that GNU ld or lld writes",
        expected="'Linker script and memory map', or columns VMA LMA Size Align",
    )  # fmt: skip


_HEADS = (b"Memory Configuration", b"Linker script and memory map", b"Discarded input sections", b"     ")
_GNU_HEADS = ("Memory Configuration", "Linker script and memory map", "Discarded input sections")


def _bounded(path: str, stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a stream, each cut at MAX_LINE; a stream without an end is refused."""
    read = 0
    before_heading = True
    while line := stream.readline(MAX_LINE):
        yield line
        read += len(line)
        while len(line) == MAX_LINE and line[-1:] != b"\n" and read <= MAX_MAP:
            line = stream.readline(MAX_LINE)
            read += len(line)
        before_heading = before_heading and not line.startswith(_HEADS)
        limit = MAX_PREAMBLE if before_heading else MAX_MAP
        if read > limit:
            raise LayoutInputError(
                "the map is too large" if limit == MAX_MAP else "this is no link map", file=path,
                expected=f"at most {limit} bytes" + (" before the first heading" if before_heading else ""),
            )  # fmt: skip


def read_map(path: str) -> LinkMap:
    """Read a map from a file; raises LayoutInputError."""
    try:
        with Path(path).open("rb") as stream:
            return parse_map(path, _bounded(path, stream))
    except OSError as error:
        raise LayoutInputError(f"cannot be read: {error.strerror}", file=path) from error
