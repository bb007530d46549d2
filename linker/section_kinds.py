"""What the sections of a conventional name hold: code, constants, data, zeros, tables, notes.

Compilers, assemblers and start-up code agree on these names (System V gABI, chapter 4, "Special Sections";
GCC's varasm.c and crtstuff.c; the ARM ELF supplement for .ARM.exidx). A name that nobody has agreed on is
UNKNOWN.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

CODE = "code"
CONSTANT = "constants"
DATA = "data"
ZERO = "zeros"
TABLE = "table"  # of addresses that start-up code walks
THREAD_DATA = "thread data"
THREAD_ZERO = "thread zeros"
UNWIND = "unwind tables"
NOTE = "notes"
LINKER = "made by the linker"
RESERVED = "reserved"  # heaps, stacks, memory that survives a reset: room without contents
UNLOADED = "not loaded"  # debugging information and tables of symbols
UNKNOWN = "unknown"

_TAIL = r"(?=[.*?_$0-9]|\Z)"
# In order: the first that matches says it.
_KINDS = {
    UNLOADED: (
        r"\.(?:z?debug|stab|comment|symtab|strtab|shstrtab|line\Z|gdb_index|gnu\.lto|gnu\.warning)",
        r".*\.attributes\Z|\.gnu\.attributes|\.note\.GNU-stack",
    ),
    TABLE: (rf"\.(?:pre)?init_array{_TAIL}|\.fini_array{_TAIL}|\.[cd]tors{_TAIL}",),
    THREAD_DATA: (rf"\.tdata{_TAIL}|\.gnu\.linkonce\.td",),
    THREAD_ZERO: (rf"\.tbss{_TAIL}|\.gnu\.linkonce\.tb|\.tcommon",),
    UNWIND: (r"\.ARM\.ex|\.eh_frame|\.gcc_except|\.gnu\.linkonce\.arm|\.gnu_extab|\.exception_ranges",),
    NOTE: (r"\.?note",),
    LINKER: (
        rf"\.i?(?:got|plt){_TAIL}|\.rela?{_TAIL}|\.dyn(?:amic|sym|str)|\.(?:gnu\.)?hash|\.interp",
        r"\.gnu\.version|\.jcr|\.tm_clone_table|\.branch_lt|\.opd|\.glink",
    ),
    ZERO: (
        rf"\.?[sl]?bss{_TAIL}|COMMON\Z|\.s?common|\.dynbss|\.dynsbss|\.scommon|\.gnu\.linkonce\.s?b\.",
        rf"\.zero{_TAIL}",
    ),
    RESERVED: (r"\.?_?(?:\w+[._])?(?:heap|stack|no_?init|uninit|persist\w*|user_heap_stack)\w*(?:[.*]|\Z)",),
    CODE: (
        rf"\.?(?:text|init|fini){_TAIL}|\.gnu\.linkonce\.t\.|\.ram_?func|\.fastcode|\.glue_7|\.vfp11",
        r"\.v4_bx|\.stub",
    ),
    CONSTANT: (rf"\.?s?l?rodata{_TAIL}|\.rdata|\.constdata|\.gnu\.linkonce\.s?r\.|\.sdata2|\.srodata",),
    DATA: (rf"\.?[sl]?data{_TAIL}|\.gnu\.linkonce\.s?d\.",),
}
# One expression for all: of the alternatives the first that matches is taken, as in the order of the table.
_NAMES = {f"kind{number}": kind for number, kind in enumerate(_KINDS)}
_MATCHER = re.compile("|".join(f"(?P<{name}>{'|'.join(_KINDS[kind])})" for name, kind in _NAMES.items()))


@lru_cache(maxsize=1 << 18)
def kind_of(pattern: str) -> str:
    """Return the kind of the sections that a name, or a pattern of names, stands for."""
    match = _MATCHER.match(pattern)
    return _NAMES[match.lastgroup or ""] if match is not None else UNKNOWN


class Sample(NamedTuple):
    """A section as an object file might bring it: bytes, alignment in bytes, whether the file holds them."""

    size: int
    alignment: int
    loaded: bool = True
    writable: bool = False


# Inconvenient on purpose where real ones can be (a string ends anywhere, Thumb code at any halfword), whole
# entries where they cannot (tables of addresses).
SAMPLES = {
    CODE: Sample(6, 4),
    CONSTANT: Sample(5, 4),
    DATA: Sample(5, 4, writable=True),
    ZERO: Sample(5, 16, loaded=False, writable=True),
    TABLE: Sample(8, 4, writable=True),
    THREAD_DATA: Sample(1, 1, writable=True),
    THREAD_ZERO: Sample(16, 16, loaded=False, writable=True),
    UNWIND: Sample(8, 4),
    NOTE: Sample(36, 4),
    LINKER: Sample(8, 4, writable=True),
    RESERVED: Sample(8, 4, loaded=False, writable=True),
    UNLOADED: Sample(8, 1),
    UNKNOWN: Sample(8, 4, writable=True),
}
