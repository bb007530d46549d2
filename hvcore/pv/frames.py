"""What PV32 and PV64 differ in when the guest is entered and left: stack frames, modes, the iret frame.

`Frames` is what the trap code needs; pv/frames32.py and pv/frames64.py are the two ABIs.
Source: xen/arch/x86/x86_64/entry.S, x86_64/compat/entry.S, pv/iret.c of Xen 4.17.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from hvcore.x86 import (
    X86_EFLAGS_IF,
    X86_EFLAGS_IOPL,
    X86_EFLAGS_NT,
    X86_EFLAGS_RF,
    X86_EFLAGS_TF,
    X86_EFLAGS_VM,
)

if TYPE_CHECKING:
    from hvcore.vcpu import Vcpu

EFLAGS_CLEARED_ON_TRAP = X86_EFLAGS_VM | X86_EFLAGS_RF | X86_EFLAGS_NT | X86_EFLAGS_TF
EFLAGS_SETTABLE = 0x3F7FD7
VMASST_architectural_iopl = 1 << 4

# Why a domain ends whose handler cannot be entered: in 64 bits by its address, in 32 by its selector.
NULL_HANDLER = "the guest's handler has address 0"
NULL_HANDLER_CS = "the guest's handler has a null code selector"


def saved_eflags(v: Vcpu, eflags: int, upcall_mask: int) -> int:
    """EFLAGS as a frame shows them: IF is the negated event mask, IOPL the virtual one where it is wanted."""
    eflags &= ~(X86_EFLAGS_IF | X86_EFLAGS_IOPL)
    if not upcall_mask:
        eflags |= X86_EFLAGS_IF
    if v.domain.vm_assist & VMASST_architectural_iopl:
        eflags |= v.iopl
    return eflags


def restore_flags(v: Vcpu, eflags: int) -> None:
    """What every kind of iret takes from the frame's EFLAGS: the event mask, IOPL, the end of an NMI."""
    if v.domain.vm_assist & VMASST_architectural_iopl:
        iopl = eflags & X86_EFLAGS_IOPL
        if iopl != v.iopl:
            v.iopl = iopl
            v.domain.close_ports()
    v.info[1] = 0 if eflags & X86_EFLAGS_IF else 1
    v.async_exception_mask = False
    hardware = eflags & ~(X86_EFLAGS_IOPL | X86_EFLAGS_VM) & EFLAGS_SETTABLE | X86_EFLAGS_IF
    v.domain.engine.write_eflags(hardware)


class Frames(Protocol):
    """What the trap code needs of an ABI's frames."""

    def guest_kernel_mode(self) -> bool:
        """Whether the engine's state is that of the guest kernel."""

    def privilege(self) -> int:
        """The ring the guest believes it runs in, for the DPL of a gate."""

    def handler_set(self, entry: tuple[int, int, int]) -> bool:
        """Whether a trap table entry names a handler (!null_trap_bounce())."""

    def set_cr2(self, v: Vcpu, cr2: int) -> None:
        """arch_set_cr2()."""

    def map_ldt(self, offset: int) -> bool:
        """Map the LDT page at `offset`; False if the guest has none there."""

    def create_bounce_frame(
        self, v: Vcpu, cs: int, address: int, mask_events: bool, error_code: int | None
    ) -> None:
        """Enter the guest kernel at cs:address."""

    def failsafe(self, v: Vcpu) -> None:
        """Enter the failsafe callback."""

    def do_iret(self, v: Vcpu) -> None:
        """The iret hypercall: everything comes from its frame, EAX too."""

    def syscall_entry(self, v: Vcpu) -> bool:
        """The `syscall` instruction; True when it is a hypercall, False when the guest has been entered."""

    def reload_data_segments(self, v: Vcpu) -> bool:
        """load_segments() after a switch to this vCPU: False if one no longer loads."""
