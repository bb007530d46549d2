"""Forced emulation, `ud2; .ascii "xen"; cpuid`, which arrives as #UD: xen/arch/x86/pv/emul-inv-op.c."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.cpu.processor import RAX, RBX, RCX, RDX, RIP
from hvcore.pv.cpuid import pv_cpuid
from hvcore.pv.emulate import instruction_done, read_guest
from hvcore.x86 import M32

if TYPE_CHECKING:
    from hvcore.vcpu import Vcpu

_SIGNATURE = b"\x0f\x0bxen"
_CPUID = b"\x0f\xa2"


def pv_emulate_invalid_op(v: Vcpu) -> bool:
    """True when the #UD at RIP was forced emulation of cpuid, the one instruction for which Xen has it.

    As in Xen, RIP is taken for a linear address, whatever CS's base. Raises GuestFault(#PF) where it cannot
    be read, and #DB after a single step.
    """
    q = v.domain.engine.q
    rip = q[RIP]
    if read_guest(v, rip, len(_SIGNATURE)) != _SIGNATURE:
        return False
    rip += len(_SIGNATURE)
    if read_guest(v, rip, len(_CPUID)) != _CPUID:
        return False
    q[RAX], q[RBX], q[RCX], q[RDX] = pv_cpuid(v, q[RAX] & M32, q[RCX] & M32)
    v.domain.trace.emulate("forced cpuid")
    instruction_done(v, rip + len(_CPUID))
    return True
