"""Entering and leaving 64-bit guests: kernel and processes both at CPL 3, each with its own page table.

Which of the two runs is `v.kernel_mode` (TF_kernel_mode); the guest sees it in the RPL of a frame's CS.
Source: create_bounce_frame and lstar_enter in x86_64/entry.S, toggle_guest_mode() in pv/domain.c, do_iret().
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.cpu.processor import CS, DS, ES, FS, GS, R11, RAX, RCX, RIP, RSP, SELECTOR_WORDS, SS
from hvcore.errors import DomainCrash, GuestError, GuestFault
from hvcore.public.callback import CALLBACKTYPE_failsafe, CALLBACKTYPE_syscall, CALLBACKTYPE_syscall32
from hvcore.public.vcpu_guest_context import VGCF_in_syscall
from hvcore.pv.callback import is_canonical
from hvcore.pv.descriptor_tables import pv_map_ldt_shadow_page
from hvcore.pv.frames import (
    EFLAGS_CLEARED_ON_TRAP,
    NULL_HANDLER,
    restore_flags,
    saved_eflags,
)
from hvcore.pv.segments import load_cs_ss, load_data
from hvcore.x86 import (
    M64,
    X86_EFLAGS_AC,
    X86_EFLAGS_DF,
    X86_EFLAGS_IF,
    X86_EFLAGS_IOPL,
    X86_EFLAGS_RF,
    X86_EFLAGS_VM,
    TRAP_invalid_op,
    TRAP_nmi,
)

if TYPE_CHECKING:
    from hvcore.vcpu import Vcpu

FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_SS = 0xE023, 0xE033, 0xE02B
_FLAT_CS = (FLAT_RING3_CS64, 0, 0xFFFFFFFF, 0x00AFFB00)
_FLAT_SS = (FLAT_RING3_SS, 0, 0xFFFFFFFF, 0x00CFF300)
_FLAT_CS32 = (FLAT_RING3_CS32, 0, 0xFFFFFFFF, 0x00CFFB00)

_CS_WORD, _SS_WORD = SELECTOR_WORDS[CS], SELECTOR_WORDS[SS]

_CLEARED_ON_TRAP = EFLAGS_CLEARED_ON_TRAP | X86_EFLAGS_AC
_SYSRET_KEEPS = ~(X86_EFLAGS_IOPL | X86_EFLAGS_VM)
_CR2_64 = struct.Struct("<Q")
_IRET64 = struct.Struct("<9Q")  # rax r11 rcx flags rip cs rflags rsp ss
_TI_IF = 4


class Frames64:
    """64-bit guests."""

    def __init__(self, domain_vcpus: list[Vcpu]) -> None:
        self.d = domain_vcpus[0].domain
        self.engine = self.d.engine

    def guest_kernel_mode(self) -> bool:
        """TF_kernel_mode."""
        return self.d.current.kernel_mode

    def privilege(self) -> int:
        """permit_softint(): 1 for the kernel, 3 for its processes."""
        return 1 if self.d.current.kernel_mode else 3

    def handler_set(self, entry: tuple[int, int, int]) -> bool:
        """A handler needs an address."""
        return bool(entry[2])

    def set_cr2(self, v: Vcpu, cr2: int) -> None:
        """Into vcpu_info.arch.cr2."""
        _CR2_64.pack_into(v.info, v.arch_cr2_off, cr2)

    def map_ldt(self, offset: int) -> bool:
        """Map the page of the LDT."""
        return pv_map_ldt_shadow_page(self.d.current, offset)

    def toggle_guest_mode(self, v: Vcpu) -> None:
        """Change between kernel and process: the GS bases are swapped, the other page table is loaded."""
        engine = self.engine
        if v.kernel_mode:
            v.gs_base_kernel = engine.segment_base(GS)
            engine.set_segment_base(GS, v.gs_base_user)
        else:
            v.gs_base_user = engine.segment_base(GS)
            engine.set_segment_base(GS, v.gs_base_kernel)
        v.kernel_mode = not v.kernel_mode
        engine.close_ports()
        self.d.mm.xen.write_ptbase(v)

    def _set_flat(self) -> None:
        engine = self.engine
        if engine.selector(CS) != FLAT_RING3_CS64:
            engine.set_segment(CS, *_FLAT_CS)
        if engine.selector(SS) != FLAT_RING3_SS:
            engine.set_segment(SS, *_FLAT_SS)

    def _push(self, v: Vcpu, words: list[int], mask_events: bool, cleared: int = _CLEARED_ON_TRAP) -> int:
        """Push RCX, R11, `words` and the interrupted context on the kernel's stack, 16-byte aligned.

        The result are the flags that the handler starts with: those of the context without `cleared`.
        """
        engine, q = self.engine, self.engine.q
        cs, ss, rsp = engine.selector(CS), engine.selector(SS), q[RSP]
        eflags = engine.read_eflags()
        if v.kernel_mode:
            sp = rsp & ~15
            cs &= ~3
        else:
            self.toggle_guest_mode(v)
            sp = v.kernel_sp & ~15
        info = v.info
        mask = info[1]
        frame = (q[RCX], q[R11], *words, q[RIP], cs | mask << 32, saved_eflags(v, eflags, mask), rsp, ss)
        sp = (sp - 8 * len(frame)) & M64
        try:
            self.d.guest.copy_to(sp, struct.pack(f"<{len(frame)}Q", *frame))
        except GuestError:
            raise DomainCrash(
                f"the guest kernel's stack cannot be written at {sp:#018x}", address=sp
            ) from None
        if mask_events:
            info[1] = mask | 1
        eflags = eflags & ~cleared | X86_EFLAGS_IF
        engine.write_eflags(eflags)
        q[RSP] = sp
        return eflags

    def _enter(self, address: int, eflags: int) -> None:
        """Go on at a handler of the kernel's, by `sysret`: RCX is where, and R11 the flags."""
        if not address:
            raise DomainCrash(NULL_HANDLER)
        self._set_flat()
        q = self.engine.q
        q[RIP] = q[RCX] = address
        q[R11] = eflags

    def create_bounce_frame(
        self, v: Vcpu, _cs: int, address: int, mask_events: bool, error_code: int | None
    ) -> None:
        """RCX R11 [error code] RIP CS|mask RFLAGS RSP SS; the handler's CS is always the flat one."""
        self._enter(address, self._push(v, [] if error_code is None else [error_code], mask_events))

    def failsafe(self, v: Vcpu) -> None:
        """RCX R11 DS ES FS GS and the context, then the failsafe callback, with the segments nulled."""
        _cs, address, mask_events = v.callbacks.get(CALLBACKTYPE_failsafe, (0, 0, 0))
        selectors = [self.engine.selector(register) for register in (DS, ES, FS, GS)]
        eflags = self._push(v, selectors, bool(mask_events))
        for register in (DS, ES, FS, GS):
            self.engine.set_segment(register, 0, 0, 0, 0)
        self._enter(address, eflags)

    def do_iret(self, v: Vcpu) -> None:
        """Take all from the `struct iret_context` at RSP; an RPL of 3 in its CS means a process.

        With VGCF_in_syscall what is left out is RCX and R11, and Xen goes back by `sysret`, unless an event
        takes the vCPU elsewhere before.
        """
        engine, q = self.engine, self.engine.q
        try:
            rax, r11, rcx, flags, rip, cs, rflags, rsp, ss = self.d.guest.unpack(_IRET64, q[RSP])
        except GuestError:
            raise DomainCrash(f"the iret frame at {q[RSP]:#018x} cannot be read", address=q[RSP]) from None
        if cs & 3 == 3:
            if not v.user_cr3_mfn:
                raise DomainCrash("the guest switches to user mode with no user page tables")
            self.toggle_guest_mode(v)
        if flags & VGCF_in_syscall:
            r11, rcx = q[R11], q[RCX]  # as the `syscall` of this hypercall left them
        restore_flags(v, rflags)
        q[RAX], q[RIP], q[RSP], q[R11], q[RCX] = rax, rip, rsp, r11, rcx
        cs, ss = (cs | 3) & 0xFFFF, (ss | 3) & 0xFFFF
        if flags & VGCF_in_syscall:
            if self._event_comes_first(v):
                self._name_segments(cs, ss)
                return
            q[RCX], q[R11] = rip, rflags & _SYSRET_KEEPS & M64 | X86_EFLAGS_IF
            if is_canonical(v, rip):
                self._sysret(cs)
                return
        engine.defer_step()
        self._iretq(v, cs, ss)

    def _event_comes_first(self, v: Vcpu) -> bool:
        """Whether test_all_events() is going to enter a handler on this way to the guest."""
        return v.event_needs_delivery() or bool(v.nmi_pending and self.handler_set(v.trap_ctxt[TRAP_nmi]))

    def _name_segments(self, cs: int, ss: int) -> None:
        """Segments that the guest gave and that nothing runs with: the next frame shows their selectors."""
        self._set_flat()
        self.engine.set_selector(CS, cs)
        self.engine.set_selector(SS, ss)

    def _sysret(self, cs: int) -> None:
        """Leave by `sysretq`, or by `sysretl` where the frame has the flat 32-bit CS: SS is not looked at."""
        engine, q = self.engine, self.engine.q
        if cs == FLAT_RING3_CS32:
            engine.set_segment(CS, *_FLAT_CS32)
            engine.set_segment(SS, *_FLAT_SS)
            q[RIP] &= 0xFFFFFFFF
        else:
            self._set_flat()
        engine.write_eflags(q[R11] & ~X86_EFLAGS_RF)

    def _iretq(self, v: Vcpu, cs: int, ss: int) -> None:
        """Load the frame's selectors. What faults is the fault of the context that was to be entered."""
        engine = self.engine
        if (cs, ss) == (FLAT_RING3_CS64, FLAT_RING3_SS):
            self._set_flat()
            return
        if cs == engine.selector(CS) and ss == engine.selector(SS):
            return
        try:
            load_cs_ss(v, cs, ss)
        except GuestFault:
            engine.set_selector(CS, cs)
            engine.set_selector(SS, ss)
            raise

    def syscall_entry(self, v: Vcpu) -> bool:
        """`syscall`: a hypercall from the kernel, the guest's system call from a process.

        It does not save CS and SS, and a hypercall goes on with the flat ones (lstar_enter).
        One from compatibility mode is a system call whoever makes it (cstar_enter).
        """
        engine = self.engine
        words = engine.d
        if words[_CS_WORD] == FLAT_RING3_CS64 and words[_SS_WORD] == FLAT_RING3_SS and v.kernel_mode:
            return True
        is_64bit = engine.code_is_64bit
        if is_64bit and v.kernel_mode:
            self._set_flat()
            return True
        engine.advance(2)
        if is_64bit:
            self._set_flat()
        else:
            engine.set_segment(CS, *_FLAT_CS32)
            engine.set_segment(SS, *_FLAT_SS)
        self._switch_to_kernel(v, CALLBACKTYPE_syscall if is_64bit else CALLBACKTYPE_syscall32)
        return False

    def _switch_to_kernel(self, v: Vcpu, kind: int) -> None:
        """switch_to_kernel: enter the callback with DF clear, or #UD at the instruction where there is none.

        What masks events is the 64-bit callback's flag, for both.
        """
        address = v.callbacks.get(kind, (0, 0, 0))[1]
        if address:
            mask_events = bool(v.callbacks.get(CALLBACKTYPE_syscall, (0, 0, 0))[2])
            self._enter(address, self._push(v, [], mask_events, _CLEARED_ON_TRAP | X86_EFLAGS_DF))
        else:
            flags, cs, handler = v.trap_ctxt[TRAP_invalid_op]
            self.engine.advance(-2)
            self.create_bounce_frame(v, cs, handler, bool(flags & _TI_IF), None)

    def reload_data_segments(self, v: Vcpu) -> bool:
        """load_segments(): selectors anew, then the bases that no descriptor gives."""
        engine = self.engine
        fs_base, gs_base = engine.segment_base(FS), engine.segment_base(GS)
        loaded = [load_data(v, register, engine.selector(register)) for register in (DS, ES, FS, GS)]
        if not engine.selector(FS) & ~3:
            engine.set_segment_base(FS, fs_base)
        engine.set_segment_base(GS, gs_base)
        return all(loaded)
