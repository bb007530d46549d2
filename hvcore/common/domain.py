"""Domain 0, where the backends are, and the end of a domain: xen/common/domain.c.

Whoever runs the backends is domain 0 here: a domain without frames and without a processor of its own, that
has event channels and a grant table as every domain has, so that nothing needs to know it as an exception.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.abi import PV64
from hvcore.common.event import EvtchnTable
from hvcore.common.grant_entries import GrantTable
from hvcore.domain import Domain
from hvcore.public.xen import PAGE_SIZE
from hvcore.trace import Trace
from hvcore.vcpu import Vcpu

if TYPE_CHECKING:
    from hvcore.clock import Clock
    from hvcore.machine_memory import MachineMemory
    from hvcore.page_info import FrameTable

DOM0 = 0


def create_dom0(
    mem: MachineMemory, frames: FrameTable, clock: Clock, domain_list: dict[int, Domain]
) -> Domain:
    """Domain 0 of a machine; its shared_info page is nobody's frame, for nobody maps it."""
    d = Domain(
        abi=PV64,
        mem=mem,
        frames=frames,
        clock=clock,
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
