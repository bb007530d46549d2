"""A small domain on a real machine, driven without running a guest: calls go straight to the dispatcher.

`World.call` is a hypercall, `store` a store of the guest's (also one to a read-only page table, which Xen
emulates), `problems` says what is wrong with the machine; nothing may ever be.
"""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from domainbuilder.build.domain_image import build
from domainbuilder.plan.domain_plan import DomainPlan, plan
from hvcore.abi import ABIS, Abi
from hvcore.errors import DomainCrash, GuestError, GuestFault, HypercallPreempted
from hvcore.host import Host
from hvcore.machine_memory import MachineMemory
from hvcore.page_info import PGT_l1_page_table, PGT_seg_desc_page
from hvcore.public.errno import NAMES
from hvcore.public.xen import PAGE_SIZE, Hypercall
from hvcore.pv.audit import audit
from hvcore.pv.hypercall import HypercallTable
from tests.domainbuilder.elfwriter import EM_386, EM_X86_64, RWX, ElfWriter, xen_notes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hvcore.backends.disk import Disk
    from hvcore.backends.vfb import Vfb
    from hvcore.backends.vif import Vif
    from hvcore.machine import Machine

MEMORY_MIB = 4
VCPUS = 2
PRESENT, RW = 1, 2
_MOST_TURNS = 8
_RESULT_IS_DATA = (Hypercall.iret, Hypercall.get_debugreg)


class Broken(AssertionError):
    """The hypervisor answered in a way that no guest may cause."""


class Mapped(NamedTuple):
    """One page as the builder mapped it."""

    va: int
    mfn: int
    table: int  # the L1's frame
    slot: int
    writable: bool


GUESTS = ("pae", "64", "two-level")


def kernel(guest: str) -> bytes:
    """A kernel of one page, which nothing here runs."""
    width = 64 if guest == "64" else 32
    writer = ElfWriter(width, EM_X86_64 if width == 64 else EM_386, entry=0xC0100000)
    writer.load(b"\xf4" * 4096, paddr=0x100000, vaddr=0xC0100000, memsz=0x3000, flags=RWX, align=4096)
    writer.note_segment(b"".join(xen_notes(width // 8, PAE_MODE="no" if guest == "two-level" else "yes")))
    return writer.build()


@cache
def _plan(guest: str, folder: str) -> DomainPlan:
    path = Path(folder) / f"{guest}.elf"
    path.write_bytes(kernel(guest))
    return plan(path, memory_mib=MEMORY_MIB)


class World:
    """One machine with its domain, one of GUESTS; `folder` is a place for the kernel file.

    `domains` is how many its host has room for; one that is `beside` another shares that one's host.
    """

    def __init__(
        self,
        guest: str,
        folder: str,
        *,
        domains: int = 1,
        beside: World | None = None,
        disks: Sequence[Disk] = (),
        vifs: Sequence[Vif] = (),
        vfb: Vfb | None = None,
    ) -> None:
        self.machine: Machine
        planned = _plan(guest, folder)
        pages = planned.nr_pages
        self.abi: Abi = ABIS[planned.guest_type]
        host = (
            Host(MachineMemory(domains * pages, domains=domains)) if beside is None else beside.machine.host
        )
        memory, first = host.mem, host.room_for(pages)
        start = (first - memory.first_mfn) * PAGE_SIZE
        ram = memory.ram[start : start + pages * PAGE_SIZE]
        image = build(planned, ram=ram, first_mfn=first, shared_info_mfn=memory.next_xenheap_mfn)
        self.image = image
        self.machine = host.create(image.boot_image(), vcpus=VCPUS, disks=disks, vifs=vifs, vfb=vfb)
        d = self.d = self.machine.domain
        self.mm = d.mm
        self.v = d.vcpus[0]
        self.dispatch = HypercallTable(d, self.machine.frames).dispatch
        self.machine.clock.begin_turn(self.machine.clock.now() + (1 << 40))
        self.machine.switch_to(self.v)  # as the run loop does before anything runs
        self.crashes = 0
        self.most = self.abi.word_mask >> 1  # the largest result that is no error
        self.context = image.context.pack(self.abi.word)
        self.mapped = self._initial_mappings()
        self.tables = sorted({m.table for m in self.mapped}) + self._upper_tables()

    def close(self) -> None:
        self.machine.host.close()

    def enter(self) -> None:
        """It is this domain's turn, where its host has others."""
        self.machine.host._enter(self.machine)

    # -- what is there

    def _initial_mappings(self) -> list[Mapped]:
        mm, d = self.mm, self.d
        found = []
        layout = self.image.plan
        start = layout.parms.virt_base
        for page in range(d.nr_pages):
            va = start + (page << 12)
            at = mm.l1_entry_of(self.v.cr3_mfn, va)
            if at >= 0 and mm.e[at] & PRESENT:
                entry = mm.e[at]
                table, slot = (at >> mm.shift) + mm.base, at & mm.entries - 1
                found.append(Mapped(va, entry >> 12 & mm.mfn_mask, table, slot, bool(entry & RW)))
        return found

    def _upper_tables(self) -> list[int]:
        mm = self.mm
        return [pg + mm.base for pg in range(mm.nr) if 2 <= mm.ptype[pg] <= 4 and mm.tcount[pg]]

    # -- what a guest does

    def call(self, number: int, args: tuple[int, ...]) -> int:
        """A hypercall with all the arguments there may be; -1 << 40 where it crashed the domain."""
        try:
            rc = self._to_the_end(number, args)
        except GuestFault as fault:  # an iret to a context that cannot be entered
            self.fault(fault)
            return -1 << 40
        except DomainCrash:
            self.crashes += 1
            return -1 << 40
        if rc.__class__ is not int:
            raise Broken(f"hypercall {number} {args} gave {rc!r}")
        if number not in _RESULT_IS_DATA and not (-rc in NAMES if rc < 0 else rc <= self.most):
            raise Broken(f"hypercall {number} {[hex(a) for a in args]} gave {rc}")
        return rc

    def _to_the_end(self, number: int, args: tuple[int, ...]) -> int:
        """The call, made again as often as it is put off because the vCPU's turn is over."""
        for _ in range(_MOST_TURNS):
            try:
                return self.dispatch(self.v, number, args)
            except HypercallPreempted as rest:
                args = (*rest.arguments, 0, 0, 0, 0, 0)[:6]
                self.machine.clock.begin_turn(self.machine.clock.now() + (1 << 40))
        raise Broken(f"hypercall {number} is put off for ever")

    def fault(self, fault: GuestFault) -> None:
        """The guest sees an exception, or dies of it."""
        try:
            self.machine.traps.inject_fault(fault)
        except DomainCrash:
            self.crashes += 1

    def store(self, va: int, data: bytes) -> bool:
        """A store by the guest kernel: whether it was carried out."""
        try:
            self.d.guest.copy_to(va, data)
        except GuestError:
            return self._store_to_table(va, data)
        return True

    def _store_to_table(self, va: int, data: bytes) -> bool:
        """What the processor does with a store that page-faulted: Xen may emulate it (ptwr)."""
        ro = self.machine.ro_page_fault
        if not ro.try_start(va):
            return False
        offset = va & 4095
        data = data[: 4096 - offset]
        ro.scratch[offset : offset + len(data)] = data
        before = ro.stores
        try:
            ro.step_done(1)
        except DomainCrash:
            self.crashes += 1
        return ro.stores > before

    def ldt_fault(self, offset: int) -> None:
        """The processor looked for a descriptor in an LDT page that is not mapped yet."""
        try:
            self.machine.frames.map_ldt(offset)
        except (GuestFault, DomainCrash):
            self.crashes += 1

    def write_cr3(self, mfn: int) -> int:
        return self.mm.new_guest_cr3(mfn)

    def pass_time(self, ns: int) -> None:
        clock = self.machine.clock
        clock.advance_to(clock.now() + ns)
        clock.run_due()

    def short_turn(self) -> None:
        """The vCPU's turn is as good as over: the next long call is put off."""
        self.machine.clock.begin_turn(self.machine.clock.now())

    def revive(self) -> None:
        """Whatever stopped the vCPU has ended: the guest goes on."""
        d = self.d
        d.is_shutting_down = False
        d.shutdown_code = None
        for v in d.vcpus:
            if v.poll_evtchn is not None:
                v.poll_evtchn = None
                d.evtchn.pollers -= 1
            v.pause_flags &= ~1
        self.v.pause_flags = 0
        self.machine.clock.begin_turn(self.machine.clock.now() + (1 << 40))

    def switch(self) -> None:
        """Another vCPU's turn, if there is one that could take it."""
        for v in self.d.vcpus:
            if v is not self.v and v.is_initialised:
                v.pause_flags = 0
                try:
                    self.machine.switch_to(v)
                except DomainCrash:
                    self.crashes += 1
                self.v = v
                return

    # -- what must hold

    def problems(self) -> list[str]:
        """All that is wrong; empty if nothing is."""
        return [*audit(self.d), *self._writable_tables(), *self._unbounded()]

    def _writable_tables(self) -> list[str]:
        """Writable mappings of page tables and descriptor pages, seen by looking at every L1 alone."""
        mm = self.mm
        protected = {
            pg + mm.base
            for pg in range(mm.nr)
            if mm.tcount[pg] and PGT_l1_page_table <= mm.ptype[pg] <= PGT_seg_desc_page
        }
        found = []
        for pg in range(mm.nr):
            if mm.ptype[pg] != PGT_l1_page_table or not mm.tcount[pg] or mm.owner[pg] != mm.domid:
                continue
            start = pg << mm.shift
            for slot, entry in enumerate(mm.e[start : start + mm.entries].tolist()):
                mfn = entry >> 12 & mm.mfn_mask
                if entry & (PRESENT | RW) == PRESENT | RW:
                    if mfn in protected:
                        found.append(f"L1 {pg + mm.base:#x} slot {slot:#x} maps table {mfn:#x} writable")
                    elif not (0 <= mfn - mm.base < mm.nr and mm.owner[mfn - mm.base] == mm.domid):
                        found.append(f"L1 {pg + mm.base:#x} slot {slot:#x} maps {mfn:#x}, not the guest's")
        return found

    def _unbounded(self) -> list[str]:
        d, clock = self.d, self.machine.clock
        sizes = {
            "timers": (len(clock.timers._live), 16),
            "timer heap": (len(clock.timers._heap), 256),
            "unknown hypercalls": (len(d.trace.unknown_hypercalls), 256),
            "grant handles": (len(d.grant_table.maptrack), 4096),
            "active grants": (len(d.grant_table.active), 32768),
            "free frames": (len(d.frames.free_frames), self.mm.nr),
            "total pages": (d.tot_pages, d.max_pages),
        }
        return [f"{name}: {size}, more than {most}" for name, (size, most) in sizes.items() if size > most]


def words(*values: int) -> bytes:
    """32-bit words."""
    return struct.pack(f"<{len(values)}I", *[value & 0xFFFFFFFF for value in values])
