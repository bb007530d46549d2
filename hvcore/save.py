"""A host as plain values and bytes, and a host made of them: what each owner keeps, by its fields.

Every field of an owner is its state, unless the class says in `WIRING` that it is none: a reference to
another part, or what is worked out from the rest. So a field that is added is saved, or `save()` says that
it cannot be. Restoring builds the same parts anew, as creating did, and then gives every field its value.
"""

from __future__ import annotations

import ctypes
from array import array
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from inspect import get_annotations
from typing import TYPE_CHECKING, Any

from hvcore.backends.block import Answer, BlockBackend
from hvcore.backends.block_image import Layer
from hvcore.backends.net_frame import Frame
from hvcore.backends.net_rx import Arrival
from hvcore.backends.net_tx import TxAnswer
from hvcore.backends.xenfb import Picture
from hvcore.backends.xenstore_kept import Message, Request, Watch
from hvcore.backends.xenstore_nodes import Accessed, Account, Node, Perm, Quotas, Transaction
from hvcore.backends.xenstored import Xenstored
from hvcore.common.event_fifo import EvtchnFifo
from hvcore.common.grant_entries import ActiveEntry
from hvcore.common.grant_entries import Mapping as GrantMapping
from hvcore.cpu.engine import Engine, EngineContext
from hvcore.cpu.words import SAVED_DOMAIN_WORDS, address_of
from hvcore.errors import DomainCrash, EngineError, StateError
from hvcore.given import Key, OutsideFrame, Pointer
from hvcore.host_state import RUN_PAGES, DomainState, Fields
from hvcore.kinds import Plain
from hvcore.public.xen import PAGE_SIZE
from hvcore.refusal import Reason, Refusal
from hvcore.save_check import OwnerKinds, check_domain, check_layers, check_owner, check_ports
from hvcore.trace import FailedEntry, RefusedCall, RefusedFault
from hvcore.vcpu import Callbacks, Entries, Vcpu

if TYPE_CHECKING:
    from hvcore.domain import Domain
    from hvcore.machine import Machine
    from hvcore.machine_memory import MachineMemory


_RECORD_TYPES: tuple[type, ...] = (
    ActiveEntry, GrantMapping, Transaction, Accessed, Account, Node, Perm, Quotas, Watch, Message, Request,
    Answer, TxAnswer, Arrival, Frame, OutsideFrame, Key, Pointer, Picture,
    Refusal, FailedEntry, RefusedCall, RefusedFault,
)  # fmt: skip
_RECORDS = {cls.__name__: cls for cls in _RECORD_TYPES}
# Of an EngineContext: addresses in this process.
_NOT_OF_THE_DOMAIN = ("vcpu", "journal", "lane_counts", "port_keeps")


# --- values -------------------------------------------------------------------------------------------------


def pack(value: object) -> Plain:
    """`value` as plain values, with what it was where that is not plain. Raises EngineError."""
    if value is None or (isinstance(value, bool | int | str | bytes) and not isinstance(value, Reason)):
        return value
    if isinstance(value, Reason):
        return ["reason", value.name]
    if isinstance(value, Entries | memoryview):
        return ["words", bytes(value.words if isinstance(value, Entries) else value)]
    if isinstance(value, Callbacks):
        return ["callbacks", sorted(value._known), bytes(value.words)]
    if isinstance(value, bytearray):
        return ["bytearray", bytes(value)]
    if isinstance(value, array):
        return ["array", value.typecode, value.tobytes()]
    name = type(value).__name__
    if name in _RECORDS:
        return ["record", name, [pack(getattr(value, field)) for field in _record_fields(type(value))]]
    if isinstance(value, deque):
        return ["deque", value.maxlen, [pack(item) for item in value]]
    if isinstance(value, list | tuple | set):
        items = sorted(value) if isinstance(value, set) else value
        return [type(value).__name__, [pack(item) for item in items]]
    if isinstance(value, dict):
        return ["dict", [[pack(key), pack(item)] for key, item in value.items()]]
    raise EngineError(f"a {name} cannot be saved")


def _record_fields(cls: type) -> tuple[str, ...]:
    return tuple(getattr(cls, "_fields", None) or cls.__slots__)  # type: ignore[attr-defined]


def unpack(plain: Plain) -> Any:
    """What `pack()` was given, but for memory, which stays bytes."""
    if not isinstance(plain, list):
        return plain
    kind, *rest = plain
    if kind == "reason":
        return Reason[rest[0]]
    if kind == "record":
        return _record(_RECORDS[rest[0]], [unpack(item) for item in rest[1]])
    if kind == "array":
        return array(rest[0], rest[1])
    if kind == "deque":
        return deque((unpack(item) for item in rest[1]), rest[0])
    if kind == "dict":
        return {unpack(key): unpack(item) for key, item in rest[0]}
    items = rest[-1]
    if kind in ("list", "tuple", "set"):
        return {"list": list, "tuple": tuple, "set": set}[kind](unpack(item) for item in items)
    return bytearray(items) if kind == "bytearray" else rest


def _record(cls: type, values: list[Any]) -> object:
    if hasattr(cls, "_fields"):
        return cls(*values)
    record: object = object.__new__(cls)
    for name, value in zip(_record_fields(cls), values, strict=True):
        setattr(record, name, value)
    return record


# --- owners -------------------------------------------------------------------------------------------------


def state_fields(owner: object) -> list[str]:
    """The names of the fields of `owner` that are its state, sorted.

    What stands in a method's place is a listener's (debug/taps.py), and no state.
    """
    kind = type(owner)
    names = {name for name in getattr(owner, "__dict__", ()) if not callable(getattr(kind, name, None))}
    for cls in kind.__mro__:
        slots = cls.__dict__.get("__slots__", ())
        names.update((slots,) if isinstance(slots, str) else slots)
        if issubclass(cls, ctypes.Structure):
            names.update(name for name in get_annotations(cls) if not name.startswith("_"))
    return sorted(names - set(kind.WIRING) - {"__dict__", "__weakref__"})  # type: ignore[attr-defined]


def save_owner(owner: object) -> Fields:
    """The state of one owner. Raises EngineError for a field that is no plain value and not in WIRING."""
    saved = {}
    for name in state_fields(owner):
        try:
            saved[name] = pack(getattr(owner, name))
        except EngineError as error:
            raise EngineError(f"{type(owner).__name__}.{name}: {error}") from None
    return saved


def restore_owner(owner: object, saved: Fields) -> None:
    """Give the owner its state, in place where others hold the same object, or its address."""
    for name, plain in saved.items():
        current = getattr(owner, name, None)
        if isinstance(current, Entries):
            current.words.cast("B")[:] = plain[1]
        elif isinstance(current, Callbacks):
            current._known = set(plain[1])
            current.words.cast("B")[:] = plain[2]
        elif isinstance(current, memoryview):
            current.cast("B")[:] = plain[1]
        else:
            _assign(owner, name, current, unpack(plain))


def _assign(owner: object, name: str, current: object, value: Any) -> None:
    same_size = isinstance(current, array | bytearray) and len(current) == len(value)
    if isinstance(current, list) or same_size:
        current[:] = value  # type: ignore[index]
    elif isinstance(current, dict | set):
        current.clear()
        current.update(value)
    elif isinstance(current, deque):
        current.clear()
        current.extend(value)
    else:
        setattr(owner, name, value)


def _owners_of_domain(d: Domain) -> Iterator[tuple[str, object]]:
    yield "domain", d
    yield "evtchn", d.evtchn
    if isinstance(d.evtchn.port_ops, EvtchnFifo):
        yield "fifo", d.evtchn.port_ops
    yield "grant_table", d.grant_table
    yield "trace", d.trace


def owners(m: Machine) -> Iterator[tuple[str, object]]:
    """All that keep state of a domain that runs, by name."""
    yield from _owners_of_domain(m.domain)
    yield "machine", m
    yield "mm", m.domain.mm
    yield "ro_page_fault", m.ro_page_fault
    yield "console", m.console
    yield "xenstore", m.xenstore
    for v in m.domain.vcpus:
        yield f"vcpu{v.vcpu_id}", v
    for name, device in m.devices.backends.items():
        yield name, device
        for part, owner in device.owners():
            yield f"{part}-{name}", owner


def store_owners(store: Xenstored) -> Iterator[tuple[str, object]]:
    """What keeps state of the store that a host's domains share, by name."""
    yield "xenstored", store
    yield "tree", store.tree


_CRASH = ("reason", "vector", "error_code", "address")


def _info(v: Vcpu) -> list[int | None]:
    """Where struct vcpu_info is: its frame if the guest named one, and its place in the machine's memory."""
    return [v.info_mfn, v.info_address - address_of(v.domain.mem.view)]


def save_domain(m: Machine, context: EngineContext) -> DomainState:
    """One domain, whose processor state is `context`."""
    saved = {name: save_owner(owner) for name, owner in owners(m)}
    d = m.domain
    saved["machine"] |= {
        "running": None if m._running is None else m._running.vcpu_id,
        "crash": None if m.crash is None else {name: getattr(m.crash, name) for name in _CRASH},
    }
    saved["domain"]["words"] = {name: getattr(d.words, name) for name in SAVED_DOMAIN_WORDS}
    for v in d.vcpus:
        saved[f"vcpu{v.vcpu_id}"]["info"] = _info(v)
    kept = {name: value for name, value in context._asdict().items() if name not in _NOT_OF_THE_DOMAIN}
    options = {
        "vcpus": len(d.vcpus),
        "upper_ptwr": m.ro_page_fault.upper_tables,
        "cap": m.cap,
        "name": m.name,
        "disks": [asdict(disk) for disk in m.devices.disks],
        "vifs": [asdict(vif) for vif in m.devices.vifs],
        "vfb": None if m.devices.vfb is None else asdict(m.devices.vfb),
    }
    return DomainState(d.domain_id, m.boot, m.heap_top, options, kept, m.clock.save(), layers_of(m), saved)


def layers_of(m: Machine) -> dict[str, dict[int, bytes]]:
    """What the domain wrote to disks that are in memory; files are not saved."""
    return {name: dict(layer.blocks) for name, layer in _layers(m)}


def _layers(m: Machine) -> Iterator[tuple[str, Layer]]:
    for name, device in m.devices.backends.items():
        if isinstance(device, BlockBackend) and isinstance(device.image, Layer):
            yield name, device.image


def load_saved_context(engine: Engine, saved: Fields) -> None:
    """Have in the engine what a domain that was saved had left there, with the addresses of this process."""
    here = {name: getattr(engine.words, name) for name in _NOT_OF_THE_DOMAIN}
    engine.load_context(EngineContext(**saved, **here))


def check_saved_domain(m: Machine, state: DomainState) -> None:
    """Whether a domain that was created anew can be given this state. Raises StateError."""
    d = m.domain
    kinds = OwnerKinds(d.mem, len(d.vcpus))
    for name, device in m.devices.backends.items():
        device.prepare({part.removesuffix(f"-{name}") for part in state.owners if part.endswith(f"-{name}")})
    fresh = save_domain(m, d.engine.save_context()).owners
    _expect_fifo(d, state.owners, fresh)
    check_owners(fresh, state.owners, kinds)
    check_layers({name: image.size for name, image in _layers(m)}, state.layers)
    check_domain(m, state.owners, state.context)


def check_owners(fresh: dict[str, Fields], saved: dict[str, Fields], kinds: OwnerKinds) -> None:
    """Whether these are all owners that there are, and each has what it may have. Raises StateError."""
    if set(saved) != set(fresh):
        raise StateError("owners", ", ".join(sorted(saved)), ", ".join(sorted(fresh)))
    for name, now in fresh.items():
        check_owner(name, now, saved[name], kinds)


def check_saved_dom0(d: Domain | None, saved: dict[str, Fields]) -> None:
    """The same for domain 0, which is not there where no domain is. Raises StateError."""
    if d is None:
        if saved:
            raise StateError("dom0", ", ".join(sorted(saved)), "nothing")
        return
    fresh = save_dom0(d)
    _expect_fifo(d, saved, fresh)
    check_owners(fresh, saved, OwnerKinds(d.mem, len(d.vcpus)))
    check_ports(saved["evtchn"])


def _expect_fifo(d: Domain, saved: Mapping[str, Fields], fresh: dict[str, Fields]) -> None:
    """The guest may have made the FIFO, which no new domain has."""
    if "fifo" in saved and "fifo" not in fresh:
        fresh["fifo"] = save_owner(EvtchnFifo(d.evtchn))


def check_saved_store(store: Xenstored, saved: dict[str, Fields], mem: MachineMemory) -> None:
    """The same for the store. Raises StateError."""
    fresh = {name: save_owner(owner) for name, owner in store_owners(store)}
    check_owners(fresh, saved, OwnerKinds(mem, 0))


def restore_domain(m: Machine, state: DomainState) -> None:
    """Give a domain that was created anew its state; its memory is there."""
    d = m.domain
    saved = {name: dict(fields) for name, fields in state.owners.items()}
    running, crash = saved["machine"].pop("running"), saved["machine"].pop("crash")
    words = saved["domain"].pop("words")
    infos = [saved[f"vcpu{v.vcpu_id}"].pop("info") for v in d.vcpus]
    restore_domain_owners(d, saved)
    for name, owner in owners(m):
        restore_owner(owner, saved[name])
    for name in SAVED_DOMAIN_WORDS:
        setattr(d.words, name, words[name])
    for device in m.devices.backends.values():
        device.restored()
    for name, layer in _layers(m):
        layer.blocks = dict(state.layers.get(name, {}))
    for v, (mfn, at) in zip(d.vcpus, infos, strict=True):
        v.place_info(d.mem.view[at : at + len(v.info)], mfn)
    m.crash = None if crash is None else DomainCrash(**crash)
    m._running = None if running is None else d.vcpus[running]
    m.clock.restore(state.clock, m.timer_action)


def restore_domain_owners(d: Domain, saved: dict[str, Fields]) -> None:
    """What domain 0 has, too."""
    if "fifo" in saved:
        d.evtchn.port_ops = EvtchnFifo(d.evtchn)
    for name, owner in _owners_of_domain(d):
        restore_owner(owner, {key: value for key, value in saved[name].items() if key != "words"})


def save_dom0(d: Domain) -> dict[str, Fields]:
    """Domain 0, which has no processor."""
    return {name: save_owner(owner) for name, owner in _owners_of_domain(d)}


# --- memory -------------------------------------------------------------------------------------------------


def save_pages(mem: MachineMemory) -> dict[int, bytes]:
    """The frames with something in them: stretches of at most RUN_PAGES, by the index of their first."""
    view, size = mem.view, RUN_PAGES * PAGE_SIZE
    empty, zero = bytes(size), bytes(PAGE_SIZE)
    found = {}
    for at in range(0, len(view), size):
        run = bytes(view[at : at + size])
        if run == empty[: len(run)]:
            continue
        start = None
        for offset in range(0, len(run), PAGE_SIZE):
            is_empty = run.startswith(zero, offset)
            if start is None and not is_empty:
                start = offset
            elif start is not None and is_empty:
                found[(at + start) // PAGE_SIZE] = run[start:offset]
                start = None
        if start is not None:
            found[(at + start) // PAGE_SIZE] = run[start:]
    return found


def restore_pages(mem: MachineMemory, pages: Mapping[int, bytes]) -> None:
    """Memory with these frames and no others."""
    mem.scrub(mem.base_mfn, mem.end_mfn - mem.base_mfn)
    for index, run in pages.items():
        mem.view[index * PAGE_SIZE : index * PAGE_SIZE + len(run)] = run
