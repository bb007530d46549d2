"""How a domain is put together, step by step: a host takes all steps, a test those that it needs."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from hvcore.common.domain import DOM0, create_dom0
from hvcore.common.event import EvtchnTable
from hvcore.common.grant_table import GrantTable
from hvcore.domain import Domain
from hvcore.guest_access import GuestAccess
from hvcore.pv.descriptor_tables import init_xen_gdt_page, validate_segdesc_page
from hvcore.pv.mm import PageTables
from hvcore.pv.xen_mappings import XenMappings
from hvcore.trace import Trace
from hvcore.vcpu import Vcpu

if TYPE_CHECKING:
    from hvcore.abi import Abi
    from hvcore.backends.domain_devices import Wanted
    from hvcore.boot_image import BootImage, BuildInfo
    from hvcore.clock import Clock
    from hvcore.cpu.engine import Engine
    from hvcore.machine_memory import MachineMemory
    from hvcore.page_info import FrameTable

CR0 = 0x80050033  # PE MP ET NE WP AM PG
CR4_PAE = 0x660  # PAE MCE OSFXSR OSXMMEXCPT
CR4_2LEVEL = 0x640
MAX_PAGES_SLACK = 0x100  # libxl allows a domain a little more than it starts with


class NewDomain(NamedTuple):
    """What a domain is to be, beside its image: what Host.create() is asked for.

    It begins at `start_ns` of system time. `is_new`: its first vCPU is to start; else somebody restores it.
    """

    domain_id: int
    vcpus: int
    name: str
    info: BuildInfo
    devices: Wanted
    start_ns: int
    upper_ptwr: bool
    lanes: bool
    cap: int
    is_new: bool


def create_domain(
    abi: Abi,
    mem: MachineMemory,
    frames: FrameTable,
    clock: Clock,
    domain_list: dict[int, Domain],
    *,
    domain_id: int,
    first_mfn: int,
    nr_pages: int,
    vcpus: int,
    reschedule: Callable[[], None],
) -> Domain:
    """A domain that owns `nr_pages` frames from `first_mfn` on, with its shared_info frame and its vCPUs."""
    shared_info_mfn = mem.alloc_xenheap_page()
    frames.assign(first_mfn, nr_pages, domain_id)
    d = Domain(
        abi=abi,
        mem=mem,
        frames=frames,
        clock=clock,
        shared_info_mfn=shared_info_mfn,
        shared_info=mem.frame(shared_info_mfn),
        domain_id=domain_id,
        domain_list=domain_list,
        nr_pages=nr_pages,
        max_pages=nr_pages + MAX_PAGES_SLACK,
        max_vcpus=vcpus,
    )
    d.xenheap.append(shared_info_mfn)
    d.trace = Trace()
    d.reschedule = reschedule
    d.vcpus = [Vcpu(d, i) for i in range(vcpus)]
    return d


def connect_processor(d: Domain, engine: Engine) -> None:
    """The guest's memory by its page tables, and the processor as Xen has set it up for such a guest."""
    abi, mem = d.abi, d.mem
    d.engine, d.close_ports = engine, engine.close_ports
    xen = XenMappings(d, engine)
    d.guest = GuestAccess(abi, mem, d.walk)
    d.mm = PageTables(d, engine, xen)
    d.mm.validate_segdesc_page = lambda mfn: validate_segdesc_page(mem, mfn, abi)
    d.frames.share_xen_page_with_guest(d.shared_info_mfn, d.domain_id, writable=True)
    init_xen_gdt_page(mem.frame(xen.gdt_page_mfn), abi)
    engine.set_long_mode(abi.pt_levels != 2)
    engine.set_control(0, CR0)
    engine.set_control(4, CR4_2LEVEL if abi.pt_levels == 2 else CR4_PAE)
    xen.initial_state = engine.save_state()


def connect_domains(d: Domain) -> Domain:
    """Event channels and grants, and domain 0, which is at their other end: that one."""
    d.evtchn = EvtchnTable(d)
    d.grant_table = GrantTable(d)
    return d.domain_list.get(DOM0) or create_dom0(d.mem, d.frames, d.domain_list)


def fill_m2p(mem: MachineMemory, image: BootImage) -> None:
    """machine_to_phys_mapping[] of a new domain's frames."""
    inverse = array("Q", bytes(8 * len(image.p2m)))
    for pfn, mfn in enumerate(image.p2m):
        inverse[mfn - image.first_mfn] = pfn
    for table in mem.m2p.values():
        if table.in_use:
            table.fill(image.first_mfn, inverse)
