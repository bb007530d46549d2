"""What CPUID tells the guest: xen/arch/x86/cpuid.c, cpu-policy.c and cpuid_hypervisor_leaves() of traps.c.

The processor is always the same: an early AMD64 processor by family and model, so that no guest looks for
errata of a later one, with the later instructions that the engine really executes. Left out on purpose are
what the engine lacks (AVX, XSAVE's users), what is not repeatable (RDRAND, RDSEED) and what Xen hides from a
PV guest: paging and CR4 features, MTRRs, ACPI, SVM, SYSENTER on AMD; a 32-bit guest also loses what needs
long mode. The policy is Xen's PV default, worked out here once for each width.

Xen can answer only the `cpuid` that it sees: the forced-emulation one, and the plain one where the processor
has CPUID faulting. Here every `cpuid` exits, so every one is answered, as with CPUID faulting.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING

from hvcore.clock import TSC_PER_NS

if TYPE_CHECKING:
    from hvcore.vcpu import Vcpu

Leaf = tuple[int, int, int, int]  # EAX, EBX, ECX, EDX

VENDOR = b"AuthenticAMD"
BRAND = b"Unicorn AMD64 processor under hvcore"
FAMILY_MODEL_STEPPING = 0x00000F51  # family 15, model 5, stepping 1
CLFLUSH_LINE = 8 << 8
XEN_SIGNATURE = b"XenVMMXenVMM"
XEN_VERSION = 4 << 16 | 17
XEN_CPUID_MAX_NUM_LEAVES = 5
CPU_KHZ = TSC_PER_NS * 1_000_000

EMPTY_LEAF: Leaf = (0, 0, 0, 0)


def _bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


# Leaf 1 EDX. The four of the second line are machine features, which a PV guest sees nevertheless.
FPU, DE, TSC, MSR, PAE, CX8, CMOV, CLFLUSH, MMX, FXSR, SSE, SSE2 = 0, 2, 4, 5, 6, 8, 15, 19, 23, 24, 25, 26
MCE, APIC, MCA, PAT = 7, 9, 14, 16
FEATURES_1D = _bits(FPU, DE, TSC, MSR, PAE, CX8, CMOV, CLFLUSH, MMX, FXSR, SSE, SSE2, MCE, APIC, MCA, PAT)
# Features that AMD repeats in leaf 0x80000001 (CPUID_COMMON_1D_FEATURES).
COMMON_1D = _bits(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 23, 24)

# Leaf 1 ECX.
SSE3, PCLMULQDQ, SSSE3, CX16, SSE4_1, SSE4_2 = 0, 1, 9, 13, 19, 20
MOVBE, POPCNT, AESNI, HYPERVISOR = 22, 23, 25, 31
FEATURES_1C = _bits(SSE3, PCLMULQDQ, SSSE3, CX16, SSE4_1, SSE4_2, MOVBE, POPCNT, AESNI, HYPERVISOR)

# Leaf 0x80000001 EDX and ECX.
SYSCALL, NX, MMXEXT, LM = 11, 20, 22, 29
FEATURES_E1D = _bits(SYSCALL, NX, MMXEXT, LM)
LAHF_LM, ABM, PREFETCHW = 0, 5, 8
FEATURES_E1C = _bits(LAHF_LM, ABM, PREFETCHW)

_L1_CACHE = 0x40020140  # 64 KB, two-way, 64-byte lines
_L2_CACHE = 0x02008140  # 512 KB, 16-way, 64-byte lines
_ADDRESS_SIZES = 48 << 8 | 40


def _vendor() -> Leaf:
    b, d, c = struct.unpack("<III", VENDOR)
    return 0, b, c, d


@cache
def policy(is_32bit: bool) -> dict[int, Leaf]:
    """Every leaf that is not empty (struct cpu_policy), by guest width. Leaves know no subleaves."""
    _, b, c, d = _vendor()
    f1c, e1d, e1c = FEATURES_1C, FEATURES_E1D | FEATURES_1D & COMMON_1D, FEATURES_E1C
    if is_32bit:
        f1c &= ~_bits(CX16)
        e1d &= ~_bits(LM)
        e1c &= ~_bits(LAHF_LM)
    words = struct.unpack("<12I", BRAND.ljust(48, b"\0"))
    return {
        0x0: (1, b, c, d),
        0x1: (FAMILY_MODEL_STEPPING, CLFLUSH_LINE, f1c, FEATURES_1D),
        0x80000000: (0x80000008, b, c, d),
        0x80000001: (FAMILY_MODEL_STEPPING, 0, e1c, e1d),
        0x80000002: words[0:4],
        0x80000003: words[4:8],
        0x80000004: words[8:12],
        0x80000005: (0, 0, _L1_CACHE, _L1_CACHE),
        0x80000006: (0, 0, _L2_CACHE, 0),
        0x80000008: (_ADDRESS_SIZES, 0, 0, 0),
    }


def _time_leaf(subleaf: int) -> Leaf:
    """Leaf 3: a safe host TSC read directly (tsc_mode default), its scale, the CPU's speed."""
    if subleaf == 0:
        return 1 << 1, 0, CPU_KHZ, 1
    if subleaf == 1:
        return 0, 0, (1 << 32) // TSC_PER_NS, 0
    return (CPU_KHZ, 0, 0, 0) if subleaf == 2 else EMPTY_LEAF


def cpuid_hypervisor_leaves(v: Vcpu, leaf: int, subleaf: int) -> Leaf:
    """Leaves 0x40000000 to 0x400001ff: Xen's own."""
    index = leaf - 0x40000000
    if index == 0:
        b, c, d = struct.unpack("<III", XEN_SIGNATURE)
        return 0x40000000 + XEN_CPUID_MAX_NUM_LEAVES, b, c, d
    if index == 1:
        return XEN_VERSION, 0, 0, 0
    if index == 2:  # one hypercall page, MSR 0x40000000, XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD
        return 1, 0x40000000, 1, 0
    if index == 3:
        return _time_leaf(subleaf)
    if index == 5 and subleaf == 0:  # the width of a machine address
        return 0, (v.domain.mem.end_mfn - 1).bit_length() + 12, 0, 0
    return EMPTY_LEAF


def pv_cpuid(v: Vcpu, leaf: int, subleaf: int) -> Leaf:
    """guest_cpuid(): EAX, EBX, ECX, EDX of a leaf. Leaves out of range are empty, as AMD has it."""
    if leaf & 0xFFFFFE00 == 0x40000000:
        return cpuid_hypervisor_leaves(v, leaf, subleaf)
    return policy(v.domain.abi.is_32bit).get(leaf, EMPTY_LEAF)
