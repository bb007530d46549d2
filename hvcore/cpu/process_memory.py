"""Looking around in this process: what can be read and written, and where a library keeps a pointer."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

_SUFFIX = "_x86_64"  # of the functions for this guest architecture
_DT_PLTRELSZ, _DT_PLTGOT = 2, 3
_RELA_SIZE = 24
_GOT_RESERVED = 3  # words of .got.plt before the first jump slot
_DYNAMIC_ENTRIES = 256


def ranges(mode: str) -> list[tuple[int, int]]:
    """The address ranges whose mode begins like `mode` ("r", "rw"); none where the system does not tell."""
    found = []
    try:
        text = Path("/proc/self/maps").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        span, has = line.split(" ", 2)[:2]
        if has.startswith(mode):
            low, high = span.split("-")
            found.append((int(low, 16), int(high, 16)))
    return found


def is_writable(address: int, size: int) -> bool:
    """Whether `size` bytes at `address` can be read and written."""
    return any(low <= address and address + size <= high for low, high in ranges("rw"))


def find_word(address: int, size: int, value: int) -> int:
    """Where in `size` bytes the 64-bit word `value` lies; 0 if it does not, or cannot be written."""
    return _find(address, ctypes.string_at(address, size), value) if is_writable(address, size) else 0


def _find(address: int, raw: bytes, value: int) -> int:
    word = value.to_bytes(8, "little")
    at = raw.find(word)
    while at % 8 and at >= 0:
        at = raw.find(word, at + 1)
    return address + at if at >= 0 else 0


def jump_slot(lib: ctypes.CDLL, target: int) -> int:
    """Where the library keeps the address by which its own calls reach its function at `target`.

    0 if it has none, or if it lies where nothing can be written any more.
    """
    return _find(*_jump_slots(lib._handle), target)  # noqa: SLF001 (dlopen()'s)


@cache
def _jump_slots(handle: int) -> tuple[int, bytes]:
    """A library's jump slots: where they lie, and what was in them before anything of it was patched.

    The loader's handle begins with `struct link_map`, and the third word of that is the dynamic section.
    """
    dynamic = ctypes.c_uint64.from_address(handle + 16).value
    tags: dict[int, int] = {}
    for i in range(_DYNAMIC_ENTRIES):
        tag, value = (ctypes.c_uint64 * 2).from_address(dynamic + 16 * i)
        if not tag:
            break
        tags.setdefault(tag, value)
    address = tags.get(_DT_PLTGOT, 0) + 8 * _GOT_RESERVED
    size = tags.get(_DT_PLTRELSZ, 0) // _RELA_SIZE * 8
    return address, ctypes.string_at(address, size) if is_writable(address, size) else b""


def function(lib: ctypes.CDLL, name: str) -> ctypes._NamedFuncPointer | None:
    """A function of QEMU's for x86-64 guests, if this build of the library exports it."""
    found = getattr(lib, name + _SUFFIX, None)
    if found is not None:
        found.restype = None
    return found


def address_of(found: ctypes._NamedFuncPointer) -> int:
    """Where a function lies."""
    return ctypes.cast(found, ctypes.c_void_p).value or 0
