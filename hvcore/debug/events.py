"""What a domain does, as typed events: what each kind is, and what it says.

hvcore/debug/taps.py has `listen()`, which tells of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hvcore.refusal import Refusal
    from hvcore.trace import FailedEntry


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a vCPU at `ns` of its domain's system time, with the guest at `rip`."""

    domain_id: int
    vcpu_id: int
    ns: int
    rip: int


@dataclass(frozen=True, slots=True)
class HypercallEvent(Event):
    """A hypercall has returned, at `end_ns`. `refusals` say why page tables or types were refused.

    `entries` are the failed entries of a multicall. iret, and a call that goes on later, are none of these.
    """

    number: int
    args: tuple[int, ...]
    result: int
    end_ns: int
    refusals: tuple[Refusal, ...] = ()
    entries: tuple[FailedEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class SubcallEvent(Event):
    """An entry of a multicall is done; the multicall's own event comes behind those of its entries."""

    number: int
    args: tuple[int, ...]
    result: int


@dataclass(frozen=True, slots=True)
class IretEvent(Event):
    """The guest asks for HYPERVISOR_iret, which returns to wherever its frame says."""


@dataclass(frozen=True, slots=True)
class UnfinishedEvent(Event):
    """A hypercall has been entered that did not return: it goes on later, or the domain died in it."""

    number: int
    args: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TrapEvent(Event):
    """An exception or software interrupt has come to Xen, which may make it good. `cr2` is for #PF."""

    vector: int
    error_code: int | None
    cr2: int


@dataclass(frozen=True, slots=True)
class EmulatedEvent(Event):
    """Xen has emulated an instruction that only a kernel may execute: "in", "rdmsr", "mov to cr3", ..."""

    name: str


@dataclass(frozen=True, slots=True)
class ExceptionEvent(Event):
    """An exception or software interrupt is delivered to the guest, which was at `rip`. `cr2` is for #PF."""

    vector: int
    error_code: int | None
    cr2: int


@dataclass(frozen=True, slots=True)
class PendingEvent(Event):
    """An event channel of the guest's is raised, for `target`, while this vCPU runs or ran last."""

    port: int
    target: int


@dataclass(frozen=True, slots=True)
class UpcallEvent(Event):
    """The guest's event callback is entered; `rip` is what is interrupted."""


@dataclass(frozen=True, slots=True)
class PageTableStoreEvent(Event):
    """A store to a page table at `cr2`, which Xen carries out or refuses (pv/ro_page_fault.py), begins."""

    cr2: int


@dataclass(frozen=True, slots=True)
class ScheduleEvent(Event):
    """The vCPU has its turn now, and another had the one before."""


@dataclass(frozen=True, slots=True)
class RunstateEvent(Event):
    """The vCPU's RUNSTATE_* changes."""

    old: int
    new: int


@dataclass(frozen=True, slots=True)
class ConsoleEvent(Event):
    """Bytes went over the console: `typed` by the user, or printed by the guest."""

    data: bytes
    typed: bool


@dataclass(frozen=True, slots=True)
class DeviceEvent(Event):
    """The guest notified a backend: "console" or "xenstore"."""

    device: str


Listener = Callable[[Event], None]
KINDS: tuple[type[Event], ...] = (
    HypercallEvent,
    SubcallEvent,
    IretEvent,
    UnfinishedEvent,
    TrapEvent,
    EmulatedEvent,
    ExceptionEvent,
    PendingEvent,
    UpcallEvent,
    PageTableStoreEvent,
    ScheduleEvent,
    RunstateEvent,
    ConsoleEvent,
    DeviceEvent,
)
