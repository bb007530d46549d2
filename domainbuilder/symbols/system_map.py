"""System.map of a Linux build, /proc/kallsyms of a running kernel, what `nm` prints: a symbol a line."""

from __future__ import annotations

import io
from mmap import mmap

from domainbuilder.errors import SymbolsError, Where
from domainbuilder.inputs import LIMITS
from domainbuilder.symbols.table import ABSOLUTE, FUNCTION, OBJECT, NameList, Symbols

MAX_SYSTEM_MAP = LIMITS["symbols"].size  # Debian's newest has 9 MB
_CODE = frozenset("tTwWiu")


def kind_of_letter(letter: str) -> str:
    """What nm's letter for a symbol means here."""
    return FUNCTION if letter in _CODE else ABSOLUTE if letter in "aA" else OBJECT


def system_map_symbols(data: bytes | mmap, name: str) -> Symbols:
    """The symbols in `data`: "address type name" a line, or with a size behind the address, as by `nm -S`.

    Raises SymbolsError: not such a text, no symbol in it, or larger than 128 MB.
    """
    if len(data) > MAX_SYSTEM_MAP:
        expected = f"at most {MAX_SYSTEM_MAP:#x} bytes"
        raise SymbolsError(
            "too large for a System.map", where=Where(name), found=len(data), expected=expected
        )
    values: list[int] = []
    kinds: list[str] = []
    names: list[str] = []
    at = 0
    for number, line in enumerate(io.BytesIO(data[:]), 1):
        fields = line.split()
        if len(fields) >= 4 and len(fields[1]) > 1 and not fields[3].startswith(b"["):
            del fields[1]  # nm -S
        if len(fields) >= 3 and len(fields[1]) == 1:
            try:
                values.append(int(fields[0], 16) & (1 << 64) - 1)
            except ValueError:
                fields = [line]
            else:
                kinds.append(kind_of_letter(fields[1].decode("latin-1")))
                names.append(fields[2].decode("latin-1"))
        elif len(fields) == 2 and fields[0] in {b"U", b"w", b"v"}:
            pass  # undefined, in the output of nm
        elif fields:
            fields = [line]
        if len(fields) == 1:
            shown = line[:40].rstrip(b"\n").decode("latin-1")
            expected = "an address, a letter and a name, as in System.map"
            raise SymbolsError(
                f"line {number} is no symbol", where=Where(name, at), found=repr(shown), expected=expected
            )
        at += len(line)
    if not values:
        raise SymbolsError("no symbols", where=Where(name))
    return Symbols(values, kinds, NameList(names), origin=name)
