"""Writing guest memory for a debugger: its only act that the guest can see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.page_info import PGT_l1_page_table, PGT_l4_page_table
from hvcore.public.xen import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from hvcore.debug.view import GuestView
    from hvcore.machine import Machine


def write_memory(machine: Machine, view: GuestView, address: int, data: bytes) -> bool:
    """Write `data` at a virtual address, whatever the mapping allows; False, and nothing, where it cannot be.

    Only frames of the domain's own are written, and no page table in use: what Xen has validated stays so.
    """
    frames, parts = machine.domain.frames, []
    at = 0
    while at < len(data):
        va = address + at & machine.domain.abi.word_mask
        machine_address = view.walk(va).machine_address
        step = min(len(data) - at, PAGE_SIZE - va % PAGE_SIZE)
        if machine_address is None:
            return False
        pg = (machine_address >> PAGE_SHIFT) - frames.base_mfn
        if not 0 <= pg < frames.nr or frames.owner[pg] != machine.domain.domain_id:
            return False
        if PGT_l1_page_table <= frames.ptype[pg] <= PGT_l4_page_table and frames.tcount[pg]:
            return False
        parts.append((machine_address, data[at : at + step]))
        at += step
    for start, part in parts:
        offset = start % PAGE_SIZE
        machine.mem.frame(start >> PAGE_SHIFT)[offset : offset + len(part)] = part
        machine.engine.flush_code(start, start + len(part))
    return True
