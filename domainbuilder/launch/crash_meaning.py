"""What the end of a guest means in plain words: what it did, and what Xen has for that instead.

Each line is a fact that the machine as it stands shows. Source: do_page_fault() and
pv_emulate_privileged_op() of Xen 4.17, and the hypercalls of xen/include/public.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from domainbuilder.launch.disassembly import Instruction
from domainbuilder.launch.names import Names
from domainbuilder.launch.registers import Registers
from hvcore.debug.view import GuestView
from hvcore.public.callback import CALLBACKTYPE_event
from hvcore.public.xen import PAGE_SHIFT, PAGE_SIZE
from hvcore.pv.frames import NULL_HANDLER, NULL_HANDLER_CS
from hvcore.pv.traps import X86_XEC_IDT, PFEC_insn_fetch, PFEC_page_present, PFEC_write_access
from hvcore.x86 import TRAP_gp_fault, TRAP_page_fault, vector_name

if TYPE_CHECKING:
    from hvcore.errors import DomainCrash
    from hvcore.machine import Machine

_XENS_OWN_SELECTORS = 0xE000  # Xen's page of every GDT
_IRET = "a handler returns by the iret hypercall, with the error code taken off the stack"
_PORTS = "a domU has no I/O ports"
_PAGE_TABLES = (
    "page tables are changed by mmu_update and update_va_mapping; L1 tables also by stores, with "
    "vm_assist(VMASST_CMD_enable, VMASST_TYPE_writable_pagetables)"
)
_EVENTS = "events are held back by vcpu_info.evtchn_upcall_mask"
_INSTEAD = {
    "cli": _EVENTS,
    "sti": _EVENTS,
    "popfd": _EVENTS,
    "popfq": _EVENTS,
    "iretq": _IRET,
    "iretd": _IRET,
    "iret": _IRET,
    **dict.fromkeys(("in", "out", "insb", "insd", "insw", "outsb", "outsd", "outsw"), _PORTS),
    "hlt": "a vCPU waits by sched_op(SCHEDOP_block)",
    "lgdt": "the GDT is set by set_gdt",
    "lidt": "handlers are set by set_trap_table",
    "lldt": "the LDT is set by mmuext_op(MMUEXT_SET_LDT)",
    "ltr": "the kernel's stack is set by stack_switch",
    "mov cr3": "it takes the machine address of a top-level page table, as MMUEXT_NEW_BASEPTR does",
    "mov cr0": "of CR0 a guest may change TS alone",
    "mov cr4": "Xen lets no guest change the bits of CR4 that this one does",
    "swapgs": "GS bases are set by set_segment_base",
    "rdmsr": "Xen has no such MSR for a PV guest",
    "wrmsr": "Xen has no such MSR for a PV guest, or not that value",
}
"""What a PV kernel does where another uses an instruction of ring 0: by mnemonic and control register."""


def crash_meaning(
    machine: Machine, view: GuestView, names: Names, registers: Registers, code: Sequence[Instruction]
) -> tuple[str, ...]:
    """Lines for a person; none for a guest that ended itself. All is about the vCPU that ran."""
    crash = machine.crash
    if crash is None:
        return ()
    found = list(_no_code_segment(machine, registers))
    if crash.vector == TRAP_page_fault and crash.address is not None:
        found += _page_fault(machine, view, names, registers, crash)
    elif crash.vector is not None and not found:
        found += _no_stubs(view, names, registers)
        found += _privileged(machine, registers, code, crash)
    if crash.vector is not None:
        found += _no_handler(machine, crash.vector)
    elif crash.reason in (NULL_HANDLER, NULL_HANDLER_CS):
        found += _no_event_callback(machine)
    elif crash.reason.startswith(("iret ", "the iret frame ")):
        found.append(_wrong_frame(machine))
    return tuple(found)


def _no_event_callback(machine: Machine) -> Iterator[str]:
    v = machine.domain.current
    if v.upcall_pending and not v.callbacks.get(CALLBACKTYPE_event, (0, 0, 0))[1]:
        yield (
            "an event has come, and the guest has no event callback: set_callbacks, or callback_op("
            "CALLBACKOP_register), sets one before events are unmasked; SCHEDOP_block unmasks them, too"
        )


def _no_handler(machine: Machine, vector: int) -> Iterator[str]:
    any_set = any(entry[2] for entry in machine.domain.current.trap_ctxt)
    which = f"no handler for {vector_name(vector)}" if any_set else "no handler of anything"
    yield f"set_trap_table has given Xen {which}"


def _no_code_segment(machine: Machine, registers: Registers) -> Iterator[str]:
    """CS as no guest has it that left the GDT to Xen: an iret took it from the wrong words."""
    cs = registers.selectors["cs"]
    v = machine.domain.current
    if cs & 0xF000 == _XENS_OWN_SELECTORS or cs >> 3 < (v.ldt_ents if cs & 4 else v.gdt_ents):
        return
    yield f"cs {cs:04x} names no segment: {_wrong_frame(machine)}"


def _wrong_frame(machine: Machine) -> str:
    """Why what an iret takes makes no sense: `struct iret_context`, and what a handler finds above it."""
    words, before = "RAX R11 RCX flags RIP CS RFLAGS RSP SS", "RCX, R11 and the error code"
    if machine.domain.abi.is_32bit:
        words, before = "EAX EIP CS EFLAGS", "the error code"
    return f"the iret hypercall takes {words} from the stack; a handler takes {before} off it before"


def _page_fault(
    machine: Machine, view: GuestView, names: Names, registers: Registers, crash: DomainCrash
) -> Iterator[str]:
    address, code = crash.address or 0, crash.error_code or 0
    act = "a store to" if code & PFEC_write_access else "a load from"
    if code & PFEC_insn_fetch:
        act = "a jump to"
    if code & PFEC_page_present:
        how = "whose page is read-only" if code & PFEC_write_access else "whose page is not for it"
        if code & PFEC_insn_fetch:
            how = "whose page is not executable"
        yield f"{act} {address:#x}, {how}"
        refused = machine.domain.trace.refused_faults
        if refused and refused[-1].rip == registers.rip:
            yield _PAGE_TABLES
        return
    null = ": a null pointer" if address < PAGE_SIZE else ""
    yield f"{act} {address:#x}, where nothing is mapped{null}"
    if not null:
        yield from _taken_for(machine, view, names, address)
        yield from _no_stack(machine, view, registers, address)


def _taken_for(machine: Machine, view: GuestView, names: Names, address: int) -> Iterator[str]:
    """A machine address, or a machine frame, where a virtual one belongs."""
    d = machine.domain
    if address >> PAGE_SHIFT == d.shared_info_mfn:
        yield (
            "that is the machine address of shared_info: update_va_mapping() maps it, at an address of "
            "the guest's choice"
        )
        return
    if names.virt_base is None:
        return
    mfn = (address - names.virt_base & d.abi.word_mask) >> PAGE_SHIFT
    pfn = view.pfn_of(mfn)
    if pfn is not None and mfn >= d.nr_pages:
        yield (
            f"that would be pfn {mfn:#x}, and the domain has {d.nr_pages:#x}: {mfn:#x} is the machine frame "
            f"of pfn {pfn:#x}, by machine_to_phys_mapping"
        )


def _no_stack(machine: Machine, view: GuestView, registers: Registers, address: int) -> Iterator[str]:
    """The access was at the stack pointer: below the lowest page of its stack, or with no stack at all."""
    abi, stack = machine.domain.abi, registers.stack_address
    if (address - stack + PAGE_SIZE) & abi.word_mask >= 2 * PAGE_SIZE:
        return
    above = (address | PAGE_SIZE - 1) + 1 & abi.word_mask
    pointer = "esp" if abi.is_32bit else "rsp"
    if view.read(above, 1):
        yield f"{pointer} is {stack:#x}, and nothing is mapped below {above:#x}: the stack was too small"
    elif not view.read(stack, 1):
        yield f"{pointer} is {stack:#x}, and no stack is mapped there"


def _no_stubs(view: GuestView, names: Names, registers: Registers) -> Iterator[str]:
    """The kernel ran through a hypercall page that nobody has filled."""
    symbol, _, offset = names(registers.code_address).rpartition("+")
    if symbol.startswith("hypercall_page") and not names.stubs:
        page = registers.code_address - int(offset, 16)
        if not any(view.read(page, PAGE_SIZE)):
            yield f"{symbol} is empty: no note HYPERCALL_PAGE names it, and so Xen wrote no hypercalls there"


def _privileged(
    machine: Machine, registers: Registers, code: Sequence[Instruction], crash: DomainCrash
) -> Iterator[str]:
    """A #GP for an instruction of ring 0, or for a gate that the guest may not use."""
    if crash.vector != TRAP_gp_fault:
        return
    text = next((line.text for line in code if line.current), "")
    if (crash.error_code or 0) & X86_XEC_IDT and text.startswith("int "):
        yield f"`{text}`: set_trap_table has no handler for it that the guest's ring may call"
        return
    mnemonic, _, operands = text.partition(" ")
    instead = _INSTEAD.get(mnemonic) or _INSTEAD.get(f"{mnemonic} {operands.partition(',')[0]}")
    if instead is None:
        return
    if mnemonic in {"rdmsr", "wrmsr"}:
        text += f" of {registers.general['rcx'] & 0xFFFFFFFF:#x}"
    ring = 1 if machine.domain.abi.is_32bit else 3
    yield f"`{text}` in ring {ring}, where a PV kernel runs: {instead}"
