"""The compiled core, where there is one for this machine: hvcore/cpu/core, built at installation, by ctypes.

It only ever does what Python would have done. A library that shares other words with Python than these, or
that is older than the sources beside it, is not used; `describe()` says which core runs and why. $HVCORE_CORE
names another library, for those who try one (scripts/prove_core.py).
"""

from __future__ import annotations

import ctypes
import os
import weakref
import zlib
from functools import cache
from pathlib import Path

from hvcore.cpu.words import LAYOUT, EngineWords

LIBRARY = Path(os.environ.get("HVCORE_CORE") or Path(__file__).with_name("_core.so"))
SOURCES = Path(__file__).with_name("core")


def _digest(sources: Path) -> str:
    """Of the sources, as scripts/compile_core.py has it; empty where they are not installed.

    A CRC finds what was forgotten, which is all it is for, and costs no import at each start.
    """
    paths = sorted([*sources.glob("*.c"), *sources.glob("*.h")])
    crc = 0
    for path in paths:
        crc = zlib.crc32(path.name.encode() + b"\0" + path.read_bytes(), crc)
    return f"{crc:08x}" if paths else ""


def text_of(library: ctypes.CDLL, name: str) -> str:
    """A string that the library exports."""
    start = ctypes.addressof(ctypes.c_char.in_dll(library, name))
    return ctypes.string_at(start).decode("ascii", "replace")


def load(path: Path, layout: str, sources: Path = SOURCES) -> tuple[ctypes.CDLL | None, str]:
    """The library at `path` if it can be used, and which core runs."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return None, "Python: no compiled core is installed"
    try:
        built_from = text_of(library, "hv_sources")
        if text_of(library, "hv_words") != layout:
            return None, "Python: the compiled core is another version's"
    except ValueError:
        return None, f"Python: {path.name} is something else than the compiled core"
    if _digest(sources) not in ("", built_from):
        return None, "Python: the compiled core is older than its sources"
    return library, f"compiled ({built_from})"


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    return load(LIBRARY, LAYOUT)


def core() -> ctypes.CDLL | None:
    """The library, or None: then Python does everything."""
    return _load()[0]


def describe() -> str:
    """Which core runs, in a few words."""
    return _load()[1]


def address_of_routine(library: ctypes.CDLL, name: str) -> int:
    """Where a function of the core lies."""
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


def engine_words(library: ctypes.CDLL, env: int) -> EngineWords:
    """An engine's block from the C library's heap, where the processor's state is, too: at `env`, or 0.

    Translated code reaches what is near to that state as it reaches registers (core/translate.c), and the
    distance decides how fast it is (core/engines.c).
    """
    allocate = library.hv_new_words
    allocate.restype = ctypes.c_void_p
    address = allocate(ctypes.c_void_p(env))
    if not address:
        raise MemoryError
    words = EngineWords.from_address(address)
    weakref.finalize(words, library.hv_free_words, ctypes.c_void_p(address)).atexit = False
    return words
