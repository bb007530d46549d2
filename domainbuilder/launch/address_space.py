"""An address space at a glance: which parts of it have page tables, and whose those are.

A part is as large as an L1 table can map (2 MB). Tables and pages that are none of the guest's own are Xen's.
Reading changes nothing, and where a table is garbage there is nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from hvcore.debug.view import GuestView
from hvcore.public.xen import PAGE_SHIFT
from hvcore.x86 import PAGE_PRESENT, PAGE_PSE

if TYPE_CHECKING:
    from hvcore.machine import Machine

MOST_SPANS = 512
_MOST_COUNTED = 256  # L1 tables whose entries are counted
_MFN = (1 << 40) - 1


class Span(NamedTuple):
    """Addresses from `start` up to `end`, mapped by so many L1 tables; 0 of large pages, and of Xen's own.

    `pages` of 4 KB are mapped of it; None where there are more tables than are looked into.
    """

    start: int
    end: int
    tables: int
    pages: int | None = None
    is_xens: bool = False


def spans(machine: Machine) -> tuple[Span, ...]:
    """The parts of the running vCPU's address space, those side by side as one; MOST_SPANS at most."""
    found: list[Span] = []
    view, counted = GuestView(machine), 0
    for start, end, table, is_xens in _parts(machine, view.root_mfn, machine.domain.abi.pt_levels, 0):
        pages: int | None = (end - start) >> PAGE_SHIFT
        if table is not None:
            counted += 1
            pages = _present(machine, table) if counted <= _MOST_COUNTED else None
        part = Span(start, end, int(table is not None), pages, is_xens)
        last = found[-1] if found else None
        if last is not None and last.end == end:  # Xen's, which has one part
            continue
        if last is not None and last.end == start and last.is_xens == part.is_xens:
            both = None if last.pages is None or part.pages is None else last.pages + part.pages
            found[-1] = Span(last.start, part.end, last.tables + part.tables, both, part.is_xens)
        elif len(found) < MOST_SPANS:
            found.append(part)
        else:
            break
    return tuple(found)


def _table(machine: Machine, mfn: int) -> memoryview[int] | tuple[int, ...]:
    """The entries of a table; none where there is no such frame."""
    try:
        frame = machine.mem.frame(mfn).cast("B")
    except IndexError:
        return ()
    return frame.cast("I") if machine.domain.abi.pte_size == 4 else frame.cast("Q")


def _present(machine: Machine, mfn: int) -> int:
    return sum(entry & PAGE_PRESENT for entry in _table(machine, mfn))


def _parts(machine: Machine, mfn: int, level: int, base: int) -> Iterator[tuple[int, int, int | None, bool]]:
    """From where to where, the frame of the L1 table, and whether it is Xen's."""
    abi, frames, domid = machine.domain.abi, machine.domain.frames, machine.domain.domain_id
    bits = 10 if abi.pte_size == 4 else 9
    shift = PAGE_SHIFT + bits * (level - 1)
    for index, entry in enumerate(_table(machine, mfn)):
        if not entry & PAGE_PRESENT:
            continue
        start = base + (index << shift)
        if start >> 47 & 1:
            start |= -1 << 48 & abi.word_mask  # canonical
        if abi.hypervisor_virt_start <= start < abi.hypervisor_virt_end:
            yield abi.hypervisor_virt_start, abi.hypervisor_virt_end, None, True
            continue
        below = entry >> PAGE_SHIFT & _MFN
        pg = below - frames.base_mfn
        is_xens = not 0 <= pg < frames.nr or frames.owner[pg] != domid
        if is_xens or level == 2:
            table = None if is_xens or entry & PAGE_PSE else below
            yield start, start + (1 << shift), table, is_xens
        elif level > 2:
            yield from _parts(machine, below, level - 1, start)
