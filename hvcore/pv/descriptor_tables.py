"""GDTs, LDTs and what may stand in them: xen/arch/x86/pv/descriptor-tables.c; pv/mm.c for the LDT's pages.

The guest's descriptor pages are its own frames, typed PGT_seg_desc_page while a table holds them: checked
when they take that type, changed only by update_descriptor. Xen's own entries fill the page from 0xe000 on.

What a segment may reach depends on the kind of Xen. A 64-bit Xen is out of every compatibility segment's
reach, so it leaves base and limit alone, but for flat segments of guests that know a lower top of memory,
which it opens to 4 GB. A 32-bit Xen, whose two-level guests we run too, shares their address space and cuts
limits off above its machine-to-phys table.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING

from hvcore.cpu.processor import LDTR
from hvcore.page_info import PGT_seg_desc_page, PGT_writable_page
from hvcore.public.errno import EINVAL
from hvcore.x86 import M32, PAGE_PRESENT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hvcore.abi import Abi
    from hvcore.machine_memory import MachineMemory
    from hvcore.vcpu import Vcpu

FIRST_RESERVED_GDT_PAGE = 14
FIRST_RESERVED_GDT_ENTRY = FIRST_RESERVED_GDT_PAGE * 512
LDT_SELECTOR = 0xE050
MAX_LDT_ENTRIES = 8192

# _SEGMENT_*: bits of a descriptor's high word.
SEGMENT_TYPE = 0xF << 8
SEGMENT_WR = 1 << 9
SEGMENT_EC = 1 << 10
SEGMENT_CODE = 1 << 11
SEGMENT_S = 1 << 12
SEGMENT_DPL = 3 << 13
SEGMENT_P = 1 << 15
SEGMENT_L = 1 << 21
SEGMENT_DB = 1 << 22
SEGMENT_G = 1 << 23
DPL_SHIFT = 13
TYPE_CALL_GATE = 0xC << 8

_LDT_FLAGS = SEGMENT_P | 2 << 8
_TWO_LEVEL_M2P_SIZE = 4 << 20

# Xen's own page of the GDT (boot_gdt and boot_compat_gdt in xen/arch/x86/desc.c): selector -> descriptor.
_XEN_CS, _XEN_DS32, _PER_CPU = 0xE008, 0xE010, 0xE060
_NATIVE_GDT = {
    _XEN_CS: 0x00AF9B000000FFFF,
    _XEN_DS32: 0x00CF93000000FFFF,
    0xE023: 0x00CFFB000000FFFF,  # FLAT_RING3_CS32
    0xE02B: 0x00CFF3000000FFFF,  # FLAT_RING3_DS32
    0xE033: 0x00AFFB000000FFFF,  # FLAT_RING3_CS64
    _PER_CPU: 0x0000910000000000,
}
_COMPAT_GDT = {
    _XEN_CS: 0x00AF9B000000FFFF,
    _XEN_DS32: 0x00CF93000000FFFF,
    0xE019: 0x00CFBB000000FFFF,  # FLAT_COMPAT_RING1_CS
    0xE021: 0x00CFB3000000FFFF,  # FLAT_COMPAT_RING1_DS
    0xE02B: 0x00CFFB000000FFFF,  # FLAT_COMPAT_RING3_CS
    0xE033: 0x00CFF3000000FFFF,  # FLAT_COMPAT_RING3_DS
    _PER_CPU: 0x0000910000000000,
}
# The last 32-bit Xen's: limits end where the read-only machine-to-phys table does, at 0xfc400000.
_TWO_LEVEL_GDT = {
    _XEN_CS: 0x00CF9B000000FFFF,
    _XEN_DS32: 0x00CF93000000FFFF,
    0xE019: 0x00CFBB000000C3FF,
    0xE021: 0x00CFB3000000C3FF,
    0xE02B: 0x00CFFB000000C3FF,
    0xE033: 0x00CFF3000000C3FF,
    _PER_CPU: 0x0000910000000000,
}
_GDTS = {2: _TWO_LEVEL_GDT, 3: _COMPAT_GDT, 4: _NATIVE_GDT}


def init_xen_gdt_page(page: memoryview, abi: Abi) -> None:
    """Fill the page of the GDT that holds Xen's own entries, 0xe000 to 0xefff."""
    page[:] = bytes(len(page))
    for selector, descriptor in _GDTS[abi.pt_levels].items():
        struct.pack_into("<Q", page, selector & 0xFF8, descriptor)


# --- what a descriptor may be -------------------------------------------------------------------------------


def guest_gate_selector_okay(abi: Abi, selector: int) -> bool:
    """Whether a gate may point to `selector`: the guest's own segments, and Xen's flat kernel code."""
    return selector >> 3 < FIRST_RESERVED_GDT_ENTRY or selector == abi.flat_kernel_cs or bool(selector & 4)


def _extend_flat(a: int, b: int, start: int) -> tuple[int, int]:
    """Open a flat segment that ends above `start`, where Xen's range begins, to 4 GB."""
    base = b & 0xFF000000 | (b & 0xFF) << 16 | a >> 16
    limit = (b & 0xF0000 | a & 0xFFFF) + 1
    if b & SEGMENT_G:
        limit <<= 12
    if not base and limit > start:
        return a | 0xFFFF, b | 0xF0000
    return a, b


def _truncate(a: int, b: int, end: int) -> tuple[int, int] | None:
    """Cut a segment off at `end`; None where that cannot be done in pages."""
    base = b & 0xFF000000 | (b & 0xFF) << 16 | a >> 16
    if base >= end - 4096:
        return None
    limit = (b & 0xF0000 | a & 0xFFFF) + 1
    if b & SEGMENT_G:
        limit <<= 12
    top = base + limit & M32
    if b & (SEGMENT_CODE | SEGMENT_EC) == SEGMENT_EC:  # grows down: from the limit to 4 GB
        if top <= base:
            return a, b
        limit = -(base & ~0xFFF) & M32
    elif base < top <= end:
        return a, b
    else:
        limit = end - base
    if not b & SEGMENT_G:
        return None
    limit = (limit >> 12) - 1
    return a & ~0xFFFF | limit & 0xFFFF, b & ~0xF0000 | limit & 0xF0000


def segment_end(abi: Abi) -> int:
    """Where the segments of a two-level guest end at the latest; the other kinds have no such limit."""
    return abi.m2p_virt_start + _TWO_LEVEL_M2P_SIZE if abi.pt_levels == 2 else 1 << 64


@cache
def _reach(abi: Abi) -> Callable[[int, int], tuple[int, int] | None]:
    """What is done to base and limit of a code or data segment."""
    if abi.pt_levels == 2:
        end = segment_end(abi)
        return lambda a, b: _truncate(a, b, end)
    if abi.is_32bit:
        start = abi.hypervisor_virt_start
        return lambda a, b: None if b & SEGMENT_L else _extend_flat(a, b, start)
    return lambda a, b: (a, b)


def check_descriptor(abi: Abi, a: int, b: int) -> tuple[int, int] | None:
    """The descriptor (low word `a`, high word `b`) as Xen lets it stand, or None if it may not.

    What is not present passes unchanged. DPL is raised to the kernel's ring; a call gate gets DPL 0, so that
    its use faults and can be emulated, and keeps its own DPL in its selector's RPL.
    """
    if not b & SEGMENT_P:
        return a, b
    dpl = max(b >> DPL_SHIFT & 3, abi.kernel_cpl)
    raised = b & ~SEGMENT_DPL | dpl << DPL_SHIFT
    if b & SEGMENT_S:
        return _reach(abi)(a, raised)
    kind = b & SEGMENT_TYPE
    if not kind:  # harmless: the second half of a 64-bit call gate
        return a, b
    cs = a >> 16
    if kind != TYPE_CALL_GATE or not guest_gate_selector_okay(abi, cs):
        return None
    if b & (0xE0 if abi.is_32bit else 0xFF):
        return None
    return a & 0xFFFF | (cs & ~3 | dpl) << 16, b & ~SEGMENT_DPL


def validate_segdesc_page(mem: MachineMemory, mfn: int, abi: Abi) -> int:
    """Check, and put right, all 512 descriptors of a frame; -EINVAL if one is not to be had."""
    start = (mfn - mem.base_mfn) << 9
    q = mem.q
    for at, raw in enumerate(q[start : start + 512].tolist(), start):
        if raw >> 47 & 1:
            a, b = raw & M32, raw >> 32
            fixed = check_descriptor(abi, a, b)
            if fixed is None:
                return -EINVAL
            if fixed != (a, b):
                q[at] = fixed[0] | fixed[1] << 32
    return 0


# --- the GDT ------------------------------------------------------------------------------------------------


def pv_destroy_gdt(v: Vcpu) -> None:
    """Take the guest's pages out of the vCPU's GDT."""
    mm = v.domain.mm
    frames, v.gdt_frames, v.gdt_ents = v.gdt_frames, (), 0
    for slot, mfn in enumerate(frames):
        mm.xen.map_gdt_frame(v, slot, 0)
        mm.put_page_and_type(mfn)


def pv_set_gdt(v: Vcpu, frames: Sequence[int], entries: int) -> int:
    """Make `frames` the first pages of the vCPU's GDT; 0, or -EINVAL with the old GDT still in place."""
    mm = v.domain.mm
    if entries > FIRST_RESERVED_GDT_ENTRY:
        return -EINVAL
    taken: list[int] = []
    for mfn in frames[: -(-entries // 512)]:
        if mm.get_page_and_type(mfn, PGT_seg_desc_page):
            for held in reversed(taken):
                mm.put_page_and_type(held)
            return -EINVAL
        taken.append(mfn)
    pv_destroy_gdt(v)
    v.gdt_ents = entries
    v.gdt_frames = tuple(taken)
    for slot, mfn in enumerate(taken):
        mm.xen.map_gdt_frame(v, slot, mfn)
    return 0


def do_set_gdt(v: Vcpu, frame_list: int, entries: int) -> int:
    """HYPERVISOR_set_gdt: `frame_list` names ceil(entries / 512) frames. Raises GuestError(EFAULT)."""
    d = v.domain
    entries &= M32
    if entries > FIRST_RESERVED_GDT_ENTRY:
        return -EINVAL
    nr_frames = -(-entries // 512)
    raw = d.guest.copy_from(frame_list, nr_frames * d.abi.word)
    frames = struct.unpack(f"<{nr_frames}{d.abi.word_format}", raw)
    rc = pv_set_gdt(v, frames, entries)
    if not rc:
        d.mm.flush_tlb()
    return rc


def do_update_descriptor(v: Vcpu, gaddr: int, desc: int) -> int:
    """HYPERVISOR_update_descriptor: store the 64-bit `desc` at machine address `gaddr`."""
    d = v.domain
    mm = d.mm
    if gaddr & 7:
        return -EINVAL
    fixed = check_descriptor(d.abi, desc & M32, desc >> 32 & M32)
    mfn = gaddr >> 12
    if fixed is None or not mm.get_page(mfn):
        return -EINVAL
    is_descriptors = d.frames.ptype[mfn - d.frames.base_mfn] == PGT_seg_desc_page
    rc = mm.get_page_type(mfn, PGT_seg_desc_page if is_descriptors else PGT_writable_page)
    if not rc:
        d.mem.q[(gaddr >> 3) - (d.mem.base_mfn << 9)] = fixed[0] | fixed[1] << 32
        mm.put_page_type(mfn)
    mm.put_page(mfn)
    return -EINVAL if rc else 0


# --- the LDT ------------------------------------------------------------------------------------------------


def pv_destroy_ldt(v: Vcpu) -> bool:
    """Drop the LDT's mapped pages; True when there were any (and the TLB is to be flushed)."""
    mm = v.domain.mm
    shadow, v.ldt_shadow = v.ldt_shadow, {}
    for slot, mfn in shadow.items():
        mm.xen.map_ldt_page(v, slot, 0)
        mm.put_page_and_type(mfn)
    return bool(shadow)


def load_ldt(v: Vcpu) -> None:
    """load_LDT(): point the processor's LDTR at the vCPU's LDT area; its pages come when they are used."""
    engine = v.domain.engine
    if v.ldt_ents:
        base = v.domain.mm.xen.ldt_virt_start(v)
        engine.set_table(LDTR, base, 8 * v.ldt_ents - 1, LDT_SELECTOR, _LDT_FLAGS)
    else:
        engine.set_table(LDTR, 0, 0)


def set_ldt(v: Vcpu, base: int, ents: int) -> int:
    """MMUEXT_SET_LDT: `ents` descriptors at guest virtual address `base`; none disables the LDT."""
    if not ents:
        base = 0
    hole = 1 << 47 <= base < v.domain.abi.hypervisor_virt_end and not v.domain.abi.is_32bit
    if ents > MAX_LDT_ENTRIES or base & 0xFFF or hole:
        return -EINVAL
    if v.ldt_ents != ents or v.ldt_base != base:
        if pv_destroy_ldt(v):
            v.domain.mm.flush_tlb()
        v.ldt_base, v.ldt_ents = base, ents
        load_ldt(v)
    return 0


def pv_map_ldt_shadow_page(v: Vcpu, offset: int) -> bool:
    """Map the guest's page that covers byte `offset` of its LDT into the LDT area.

    False when the LDT does not reach there, or the guest has nothing mapped there that may hold descriptors.
    """
    if offset >> 3 >= v.ldt_ents:
        return False
    d = v.domain
    mm = d.mm
    at = mm.l1_entry_of(v.cr3_mfn, v.ldt_base + offset & d.abi.word_mask)
    if at < 0 or not mm.e[at] & PAGE_PRESENT:
        return False
    mfn = mm.e[at] >> 12 & mm.mfn_mask
    if mm.get_page_and_type(mfn, PGT_seg_desc_page):
        return False
    slot = offset >> 12
    if slot in v.ldt_shadow:  # mapped by now: the reference is one too many
        mm.put_page_and_type(mfn)
        return True
    v.ldt_shadow[slot] = mfn
    mm.xen.map_ldt_page(v, slot, mfn)
    return True
