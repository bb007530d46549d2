"""A small domain without a processor: real memory, clock and hypercall state, an identity-like page walk.

Guest virtual page N is pseudo-physical page N, which is machine frame `first_mfn + N`. Pages from `NR_PAGES`
on do not exist, those in `read_only` refuse stores.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest

from hvcore import abi as abi_module
from hvcore.clock import CELL_WORDS, Clock
from hvcore.common.domain import create_dom0
from hvcore.common.event import EvtchnTable
from hvcore.common.grant_table import GrantTable
from hvcore.domain import Domain
from hvcore.guest_access import GuestAccess
from hvcore.machine_memory import MachineMemory
from hvcore.page_info import FrameTable, PGC_allocated, PGT_writable_page
from hvcore.trace import Trace
from hvcore.vcpu import Vcpu, VPF_down

if TYPE_CHECKING:
    from collections.abc import Callable

NR_PAGES = 64


class FakeMm:
    """The services of pv/mm.py that the common hypercalls lean on: references, types, frames, grant mappings.

    `busy` frames cannot be had as writable ones, as page tables cannot.
    """

    def __init__(self, d: Domain) -> None:
        self.d = d
        self.busy: set[int] = set()
        self.host_maps: list[tuple[int, int, int]] = []
        self.refuse_host_map = 0
        self.tlb_flushes = 0

    def _index(self, mfn: int) -> int:
        i = mfn - self.d.mem.base_mfn
        frames = self.d.frames
        return i if 0 <= i < frames.nr and frames.owner[i] == self.d.domain_id and frames.count[i] else -1

    def get_page(self, mfn: int) -> bool:
        i = self._index(mfn)
        if i < 0:
            return False
        self.d.frames.count[i] += 1
        return True

    def put_page(self, mfn: int) -> None:
        i = self._index(mfn)
        assert i >= 0
        frames = self.d.frames
        frames.count[i] -= 1
        if not frames.count[i]:
            assert not frames.tcount[i]
            frames.free_domheap_page(i)

    def get_page_type(self, mfn: int, ptype: int) -> int:
        assert ptype == PGT_writable_page
        if mfn in self.busy:
            return -22
        self.d.frames.tcount[self._index(mfn)] += 1
        return 0

    def put_page_type(self, mfn: int) -> None:
        assert self.d.frames.tcount[self._index(mfn)] > 0
        self.d.frames.tcount[self._index(mfn)] -= 1

    def put_page_and_type(self, mfn: int) -> None:
        self.put_page_type(mfn)
        self.put_page(mfn)

    def get_page_writable(self, mfn: int) -> bool:
        if not self.get_page(mfn):
            return False
        if self.get_page_type(mfn, PGT_writable_page):
            self.put_page(mfn)
            return False
        return True

    def guest_remove_page(self, mfn: int) -> int:
        i = self._index(mfn)
        if i < 0:
            return -22
        if self.d.frames.flags[i] & PGC_allocated:
            self.d.frames.flags[i] &= ~PGC_allocated
            self.put_page(mfn)
        return 0

    def alloc_domheap_page(self) -> int:
        i = self.d.frames.alloc_domheap_page(self.d.domain_id)
        if i < 0:
            return -1
        mfn = i + self.d.frames.base_mfn
        self.d.mem.frame(mfn)[:] = bytes(4096)
        return mfn

    def flush_tlb(self) -> None:
        self.tlb_flushes += 1

    def create_grant_host_mapping(self, addr: int, mfn: int, flags: int, cache_flags: int) -> int:
        assert cache_flags == 0
        if self.refuse_host_map:
            return self.refuse_host_map
        self.host_maps.append((addr, mfn, flags))
        return 0

    def replace_grant_host_mapping(self, addr: int, mfn: int, new_addr: int, flags: int) -> int:
        for i, (a, m, f) in enumerate(self.host_maps):
            if a == addr and m == mfn:
                del self.host_maps[i]
                if new_addr:
                    self.host_maps.append((new_addr, m, f))
                return 0
        return -1


class Guest:
    """One domain and handy ways to act as its kernel; hypercall arguments go to page 1.

    `beside` is another domain, whose machine it shares: one made for `domains` of them.
    """

    ARG = 0x1000

    def __init__(
        self, abi: abi_module.Abi, max_vcpus: int, *, domains: int = 1, beside: Guest | None = None
    ) -> None:
        if beside is None:
            mem = MachineMemory(domains * NR_PAGES, domains=domains)
            frames = FrameTable(mem.base_mfn, mem.end_mfn - mem.base_mfn)
            self.cell = memoryview(bytearray(8 * CELL_WORDS)).cast("q")
            self.cell[0] = 1 << 40
            clock, domain_list = Clock(self.cell), {}
        else:
            mem, frames, self.cell = beside.d.mem, beside.d.frames, beside.cell
            clock, domain_list = beside.d.clock, beside.d.domain_list
        domid = max(domain_list, default=0) + 1
        self.first_mfn = mem.first_mfn + (domid - 1) * NR_PAGES
        frames.assign(self.first_mfn, NR_PAGES, domid)
        mem.use_m2p(abi.m2p_entry)
        shared_info_mfn = mem.alloc_xenheap_page()
        d = Domain(
            abi=abi,
            mem=mem,
            frames=frames,
            clock=clock,
            domain_id=domid,
            domain_list=domain_list,
            shared_info_mfn=shared_info_mfn,
            shared_info=mem.frame(shared_info_mfn),
            nr_pages=NR_PAGES,
            max_pages=NR_PAGES + 256,
            max_vcpus=max_vcpus,
        )
        self.d = d
        self.read_only: set[int] = set()
        self.reschedules = 0
        d.guest = GuestAccess(abi, mem, self.walk)
        mm: Any = FakeMm(d)
        d.mm = mm
        self.mm: FakeMm = mm
        d.trace = Trace()
        d.reschedule = self._reschedule
        if beside is None:
            create_dom0(mem, frames, domain_list)
        d.evtchn = EvtchnTable(d)
        d.grant_table = GrantTable(d)
        d.vcpus = [Vcpu(d, i) for i in range(max_vcpus)]
        for v in d.vcpus:
            v.info[1] = 1
        d.vcpus[0].pause_flags &= ~VPF_down
        d.vcpus[0].is_initialised = True
        self.v = d.vcpus[0]

    def walk(self, va: int, write: bool) -> int:
        page = va >> 12
        if page >= NR_PAGES or (write and page in self.read_only):
            return -1
        return (self.first_mfn - self.d.mem.base_mfn + page) << 12

    def m2p(self, mfn: int) -> int:
        """What the machine-to-phys table says of a frame."""
        pfn: int = self.d.mem.m2p[self.d.abi.m2p_entry].words[mfn]
        return pfn

    def _reschedule(self) -> None:
        self.reschedules += 1

    def call(self, op: Callable[..., int], cmd: int, fmt: str, *fields: int, vcpu: int = 0) -> int:
        """Store the argument at ARG and make the hypercall, as the dispatcher would."""
        from hvcore.errors import GuestError

        self.d.guest.copy_to(self.ARG, struct.pack("<" + fmt, *fields))
        self.d.current_id = vcpu
        try:
            return op(self.d.vcpus[vcpu], cmd, self.ARG)
        except GuestError as e:
            return -e.errno

    def result(self, fmt: str) -> tuple[int, ...]:
        """The argument as the hypercall left it."""
        layout = struct.Struct("<" + fmt)
        return layout.unpack(self.d.guest.copy_from(self.ARG, layout.size))

    def memory(self, page: int) -> memoryview:
        return self.d.mem.frame(self.first_mfn + page)

    def run_to(self, when: int) -> None:
        """Let virtual time pass, firing what becomes due."""
        self.d.clock.advance_to(when)
        self.d.clock.run_due()


ABIS = [abi_module.PV32_PAE, abi_module.PV64]


@pytest.fixture(params=ABIS, ids=["pv32", "pv64"])
def guest(request: pytest.FixtureRequest) -> Guest:
    return Guest(request.param, 2)


@pytest.fixture
def guest32() -> Guest:
    return Guest(abi_module.PV32_PAE, 2)


@pytest.fixture
def guest64() -> Guest:
    return Guest(abi_module.PV64, 2)
