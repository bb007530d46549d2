"""A record of a trace: one value for everything that a guest does, whichever format it is kept in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

FORMAT = "domainbuilder trace 1"

# Classes of records, as `--trace-filter` names them, and the kinds of each.
CLASSES: dict[str, tuple[str, ...]] = {
    "hypercalls": ("hypercall", "subcall", "iret", "unfinished"),
    "exceptions": ("trap", "exception", "emulated"),
    "pagetables": ("store", "frames"),
    "events": ("pending", "upcall"),
    "scheduling": ("turn", "runstate"),
    "console": ("print", "typed"),
    "devices": ("device",),
}
CLASS_OF = {kind: name for name, kinds in CLASSES.items() for kind in kinds}
FRAME_TYPES = ("none", "l1", "l2", "l3", "l4", "seg_desc", "shared", "writable")  # PGT_*, in order
RUNSTATES = ("running", "runnable", "blocked", "offline")  # RUNSTATE_*, in order


class Record(NamedTuple):
    """Something that happened at `ns` after the guest's first instruction, with its vCPU at `rip`.

    What the other fields hold is the kind's matter:

    hypercall   name, number, args, result, `end_ns` when it returned; `detail` is its command
                (EVTCHNOP_send), `text` why it was refused, a line each
    subcall     an entry of a multicall: the same without end_ns; its multicall comes behind it
    iret        HYPERVISOR_iret
    unfinished  a hypercall that goes on later, or in which the domain died
    trap        an exception has come to Xen: name (#PF), number; args: error code, if it has one, and cr2
    exception   it is delivered to the guest: the same
    emulated    name of an instruction that Xen did instead
    store       to a page table that Xen looks at; args: its address
    frames      args: how many frames the domain has of each of FRAME_TYPES
    pending     an event channel is raised: number is the port, args the vCPU it is for, `detail` its binding
    upcall      the guest's event callback is entered
    turn        the vCPU has its turn now
    runstate    args: the old and the new of RUNSTATES
    print       `text`, with bytes that are no UTF-8 as surrogates (surrogateescape)
    typed       the same
    device      name of the backend that the guest notified
    """

    kind: str
    ns: int
    vcpu: int
    rip: int = 0
    name: str = ""
    number: int = 0
    args: tuple[int, ...] = ()
    result: int | None = None
    end_ns: int = 0
    detail: str = ""
    text: str = ""
    symbol: str = ""  # where `rip` is, or for hypercalls who made the call; "" where that is not known


class Head(NamedTuple):
    """What was run: the kernel's name, its command line, the domain's number, vCPUs and bits."""

    kernel: str = ""
    cmdline: str = ""
    domain_id: int = 1
    vcpus: int = 1
    bits: int = 64
    filter: str = ""


class Tail(NamedTuple):
    """How it ended: when, why, and what `launch --stats` counts ("hypercalls/mmu_update": 12)."""

    end_ns: int = 0
    reason: str = ""
    counts: Mapping[str, int] = {}


_LEAST_ARGUMENTS = {"store": 1, "pending": 1, "runstate": 2}


def check_arguments(record: Record) -> None:
    """Raise ValueError where a record from a file has not the arguments that its kind has."""
    if len(record.args) < _LEAST_ARGUMENTS.get(record.kind, 0):
        raise ValueError(f"a record of kind {record.kind} has too few arguments")
    if record.kind == "runstate" and max(record.args[:2]) >= len(RUNSTATES):
        raise ValueError("there is no such run state")
    if record.ns < 0 or record.vcpu < 0 or record.end_ns < 0:
        raise ValueError("a time or a vCPU is negative")
