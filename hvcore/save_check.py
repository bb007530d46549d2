"""Checks of a saved host's values before any owner takes them: types, lengths and ranges.

A saved state may come from anybody. What passes here can make a domain that misbehaves, as a guest can; it
cannot make an owner hold what it never holds, nor name memory that the machine does not have. A field has the
kind that its value has in a host just made, or the one in `OwnerKinds` where that says too little.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hvcore.abi import ABIS, XEN_LEGACY_MAX_VCPUS
from hvcore.backends.block import VBD
from hvcore.backends.block_image import BLOCK
from hvcore.backends.net import VIF
from hvcore.backends.net_rx import MAX_WAITING_BYTES, MAX_WAITING_FRAMES
from hvcore.backends.net_switch import MAX_ADDRESSES
from hvcore.backends.net_tx import MAX_MULTICAST
from hvcore.backends.vif import MOST_VIFS
from hvcore.backends.xenfb import MAX_FB_LEN, MAX_SIDE
from hvcore.backends.xenkbd import MAX_WAITING
from hvcore.backends.xenstore_nodes import Quotas
from hvcore.clock import NEVER
from hvcore.common.schedule import TIMER_KINDS, WATCHDOG
from hvcore.cpu.state_check import STATE_SIZE, cr3_frame, wrong_in
from hvcore.cpu.words import NO_RING, SAVED_DOMAIN_WORDS
from hvcore.errors import StateError
from hvcore.given import EVENT_BYTES
from hvcore.kinds import (
    A_DICT,
    FLAG,
    NOTHING,
    SIGNED,
    U16,
    U32,
    U64,
    Kind,
    Plain,
    data,
    fields,
    items,
    items_in,
    number,
    numbers,
    one_of,
    queue,
    raw,
    record,
    require,
    row,
    shown,
    table,
    text,
)
from hvcore.public.xen import PAGE_SIZE
from hvcore.refusal import Reason

if TYPE_CHECKING:
    from hvcore.host_state import DomainState, HostState
    from hvcore.machine import Machine
    from hvcore.machine_memory import MachineMemory

MOST_PAGES = 1 << 22  # 16 GB: the frame table alone takes 80 MB then
MOST_DOMAINS = 64
MOST_DISKS = 256
_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1
_MOST_NS = 1 << 62
_REASON = Kind(
    "a reason",
    lambda v: (
        type(v) is list
        and len(v) == 2
        and v[0] == "reason"
        and type(v[1]) is str
        and v[1] in Reason.__members__
    ),
)

# --- a host's shape -----------------------------------------------------------------------------------------


_VFB = fields(
    vnc=FLAG, vnclisten=text(256), vncpasswd=text(256), vncdisplay=U16, vncunused=FLAG, keymap=text(64)
)
_VIF = fields(
    mac=text(64), bridge=text(256), script=text(4096), ip=text(4096), rate=U64, rate_usecs=U64, mtu=U32,
    trusted=FLAG, is_outside=FLAG, tcp=text(), udp=text(), devid=U16,
)  # fmt: skip


def _is_vifs(value: Plain) -> bool:
    return type(value) is list and len(value) <= MOST_VIFS and all(map(_VIF.fits, value))


def _word(word: str) -> Kind:
    return Kind(word, lambda v: v == word)


def _fields(value: Plain, kinds: dict[str, Kind], where: str) -> None:
    if type(value) is not dict or set(value) != set(kinds):
        found = sorted(value) if type(value) is dict else value
        raise StateError(where, shown(found), ", ".join(sorted(kinds)))
    for name, kind in kinds.items():
        require(kind, value[name], f"{where}.{name}")


def check_shape(state: HostState) -> None:
    """What a host is made by: sizes, counts, where things are. Raises StateError."""
    shape = {
        "nr_pages": number(1, MOST_PAGES), "first_mfn": number(1 << 12, 1 << 32),
        "domains": number(1, MOST_DOMAINS), "heap_top": U64,
        "freed": Kind("a list", lambda v: type(v) is list),
    }  # fmt: skip
    _fields(state.memory, shape, "memory")
    require(number(1, len(state.domains) + 1), state.next_domid, "next_domid")
    require(one_of(NOTHING, number(1, len(state.domains))), state.on_cpu, "on_cpu")
    if not 1 <= len(state.domains) <= state.memory["domains"]:
        raise StateError("domains", str(len(state.domains)), f"1 to {state.memory['domains']}")
    require(A_DICT, state.dom0, "dom0")
    require(A_DICT, state.xenstored, "xenstored")
    for domid, domain in enumerate(state.domains, 1):
        require(A_DICT, domain.owners, f"domain {domid}.owners")
        _check_domain_shape(domain, domid, state.memory)


_OPTIONS = {
    "vcpus": number(1, XEN_LEGACY_MAX_VCPUS), "upper_ptwr": FLAG, "cap": number(0, 100), "name": text(256),
    "disks": Kind("disks", lambda v: type(v) is list and len(v) <= MOST_DISKS),
    "vifs": Kind("interfaces", _is_vifs), "vfb": one_of(NOTHING, _VFB),
}  # fmt: skip
_CONTEXT = dict.fromkeys(
    ("port_cost", "port_reads", "port_writes", "tlb_flushes", "step_rechecked", "multicall_done"), U64
) | {
    "state": data(STATE_SIZE, STATE_SIZE), "step_deferred": FLAG, "paid": number(0, PAGE_SIZE),
    "paid_is_of_long": FLAG, "port_ring": one_of(number(0, 3), number(NO_RING, NO_RING)),
}  # fmt: skip


def _check_domain_shape(state: DomainState, domid: int, memory: dict[str, Plain]) -> None:
    where = f"domain {domid}"
    low, end = memory["first_mfn"], memory["first_mfn"] + memory["nr_pages"]
    require(number(domid, domid), state.domid, f"{where}.domid")
    require(number(1, low), state.heap_top, f"{where}.heap_top")
    _fields(state.boot, _boot_kinds(low, end), f"{where}.boot")
    require(number(1, end - state.boot["first_mfn"]), state.boot["nr_pages"], f"{where}.boot.nr_pages")
    _fields(state.options, _OPTIONS, f"{where}.options")
    require(A_DICT, state.layers, f"{where}.layers")
    _fields(state.context, _CONTEXT, f"{where}.context")
    _fields(state.clock, _clock_kinds(state.options["vcpus"]), f"{where}.clock")


def _boot_kinds(low: int, end: int) -> dict[str, Kind]:
    """Of BootImage.places(), with machine frames from `low` to `end` for domains."""
    frame = number(low, end - 1)
    return {
        "guest_type": Kind("a kind of guest", lambda v: type(v) is str and v in ABIS),
        "nr_pages": number(1, end - low), "first_mfn": frame, "root_mfn": frame,
        "hypercall_page_mfn": one_of(NOTHING, frame), "shared_info_mfn": number(1, low - 1),
        "store_mfn": frame, "store_evtchn": U32, "console_mfn": frame, "console_evtchn": U32,
    }  # fmt: skip


def _clock_kinds(vcpus: int) -> dict[str, Kind]:
    """Of a domain's clock and its timers."""
    time, when = number(0, _MOST_NS), number(0, NEVER)
    timer = one_of(
        row(_word(VBD), U32, when),
        row(_word(VIF), U32, when),
        *(row(_word(kind), number(0, 2 if kind == WATCHDOG else vcpus - 1), when) for kind in TIMER_KINDS),
    )
    timers = Kind("timers", lambda v: type(v) is list and len(v) <= 1024 and all(map(timer.fits, v)))
    return dict.fromkeys(("start", "now", "spent", "idle"), time) | {"turn_end": when, "timers": timers}


def check_memory(state: HostState, mem: MachineMemory) -> None:
    """What lies where in a machine's memory. Raises StateError."""
    heap = number(mem.heap_floor, mem.first_mfn)
    require(heap, state.memory["heap_top"], "memory.heap_top")
    for domain in state.domains:
        require(heap, domain.heap_top, f"domain {domain.domid}.heap_top")
    freed = number(mem.heap_floor, mem.first_mfn - 1)
    for mfn in state.memory["freed"]:
        require(freed, mfn, "memory.freed")
    nr = mem.end_mfn - mem.base_mfn
    for index, pages in state.pages.items():
        if type(pages) is not bytes or not pages or len(pages) % PAGE_SIZE:
            raise StateError("pages", f"{len(pages)} bytes at frame {index}", "whole pages")
        require(number(0, nr - len(pages) // PAGE_SIZE), index, "pages")


# --- owners -------------------------------------------------------------------------------------------------


_BYTES = raw("bytearray", 0, 1 << 24)
Owners = dict[str, dict[str, Kind]]


def _of_domain(mem: MachineMemory, vcpus: int, frame: Kind) -> Owners:
    heap = items("list", number(mem.heap_floor, mem.first_mfn - 1), 1 << 16)
    vcpu = number(0, max(vcpus - 1, 0))
    port = number(0, (1 << 17) - 1)
    maybe = one_of(NOTHING, frame)
    block = items_in("tuple", one_of(number(0, 0), frame), number(0, PAGE_SIZE - 72))
    grant = record("ActiveEntry", U32, FLAG, U32, frame, number(-_U32, _U32), U32, U32, U32)
    return {
        "domain": {
            "current_id": vcpu,
            "e820": one_of(NOTHING, data(0, 128 * 20)),
            "shutdown_code": one_of(NOTHING, U32),
            "xenheap": heap,
            "wallclock_ns": number(-_MOST_NS << 1, _MOST_NS << 1), "time_offset": number(-1 << 31, _U32 >> 1),
            "foreign_maps": table(items_in("tuple", frame, FLAG), number(1, 1 << 32), 1 << 20),
            "words": fields(**dict.fromkeys(SAVED_DOMAIN_WORDS, U64)),
        },
        "evtchn": {
            "notify_vcpu_id": numbers("H", high=max(vcpus - 1, 0)),
            "remote_dom": numbers("H"), "remote_port": numbers("I"), "fifo_lastq": numbers("I"),
            "state": raw("bytearray", 64, 1 << 17), "virq": raw("bytearray", 64, 1 << 17),
            "pending": raw("bytearray", 64, 1 << 17), "priority": raw("bytearray", 64, 1 << 17),
            "pirqs": items("set", U32, 1 << 16), "pirq_eoi_map_mfn": maybe, "pollers": number(0, vcpus),
            "max_evtchn_port": port,
        },
        "fifo": {
            "control_blocks": items("list", block, 64),
            "event_array": items("list", frame, 128),
        },
        "grant_table": {
            "version": number(1, 2), "shared": heap, "status": heap, "_spare": heap,
            "active": table(U32, grant, 1 << 20),
            "maptrack": table(U32, record("Mapping", U16, U32, frame, U32), 1 << 20),
            "_free_handles": queue(U32, None),
        },
    }  # fmt: skip


def _of_machine(mem: MachineMemory, vcpus: int) -> Owners:
    vcpu = number(0, max(vcpus - 1, 0))
    index = number(0, (mem.end_mfn - mem.base_mfn << 10) - 1)
    none_or_frame = one_of(number(0, 0), number(mem.base_mfn, mem.end_mfn - 1))
    some = one_of(NOTHING, U64)
    crash = fields(reason=text(), vector=some, error_code=some, address=some)
    outside = record("OutsideFrame", number(0, MOST_VIFS - 1), data(0, 1 << 17))
    key = record("Key", U32, FLAG)
    pointer = record("Pointer", SIGNED, SIGNED, SIGNED)
    refusal = record("Refusal", _REASON, items("tuple", one_of(SIGNED, text()), 16))
    refusals = items("tuple", refusal, 64)
    failed = record("FailedEntry", U64, U64, items("tuple", U64, 8), SIGNED, refusals)
    return {
        "trace": {
            "emulated": table(text(64), U64, 1 << 12), "unknown_hypercalls": table(U64, U64, 128),
            "pending": items("list", one_of(refusal, failed), 64),
            "refused_calls": queue(record("RefusedCall", U64, refusals, items("tuple", failed, 64)), 16),
            "refused_faults": queue(record("RefusedFault", U64, U64, U64, refusals), 8),
            "refused": table(_REASON, items_in("tuple", U64, refusal), len(Reason)),
        },
        "machine": {
            "_input": queue(one_of(data(0, 1 << 24), outside, key, pointer), None, 1 << 16),
            "running": one_of(NOTHING, vcpu), "crash": one_of(NOTHING, crash),
            "_cap_since": number(0, _MOST_NS), "_cap_used": number(0, _MOST_NS),
            "_next_look": number(0, NEVER), "_slice": number(1, _MOST_NS),
        },
        "ro_page_fault": {
            "_at": index, "_table": none_or_frame, "refused_upper_at": number(-1, _U64),
            "_saved": items("list", U64, 17), "_above": items("list", U64, 6),
        },
    }  # fmt: skip


def _of_devices(frame: Kind) -> Owners:
    sent = record("TxAnswer", U64, items("tuple", items_in("tuple", U16, SIGNED), 256))
    a_frame = record("Frame", data(0, 1 << 17), FLAG, FLAG, number(0, 2), U16)
    none_or_frame, place = one_of(number(0, 0), frame), number(-1, MAX_SIDE)
    side = number(1, MAX_SIDE)
    picture = record("Picture", side, side, number(8, 32), data(1, MAX_FB_LEN))
    arrivals = queue(record("Arrival", U64, a_frame), None, MAX_WAITING_FRAMES)
    return {
        "console": {"_input": _BYTES, "_shown": number(0, PAGE_SIZE)},
        "vbd": {
            "handles": items("list", U32, 16),
            "answers": items("list", record("Answer", U64, U64, U16, SIGNED), 64),
            "persistent": one_of(NOTHING, table(U32, items_in("tuple", U32, frame), 1056)),
        },
        "vif": {
            "handles": items("list", U32, 2), "learned": table(data(6, 6), U64, MAX_ADDRESSES),
        },
        "tx-vif": {
            "answers": items("list", sent, 256), "multicast": items("list", data(6, 6), MAX_MULTICAST),
        },
        "rx-vif": {"waiting": arrivals, "waiting_bytes": number(0, MAX_WAITING_BYTES)},
        "tx-ring-vif": {"frames": items("list", frame, 1)},
        "rx-ring-vif": {"frames": items("list", frame, 1)},
        "ring-vbd": {"frames": items("list", frame, 16)},
        "vfb": {
            "handles": items("list", U32, 0), "page_mfn": none_or_frame,
            "pixels": items("list", frame, MAX_FB_LEN // PAGE_SIZE),
            "fb_len": number(0, MAX_FB_LEN), "row_stride": number(0, MAX_FB_LEN),
            "offset": number(0, MAX_FB_LEN), "depth": number(0, 32),
            "width": number(0, MAX_SIDE), "height": number(0, MAX_SIDE), "kept": one_of(NOTHING, picture),
        },
        "vkbd": {
            "handles": items("list", U32, 0), "page_mfn": none_or_frame,
            "x": place, "y": place, "waiting": queue(data(0, EVENT_BYTES), MAX_WAITING),
        },
    }  # fmt: skip


def _of_store() -> Owners:
    perms = items("tuple", record("Perm", U32, number(0, 31)), 1 << 12)
    with_owner = Kind("permissions with an owner", lambda v: perms.fits(v) and bool(v[1]))
    node = record("Node", data(0, 1 << 16), items("tuple", text(), 1 << 16), with_owner, U64)
    accessed = record(
        "Accessed", FLAG, FLAG, FLAG, one_of(NOTHING, U64), FLAG, one_of(NOTHING, node),
        one_of(NOTHING, perms),
    )  # fmt: skip
    transaction = record(
        "Transaction", table(text(), accessed, 1 << 16), table(U32, SIGNED, 1 << 8), U32, FLAG, U64, FLAG
    )
    message = record("Message", data(16, 1 << 13), U64, FLAG, U64, number(0, 1 << 13))
    watch = record("Watch", text(), FLAG, text())
    return {
        "xenstore": {
            "_in": _BYTES, "out": items("list", message, 1 << 16),
            "watches": items("list", watch, 1 << 16), "transactions": table(U32, transaction, 64),
        },
        "xenstored": {"requests": table(U64, record("Request", U32, number(0, 1 << 20), FLAG), 1 << 16)},
        "tree": {
            "nodes": table(text(), node, 1 << 16),
            "accounts": table(U32, record("Account", U64, SIGNED, SIGNED, SIGNED, SIGNED), 1 << 8),
            "quotas": record("Quotas", *(number(1, 1 << 31) for _ in Quotas.__slots__)),
            "targets": table(U16, U16, 1 << 8),
            "special": table(text(), with_owner, 2),
        },
    }  # fmt: skip


def _of_vcpu(mem: MachineMemory, frame: Kind) -> Owners:
    maybe, none_or_frame = one_of(NOTHING, frame), one_of(number(0, 0), frame)
    return {
        "vcpu": {
            "info": row(maybe, number(0, (mem.end_mfn - mem.base_mfn) * PAGE_SIZE - 64)),
            "gdt_frames": items("tuple", none_or_frame, 14), "gdt_ents": number(0, 16 * 512),
            "ldt_ents": number(0, 8192), "ldt_shadow": table(number(0, 15), frame, 16),
            "cr3_mfn": none_or_frame, "user_cr3_mfn": none_or_frame, "compat_l4": none_or_frame,
            "debugreg": items_in("list", *[U64] * 8),
            "runstate": number(0, 3),
            "runstate_time": items_in("list", *[U64] * 4),
            "saved_state": one_of(NOTHING, data(STATE_SIZE, STATE_SIZE)),
            "poll_evtchn": one_of(NOTHING, number(-1, (1 << 17) - 1)),
            "periodic_period": one_of(number(0, 0), number(1_000_000, _MOST_NS)),
            "callbacks": Kind("callbacks", _callbacks),
            "iopl": Kind("an I/O privilege level", lambda v: v in (0, 0x1000, 0x2000, 0x3000)),
        },
    }  # fmt: skip


def _of_frames(mem: MachineMemory) -> Owners:
    nr = mem.end_mfn - mem.base_mfn
    entry, a_byte_each = number(0, nr - 1), raw("bytearray", nr, nr)
    return {
        "frames": {
            "free_frames": items("list", entry), "tot_pages": table(U16, number(0, MOST_PAGES), 1 << 8),
            "ptype": Kind("types of frames", lambda v: a_byte_each.fits(v) and max(v[1]) <= 7),
        },
    }  # fmt: skip


class OwnerKinds:
    """What the fields of the owners of one host may be, which knows its frames and numbers.

    `_of` has what the value in a host just made says too little about: what may be nothing, what is kept in
    containers, numbers that name something.
    """

    def __init__(self, mem: MachineMemory, vcpus: int) -> None:
        frame = number(mem.base_mfn, mem.end_mfn - 1)
        self._of = (
            _of_domain(mem, vcpus, frame) | _of_machine(mem, vcpus) | _of_devices(frame) | _of_store()
            | _of_vcpu(mem, frame) | _of_frames(mem)
        )  # fmt: skip

    def of(self, owner: str, field: str, now: Plain) -> Kind | None:
        """The kind of a field that is now this plain value; None where nothing says it."""
        known = self._of.get(owner.rstrip("0123456789"), {}).get(field)
        return known or _kind_of(now)


def _callbacks(v: Plain) -> bool:
    if type(v) is not list or len(v) != 3 or v[0] != "callbacks" or type(v[1]) is not list:
        return False
    return all(type(kind) is int and 0 <= kind < 8 for kind in v[1]) and data(192, 192).fits(v[2])


def _kind_of(value: Plain) -> Kind | None:
    """The kind that one value tells."""
    if type(value) is bool:
        return FLAG
    if type(value) is int:
        return U64
    if type(value) is str:
        return text()
    if type(value) is bytes:
        return data(len(value), len(value))
    if type(value) is list and value[0] in ("words", "bytearray"):
        return raw(value[0], len(value[1]), len(value[1]))
    if type(value) is list and value[0] == "array":
        return numbers(value[1], len(value[2]) // array(value[1]).itemsize)
    return None


def check_owner(name: str, now: dict[str, Plain], saved: Plain, kinds: OwnerKinds) -> None:
    """The saved fields of one owner, which is `now` in a host just made. Raises StateError."""
    if type(saved) is not dict or set(saved) != set(now):
        found = sorted(saved) if type(saved) is dict else saved
        raise StateError(name, shown(found), shown(sorted(now)))
    for field, value in now.items():
        kind = kinds.of(name, field, value)
        if kind is None:
            raise StateError(f"{name}.{field}", "a field", "a kind of it in save_check.py")
        require(kind, saved[field], f"{name}.{field}")


def check_layers(sizes: dict[str, int], layers: Any) -> None:
    """Whether this can have been written to the layers over disks of these sizes. Raises StateError."""
    for name, blocks in layers.items():
        most = -(-sizes.get(name, 0) // BLOCK)
        require(Kind("blocks of a disk in memory", lambda v: type(v) is dict), blocks, f"layers.{name}")
        for at, content in blocks.items():
            require(number(0, most - 1), at, f"layers.{name}")
            require(data(BLOCK, BLOCK), content, f"layers.{name}.{at:#x}")


def check_domain(m: Machine, saved: dict[str, dict[str, Plain]], context: dict[str, Plain]) -> None:
    """What depends on several fields, or on the processor. Raises StateError."""
    d = m.domain
    fixed = {"domain_id": d.domain_id, "max_vcpus": d.max_vcpus, "nr_pages": d.nr_pages}
    for field, value in fixed.items():
        require(number(value, value), saved["domain"][field], f"domain.{field}")
    for v in d.vcpus:
        require(
            number(v.vcpu_id, v.vcpu_id), saved[f"vcpu{v.vcpu_id}"]["vcpu_id"], f"vcpu{v.vcpu_id}.vcpu_id"
        )
    for device in ("console", "xenstore"):
        for field in ("port", "backend_port"):
            value = getattr(getattr(m, device), field)
            require(number(value, value), saved[device][field], f"{device}.{field}")
    check_ports(saved["evtchn"])
    for name, state in _processor_states(saved, context):
        for wrong in wrong_in(state, d.mm.xen.initial_state):
            raise StateError(name, wrong, "what a guest can have in its processor")
        frame = number(d.mem.base_mfn, d.mem.end_mfn - 1)
        require(one_of(number(0, 0), frame), cr3_frame(state), f"{name}: CR3")


def check_ports(saved: dict[str, Plain]) -> None:
    """Every array of event channels has an item for each, and none is in a state that does not exist."""
    count = len(saved["state"][1])
    sizes = {"virq": 1, "pending": 1, "priority": 1, "notify_vcpu_id": 2, "remote_dom": 2, "remote_port": 4}
    for field, size in {**sizes, "fifo_lastq": 4}.items():
        if len(saved[field][-1]) != count * size:
            raise StateError(f"evtchn.{field}", f"{len(saved[field][-1])} bytes", f"{count * size} bytes")
    if max(saved["state"][1]) > 6:
        raise StateError("evtchn.state", str(max(saved["state"][1])), "at most 6")


def _processor_states(
    saved: dict[str, dict[str, Plain]], context: dict[str, Plain]
) -> Iterator[tuple[str, bytes]]:
    yield "context.state", context["state"]
    for name, owner in saved.items():
        if name.startswith("vcpu") and owner["saved_state"] is not None:
            yield f"{name}.saved_state", owner["saved_state"]
