"""Which pages hold translated code, so that stores to all others are fast and stores to these are all seen.

Unicorn looks at a store for code that it changes until the page is known to be clean, and forgets two things.
A page that may be executed is never clean, although before Linux sets NX bits that is all of its memory. And
a page that is executed at one address counts as clean at another where it may not be: a guest that maps its
code twice, to write it here and run it there, runs what it wrote the first time.

Both are mended here by what the library itself is told: pages enter its TLB without the right to be executed
until they are executed, the TLB is dropped when a page gets its first code, and from then on every store to
it is looked at, at whatever address. The library's functions are reached by its jump slots; where one is not
found, or executable memory cannot be had, everything stays as it is.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING

from hvcore.cpu.compiled import address_of_routine
from hvcore.cpu.patches import take_over
from hvcore.cpu.process_memory import address_of, find_word, function

if TYPE_CHECKING:
    from hvcore.cpu.words import EngineWords

_HANDLE_SCAN = 0x1000
_CPU_SCAN = 0x10000


class CodePages:
    """For the engine of `words` and its memory, which is physical [base, base + size) and lies at `ram`."""

    def __init__(
        self, lib: ctypes.CDLL, core: ctypes.CDLL | None, words: EngineWords, base: int, size: int, ram: int
    ) -> None:
        self._pages = (ctypes.c_uint8 * (size >> 12))()
        words.ram_base = base
        words.ram_pages = len(self._pages)
        words.page_has_code = ctypes.addressof(self._pages)
        self.holding = memoryview(self._pages).cast("B")  # whether each page of RAM holds translated code
        self.known = False
        if core is None:
            return
        uc = ctypes.c_void_p(words.uc)
        mapped = _answer_memory_mapping(lib, core, words, uc)
        fill = function(lib, "x86_cpu_tlb_fill")
        if not words.cpu or not mapped or fill is None or not _is_numbered_from_0(lib, uc, ram):
            return
        fill_at = find_word(words.cpu, _CPU_SCAN, address_of(fill))
        if fill_at and _track(lib, core):
            ctypes.c_uint64.from_address(fill_at).value = address_of_routine(core, "hv_tlb_fill")
            words.tracks_pages = 1
            self.known = True

    def holds_code(self, page: int) -> bool:
        """Whether page `page` of RAM holds translated code."""
        return bool(self.holding[page])


def _answer_memory_mapping(
    lib: ctypes.CDLL, core: ctypes.CDLL, words: EngineWords, uc: ctypes.c_void_p
) -> bool:
    """Have the core tell the library which memory region an address is in: there is one.

    It asks at each store that it looks at, and its own way to the answer is long.
    """
    find = function(lib, "find_memory_mapping")
    if find is None:
        return False
    find.restype = ctypes.c_uint64
    words.region = find(uc, ctypes.c_uint64(words.ram_base))
    slot = find_word(words.uc, _HANDLE_SCAN, address_of(find))
    if not slot or not words.region:
        return False
    ctypes.c_uint64.from_address(slot).value = address_of_routine(core, "hv_memory_mapping")
    return True


def _is_numbered_from_0(lib: ctypes.CDLL, uc: ctypes.c_void_p, ram: int) -> bool:
    """Whether the library numbers the bytes of RAM, which lies at `ram`, from 0, as the routines suppose."""
    number = function(lib, "qemu_ram_addr_from_host")
    if number is None:
        return False
    number.restype = ctypes.c_uint64
    return bool(number(uc, ctypes.c_void_p(ram)) == 0)


@cache
def _track(lib: ctypes.CDLL, core: ctypes.CDLL) -> bool:
    """Put the core's functions into the library's jump slots, once. False if one is refused.

    Each function looks whether it is called for an engine of ours, and if not is the library's own.
    """
    names = {
        "tlb_set_page_with_attrs": "hv_set_page",
        "tlb_protect_code": "hv_protect_code",
        "tlb_unprotect_code": "hv_unprotect_code",
        "tlb_reset_dirty_by_vaddr": "hv_reset_dirty",
    }
    return take_over(lib, core, names, tell="hv_set_tlb_functions", also=("x86_cpu_tlb_fill",))
