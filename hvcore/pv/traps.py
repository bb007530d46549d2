"""Exceptions, software interrupts and events: what the guest sees of them, and what never reaches it.

Every exit of the engine comes here. A fault is first offered to what can make it good (emulation of
privileged instructions, writable page tables, the LDT's lazy mapping); what is left is bounced: Xen builds
the frame that the processor would have built, on the guest kernel's stack, with the event mask saved beside
CS and IF showing its negation, and goes on at the handler that the guest gave for the vector.
Source: xen/arch/x86/traps.c, pv/traps.c, x86_64/compat/entry.S of Xen 4.17.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hvcore.clock import CELL_LEFT, CELL_LIMIT, CELL_SPENT, NS_PER_EXIT, NS_PER_RDTSC, TSC_PER_NS
from hvcore.cpu.processor import CS, RAX, RBX, RCX, RDX, RIP, RSP, SELECTOR_WORDS
from hvcore.errors import DomainCrash, GuestFault
from hvcore.public.callback import CALLBACKTYPE_event
from hvcore.pv.cpuid import pv_cpuid
from hvcore.pv.descriptor_tables import segment_end
from hvcore.pv.emul_inv_op import pv_emulate_invalid_op
from hvcore.pv.emul_priv_op import pv_emulate_privileged_op
from hvcore.pv.engine_faults import general_protection, invalid_opcode, undo_call
from hvcore.pv.gate_op import pv_emulate_gate_op
from hvcore.pv.segments import mark_accessed
from hvcore.x86 import (
    TRAP_HAVE_EC,
    TRAP_debug,
    TRAP_gp_fault,
    TRAP_int3,
    TRAP_invalid_op,
    TRAP_nmi,
    TRAP_no_device,
    TRAP_overflow,
    TRAP_page_fault,
    TRAP_stack_error,
    vector_name,
)

if TYPE_CHECKING:
    from hvcore.domain import Domain
    from hvcore.pv.frames import Frames
    from hvcore.pv.ro_page_fault import RoPageFault

PFEC_page_present, PFEC_write_access, PFEC_user_mode = 1, 2, 4
PFEC_reserved_bit, PFEC_insn_fetch = 8, 16
X86_XEC_IDT = 2
HYPERCALL_VECTOR = 0x82
_CS_SELECTOR = SELECTOR_WORDS[CS]
LEGACY_SYSCALL_VECTOR = 0x80

_STACK_OPERAND = 32  # bytes from the stack pointer that pushes, pops, calls and returns touch


class Traps:
    """The engine's exits, handled. `frames` builds and undoes the frames of this guest's ABI."""

    def __init__(
        self,
        domain: Domain,
        frames: Frames,
        ro_page_fault: RoPageFault,
        hypercall: Callable[[], None],
    ) -> None:
        self.d = domain
        self.engine = domain.engine
        self._cell = domain.engine.cell
        self._words = domain.engine.d
        self.frames = frames
        self.ro = ro_page_fault
        self.hypercall = hypercall
        self.kernel_cpl = domain.abi.kernel_cpl
        self.trace = domain.trace
        self._pending = domain.trace.pending
        self.gdt_ldt = domain.mm.xen.gdt_virt_start(domain.vcpus[0])
        self.int82 = domain.abi.is_32bit
        self.segment_end = segment_end(domain.abi)
        self._special: dict[int, Callable[[], None]] = {
            TRAP_debug: self.do_debug,
            TRAP_invalid_op: self.do_invalid_op,
            TRAP_no_device: self.do_device_not_available,
            TRAP_gp_fault: self.do_general_protection,
            TRAP_page_fault: self.do_page_fault,
        }

    # -- the engine's handlers

    def interrupt(self, vector: int) -> None:
        """An exception or `int n`; see engine.Handlers."""
        cell = self._cell
        cell[CELL_LEFT] -= NS_PER_EXIT
        cell[CELL_SPENT] += NS_PER_EXIT
        if vector == HYPERCALL_VECTOR and self.int82 and self._words[_CS_SELECTOR] & 3 == self.kernel_cpl:
            try:
                self.hypercall()
            except GuestFault as fault:  # an iret to a context that cannot be entered
                self.inject_fault(fault)
        elif not (self.ro.pending and self.ro.step_done(vector)):
            self.trace.exceptions[vector] += 1
            try:
                if self.engine.is_software_interrupt:
                    self.do_softint(vector)
                else:
                    self.do_exception(vector)
            except GuestFault as fault:
                self.inject_fault(fault)
        v = self.d.vcpus[self.d.current_id]
        info = v.info
        if (info[0] and not info[1]) or v.nmi_pending:
            self.test_all_events()
        if cell[CELL_LEFT] <= cell[CELL_LIMIT]:  # no block of code may follow that would notice
            self.engine.stop()

    def syscall(self) -> None:
        """The `syscall` instruction."""
        cell = self._cell
        cell[CELL_LEFT] -= NS_PER_EXIT
        cell[CELL_SPENT] += NS_PER_EXIT
        d = self.d
        try:
            if self.frames.syscall_entry(d.vcpus[d.current_id]):
                self.hypercall()
        except GuestFault as fault:
            self.inject_fault(fault)
        v = d.vcpus[d.current_id]
        info = v.info
        if (info[0] and not info[1]) or v.nmi_pending:
            self.test_all_events()

    def cpuid(self) -> None:
        """The `cpuid` instruction, with Xen's masking."""
        q = self.engine.q
        leaf, subleaf = q[RAX] & 0xFFFFFFFF, q[RCX] & 0xFFFFFFFF
        q[RAX], q[RBX], q[RCX], q[RDX] = pv_cpuid(self.d.current, leaf, subleaf)

    def rdtsc(self) -> int:
        """The time stamp counter. Reading it takes a little time, so that no guest can wait without end."""
        clock = self.d.clock
        clock.spend(NS_PER_RDTSC)
        return clock.now() * TSC_PER_NS

    # -- kinds of exits

    def guest_kernel_mode(self) -> bool:
        """Whether the exit came from the guest's kernel."""
        return self.frames.guest_kernel_mode()

    def do_softint(self, vector: int) -> None:
        """`int n`, `int3` and `into`; RIP is past the instruction."""
        if vector in (TRAP_int3, TRAP_overflow):  # these have their own gates, open to all rings
            self.inject(vector)
            return
        v = self.d.current
        flags, _cs, _address = v.trap_ctxt[vector]
        direct = vector == LEGACY_SYSCALL_VECTOR and self.frames.handler_set(v.trap_ctxt[vector])
        if direct or (flags & 3) >= self.frames.privilege():
            self.bounce(vector, None)
            return
        self.engine.advance(-2)
        self.inject(TRAP_gp_fault, vector << 3 | X86_XEC_IDT)

    def do_exception(self, vector: int) -> None:
        """A fault or trap that the guest did not ask for."""
        special = self._special.get(vector)
        if special is not None:
            special()
        else:
            self.inject(vector, self.engine.error_code if TRAP_HAVE_EC >> vector & 1 else None)

    def do_debug(self) -> None:
        """#DB: a single step or a hardware breakpoint."""
        v = self.d.current
        v.debugreg[6] |= self.engine.take_debug_status()
        self.inject(TRAP_debug)

    def data_breakpoint(self, met: int) -> None:
        """#DB behind an instruction whose accesses DR0 to DR3 watch; `met` are their bits in DR6."""
        self.d.clock.spend(NS_PER_EXIT)
        self.trace.exceptions[TRAP_debug] += 1
        self.d.current.debugreg[6] |= met
        try:
            self.inject(TRAP_debug)
        except GuestFault as fault:
            self.inject_fault(fault)

    def do_invalid_op(self) -> None:
        """#UD: Xen's forced-emulation prefix, or the guest's own."""
        v = self.d.current
        if not pv_emulate_invalid_op(v):
            self.inject(*invalid_opcode(v))

    def do_device_not_available(self) -> None:
        """#NM: the guest's FPU is given back to it; the guest hears of it if it had set TS itself."""
        v = self.d.current
        self.engine.set_cr0_ts(False)
        if v.ts_set:
            v.ts_set = False
            self.inject(TRAP_no_device)

    def do_general_protection(self) -> None:
        """#GP: a gate, a privileged instruction, or the guest's own fault."""
        v = self.d.current
        error_code = self.engine.error_code
        in_64bit = self.engine.code_is_64bit
        if in_64bit:
            undo_call(v)
        if error_code:
            if self.d.abi.is_32bit and not error_code & X86_XEC_IDT and pv_emulate_gate_op(v):
                return
        elif pv_emulate_privileged_op(v):
            return
        if in_64bit:
            self.inject(*general_protection(v, error_code))
        else:
            self.inject(TRAP_gp_fault, error_code)

    def do_page_fault(self) -> None:
        """#PF: the LDT's lazy mapping, a writable page table, or the guest's own fault."""
        engine = self.engine
        error_code, cr2 = engine.error_code, engine.cr2
        if self.d.abi.is_32bit and cr2 < 1 << 32:
            cr2 &= 0xFFFFFFFF
        if error_code & PFEC_reserved_bit:
            raise DomainCrash(
                f"reserved bit set in the page tables under {cr2:#x}",
                vector=TRAP_page_fault, error_code=error_code, address=cr2,
            )  # fmt: skip
        if not error_code & PFEC_user_mode and self._descriptor_table_fault(cr2, error_code):
            return
        if self.segment_end <= cr2 < 1 << 32:
            self._beyond_limit(cr2)
            return
        if (
            error_code & (PFEC_page_present | PFEC_write_access | PFEC_insn_fetch) == 3
            and self.guest_kernel_mode()
            and self.ro.try_start(cr2)
        ):
            return
        self.inject(TRAP_page_fault, error_code, cr2)

    def _beyond_limit(self, cr2: int) -> None:
        """What a truncated segment limit would have raised: #SS for what is at the stack pointer, or #GP."""
        at_stack = abs(cr2 - (self.engine.q[RSP] & 0xFFFFFFFF)) <= _STACK_OPERAND
        self.inject(TRAP_stack_error if at_stack else TRAP_gp_fault, 0)

    def _descriptor_table_fault(self, cr2: int, error_code: int) -> bool:
        """handle_gdt_ldt_mapping_fault(): the processor looked for a descriptor that is not mapped.

        Or, where a two-level guest's tables are mapped read-only, it wanted to note that it has loaded one.
        """
        offset = cr2 - self.gdt_ldt
        if not 0 <= offset < len(self.d.vcpus) << 17:
            return False
        v = self.d.current
        offset &= 0x1FFFF
        if error_code & PFEC_page_present:
            return mark_accessed(v, offset)
        if offset < 0x10000:
            self.inject(TRAP_gp_fault, offset & 0xFFF8)
        elif not self.frames.map_ldt(offset - 0x10000):
            self.inject(TRAP_page_fault, self.engine.error_code, v.ldt_base + offset - 0x10000)
        return True

    # -- delivery

    def inject_fault(self, fault: GuestFault) -> None:
        """Deliver what an emulator raised."""
        self.inject(fault.vector, fault.error_code, fault.cr2)

    def inject(self, vector: int, error_code: int | None = None, cr2: int | None = None) -> None:
        """pv_inject_hw_exception(), pv_inject_page_fault()."""
        if self._pending:
            self.trace.close_fault(vector, self.engine.q[RIP], cr2 or 0)
        if vector == TRAP_page_fault:
            v = self.d.current
            cr2 = cr2 or 0
            v.ctrlreg[2] = cr2
            self.frames.set_cr2(v, cr2)
            error_code = (error_code or 0) & ~PFEC_user_mode
            if not self.guest_kernel_mode():
                error_code |= PFEC_user_mode
        self.bounce(vector, error_code)

    def bounce(self, vector: int, error_code: int | None) -> None:
        """Go on at the guest's handler for `vector`. Raises DomainCrash where it has none."""
        v = self.d.current
        entry = v.trap_ctxt[vector]
        if not self.frames.handler_set(entry):
            code = "" if error_code is None else f"[{error_code:04x}]"
            is_fault = vector == TRAP_page_fault and error_code is not None  # and no `int 14`
            raise DomainCrash(
                f"Unhandled: vec {vector}, {vector_name(vector)}{code}",
                vector=vector, error_code=error_code, address=v.ctrlreg[2] if is_fault else None,
            )  # fmt: skip
        flags, cs, address = entry
        self.frames.create_bounce_frame(v, cs, address, bool(flags & 4), error_code)

    def test_all_events(self) -> None:
        """What Xen looks at on every way back to the guest: a pending NMI, then a pending upcall."""
        if self.ro.pending:
            return
        v = self.d.vcpus[self.d.current_id]
        if v.nmi_pending and not v.async_exception_mask:
            v.nmi_pending = False
            if self.frames.handler_set(v.trap_ctxt[TRAP_nmi]):  # or it is lost: set_guest_nmi_trapbounce()
                v.async_exception_mask = True
                self.bounce(TRAP_nmi, None)
        info = v.info
        if info[0] and not info[1]:
            cs, address, _flags = v.callbacks.get(CALLBACKTYPE_event, (0, 0, 0))
            self.d.words.events_delivered += 1
            self.frames.create_bounce_frame(v, cs, address, True, None)
