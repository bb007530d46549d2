"""Domain 0, where the backends are, and the end of a domain: xen/common/domain.c.

Whoever runs the backends is domain 0 here: a domain without frames and without a processor of its own, that
has event channels and a grant table as every domain has, so that nothing needs to know it as an exception.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.abi import PV64
from hvcore.clock import CELL_WORDS, Clock
from hvcore.common.event import EvtchnTable
from hvcore.common.event_channel import evtchn_close
from hvcore.common.grant_entries import GrantTable
from hvcore.common.grant_map import gnttab_release_mappings
from hvcore.domain import Domain
from hvcore.page_info import PGC_allocated, PGC_xen_heap, PGT_pinned
from hvcore.public.xen import PAGE_SIZE
from hvcore.pv.descriptor_tables import pv_destroy_gdt, pv_destroy_ldt
from hvcore.trace import Trace
from hvcore.vcpu import Vcpu

if TYPE_CHECKING:
    from hvcore.machine_memory import MachineMemory
    from hvcore.page_info import FrameTable

DOM0 = 0


def create_dom0(mem: MachineMemory, frames: FrameTable, domain_list: dict[int, Domain]) -> Domain:
    """Domain 0 of a host; its shared_info page is nobody's frame, for nobody maps it."""
    d = Domain(
        abi=PV64,
        mem=mem,
        frames=frames,
        clock=Clock(memoryview(bytearray(8 * CELL_WORDS)).cast("q")),
        shared_info_mfn=0,
        shared_info=memoryview(bytearray(PAGE_SIZE)),
        nr_pages=0,
        max_pages=0,
        domain_id=DOM0,
        domain_list=domain_list,
    )
    d.trace = Trace()
    d.reschedule = lambda: None
    d.vcpus = [Vcpu(d, 0)]
    d.evtchn = EvtchnTable(d, max_evtchn_port=d.abi.nr_evtchns - 1)
    d.grant_table = GrantTable(d)
    return d


def domain_kill(d: Domain) -> None:
    """Take down a domain that does not run, and whose backends are closed.

    What others map of it stays with them, and the domain on the list of those that there are, until they let
    go (domain_destroyed()).
    """
    d.is_dying = True
    for port in range(1, d.evtchn.valid_evtchns):
        evtchn_close(d.evtchn, port)
    for mfn in [*d.evtchn.held_frames()]:
        d.mm.put_page_and_type(mfn)
    gnttab_release_mappings(d)
    for v in d.vcpus:
        _release_vcpu(v)
    _relinquish_memory(d)
    domain_destroyed(d)


def domain_destroyed(d: Domain) -> bool:
    """Take a dying domain off the list once nobody holds a frame of its any more; whether it is gone."""
    frames = d.frames
    shared = any(frames.owner[mfn - frames.base_mfn] == d.domain_id for mfn in d.xenheap)
    gone = not d.tot_pages and not shared
    if gone:
        d.domain_list.pop(d.domain_id, None)
        frames.tot_pages.pop(d.domain_id, None)
    return gone


def _release_vcpu(v: Vcpu) -> None:
    """vcpu_destroy_pagetables() and pv_vcpu_destroy(), as far as frames are concerned."""
    mm = v.domain.mm
    pv_destroy_gdt(v)
    pv_destroy_ldt(v)
    for mfn in (v.cr3_mfn, v.user_cr3_mfn, v.info_mfn):
        if mfn:
            mm.put_page_and_type(mfn)
    v.cr3_mfn = v.user_cr3_mfn = 0
    v.info_mfn = None


def _relinquish_memory(d: Domain) -> None:
    """relinquish_memory(): every pin and every allocation's reference goes."""
    frames = d.frames
    own = [pg for pg, owner in enumerate(frames.owner) if owner == d.domain_id]
    for pg in own:
        if frames.flags[pg] & PGT_pinned:
            frames.flags[pg] &= ~PGT_pinned
            d.mm.put_page_and_type(pg + frames.base_mfn)
    for pg in own:
        if frames.flags[pg] & (PGC_allocated | PGC_xen_heap) == PGC_allocated:
            frames.flags[pg] &= ~PGC_allocated
            d.mm.put_page(pg + frames.base_mfn)
    for mfn in reversed(d.xenheap):
        if frames.count[mfn - frames.base_mfn] <= 1:  # the share's own
            frames.unshare_xen_page(mfn)
            d.mem.free_xenheap_page(mfn)
