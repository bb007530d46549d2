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

from hvcore.cpu import native
from hvcore.cpu.process_memory import address_of, find_word, function, jump_slot

_HANDLE_SCAN = 0x1000
_CPU_SCAN = 0x10000


class CodePages:
    """For one engine: its handle `uc`, the address of its CPUState, and its memory, which is physical
    [base, base + size) and lies at `ram`.
    """

    def __init__(
        self, lib: ctypes.CDLL, uc: ctypes.c_void_p, cpu: int, base: int, size: int, ram: int
    ) -> None:
        self._code: list[native.NativeCode] = []
        self._pages = (ctypes.c_uint8 * (size >> 12))()
        self._block = (ctypes.c_uint64 * native.BLOCK_WORDS)()
        self._block[native.BLOCK_CPU] = cpu
        self._block[native.BLOCK_BASE] = base
        self._block[native.BLOCK_PAGES] = len(self._pages)
        self._block[native.BLOCK_CODE] = ctypes.addressof(self._pages)
        self.known = False
        handle = uc.value or 0
        mapping = self._answer_memory_mapping(lib, uc, base, size) - handle
        if not cpu or mapping < 0:
            return
        fill = function(lib, "x86_cpu_tlb_fill")
        if fill is None or not _is_numbered_from_0(lib, uc, ram):
            return
        fill_at = find_word(cpu, _CPU_SCAN, address_of(fill))
        uc_at = find_word(cpu, _CPU_SCAN, handle) - cpu
        if not fill_at or uc_at < 0:
            return
        note = self._native(native.tlb_fill(ctypes.addressof(self._block), address_of(fill)))
        if note and _track(lib, uc_at, mapping):
            ctypes.c_uint64.from_address(fill_at).value = note
            entry = ctypes.c_uint64.from_address(handle + mapping).value
            magic = entry - native.MAPPING_ENTRY + native.MAPPING_MAGIC
            ctypes.c_uint64.from_address(magic).value = native.MAGIC
            self.known = True

    def holds_code(self, page: int) -> bool:
        """Whether page `page` of RAM holds translated code."""
        return bool(self._pages[page])

    def _answer_memory_mapping(self, lib: ctypes.CDLL, uc: ctypes.c_void_p, base: int, size: int) -> int:
        """Tell the library natively which memory region an address is in: there is one. 0 if it cannot be.

        It asks at each store that it looks at, and its own way to the answer is long. The result is where the
        answer is kept in the handle.
        """
        find = function(lib, "find_memory_mapping")
        if find is None:
            return 0
        find.restype = ctypes.c_uint64
        region = find(uc, ctypes.c_uint64(base))
        slot = find_word(uc.value or 0, _HANDLE_SCAN, address_of(find))
        if not slot or not region:
            return 0
        code = self._native(native.memory_mapping(ctypes.addressof(self._block), base, size, region))
        if code:
            ctypes.c_uint64.from_address(slot).value = code + native.MAPPING_ENTRY
        return slot if code else 0

    def _native(self, routine: bytes) -> int:
        """The address of a routine that lives as long as this object; 0 where the host has none."""
        code = native.native_code(routine)
        if code is None:
            return 0
        self._code.append(code)
        return code.addresses[0]


def _is_numbered_from_0(lib: ctypes.CDLL, uc: ctypes.c_void_p, ram: int) -> bool:
    """Whether the library numbers the bytes of RAM, which lies at `ram`, from 0, as the routines suppose."""
    number = function(lib, "qemu_ram_addr_from_host")
    if number is None:
        return False
    number.restype = ctypes.c_uint64
    return bool(number(uc, ctypes.c_void_p(ram)) == 0)


@cache
def _track(lib: ctypes.CDLL, uc: int, mapping: int) -> tuple[native.NativeCode, ...]:
    """Put our routines into the library's jump slots, once; `uc` and `mapping` are offsets. Empty if refused.

    Each routine looks whether it is called for an engine of ours, and if not is the library's own.
    """
    names = ("tlb_set_page_with_attrs", "tlb_protect_code", "tlb_unprotect_code", "tlb_reset_dirty_by_vaddr")
    functions = [function(lib, name) for name in (*names, "tlb_flush")]
    if any(found is None for found in functions):
        return ()
    set_page, protect, unprotect, reset, flush = (address_of(found) for found in functions if found)
    slots = [jump_slot(lib, target) for target in (set_page, protect, unprotect, reset)]
    if not all(slots):
        return ()
    code = native.native_code(
        native.set_page(uc, mapping, set_page),
        native.protect_code(mapping, protect, flush),
        native.unprotect_code(mapping, unprotect),
        native.nothing_to_reset(uc, mapping, reset),
    )
    if code is None:
        return ()
    for slot, address in zip(slots, code.addresses, strict=True):
        ctypes.c_uint64.from_address(slot).value = address
    return (code,)
