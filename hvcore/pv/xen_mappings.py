"""Xen's own part of a guest's address space: the M2P table, and each vCPU's GDT and LDT.

A PAE guest runs in compatibility mode under a four-level root of Xen's own, whose slot 0 points to the
guest's L3: what lies at and above L4 slot 256 is out of its reach, and the GDT lives there as it does under
Xen. A 64-bit guest has Xen's slots 256 to 271 in its own L4. A two-level guest, which no 64-bit Xen runs, has
them at the top of its L2, as under the last 32-bit Xen. There segment limits kept ring 1 out of them, and the
engine knows none: so nothing there is writable, and traps.py makes faults there those of a limit.
Source: xen/arch/x86/include/asm/config.h, init_xen_l4_slots() and init_xen_pae_l2_slots() in mm.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.cpu.processor import GDTR, IDTR, TR
from hvcore.pv.descriptor_tables import FIRST_RESERVED_GDT_PAGE
from hvcore.x86 import PAGE_NX

if TYPE_CHECKING:
    from hvcore.abi import Abi
    from hvcore.cpu.engine import Engine
    from hvcore.domain import Domain
    from hvcore.machine_memory import MachineMemory
    from hvcore.vcpu import Vcpu

PERDOMAIN_VIRT_START = 0xFFFF820000000000  # PML4 slot 260
PERDOMAIN_VIRT_START_2LEVEL = 0xFF800000
GDT_LDT_VCPU_SHIFT = 17  # 16 pages of GDT and 16 of LDT for each vCPU
LDT_OFFSET = 1 << 16
GDT_LIMIT = 0xEFFF

_PTES_PER_VCPU = 32
_HYPERVISOR_RW = 0x63  # present, writable, accessed, dirty; never for user mode
_HYPERVISOR_RO = 0x21
_M2P_L2E = 0x81  # a read-only superpage: present, PSE
_M2P_SUPERPAGE = 512
_L2_FRAMES = 512 * 512
_PSE = 0x80

FIRST_XEN_L4_SLOT, FIRST_GUEST_L4_SLOT = 256, 272
ROOT_M2P_SLOT, ROOT_LINEAR_SLOT, ROOT_PERDOMAIN_SLOT = 256, 258, 260
ROOT_XEN_SLOT, ROOT_DIRECTMAP_SLOT = 261, 262
_TSS_SELECTOR = 0xE040
_TSS_FLAGS = 0x8B00  # a busy 64-bit TSS


class XenMappings:
    """The hypervisor's page tables for one domain."""

    def __init__(self, domain: Domain, engine: Engine) -> None:
        self.domain = domain
        self.abi: Abi = domain.abi
        self.mem: MachineMemory = domain.mem
        self.engine = engine
        self.two_level = self.abi.pt_levels == 2
        self.first_xen_l2_slot = self._first_xen_l2_slot()
        self.m2p = self.mem.use_m2p(self.abi.m2p_entry)
        self._perdomain_l1: list[int] = []
        if self.two_level:
            self._perdomain_l1.append(self.domain.alloc_xenheap_page())
            self._m2p_l1 = self.domain.alloc_xenheap_page()
            self._fill(self._m2p_l1, [self.m2p.mfn + i for i in range(self.m2p.frames)], 0x21)
        else:
            self._perdomain_l3 = self.domain.alloc_xenheap_page()
            perdomain_l2 = self.domain.alloc_xenheap_page()
            self._set(self._perdomain_l3, 0, perdomain_l2 << 12 | _HYPERVISOR_RW)
            for i in range(2):
                self._perdomain_l1.append(self.domain.alloc_xenheap_page())
                self._set(perdomain_l2, i, self._perdomain_l1[i] << 12 | _HYPERVISOR_RW)
        self._m2p_l3 = self._native_m2p() if self.abi.pt_levels == 4 else 0
        self._xen_l3 = self.domain.alloc_xenheap_page() if self.abi.pt_levels == 4 else 0
        self._directmap_l3 = self._directmap() if self.abi.pt_levels == 4 else 0
        self.gdt_page_mfn = self.domain.alloc_xenheap_page()
        self.initial_state = b""  # a processor in the mode of this guest, with nothing loaded

    def current(self) -> Vcpu:
        """The vCPU in the engine."""
        return self.domain.vcpus[self.domain.current_id]

    # -- tables

    def _set(self, mfn: int, slot: int, entry: int) -> None:
        if self.two_level:
            self.mem.d[((mfn - self.mem.base_mfn) << 10) + slot] = entry & 0xFFFFFFFF
        else:
            self.mem.q[((mfn - self.mem.base_mfn) << 9) + slot] = entry

    def _fill(self, mfn: int, targets: list[int], flags: int) -> None:
        for slot, target in enumerate(targets):
            self._set(mfn, slot, target << 12 | flags)

    def _first_xen_l2_slot(self) -> int:
        start = self.abi.hypervisor_virt_start
        return start >> 22 if self.two_level else (start >> 21) & 511

    def _native_m2p(self) -> int:
        """L3 and L2 tables that show the M2P to 64-bit guests, read-only, by superpages."""
        l3, l2 = self.domain.alloc_xenheap_page(), self.domain.alloc_xenheap_page()
        self._set(l3, 0, l2 << 12 | PAGE_NX | 0x25)
        for i in range(self.m2p.frames // _M2P_SUPERPAGE):
            self._set(l2, i, (self.m2p.mfn + _M2P_SUPERPAGE * i) << 12 | PAGE_NX | 0xA5)
        return l3

    def _directmap(self) -> int:
        """L3 and L2 tables that show all memory to Xen alone, by superpages as far as memory fills them."""
        l3, l2 = self.domain.alloc_xenheap_page(), 0
        for mfn in range(self.mem.base_mfn, self.mem.end_mfn, _M2P_SUPERPAGE):
            if not l2 or mfn % _L2_FRAMES == 0:
                l2 = self.domain.alloc_xenheap_page()
                self._set(l3, mfn // _L2_FRAMES % 512, l2 << 12 | _HYPERVISOR_RW)
            if mfn % _M2P_SUPERPAGE == 0 and mfn + _M2P_SUPERPAGE <= self.mem.end_mfn:
                self._set(l2, mfn // _M2P_SUPERPAGE % 512, mfn << 12 | PAGE_NX | _HYPERVISOR_RW | _PSE)
        return l3

    def init_xen_l2_slots(self, start: int, _mfn: int) -> None:
        """Xen's slots of a PAE guest's fourth L2, or of a two-level guest's L2 (`start`: its first entry)."""
        if self.two_level:
            slots = [0] * (1024 - self.first_xen_l2_slot)
            slots[0] = self._m2p_l1 << 12 | 0x21
            slots[(PERDOMAIN_VIRT_START_2LEVEL >> 22) - self.first_xen_l2_slot] = (
                self._perdomain_l1[0] << 12 | _HYPERVISOR_RW
            )
            for i, entry in enumerate(slots, start + self.first_xen_l2_slot):
                self.mem.d[i] = entry
            return
        q, first = self.mem.q, start + self.first_xen_l2_slot
        for i in range(512 - self.first_xen_l2_slot):
            covered = _M2P_SUPERPAGE * i < self.m2p.frames
            q[first + i] = (self.m2p.mfn + _M2P_SUPERPAGE * i) << 12 | _M2P_L2E if covered else 0

    def init_xen_l4_slots(self, start: int) -> None:
        """Xen's slots of a 64-bit guest's L4, whose first entry is `start`."""
        own = ((start >> 9) + self.mem.base_mfn) << 12
        for slot, entry in enumerate(self.xen_l4_slots(), FIRST_XEN_L4_SLOT):
            self.mem.q[start + slot] = entry | own if slot == ROOT_LINEAR_SLOT else entry

    def xen_l4_slots(self) -> list[int]:
        """What stands in Xen's slots of every L4; the linear one still lacks the L4's own frame."""
        entries = {
            ROOT_M2P_SLOT: self._m2p_l3 << 12 | PAGE_NX | 0x25,
            ROOT_LINEAR_SLOT: PAGE_NX | _HYPERVISOR_RW,
            ROOT_PERDOMAIN_SLOT: self._perdomain_l3 << 12 | PAGE_NX | _HYPERVISOR_RW,
            ROOT_XEN_SLOT: self._xen_l3 << 12 | _HYPERVISOR_RW,  # nothing: Xen itself runs elsewhere
            ROOT_DIRECTMAP_SLOT: self._directmap_l3 << 12 | PAGE_NX | _HYPERVISOR_RW,
        }
        return [entries.get(slot, 0) for slot in range(FIRST_XEN_L4_SLOT, FIRST_GUEST_L4_SLOT)]

    # -- address spaces

    def write_ptbase(self, v: Vcpu) -> None:
        """Load the engine's CR3 with the page table of the vCPU's mode, as a flush of the TLB."""
        root = mfn = v.root_mfn
        if self.abi.pt_levels == 3:
            if not v.compat_l4:
                v.compat_l4 = self.domain.alloc_xenheap_page()
                self._set(
                    v.compat_l4, ROOT_PERDOMAIN_SLOT, self._perdomain_l3 << 12 | PAGE_NX | _HYPERVISOR_RW
                )
            self._set(v.compat_l4, 0, mfn << 12 | 0x27)
            mfn = v.compat_l4
        self.engine.load_space(mfn << 12, root)

    # -- descriptor tables

    def gdt_virt_start(self, v: Vcpu) -> int:
        """GDT_VIRT_START(v): where the processor finds this vCPU's GDT."""
        base = PERDOMAIN_VIRT_START_2LEVEL if self.two_level else PERDOMAIN_VIRT_START
        return base + (v.vcpu_id << GDT_LDT_VCPU_SHIFT)

    def ldt_virt_start(self, v: Vcpu) -> int:
        """LDT_VIRT_START(v)."""
        return self.gdt_virt_start(v) + LDT_OFFSET

    def _map_perdomain(self, v: Vcpu, page: int, mfn: int) -> None:
        index = v.vcpu_id * _PTES_PER_VCPU + page
        per_table = 1024 if self.two_level else 512
        flags = _HYPERVISOR_RO if self.two_level else _HYPERVISOR_RW | PAGE_NX
        entry = mfn << 12 | flags if mfn else 0
        self._set(self._perdomain_l1[index // per_table], index % per_table, entry)

    def perdomain_ptes(self, v: Vcpu) -> int:
        """Where the L1 entries of the vCPU's GDT and LDT begin in `mem.q`; not for two-level guests."""
        index = v.vcpu_id * _PTES_PER_VCPU
        return ((self._perdomain_l1[index // 512] - self.mem.base_mfn) << 9) + index % 512

    def map_gdt_frame(self, v: Vcpu, slot: int, mfn: int) -> None:
        """Put a frame at page `slot` of the vCPU's GDT (0: take it away)."""
        self._map_perdomain(v, slot, mfn)

    def map_ldt_page(self, v: Vcpu, slot: int, mfn: int) -> None:
        """Put a frame at page `slot` of the vCPU's LDT (0: take it away)."""
        self._map_perdomain(v, 16 + slot, mfn)

    def load_descriptor_tables(self, v: Vcpu) -> None:
        """Point the engine's GDTR, IDTR and TR at the vCPU's tables. The TSS is empty: no port is open."""
        self.map_gdt_frame(v, FIRST_RESERVED_GDT_PAGE, self.gdt_page_mfn)
        self.engine.set_table(GDTR, self.gdt_virt_start(v), GDT_LIMIT)
        self.engine.set_table(IDTR, 0xFFFF82D040581000 & self._address_mask(), 0xFFF)
        self.engine.set_table(TR, 0, 0, _TSS_SELECTOR, _TSS_FLAGS)  # too short for a bitmap

    def _address_mask(self) -> int:
        return 0xFFFFFFFF if self.two_level else (1 << 64) - 1
