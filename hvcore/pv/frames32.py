"""Entering and leaving 32-bit guests: the kernel in ring 1, frames of 32-bit words.

Source: xen/arch/x86/x86_64/compat/entry.S, compat_iret() in pv/iret.c.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.cpu.processor import CS, DS, ES, FS, GS, RAX, RIP, RSP, SS
from hvcore.errors import DomainCrash, GuestError, GuestFault
from hvcore.public.callback import CALLBACKTYPE_failsafe, CALLBACKTYPE_syscall32
from hvcore.pv.descriptor_tables import pv_map_ldt_shadow_page
from hvcore.pv.frames import (
    EFLAGS_CLEARED_ON_TRAP,
    NULL_HANDLER_CS,
    restore_flags,
    saved_eflags,
)
from hvcore.pv.segments import (
    descriptor_base,
    drop_privileged_data,
    gdt_ldt_desc,
    load_cs_ss,
    load_data,
)
from hvcore.x86 import M32, X86_EFLAGS_IF, X86_EFLAGS_VM, TRAP_gp_fault

if TYPE_CHECKING:
    from hvcore.vcpu import Vcpu

_CR2_32 = struct.Struct("<I")
_IRET32 = struct.Struct("<IIII")
_ESP_SS = struct.Struct("<II")


class Frames32:
    """32-bit guests: kernel in ring 1, frames of 32-bit words."""

    def __init__(self, domain_vcpus: list[Vcpu]) -> None:
        self.engine = domain_vcpus[0].domain.engine
        self.d = domain_vcpus[0].domain

    def guest_kernel_mode(self) -> bool:
        """Ring 1."""
        return self.engine.cpl == 1

    def privilege(self) -> int:
        """permit_softint(): 1 for the kernel, 3 for its processes."""
        return 1 if self.engine.cpl == 1 else 3

    def handler_set(self, entry: tuple[int, int, int]) -> bool:
        """A handler needs a selector that is not null."""
        return bool(entry[1] & ~3)

    def set_cr2(self, v: Vcpu, cr2: int) -> None:
        """Into vcpu_info.arch.cr2."""
        _CR2_32.pack_into(v.info, v.arch_cr2_off, cr2 & M32)

    def map_ldt(self, offset: int) -> bool:
        """Map the page of the LDT."""
        return pv_map_ldt_shadow_page(self.d.current, offset)

    def _push(self, v: Vcpu, words: list[int], mask_events: bool) -> None:
        """Push the interrupted context below `words`, on the kernel's stack."""
        engine, q = self.engine, self.engine.q
        cs = engine.selector(CS)
        eflags = engine.read_eflags()
        info = v.info
        mask = info[1]
        if cs & 2:
            ss, sp = v.kernel_ss, v.kernel_sp
            outer = [q[RSP] & M32, engine.selector(SS)]
            descriptor = gdt_ldt_desc(v, ss) if ss & ~3 else None
            if descriptor is None:
                raise DomainCrash(f"the kernel stack selector {ss:#06x} names no segment")
            base = descriptor_base(*descriptor)
        else:
            ss, sp, outer = engine.selector(SS), q[RSP] & M32, []
            base = engine.segment_base(SS)
        words += [q[RIP] & M32, cs | mask << 16, saved_eflags(v, eflags, mask), *outer]
        sp = (sp - 4 * len(words)) & M32
        at = (base + sp) & M32
        try:
            self.d.guest.copy_to(at, struct.pack(f"<{len(words)}I", *words))
        except GuestError:
            raise DomainCrash(
                f"the guest kernel's stack cannot be written at {at:#010x}", address=at
            ) from None
        if mask_events:
            info[1] = mask | 1
        engine.write_eflags(eflags & ~EFLAGS_CLEARED_ON_TRAP | X86_EFLAGS_IF)
        q[RSP] = sp
        self._pending_ss = ss

    def _enter(self, v: Vcpu, cs: int, address: int) -> None:
        engine = self.engine
        if not cs & ~3:
            raise DomainCrash(NULL_HANDLER_CS)
        ss = self._pending_ss
        if cs != engine.selector(CS) or ss != engine.selector(SS):
            try:
                load_cs_ss(v, cs, ss)
            except GuestFault as fault:
                raise DomainCrash(
                    f"entering the guest kernel with cs {cs:04x} ss {ss:04x}: fault {fault.vector}"
                ) from None
        engine.q[RIP] = address & M32

    def create_bounce_frame(
        self, v: Vcpu, cs: int, address: int, mask_events: bool, error_code: int | None
    ) -> None:
        """compat_create_bounce_frame: [error code] EIP CS|mask EFLAGS [ESP SS]."""
        self._push(v, [] if error_code is None else [error_code], mask_events)
        self._enter(v, cs, address)

    def failsafe(self, v: Vcpu) -> None:
        """DS ES FS GS below the frame, then the failsafe callback, with the segments themselves nulled."""
        cs, address, flags = v.callbacks.get(CALLBACKTYPE_failsafe, (0, 0, 0))
        selectors = [self.engine.selector(register) for register in (DS, ES, FS, GS)]
        self._push(v, selectors, bool(flags))
        for register in (DS, ES, FS, GS):
            self.engine.set_segment(register, 0, 0, 0, 0)
        self._enter(v, cs, address)

    def do_iret(self, v: Vcpu) -> None:
        """compat_iret(): EAX EIP CS EFLAGS [ESP SS] on the guest's stack."""
        engine, q = self.engine, self.engine.q
        base = engine.segment_base(SS)
        sp = q[RSP] & M32
        guest = self.d.guest
        try:
            eax, eip, cs, eflags = guest.unpack(_IRET32, base + sp)
            cs &= 0xFFFF
            if eflags & X86_EFLAGS_VM:
                self._iret_to_vm86(v, sp, eflags)
                return
            if not cs & 3:
                raise DomainCrash(f"iret to ring 0 (cs {cs:04x})")
            if cs & 3 == 1:
                new_sp, ss = sp + 16, engine.selector(SS)
            else:
                new_sp, ss = guest.unpack(_ESP_SS, base + sp + 16)
                ss &= 0xFFFF
        except GuestError:
            at = base + sp & M32
            raise DomainCrash(f"the iret frame at {at:#010x} cannot be read", address=at) from None
        restore_flags(v, eflags)
        q[RAX], q[RIP], q[RSP] = eax, eip, new_sp & M32
        if cs != engine.selector(CS) or ss != engine.selector(SS):
            old_cpl = engine.cpl
            try:
                load_cs_ss(v, cs, ss)
            except GuestFault:
                engine.set_selector(CS, cs)  # the fault is taken in the context that was to be entered
                engine.set_selector(SS, ss)
                raise
            if engine.cpl > old_cpl:
                drop_privileged_data(v)

    def _iret_to_vm86(self, v: Vcpu, sp: int, eflags: int) -> None:
        """VM86 mode is not to be had: raise the #GP of its first instruction, on the frame as it is."""
        engine, guest = self.engine, self.d.guest
        ksp = (v.kernel_sp - 40) & M32
        flags, cs, address = v.trap_ctxt[13]
        engine.q[RAX] = guest.read_u32(sp)
        guest.copy_to(ksp + 4, guest.copy_from(sp + 4, 36))
        guest.write_u32(ksp, 0)
        restore_flags(v, eflags & ~(EFLAGS_CLEARED_ON_TRAP | (X86_EFLAGS_IF if flags & 4 else 0)))
        self._pending_ss = v.kernel_ss
        engine.q[RSP] = ksp
        self._enter(v, cs, address)

    def syscall_entry(self, v: Vcpu) -> bool:
        """`syscall` from 32-bit code: its callback, or #GP at the instruction where the guest set none."""
        cs, address, mask_events = v.callbacks.get(CALLBACKTYPE_syscall32, (0, 0, 0))
        if not cs & ~3:
            raise GuestFault(TRAP_gp_fault, 0)
        self.engine.advance(2)
        self.create_bounce_frame(v, cs, address, bool(mask_events), None)
        return False

    def reload_data_segments(self, v: Vcpu) -> bool:
        """load_segments() after a switch to this vCPU: False if one no longer loads."""
        engine = self.engine
        loaded = [load_data(v, register, engine.selector(register)) for register in (DS, ES, FS, GS)]
        return all(loaded)
