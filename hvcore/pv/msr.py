"""MSRs as a PV guest sees them: read_msr() and write_msr() of pv/emul-priv-op.c, xen/arch/x86/msr.c, vmce.c.

The processor is AMD's, so what Xen gives to Intel guests alone is refused. Reads and writes either succeed or
raise #GP; Xen's two ways of refusing look the same to the guest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hvcore.clock import TSC_PER_NS
from hvcore.cpu.processor import FS, GS, RAX, RCX, RDX
from hvcore.errors import GuestFault
from hvcore.public.xen import PAGE_SIZE
from hvcore.pv.misc_hypercalls import is_canonical_address
from hvcore.x86 import TRAP_gp_fault

if TYPE_CHECKING:
    from hvcore.vcpu import Vcpu

MSR_IA32_TSC, MSR_APIC_BASE, MSR_AMD_PATCHLEVEL = 0x10, 0x1B, 0x8B
MSR_INTEL_PLATFORM_INFO, MSR_IA32_MPERF, MSR_IA32_APERF = 0xCE, 0xE7, 0xE8
MSR_INTEL_MISC_FEATURES_ENABLES = 0x140
MSR_IA32_MCG_CAP, MSR_IA32_MCG_STATUS, MSR_IA32_MCG_CTL = 0x179, 0x17A, 0x17B
MSR_IA32_CR_PAT, MSR_IA32_PERF_CAPABILITIES = 0x277, 0x345
MSR_IA32_MC0_CTL = 0x400
MSR_XEN_HYPERCALL_PAGE = 0x40000000
MSR_EFER, MSR_FS_BASE, MSR_GS_BASE, MSR_SHADOW_GS_BASE = 0xC0000080, 0xC0000100, 0xC0000101, 0xC0000102
MSR_K8_HWCR, MSR_AMD64_NB_CFG, MSR_AMD64_DE_CFG = 0xC0010015, 0xC001001F, 0xC0011029

EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1, 1 << 8, 1 << 10, 1 << 11
XEN_MSR_PAT = 0x050100070406
APIC_BASE = 0xFEE00800  # the default address, enabled
APIC_BASE_BSP = 0x100
AMD64_DE_CFG_LFENCE_SERIALISE = 1 << 1
GUEST_MC_BANK_NUM = 2

_K7_PERF = (*range(0xC0010000, 0xC0010008), *range(0xC0010200, 0xC001020C))
_PSTATES = (0xC0010041, 0xC0010042, *range(0xC0010061, 0xC001006C))
_MC_BANKS = (*range(0x280, 0x2A0), *range(0x400, 0x480))
_READ_AS_ZERO = frozenset(
    (
        *(0, 1),  # MSR_P5_MC_ADDR, MSR_P5_MC_TYPE
        MSR_AMD_PATCHLEVEL,
        MSR_INTEL_PLATFORM_INFO,
        MSR_INTEL_MISC_FEATURES_ENABLES,
        MSR_IA32_MCG_CTL,
        MSR_IA32_PERF_CAPABILITIES,
        MSR_XEN_HYPERCALL_PAGE,
        MSR_K8_HWCR,
        MSR_AMD64_NB_CFG,
        *_MC_BANKS,
        *_K7_PERF,
        *_PSTATES,
    )
)
_WRITES_IGNORED = frozenset(
    (
        MSR_IA32_MPERF,
        MSR_IA32_APERF,
        MSR_IA32_MCG_CAP,
        MSR_IA32_MCG_CTL,
        *_MC_BANKS,
        MSR_K8_HWCR,
        MSR_AMD64_NB_CFG,
        MSR_AMD64_DE_CFG,
        *_K7_PERF,
        *_PSTATES,
    )
)
# What the processor itself has beside the above. A guest without a #GP handler reads these as 0.
_HARDWARE = frozenset(
    (
        *(MSR_IA32_TSC, 0xFE, 0x174, 0x175, 0x176, 0x1D9, *range(0x1DB, 0x1DF)),
        *(*range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF),  # MTRRs
        *(*range(0xC0000080, 0xC0000085), *range(0xC0000100, 0xC0000103)),
        *(0xC0010010, *range(0xC0010016, 0xC001001E), 0xC0010055, 0xC0010111, 0xC0010112, 0xC0010113),
    )
)


def guest_efer(v: Vcpu) -> int:
    """EFER without what a 32-bit guest cannot use."""
    return EFER_SCE | EFER_NXE | (0 if v.domain.abi.is_32bit else EFER_LME | EFER_LMA)


def _apic_base(v: Vcpu) -> int:
    return APIC_BASE | (0 if v.vcpu_id else APIC_BASE_BSP)


_READERS: dict[int, Callable[[Vcpu], int]] = {
    MSR_IA32_TSC: lambda v: v.domain.clock.now() * TSC_PER_NS,
    MSR_APIC_BASE: _apic_base,
    MSR_IA32_MCG_CAP: lambda _v: GUEST_MC_BANK_NUM,
    MSR_IA32_MCG_STATUS: lambda v: v.mcg_status,
    MSR_IA32_CR_PAT: lambda _v: XEN_MSR_PAT,
    MSR_EFER: guest_efer,
    MSR_AMD64_DE_CFG: lambda _v: AMD64_DE_CFG_LFENCE_SERIALISE,
}
_READERS_64: dict[int, Callable[[Vcpu], int]] = {
    MSR_FS_BASE: lambda v: v.domain.engine.segment_base(FS),
    MSR_GS_BASE: lambda v: v.domain.engine.segment_base(GS),
    MSR_SHADOW_GS_BASE: lambda v: v.gs_base_user,
}


def read_msr(v: Vcpu, msr: int) -> int:
    """The 64-bit value of `msr`. Raises GuestFault(#GP) where the guest may not look."""
    reader = _READERS.get(msr)
    if reader is None and not v.domain.abi.is_32bit:
        reader = _READERS_64.get(msr)
    if reader is not None:
        return reader(v)
    if MSR_IA32_MC0_CTL <= msr < MSR_IA32_MC0_CTL + 4 * GUEST_MC_BANK_NUM and not msr & 3:
        return 0xFFFFFFFFFFFFFFFF  # MCi_CTL
    if msr in _READ_AS_ZERO:
        return 0
    if msr in _HARDWARE and not v.trap_ctxt[TRAP_gp_fault][2]:
        return 0  # "faking RDMSR"
    raise GuestFault(TRAP_gp_fault, 0)


def _write_hypercall_page(v: Vcpu, value: int) -> bool:
    """guest_wrmsr_xen(): fill the named frame with hypercall stubs."""
    from hvcore.pv.hypercall import init_hypercall_page

    d = v.domain
    mfn = value >> 12
    if value % PAGE_SIZE or not d.mm.get_page_writable(mfn):
        return False
    init_hypercall_page(d.mem.frame(mfn), ring1=d.abi.is_32bit)
    d.engine.flush_code(mfn << 12, (mfn + 1) << 12)
    d.mm.put_page_and_type(mfn)
    return True


def _write_segment_base(v: Vcpu, msr: int, value: int) -> bool:
    if v.domain.abi.is_32bit or not is_canonical_address(value):
        return False
    if msr == MSR_SHADOW_GS_BASE:
        v.gs_base_user = value
    else:
        v.domain.engine.set_segment_base(FS if msr == MSR_FS_BASE else GS, value)
    return True


def _write(v: Vcpu, msr: int, value: int) -> bool:
    """Store into `msr`; False where that is refused."""
    if msr in (MSR_FS_BASE, MSR_GS_BASE, MSR_SHADOW_GS_BASE):
        return _write_segment_base(v, msr, value)
    if msr == MSR_EFER:  # Linux writes back what it read
        return value == guest_efer(v)
    if msr == MSR_IA32_MCG_STATUS:
        v.mcg_status = value
        return True
    if MSR_IA32_MC0_CTL <= msr < MSR_IA32_MC0_CTL + 4 * GUEST_MC_BANK_NUM:
        return not msr & 3 or not value  # status, address and misc can only be cleared
    if msr == MSR_INTEL_MISC_FEATURES_ENABLES:
        return not value
    if msr == MSR_XEN_HYPERCALL_PAGE:
        return _write_hypercall_page(v, value)
    return msr in _WRITES_IGNORED


def write_msr(v: Vcpu, msr: int, value: int) -> None:
    """Write the 64-bit `value`. Raises GuestFault(#GP) where the guest may not."""
    if not _write(v, msr, value):
        raise GuestFault(TRAP_gp_fault, 0)


def rdmsr(v: Vcpu) -> None:
    """The `rdmsr` instruction, registers and all."""
    q = v.domain.engine.q
    value = read_msr(v, q[RCX] & 0xFFFFFFFF)
    q[RAX], q[RDX] = value & 0xFFFFFFFF, value >> 32


def wrmsr(v: Vcpu) -> None:
    """The `wrmsr` instruction."""
    q = v.domain.engine.q
    write_msr(v, q[RCX] & 0xFFFFFFFF, (q[RDX] & 0xFFFFFFFF) << 32 | q[RAX] & 0xFFFFFFFF)
