"""`struct domain`: what Xen remembers of the guest as a whole.

Source: xen/include/xen/sched.h. The subsystems hang their own state here (`evtchn`, `grant_table`, ...); each
is a value of the module that owns it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from hvcore.cpu.words import DomainWords
from hvcore.public.xen import DOMID_SELF

if TYPE_CHECKING:
    from hvcore.abi import Abi
    from hvcore.clock import Clock
    from hvcore.common.event import EvtchnTable
    from hvcore.common.grant_table import GrantTable
    from hvcore.cpu.engine import Engine
    from hvcore.guest_access import GuestAccess
    from hvcore.machine_memory import MachineMemory
    from hvcore.page_info import FrameTable
    from hvcore.pv.mm import PageTables
    from hvcore.trace import Trace
    from hvcore.vcpu import Vcpu

# SHUTDOWN_*: xen/include/public/sched.h.
SHUTDOWN_NAMES = ("poweroff", "reboot", "suspend", "crash", "watchdog", "soft_reset")


@dataclass(eq=False)
class Domain:
    """One guest. `domain_id` is its number: the owner of its frames, and what others call it by."""

    WIRING: ClassVar[frozenset[str]] = frozenset(
        (
            "abi",
            "mem",
            "frames",
            "clock",
            "shared_info_mfn",
            "shared_info",
            "domain_list",
            "vcpus",
            "words",
            "engine",
            "guest",
            "mm",
            "evtchn",
            "grant_table",
            "trace",
            "reschedule",
            "close_ports",
        )
    )
    abi: Abi
    mem: MachineMemory
    frames: FrameTable
    clock: Clock
    shared_info_mfn: int
    shared_info: memoryview  # bytes of the shared_info frame
    nr_pages: int
    max_pages: int
    domain_id: int = 1
    max_vcpus: int = 1
    domain_list: dict[int, Domain] = field(default_factory=dict)  # by domid, all that share the machine
    handle: bytes = bytes(16)
    vcpus: list[Vcpu] = field(default_factory=list)
    words: DomainWords = field(default_factory=DomainWords)  # what the compiled core knows of it, too
    wallclock_ns: int = 0  # Unix time at system time 0
    time_offset: int = 0  # seconds that its wall clock is ahead of that: XEN_DOMCTL_settimeoffset
    e820: bytes | None = None  # set by XENMEM_set_memory_map; None: RAM from 0 to nr_pages
    shutdown_code: int | None = None  # SHUTDOWN_*, once the guest asked for it
    is_shutting_down: bool = False
    # Set by the machine: the subsystems' state and the machine's services.
    engine: Engine = field(init=False)
    guest: GuestAccess = field(init=False)
    mm: PageTables = field(init=False)
    evtchn: EvtchnTable = field(init=False)
    grant_table: GrantTable = field(init=False)
    trace: Trace = field(init=False)
    # End this vCPU's turn: the engine stops at the next exit and the run loop looks again.
    reschedule: Callable[[], None] = field(init=False)
    # Who may do port I/O may have changed: the next access is looked at again (engine.open_ports()).
    close_ports: Callable[[], None] = lambda: None

    xenheap: list[int] = field(default_factory=list)  # frames of Xen's own that it has for this domain
    # Frames of others that it has mapped by number, (mfn, writable), and how often (common/foreign_map.py).
    foreign_maps: dict[tuple[int, bool], int] = field(default_factory=dict)
    is_dying: bool = False  # it goes as soon as nobody holds any of its frames

    def __post_init__(self) -> None:
        self.domain_list[self.domain_id] = self

    def alloc_xenheap_page(self) -> int:
        """A zeroed frame of Xen's own (its mfn), for this domain. Raises MemoryError when there is none."""
        mfn = self.mem.alloc_xenheap_page()
        self.xenheap.append(mfn)
        return mfn

    @property
    def vm_assist(self) -> int:
        """Which VMASST_TYPE_* are enabled."""
        return self.words.vm_assist

    @vm_assist.setter
    def vm_assist(self, value: int) -> None:
        self.words.vm_assist = value

    @property
    def cmos_idx(self) -> int:
        """The last byte written to port 0x70."""
        return self.words.cmos_idx

    @cmos_idx.setter
    def cmos_idx(self, value: int) -> None:
        self.words.cmos_idx = value

    @property
    def pci_cf8(self) -> int:
        """The last 32-bit value written to port 0xcf8."""
        return self.words.pci_cf8

    @pci_cf8.setter
    def pci_cf8(self, value: int) -> None:
        self.words.pci_cf8 = value

    @property
    def current(self) -> Vcpu:
        """The vCPU whose registers are in the engine."""
        return self.vcpus[self.current_id]

    current_id: int = 0

    def current_root(self) -> int:
        """The frame of the top-level page table that the running vCPU uses now."""
        return self.vcpus[self.current_id].root_mfn

    def walk(self, va: int, write: bool) -> int:
        """PageTables.walk() from there."""
        return self.mm.walk(self.vcpus[self.current_id].root_mfn, va, write)

    @property
    def tot_pages(self) -> int:
        """How many frames the domain has."""
        return self.frames.tot_pages.get(self.domain_id, 0)


def rcu_lock_domain_by_id(d: Domain, domid: int) -> Domain | None:
    """The domain of that number on the machine of `d`, None where there is no such domain."""
    return d.domain_list.get(domid)


def rcu_lock_domain_by_any_id(d: Domain, domid: int) -> Domain | None:
    """The same, with DOMID_SELF for the domain that asks."""
    return d if domid == DOMID_SELF else d.domain_list.get(domid)
