"""Translations that stay while the guest changes its base pointer: what core/tlb.c needs to keep them.

The library drops its TLB, and the table by which it finds blocks, whenever another page table is loaded: a
64-bit PV guest does so at each system call. The compiled core puts both away instead, if it finds where they
lie.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING

from hvcore.cpu.patches import take_over
from hvcore.cpu.process_memory import find_word

if TYPE_CHECKING:
    from hvcore.cpu.words import EngineWords

_CPU_SCAN = 0x1000
_ICOUNT_DECR_SIZE = 16  # what lies between the TLB and CPUX86State


def keep_spaces(lib: ctypes.CDLL, core: ctypes.CDLL, words: EngineWords) -> bool:
    """Have the core keep the translations of several address spaces, if it can; words.spaces tells."""
    if not words.tracks_pages or not words.env or not words.tlb_flush or not _see_flushes(lib, core):
        return False
    # CPUState: env_ptr, icount_decr_ptr, tb_jmp_cache
    env_ptr = find_word(words.cpu, _CPU_SCAN, words.env)
    if not env_ptr or ctypes.c_uint64.from_address(env_ptr + 8).value != words.env - _ICOUNT_DECR_SIZE:
        return False
    return bool(core.hv_keep_spaces(ctypes.byref(words), ctypes.c_void_p(env_ptr + 16)))


@cache
def _see_flushes(lib: ctypes.CDLL, core: ctypes.CDLL) -> bool:
    """Put the core's functions where the library itself calls for a flush. False if that cannot be."""
    names = {"tlb_flush": "hv_tlb_flush", "tlb_flush_page": "hv_tlb_flush_page"}
    return take_over(lib, core, names, tell="hv_set_space_functions", also=("tlb_init",))
