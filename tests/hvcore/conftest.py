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
from hvcore.domain import Domain
from hvcore.guest_access import GuestAccess
from hvcore.machine_memory import MachineMemory
from hvcore.page_info import FrameTable, PGT_l1_page_table
from hvcore.pv.mm import PageTables
from hvcore.pv.page_walk import PageWalk
from hvcore.vcpu import VPF_down
from hvcore.wiring import connect_domains, create_domain
from tests.hvcore import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hvcore.pv.page_types import Tlb

NR_PAGES = 64


class FlatTables(PageTables):
    """Frames with real references and types, and no page tables: what is mapped by grants is noted down.

    While `refuse_host_map` is not 0 grants cannot be mapped, for that reason.
    """

    def __init__(self, d: Domain, tlb: Tlb) -> None:
        super(PageWalk, self).__init__(d, tlb)
        self.host_maps: list[tuple[int, int, int]] = []
        self.refuse_host_map = 0

    def make_table(self, mfn: int) -> None:
        """Use a frame as a page table: nobody can have it as a writable one."""
        self.ptype[mfn - self.base], self.tcount[mfn - self.base] = PGT_l1_page_table, 1

    def end_table(self, mfn: int) -> None:
        self.tcount[mfn - self.base] = 0

    def create_grant_host_mapping(self, addr: int, mfn: int, flags: int, _cache_flags: int) -> int:
        assert _cache_flags == 0
        if self.refuse_host_map:
            return self.refuse_host_map
        self.host_maps.append((addr, mfn, flags))
        return 0

    def replace_grant_host_mapping(self, addr: int, mfn: int, new_addr: int, _flags: int) -> int:
        for i, (a, m, f) in enumerate(self.host_maps):
            if a == addr and m == mfn:
                del self.host_maps[i]
                if new_addr:
                    self.host_maps.append((new_addr, m, f))
                return 0
        return -1


class NoProcessor:
    """The clock's words, and how often translations were dropped."""

    def __init__(self) -> None:
        self.cell = memoryview(bytearray(8 * CELL_WORDS)).cast("q")
        self.cell[0] = 1 << 40
        self.tlb_flushes = 0

    def flush_tlb(self) -> None:
        self.tlb_flushes += 1

    def flush_tlb_page(self, address: int) -> None:
        """Of one page: nothing is counted."""

    def drop_translations(self) -> None:
        """Nothing is cached."""

    def drop_entry(self, address: int) -> None:
        """Nothing is cached."""


class Guest:
    """One domain and handy ways to act as its kernel; hypercall arguments go to page 1.

    `beside` is another domain, whose machine it shares: one made for `domains` of them.
    """

    ARG = 0x1000

    d: Domain
    mm: FlatTables

    def __init__(
        self, abi: abi_module.Abi, max_vcpus: int, *, domains: int = 1, beside: Guest | None = None
    ) -> None:
        domain_list: dict[int, Domain] = {}
        if beside is None:
            mem = MachineMemory(domains * NR_PAGES, domains=domains)
            frames = FrameTable(mem.base_mfn, mem.end_mfn - mem.base_mfn)
            self.processor = NoProcessor()
            clock = Clock(self.processor.cell)
        else:
            mem, frames, self.processor = beside.d.mem, beside.d.frames, beside.processor
            clock, domain_list = beside.d.clock, beside.d.domain_list
        domid = max(domain_list, default=0) + 1
        self.first_mfn = mem.first_mfn + (domid - 1) * NR_PAGES
        mem.use_m2p(abi.m2p_entry)
        self.read_only: set[int] = set()
        self.reschedules = 0
        d = create_domain(
            abi, mem, frames, clock, domain_list,
            domain_id=domid, first_mfn=self.first_mfn, nr_pages=NR_PAGES, vcpus=max_vcpus,
            reschedule=self._reschedule,
        )  # fmt: skip
        self.d = d
        d.guest = GuestAccess(abi, mem, self.walk)
        d.mm = self.mm = FlatTables(d, self.processor)
        connect_domains(d)
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

    def call(self, op: Callable[..., int], cmd: int, fmt: str, *fields: int | bytes, vcpu: int = 0) -> int:
        """Store the argument at ARG and make the hypercall, as the dispatcher would."""
        from hvcore.errors import GuestError

        self.d.guest.copy_to(self.ARG, struct.pack("<" + fmt, *fields))
        self.d.current_id = vcpu
        try:
            return op(self.d.vcpus[vcpu], cmd, self.ARG)
        except GuestError as e:
            return -e.errno

    def result(self, fmt: str) -> tuple[Any, ...]:
        """The argument as the hypercall left it."""
        layout = struct.Struct("<" + fmt)
        return layout.unpack(self.d.guest.copy_from(self.ARG, layout.size))

    def memory(self, page: int) -> memoryview:
        return self.d.mem.frame(self.first_mfn + page)

    def run_to(self, when: int) -> None:
        """Let virtual time pass, firing what becomes due."""
        self.d.clock.advance_to(when)
        self.d.clock.run_due()


@pytest.fixture(autouse=True)
def _processors_are_closed() -> Iterator[None]:
    """Those that a test or a fixture of its own has opened; not those of its module."""
    with opened.closing():
        yield


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
