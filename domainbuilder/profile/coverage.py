"""Which of a kernel's code ran, as DynamoRIO's drcov and as lcov's tracefiles."""

from __future__ import annotations

import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from domainbuilder.errors import BuildError, Where
from domainbuilder.symbols.table import FUNCTION
from domainbuilder.visible import visible

if TYPE_CHECKING:
    from domainbuilder.symbols.table import Symbols

_BLOCK = struct.Struct("<IHH")  # offset in its module, bytes, the module's number
_MOST_BYTES = 0xFFFF


@dataclass(frozen=True, slots=True)
class Covered:
    """The blocks of a kernel that ran, as (address, bytes) in order; its code begins at `start`."""

    kernel: str
    start: int
    end: int
    entry: int
    blocks: Sequence[tuple[int, int]]
    symbols: Symbols


def drcov(found: Covered) -> bytes:
    """A table of one module, and the blocks: drcov's format, version 2, as Lighthouse reads it."""
    head = (
        "DRCOV VERSION: 2\n"
        "DRCOV FLAVOR: domainbuilder\n"
        "Module Table: version 2, count 1\n"
        "Columns: id, base, end, entry, checksum, timestamp, path\n"
        f" 0, {found.start:#x}, {found.end:#x}, {found.entry:#x}, 0x0, 0x0, {visible(found.kernel)}\n"
        f"BB Table: {len(found.blocks)} bbs\n"
    )
    rows = (
        _BLOCK.pack(address - found.start & 0xFFFFFFFF, min(size, _MOST_BYTES), 0)
        for address, size in found.blocks
    )
    return head.encode("utf-8", "backslashreplace") + b"".join(rows)


def lcov(found: Covered) -> bytes:
    """Lcov's tracefile: files, functions and lines. Files none of whose code ran are not in it.

    Counts are 1 or 0: whether a line's code was entered. Raises BuildError where there is no line table.
    """
    lines = found.symbols.lines
    if lines is None:
        raise BuildError(
            "lcov's format wants a kernel with debug information, or one by --symbols; .drcov does not",
            where=Where(found.kernel),
        )
    ran = _Ran(found.blocks)
    files: dict[str, dict[int, int]] = {}
    for start, end, file, line in lines.around(address for address, _ in found.blocks):
        hits = files.setdefault(file, {})
        hits[line] = hits.get(line, 0) or int(ran.touches(start, end))
    functions: dict[str, list[tuple[int, str, int]]] = {}
    for symbol in found.symbols:
        file, _, number = lines.at(symbol.value).rpartition(":") if symbol.kind == FUNCTION else ("", "", "")
        if file in files and number.isdigit():
            hit = int(ran.touches(symbol.value, symbol.value + 1))
            functions.setdefault(file, []).append((int(number), symbol.name, hit))
    text = "".join(_file(file, hits, sorted(functions.get(file, ()))) for file, hits in sorted(files.items()))
    return text.encode("utf-8", "backslashreplace")


def _file(name: str, hits: dict[int, int], functions: Sequence[tuple[int, str, int]]) -> str:
    rows = ["TN:", f"SF:{visible(name)}"]
    rows += [f"FN:{line},{visible(function)}" for line, function, _ in functions]
    rows += [f"FNDA:{hit},{visible(function)}" for _, function, hit in functions]
    rows += [f"FNF:{len(functions)}", f"FNH:{sum(hit for _, _, hit in functions)}"]
    rows += [f"DA:{line},{hit}" for line, hit in sorted(hits.items())]
    rows += [f"LF:{len(hits)}", f"LH:{sum(hits.values())}", "end_of_record"]
    return "\n".join(rows) + "\n"


class _Ran:
    """Blocks, for questions about ranges. They may overlap: a jump into the midst of one begins another."""

    def __init__(self, blocks: Sequence[tuple[int, int]]) -> None:
        merged: list[list[int]] = []
        for address, size in blocks:
            if merged and address <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], address + size)
            else:
                merged.append([address, address + size])
        self._starts = [start for start, _ in merged]
        self._ends = [end for _, end in merged]

    def touches(self, start: int, end: int) -> bool:
        """Whether a byte of [start, end) ran."""
        return bisect_left(self._starts, end) > bisect_right(self._ends, start)


Encode = Callable[[Covered], bytes]
_BY_EXTENSION: dict[str, Encode] = {".drcov": drcov, ".log": drcov, ".info": lcov, ".lcov": lcov}


def coverage_encoder_of(path: str | os.PathLike[str]) -> Encode:
    """The format that a file's name asks for. Raises BuildError where it asks for none."""
    encode = _BY_EXTENSION.get(Path(path).suffix.lower())
    if encode is None:
        raise BuildError(
            "the name of the coverage file does not say its format",
            where=Where(os.fspath(path)),
            expected=", ".join(_BY_EXTENSION),
        )
    return encode
