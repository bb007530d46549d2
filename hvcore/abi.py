"""How the PV guest ABIs differ, in one place: widths, selectors, address-space split, shared_info layout.

Sources: xen/include/public/arch-x86/xen-x86_32.h, xen-x86_64.h and xen.h of Xen 4.17. Offsets are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Abi:
    """One guest ABI. `word` is sizeof(xen_ulong_t); selectors are the flat ones of Xen's own GDT page."""

    name: str
    word: int
    word_format: str  # struct code of xen_ulong_t
    pt_levels: int  # levels the guest sees: 2, 3 (PAE) or 4
    pte_size: int
    kernel_cpl: int
    hypervisor_virt_start: int
    hypervisor_virt_end: int
    m2p_virt_start: int
    m2p_entry: int  # bytes of one machine_to_phys_mapping entry
    flat_kernel_cs: int
    flat_kernel_ss: int
    flat_user_cs: int
    flat_user_ss: int

    @property
    def is_32bit(self) -> bool:
        """is_pv_32bit_domain()."""
        return self.word == 4

    @property
    def word_bits(self) -> int:
        """BITS_PER_EVTCHN_WORD."""
        return self.word * 8

    @property
    def word_mask(self) -> int:
        """All ones in a xen_ulong_t."""
        return (1 << self.word_bits) - 1

    @property
    def nr_evtchns(self) -> int:
        """EVTCHN_2L_NR_CHANNELS: 1024 for 32-bit guests, 4096 for 64-bit ones."""
        return self.word_bits * self.word_bits

    # struct vcpu_info
    @property
    def vcpu_pending_sel(self) -> int:
        """Offset of evtchn_pending_sel in vcpu_info."""
        return self.word

    @property
    def vcpu_cr2(self) -> int:
        """Offset of arch.cr2 in vcpu_info."""
        return 2 * self.word

    # struct shared_info
    @property
    def evtchn_pending(self) -> int:
        """Offset of evtchn_pending[] in shared_info."""
        return 0x800

    @property
    def evtchn_mask(self) -> int:
        """Offset of evtchn_mask[] in shared_info."""
        return 0x800 + self.word * self.word_bits

    @property
    def wallclock(self) -> int:
        """Offset of wc_version in shared_info; wc_sec and wc_nsec follow."""
        return 0x800 + 2 * self.word * self.word_bits

    @property
    def wc_sec_hi(self) -> int:
        """Offset of wc_sec_hi in shared_info."""
        return 0x924 if self.is_32bit else 0xC0C

    @property
    def arch_shared_info(self) -> int:
        """Offset of arch (max_pfn, pfn_to_mfn_frame_list_list, ...) in shared_info."""
        return self.wallclock + (12 if self.is_32bit else 16)


VCPU_INFO_SIZE = 64
VCPU_UPCALL_PENDING = 0
VCPU_UPCALL_MASK = 1
VCPU_TIME = 0x20  # struct vcpu_time_info in vcpu_info
XEN_LEGACY_MAX_VCPUS = 32

FLAT_RING1_CS = 0xE019
FLAT_RING1_DS = 0xE021
FLAT_RING3_CS32 = 0xE023  # as PV64 names it
FLAT_RING3_CS64 = 0xE033
FLAT_RING3_DS = 0xE02B

PV32_PAE = Abi(
    name="xen-3.0-x86_32p",
    word=4,
    word_format="I",
    pt_levels=3,
    pte_size=8,
    kernel_cpl=1,
    hypervisor_virt_start=0xF5800000,
    hypervisor_virt_end=0x1_0000_0000,
    m2p_virt_start=0xF5800000,
    m2p_entry=4,
    flat_kernel_cs=FLAT_RING1_CS,
    flat_kernel_ss=FLAT_RING1_DS,
    flat_user_cs=0xE02B,
    flat_user_ss=0xE033,
)

PV32_2LEVEL = replace(
    PV32_PAE,
    name="xen-3.0-x86_32",
    pt_levels=2,
    pte_size=4,
    hypervisor_virt_start=0xFC000000,
    m2p_virt_start=0xFC000000,
)

PV64 = Abi(
    name="xen-3.0-x86_64",
    word=8,
    word_format="Q",
    pt_levels=4,
    pte_size=8,
    kernel_cpl=3,
    hypervisor_virt_start=0xFFFF800000000000,
    hypervisor_virt_end=0xFFFF880000000000,
    m2p_virt_start=0xFFFF800000000000,
    m2p_entry=8,
    flat_kernel_cs=FLAT_RING3_CS64,
    flat_kernel_ss=FLAT_RING3_DS,
    flat_user_cs=FLAT_RING3_CS64,
    flat_user_ss=FLAT_RING3_DS,
)

ABIS: dict[str, Abi] = {abi.name: abi for abi in (PV32_PAE, PV32_2LEVEL, PV64)}
