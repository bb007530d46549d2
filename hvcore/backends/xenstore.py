"""The xenstore backend, what xenstored is in domain 0, with the nodes that libxl gives a domain.

The ring page is the guest's memory and so are its requests: lengths and indices are checked as xenstored
checks them, and a client that breaks the protocol is told so in the page and listened to no more. Requests
come in any pieces. Answers that find no room wait; while many wait, nothing more is read. Sources:
tools/xenstore/xenstored_core.c, xenstored_domain.c, xenstored_watch.c, tools/libs/light/libxl_create.c.
"""

from __future__ import annotations

import struct
import uuid
from typing import TYPE_CHECKING

from hvcore.backends.device import Device
from hvcore.backends.xenstore_tree import (
    PERM_READ,
    QUOTA_PERMS,
    Perm,
    Perms,
    Transaction,
    Tree,
    XenstoreError,
    format_perm,
    is_valid_path,
    parse_perm,
)
from hvcore.public.errno import E2BIG, EACCES, EBUSY, EEXIST, EINVAL, ENOENT, ENOSPC, ENOSYS, NAMES
from hvcore.public.xs_wire import (
    XENSTORE_ERROR,
    XENSTORE_ERROR_PROTO,
    XENSTORE_ERROR_RINGIDX,
    XENSTORE_PAYLOAD_MAX,
    XENSTORE_REL_PATH_MAX,
    XENSTORE_REQ,
    XENSTORE_REQ_CONS,
    XENSTORE_REQ_PROD,
    XENSTORE_RING_SIZE,
    XENSTORE_RSP,
    XENSTORE_RSP_CONS,
    XENSTORE_RSP_PROD,
    XS_CONTROL,
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_ERROR,
    XS_GET_DOMAIN_PATH,
    XS_GET_PERMS,
    XS_INTRODUCE,
    XS_IS_DOMAIN_INTRODUCED,
    XS_MKDIR,
    XS_READ,
    XS_RELEASE,
    XS_RESET_WATCHES,
    XS_RESUME,
    XS_RM,
    XS_SET_PERMS,
    XS_SET_TARGET,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_UNWATCH,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
    xsd_sockmsg,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.domain import Domain

QUOTA_WATCHES = 128
QUOTA_TRANSACTIONS = 10
_MAX_WAITING = 1 << 16  # bytes of answers, beyond which requests wait
_WORD = 0xFFFFFFFF
_U32 = struct.Struct("<I")
_PRIVILEGED = frozenset(
    (XS_CONTROL, XS_INTRODUCE, XS_RELEASE, XS_IS_DOMAIN_INTRODUCED, XS_RESUME, XS_SET_TARGET)
)
_WITHOUT_TRANSACTION = frozenset((XS_WATCH, XS_UNWATCH))
_OK = b"OK\0"


def _strings(payload: bytes, count: int) -> list[str]:
    """Exactly `count` NUL-terminated strings. Raises XenstoreError(EINVAL)."""
    parts = payload.split(b"\0")
    if len(parts) != count + 1 or parts[-1]:
        raise XenstoreError(EINVAL)
    return [part.decode("latin-1") for part in parts[:-1]]


def _atoi(text: str) -> int:
    """C's atoi() of a non-negative number."""
    digits = len(text) - len(text.lstrip("0123456789"))
    return int(text[: min(digits, 20)] or "0")


class XenstoreBackend(Device):
    """The store as one domain's connection sees it. `write()` and `rm()` are domain 0's own."""

    WIRING = frozenset(("ring", "_backend", "_handlers", "tree", "_domid"))

    def __init__(self, ring: memoryview, domain: Domain, name: str = "guest") -> None:
        super().__init__(ring)
        self._domid = domain.domain_id
        self._in = bytearray()
        self._out = bytearray()
        self._watches: dict[tuple[str, str], str] = {}  # (absolute path, token) -> path as registered
        self._transactions: dict[int, Transaction] = {}
        self._next_transaction = 1
        self._is_ignored = False
        self.tree = Tree(self._domid)
        _populate(self.tree, domain, name)
        self._handlers: dict[int, Callable[[Transaction | None, bytes], bytes]] = {
            XS_DIRECTORY: self._directory,
            XS_DIRECTORY_PART: self._directory_part,
            XS_READ: self._read,
            XS_GET_PERMS: self._get_perms,
            XS_SET_PERMS: self._set_perms,
            XS_WATCH: self._watch,
            XS_UNWATCH: self._unwatch,
            XS_RESET_WATCHES: self._reset_watches,
            XS_TRANSACTION_START: self._transaction_start,
            XS_GET_DOMAIN_PATH: self._get_domain_path,
            XS_WRITE: self._write,
            XS_MKDIR: self._mkdir,
            XS_RM: self._rm,
        }

    # --- domain 0's side ----------------------------------------------------------------------------------

    def write(self, path: str, value: str) -> None:
        """Write a node as domain 0, relative to the domain's home, and fire the guest's watches."""
        path = self.tree.canonicalize(path)
        self.tree.write(None, path, value.encode(), 0)
        self._fire(path)
        self._flush()

    def rm(self, path: str) -> None:
        """Remove a node as domain 0."""
        path = self.tree.canonicalize(path)
        self.tree.rm(None, path, 0)
        self._fire(path)
        self._flush()

    def read(self, path: str) -> str | None:
        """A node's value as domain 0, or None."""
        node = self.tree.nodes.get(self.tree.canonicalize(path))
        return None if node is None else node.value.decode("utf-8", "replace")

    # --- the ring -----------------------------------------------------------------------------------------

    def handle_event(self) -> None:
        """The guest notified: take its requests, make room for answers."""
        moved = True
        while moved and not self._is_ignored:
            moved = False
            if len(self._out) <= _MAX_WAITING:
                moved = self._fill_input()
                self._process()
            self._flush()

    def _ignore(self, error: int) -> None:
        """ignore_connection(): the client broke the protocol."""
        _U32.pack_into(self.ring, XENSTORE_ERROR, error)
        self._is_ignored = True
        self._in.clear()
        self._out.clear()
        self._watches.clear()
        self._transactions.clear()
        self.notify()

    def _fill_input(self) -> bool:
        ring = self.ring
        cons = _U32.unpack_from(ring, XENSTORE_REQ_CONS)[0]
        prod = _U32.unpack_from(ring, XENSTORE_REQ_PROD)[0]
        size = prod - cons & _WORD
        if size > XENSTORE_RING_SIZE:
            self._ignore(XENSTORE_ERROR_RINGIDX)
            return False
        if not size:
            return False
        start = XENSTORE_REQ + (cons & (XENSTORE_RING_SIZE - 1))
        first = min(size, XENSTORE_REQ + XENSTORE_RING_SIZE - start)
        self._in += ring[start : start + first]
        self._in += ring[XENSTORE_REQ : XENSTORE_REQ + size - first]
        _U32.pack_into(ring, XENSTORE_REQ_CONS, prod)
        self.notify()
        return True

    def _flush(self) -> None:
        """Move waiting answers into the ring, as far as there is room."""
        out = self._out
        if not out or self._is_ignored:
            return
        ring = self.ring
        cons = _U32.unpack_from(ring, XENSTORE_RSP_CONS)[0]
        prod = _U32.unpack_from(ring, XENSTORE_RSP_PROD)[0]
        used = prod - cons & _WORD
        if used > XENSTORE_RING_SIZE:
            self._ignore(XENSTORE_ERROR_RINGIDX)
            return
        size = min(len(out), XENSTORE_RING_SIZE - used)
        if not size:
            return
        start = XENSTORE_RSP + (prod & (XENSTORE_RING_SIZE - 1))
        first = min(size, XENSTORE_RSP + XENSTORE_RING_SIZE - start)
        ring[start : start + first] = out[:first]
        ring[XENSTORE_RSP : XENSTORE_RSP + size - first] = out[first:size]
        del out[:size]
        _U32.pack_into(ring, XENSTORE_RSP_PROD, prod + size & _WORD)
        self.notify()

    def _process(self) -> None:
        """Answer each request that has come in whole."""
        while len(self._in) >= xsd_sockmsg.size and not self._is_ignored:
            kind, req_id, tx_id, length = xsd_sockmsg.unpack_from(self._in)
            if length > XENSTORE_PAYLOAD_MAX:
                self._ignore(XENSTORE_ERROR_PROTO)
                return
            end = xsd_sockmsg.size + length
            if len(self._in) < end or len(self._out) > _MAX_WAITING:
                return
            payload = bytes(self._in[xsd_sockmsg.size : end])
            del self._in[:end]
            self._answer(kind, req_id, tx_id, payload)

    def _send(self, kind: int, req_id: int, tx_id: int, payload: bytes) -> None:
        self._out += xsd_sockmsg.pack(kind, req_id, tx_id, len(payload)) + payload

    def _bounded(self, kind: int, tx_id: int, payload: bytes) -> bytes:
        answer = self._handle(kind, tx_id, payload)
        if len(answer) > XENSTORE_PAYLOAD_MAX:
            raise XenstoreError(E2BIG)
        return answer

    def _answer(self, kind: int, req_id: int, tx_id: int, payload: bytes) -> None:
        events_at = len(self._out)
        try:
            answer = self._bounded(kind, tx_id, payload)
        except XenstoreError as e:
            self._send(XS_ERROR, req_id, tx_id, NAMES[e.errno].encode() + b"\0")
            return
        header = xsd_sockmsg.pack(kind, req_id, tx_id, len(answer))
        self._out[events_at:events_at] = header + answer  # an answer goes before the events it caused

    def _handle(self, kind: int, tx_id: int, payload: bytes) -> bytes:
        if kind in _PRIVILEGED:
            raise XenstoreError(EACCES)
        if kind != XS_TRANSACTION_END and kind not in self._handlers:
            raise XenstoreError(ENOSYS)
        transaction = None
        if tx_id and kind not in _WITHOUT_TRANSACTION:
            transaction = self._transactions.get(tx_id)
            if transaction is None:
                raise XenstoreError(ENOENT)
        if kind == XS_TRANSACTION_END:
            return self._transaction_end(tx_id, transaction, payload)
        return self._handlers[kind](transaction, payload)

    # --- requests -----------------------------------------------------------------------------------------

    def _path(self, payload: bytes) -> str:
        return self.tree.canonicalize(_strings(payload, 1)[0])

    def _directory(self, t: Transaction | None, payload: bytes) -> bytes:
        node = self.tree.get(t, self._path(payload), self._domid, PERM_READ)
        return b"".join(child.encode() + b"\0" for child in node.children)

    def _directory_part(self, t: Transaction | None, payload: bytes) -> bytes:
        path, offset = _strings(payload, 2)
        node = self.tree.get(t, self.tree.canonicalize(path), self._domid, PERM_READ)
        names = b"".join(child.encode() + b"\0" for child in node.children)
        generation = b"%d\0" % node.generation
        at = _atoi(offset)
        if at >= len(names):
            return generation + b"\0"
        room = XENSTORE_PAYLOAD_MAX - len(generation) - 1
        part = names[at:]
        if len(part) > room:
            part = part[: part.rfind(b"\0", 0, room) + 1]
            return generation + part
        return generation + part + b"\0"

    def _read(self, t: Transaction | None, payload: bytes) -> bytes:
        return self.tree.get(t, self._path(payload), self._domid, PERM_READ).value

    def _get_perms(self, t: Transaction | None, payload: bytes) -> bytes:
        node = self.tree.get(t, self._path(payload), self._domid, PERM_READ)
        return b"".join(format_perm(perm).encode() + b"\0" for perm in node.perms)

    def _set_perms(self, t: Transaction | None, payload: bytes) -> bytes:
        count = payload.count(b"\0")
        if count < 2:
            raise XenstoreError(EINVAL)
        if count - 1 > QUOTA_PERMS:
            raise XenstoreError(ENOSPC)
        path, *texts = _strings(payload, count)
        perms = tuple(parse_perm(text) for text in texts)
        if path.startswith("@"):
            raise XenstoreError(EACCES)
        path = self.tree.canonicalize(path)
        self.tree.set_perms(t, path, perms, self._domid)
        self._changed(t, path)
        return _OK

    def _write(self, t: Transaction | None, payload: bytes) -> bytes:
        path, nul, value = payload.partition(b"\0")
        if not nul:
            raise XenstoreError(EINVAL)
        name = self.tree.canonicalize(path.decode("latin-1"))
        self.tree.write(t, name, value, self._domid)
        self._changed(t, name)
        return _OK

    def _mkdir(self, t: Transaction | None, payload: bytes) -> bytes:
        path = self._path(payload)
        if self.tree.mkdir(t, path, self._domid):
            self._changed(t, path)
        return _OK

    def _rm(self, t: Transaction | None, payload: bytes) -> bytes:
        path = self._path(payload)
        if self.tree.rm(t, path, self._domid):
            self._changed(t, path, removed=True)
        return _OK

    def _get_domain_path(self, _t: Transaction | None, payload: bytes) -> bytes:
        return b"/local/domain/%d\0" % (_atoi(_strings(payload, 1)[0]) & 0xFFFF)

    # --- transactions -------------------------------------------------------------------------------------

    def _transaction_start(self, t: Transaction | None, _payload: bytes) -> bytes:
        if t is not None:
            raise XenstoreError(EBUSY)
        if len(self._transactions) > QUOTA_TRANSACTIONS:
            raise XenstoreError(ENOSPC)
        while self._next_transaction in self._transactions:
            self._next_transaction = self._next_transaction % _WORD + 1
        number = self._next_transaction
        self._next_transaction = number % _WORD + 1
        self._transactions[number] = self.tree.start()
        return b"%d\0" % number

    def _transaction_end(self, tx_id: int, t: Transaction | None, payload: bytes) -> bytes:
        (decision,) = _strings(payload, 1)
        if decision not in ("T", "F"):
            raise XenstoreError(EINVAL)
        if t is None:
            raise XenstoreError(ENOENT)
        del self._transactions[tx_id]
        if decision == "T":
            for path, removed in self.tree.commit(t).items():
                self._fire(path, removed)
        return _OK

    # --- watches ------------------------------------------------------------------------------------------

    def _watch_path(self, path: str) -> str:
        if path.startswith("@"):
            if len(path) > XENSTORE_REL_PATH_MAX or not is_valid_path("/" + path):
                raise XenstoreError(EINVAL)
            return path
        return self.tree.canonicalize(path)

    def _watch(self, _t: Transaction | None, payload: bytes) -> bytes:
        path, token = _strings(payload, 2)
        key = (self._watch_path(path), token)
        if key in self._watches:
            raise XenstoreError(EEXIST)
        if len(self._watches) >= QUOTA_WATCHES:
            raise XenstoreError(E2BIG)
        self._watches[key] = path
        self._event(path, token)  # once up front
        return _OK

    def _unwatch(self, _t: Transaction | None, payload: bytes) -> bytes:
        path, token = _strings(payload, 2)
        if self._watches.pop((self._watch_path(path), token), None) is None:
            raise XenstoreError(ENOENT)
        return _OK

    def _reset_watches(self, _t: Transaction | None, _payload: bytes) -> bytes:
        self._watches.clear()
        self._transactions.clear()
        return _OK

    def _changed(self, t: Transaction | None, path: str, removed: bool = False) -> None:
        """A change outside a transaction fires now, inside one when it is committed."""
        if t is None:
            self._fire(path, removed)

    def _fire(self, path: str, removed: bool = False) -> None:
        """Send the events of a change at `path`: to watches on it and above, and below it when it went."""
        if not self._may_see(path):
            return
        for (watched, token), registered in list(self._watches.items()):
            base = watched.rstrip("/")
            if path == watched or path.startswith(base + "/"):
                self._event(registered + path[len(watched) :] if registered != "/" else path, token)
            elif removed and watched.startswith(path + "/"):
                self._event(registered, token)

    def _may_see(self, path: str) -> bool:
        """Whether the guest may know of a change: it reads the node, or what is left above it."""
        node = self.tree.nodes.get(path)
        if node is None:
            return True
        try:
            self.tree.get(None, path, self._domid, PERM_READ)
        except XenstoreError:
            return False
        return True

    def _event(self, path: str, token: str) -> None:
        payload = path.encode("latin-1") + b"\0" + token.encode("latin-1") + b"\0"
        self._send(XS_WATCH_EVENT, 0, 0, payload[:XENSTORE_PAYLOAD_MAX])


def _populate(tree: Tree, domain: Domain, name: str) -> None:
    """The nodes that libxl makes for a PV domain without devices."""
    domid = domain.domain_id
    unique = str(uuid.UUID(bytes=domain.handle))
    memory_kib = domain.nr_pages * 4
    read_only: Perms = (Perm(0, 0), Perm(domid, PERM_READ))
    guests: Perms = (Perm(domid, 0),)
    home, vm = tree.home, f"/vm/{unique}"
    values: dict[str, tuple[str, Perms]] = {
        vm: ("", read_only),
        f"{vm}/name": (name, read_only),
        f"{vm}/uuid": (unique, read_only),
        home: ("", read_only),
        f"{home}/vm": (vm, read_only),
        f"{home}/name": (name, read_only),
        f"{home}/domid": (str(domid), read_only),
        f"{home}/cpu": ("", read_only),
        f"{home}/memory": ("", read_only),
        f"{home}/memory/static-max": (str(memory_kib), read_only),
        f"{home}/memory/target": (str(memory_kib), read_only),
        f"{home}/memory/videoram": ("0", read_only),
        f"{home}/device": ("", read_only),
        f"{home}/device/suspend/event-channel": ("", guests),
        f"{home}/control": ("", read_only),
        f"{home}/control/shutdown": ("", guests),
        f"{home}/control/feature-poweroff": ("", guests),
        f"{home}/control/feature-reboot": ("", guests),
        f"{home}/control/feature-suspend": ("", guests),
        f"{home}/control/sysrq": ("", guests),
        f"{home}/control/platform-feature-multiprocessor-suspend": ("1", read_only),
        f"{home}/control/platform-feature-xs_reset_watches": ("1", read_only),
        f"{home}/data": ("", guests),
        f"{home}/drivers": ("", guests),
        f"{home}/feature": ("", guests),
        f"{home}/attr": ("", guests),
        f"{home}/error": ("", guests),
        f"{home}/store": ("", read_only),
        f"{home}/console": ("", read_only),
        f"{home}/console/backend": (f"/local/domain/0/backend/console/{domid}/0", read_only),
        f"{home}/console/backend-id": ("0", read_only),
        f"{home}/console/type": ("xenconsoled", read_only),
        f"{home}/console/output": ("pty", read_only),
        f"{home}/console/limit": ("1048576", read_only),
    }
    for i in range(domain.max_vcpus):
        values[f"{home}/cpu/{i}/availability"] = ("online", read_only)
    for path, (value, perms) in values.items():
        tree.write(None, path, value.encode(), 0)
        tree.set_perms(None, path, perms, 0)
