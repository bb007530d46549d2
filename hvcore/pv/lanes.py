"""Fast lanes: what the compiled core is told of a domain, so that it may answer the common exits itself.

A lane (hvcore/cpu/core) does what the handler in Python would have done, or leaves no trace and lets Python
do it. So lanes may be switched on and off at any exit, and all counts come out the same. They are for 64-bit
and PAE guests; without the compiled core there are none.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from hvcore.cpu.words import (
    JOURNAL_BYTES,
    LANE_CLI_STI,
    LANE_MULTICALL_ENTRY,
    LANE_PAGE_FAULT,
    LANE_PAGE_TABLE_STORE,
    LANE_RDTSC,
    LANE_SOFTWARE_INTERRUPT,
    LANE_SYSCALL,
    NR_LANES,
    DomainWords,
)
from hvcore.public.xen import Hypercall

if TYPE_CHECKING:
    from array import array

    from hvcore.domain import Domain
    from hvcore.vcpu import Vcpu

_NAMES = {
    LANE_RDTSC: "rdtsc",
    LANE_MULTICALL_ENTRY: "multicall entry",
    LANE_SYSCALL: "syscall",
    LANE_PAGE_FAULT: "page fault",
    LANE_PAGE_TABLE_STORE: "page table store",
    LANE_SOFTWARE_INTERRUPT: "software interrupt",
    LANE_CLI_STI: "cli, sti",
}


class Lanes:
    """The lanes of one domain. What C holds the address of can not be resized while this lives."""

    def __init__(self, domain: Domain) -> None:
        self.d = domain
        self.possible = domain.engine.has_lanes and domain.abi.pt_levels > 2
        self._held: list[object] = []
        self._counts = (ctypes.c_uint64 * (2 * NR_LANES))()
        self._journal = ctypes.create_string_buffer(JOURNAL_BYTES) if self.possible else None
        self._words = domain.words
        kept = DomainWords.cmos_idx.offset  # type: ignore[attr-defined]
        domain.engine.words.port_keeps = ctypes.addressof(self._words) + kept
        if self._journal is not None:
            self._describe(domain)
            words = domain.engine.words
            words.lane_counts = ctypes.addressof(self._counts)
            words.journal = ctypes.addressof(self._journal)

    def _describe(self, d: Domain) -> None:
        words, mem, frames = self._words, d.mem, d.frames
        words.domain_id = d.domain_id
        words.levels = d.abi.pt_levels
        words.ram = self._hold(mem.view)
        words.base_mfn = frames.base_mfn
        words.nr_frames = frames.nr
        words.nr_vcpus = len(d.vcpus)
        words.m2p_addresses = self._hold(mem.m2p_addresses)
        words.end_mfn = mem.end_mfn
        words.owner = self._hold(frames.owner)
        words.ptype = self._hold(frames.ptype)
        words.pflags = self._hold(frames.flags)
        words.count = self._hold(frames.count)
        words.tcount = self._hold(frames.tcount)
        words.stamp = self._hold(frames.tlbflush_timestamp)
        words.linear_pt_count = self._hold(frames.linear_pt_count)
        words.hypercalls = self._hold(d.trace.hypercalls)
        words.exceptions = self._hold(d.trace.exceptions)
        words.recent = self._hold(d.trace.recent)
        words.cli_sti = self._hold(d.trace.cli_sti)
        if d.abi.pt_levels == 4:
            slots = d.mm.xen.xen_l4_slots()
            words.xen_l4_slots = self._hold((ctypes.c_uint64 * len(slots))(*slots))

    def _hold(self, buffer: memoryview | bytearray | array[int] | ctypes.Array[ctypes.c_uint64]) -> int:
        """The address of a buffer, which stays where it is from now on."""
        held = ctypes.c_char.from_buffer(buffer)
        self._held.append(held)
        return ctypes.addressof(held)

    def run(self, v: Vcpu | None) -> None:
        """Let the lanes answer for `v`, which is in the engine; or None, and all exits go to Python."""
        on = v is not None and self.possible
        if v is not None and on:
            v.domain_words = ctypes.addressof(self._words)
            v.perdomain_ptes = self._words.ram + 8 * self.d.mm.xen.perdomain_ptes(v)
        self.d.engine.words.vcpu = ctypes.addressof(v) if v is not None and on else 0

    def counts(self) -> dict[str, tuple[int, int]]:
        """How many exits each lane took, and how many it left to Python; nothing for one that had none."""
        names = {number: Hypercall(number).name for number in range(64) if number in set(Hypercall)} | _NAMES
        pairs = {name: (self._counts[2 * i], self._counts[2 * i + 1]) for i, name in names.items()}
        return {name: pair for name, pair in pairs.items() if any(pair)}
