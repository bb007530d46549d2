"""Loading segment registers the way `iretq` and `mov %sreg` would, when it is Xen that returns to the guest.

Descriptors are read from the frames of the vCPU's GDT and LDT, which are typed and change only by hypercall.
Source: load_segments() in xen/arch/x86/domain.c, and what the processor does for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.cpu.processor import CS, DS, ES, FS, GS, SS
from hvcore.errors import GuestFault
from hvcore.pv.descriptor_tables import FIRST_RESERVED_GDT_PAGE, pv_map_ldt_shadow_page
from hvcore.x86 import TRAP_gp_fault, TRAP_no_segment, TRAP_stack_error

if TYPE_CHECKING:
    from hvcore.vcpu import Vcpu


_S_DPL_SHIFT, _ACCESSED = 13, 1 << 8
_PRESENT, _S, _CODE, _CONFORMING, _WRITABLE, _LONG, _BIG, _GRANULAR = (
    1 << 15, 1 << 12, 1 << 11, 1 << 10, 1 << 9, 1 << 21, 1 << 22, 1 << 23,
)  # fmt: skip


def gdt_ldt_desc(v: Vcpu, selector: int) -> tuple[int, int] | None:
    """Both words of the descriptor that the processor would find for `selector`; None where reading faults.

    Pages of the LDT are mapped on the way, as the fault of the processor's own look would do.
    """
    d = v.domain
    page, slot = selector >> 12, selector >> 3 & 511
    if selector & 4:
        if selector >> 3 >= v.ldt_ents:
            return None
        if page not in v.ldt_shadow and not pv_map_ldt_shadow_page(v, selector & ~7):
            return None
        mfn = v.ldt_shadow[page]
    elif page < FIRST_RESERVED_GDT_PAGE:
        if page >= len(v.gdt_frames):
            return 0, 0  # Xen maps a page of zeroes there
        mfn = v.gdt_frames[page]
    elif page == FIRST_RESERVED_GDT_PAGE:
        mfn = d.mm.xen.gdt_page_mfn
    else:
        return None
    raw = d.mem.q[((mfn - d.mem.base_mfn) << 9) + slot]
    return raw & 0xFFFFFFFF, raw >> 32


def mark_accessed(v: Vcpu, offset: int) -> bool:
    """Set Accessed in the descriptor at byte `offset` of the vCPU's GDT area; False where it is set already.

    The processor does that itself, where it can write there: not in a two-level guest's tables. A fault on a
    descriptor that has the bit is no look of the processor's, but a store of the guest's.
    """
    d = v.domain
    page = offset >> 12
    if offset >> 16:
        mfn = v.ldt_shadow.get(page - 16, 0)
    elif page == FIRST_RESERVED_GDT_PAGE:
        mfn = d.mm.xen.gdt_page_mfn
    else:
        mfn = v.gdt_frames[page] if page < len(v.gdt_frames) else 0
    at = ((mfn - d.mem.base_mfn) << 10) + (offset >> 2 & 1022) + 1
    if not mfn or d.mem.d[at] & (_S | _ACCESSED) != _S:
        return False
    d.mem.d[at] |= _ACCESSED
    return True


def descriptor_base(low: int, high: int) -> int:
    """The base address of a code or data descriptor."""
    return low >> 16 | (high & 0xFF) << 16 | high & 0xFF000000


def descriptor_limit(low: int, high: int) -> int:
    """The limit of a code or data descriptor, in bytes."""
    limit = low & 0xFFFF | high & 0xF0000
    return limit << 12 | 0xFFF if high & _GRANULAR else limit


def load_cs_ss(v: Vcpu, cs: int, ss: int) -> None:
    """Load CS and SS for a return to the guest, with the checks of `iretq`.

    Raises GuestFault(#GP, #NP or #SS, selector) as the processor would; nothing is loaded then.
    """
    engine = v.domain.engine
    code = _check_code(v, cs)
    stack = _check_stack(v, ss, cs & 3, bool(code[1] & _LONG))
    engine.set_segment(CS, cs, descriptor_base(*code), descriptor_limit(*code), code[1] & 0xF0FF00)
    if stack is None:
        engine.set_segment(SS, ss, 0, 0, 0)
    else:
        engine.set_segment(SS, ss, descriptor_base(*stack), descriptor_limit(*stack), stack[1] & 0xF0FF00)


def _check_code(v: Vcpu, cs: int) -> tuple[int, int]:
    descriptor = gdt_ldt_desc(v, cs) if cs & ~3 else None
    if descriptor is None:
        raise GuestFault(TRAP_gp_fault, cs & 0xFFFC)
    high = descriptor[1]
    dpl, rpl = high >> _S_DPL_SHIFT & 3, cs & 3
    if high & (_S | _CODE) != _S | _CODE or (dpl > rpl if high & _CONFORMING else dpl != rpl):
        raise GuestFault(TRAP_gp_fault, cs & 0xFFFC)
    if not high & _PRESENT:
        raise GuestFault(TRAP_no_segment, cs & 0xFFFC)
    return descriptor


def _check_stack(v: Vcpu, ss: int, cpl: int, long_mode: bool) -> tuple[int, int] | None:
    if not ss & ~3:
        if long_mode and cpl != 3:
            return None
        raise GuestFault(TRAP_gp_fault, ss & 0xFFFC)
    descriptor = gdt_ldt_desc(v, ss)
    if descriptor is None:
        raise GuestFault(TRAP_gp_fault, ss & 0xFFFC)
    high = descriptor[1]
    if high & (_S | _CODE | _WRITABLE) != _S | _WRITABLE or ss & 3 != cpl or high >> _S_DPL_SHIFT & 3 != cpl:
        raise GuestFault(TRAP_gp_fault, ss & 0xFFFC)
    if not high & _PRESENT:
        raise GuestFault(TRAP_stack_error, ss & 0xFFFC)
    return descriptor


def load_data(v: Vcpu, register: int, selector: int) -> bool:
    """Load DS, ES, FS or GS; False (and nothing loaded) where `mov` would fault. CS must be loaded before."""
    engine = v.domain.engine
    if not selector & ~3:
        engine.set_segment(register, selector, 0, 0, 0)
        return True
    descriptor = gdt_ldt_desc(v, selector)
    if descriptor is None:
        return False
    low, high = descriptor
    readable = high & _S and (not high & _CODE or high & _WRITABLE)
    conforming = high & (_CODE | _CONFORMING) == _CODE | _CONFORMING
    dpl = high >> _S_DPL_SHIFT & 3
    if not readable or not high & _PRESENT:
        return False
    if not conforming and (dpl < selector & 3 or dpl < engine.cpl):
        return False
    engine.set_segment(
        register, selector, descriptor_base(low, high), descriptor_limit(low, high), high & 0xF0FF00
    )
    return True


def drop_privileged_data(v: Vcpu) -> None:
    """On a return to an outer ring, null the data segments that belong to an inner one, as `iret` does."""
    engine = v.domain.engine
    cpl = engine.cpl
    for register in (ES, DS, FS, GS):
        flags = engine.segment_flags(register)
        if engine.selector(register) & ~3 and (flags >> _S_DPL_SHIFT & 3) < cpl:
            if flags & (_CODE | _CONFORMING) == _CODE | _CONFORMING:
                continue
            engine.set_segment(register, 0, 0, 0, 0)
