"""A domain's connection to xenstored: the ring in a page of the guest's, read and written as xenstored does.

The page is the guest's memory and so are its requests: lengths and indices are checked, and a client that
breaks the protocol is told so in the page and listened to no more. Requests come in any pieces. Answers that
find no room wait; where too many wait, nothing more is read. Source: tools/xenstore/xenstored_core.c,
xenstored_domain.c.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.backends.device import Device
from hvcore.backends.xenstore_kept import Message, Watch
from hvcore.backends.xenstore_nodes import Account, Transaction
from hvcore.backends.xenstored import Connection, Xenstored
from hvcore.public.xs_wire import (
    XENSTORE_CONNECTED,
    XENSTORE_CONNECTION,
    XENSTORE_ERROR,
    XENSTORE_ERROR_PROTO,
    XENSTORE_ERROR_RINGIDX,
    XENSTORE_PAYLOAD_MAX,
    XENSTORE_RECONNECT,
    XENSTORE_REQ,
    XENSTORE_REQ_CONS,
    XENSTORE_REQ_PROD,
    XENSTORE_RING_SIZE,
    XENSTORE_RSP,
    XENSTORE_RSP_CONS,
    XENSTORE_RSP_PROD,
    xsd_sockmsg,
)

if TYPE_CHECKING:
    from hvcore.domain import Domain

_WORD = 0xFFFFFFFF
_DOM0 = 0
_U32 = struct.Struct("<I")


class XenstoreBackend(Device, Connection):
    """The store as one domain has it. `read()`, `write()` and `rm()` are domain 0's own, below its home."""

    WIRING = frozenset((*Device.WIRING, "store", "domid", "home"))
    is_unprivileged = True

    def __init__(self, ring: memoryview, domain: Domain, store: Xenstored) -> None:
        super().__init__(domain)
        self.ring = ring
        self.domid = domain.domain_id
        self.home = f"/local/domain/{self.domid}"
        self.store = store
        self.watches: list[Watch] = []
        self.transactions: dict[int, Transaction] = {}
        self.next_transaction = 1
        self.out: list[Message] = []
        self._in = bytearray()  # a request as far as it has come
        self._is_ignored = False
        self._is_notified = False  # there may be something in the ring

    @property
    def account(self) -> Account:
        """What the store keeps for the domain."""
        account = self.store.tree.account_of(self.domid)
        assert account is not None
        return account

    @property
    def most_watches(self) -> int:
        """See Connection."""
        return self.store.tree.quotas.nb_watch_per_domain

    @property
    def most_transactions(self) -> int:
        """See Connection."""
        return self.store.tree.quotas.max_transaction

    def rebind(self, port: int) -> None:
        """What XS_INTRODUCE does to a domain that is there: the channel anew, and domain_conn_reset().

        A port that cannot be bound leaves it without a channel, as in xenstored.
        """
        self.disconnect()
        self.connect_to(self.guest.domain_list[_DOM0], port)
        self.drop_all()
        for at in (XENSTORE_REQ_CONS, XENSTORE_REQ_PROD, XENSTORE_RSP_CONS, XENSTORE_RSP_PROD):
            _U32.pack_into(self.ring, at, 0)
        if _U32.unpack_from(self.ring, XENSTORE_CONNECTION)[0] == XENSTORE_RECONNECT:
            _U32.pack_into(self.ring, XENSTORE_CONNECTION, XENSTORE_CONNECTED)
            self.notify()

    def begin_anew(self) -> None:
        """It was released, and is a new connection: what it did before is forgotten."""
        self._is_ignored = self._is_notified = False
        self.next_transaction = 1

    def now(self) -> int:
        """The domain's time."""
        return self.guest.clock.now()

    def check_room(self, kind: int) -> None:
        """What bounds a domain are its quotas."""

    # --- domain 0's side ----------------------------------------------------------------------------------

    def write(self, path: str, value: str) -> None:
        """Write a node as domain 0, relative to the domain's home, and fire watches."""
        self.serve()
        self.store.write(self.canonicalize(path), value)

    def rm(self, path: str) -> None:
        """Remove a node as domain 0."""
        self.serve()
        self.store.rm(self.canonicalize(path))

    def read(self, path: str) -> str | None:
        """A node's value as domain 0, or None."""
        return self.store.read(self.canonicalize(path))

    # --- the ring -----------------------------------------------------------------------------------------

    def handle_event(self) -> None:
        """The guest notified: take its requests, make room for answers."""
        self._is_notified = True
        self.store.run()

    def step(self) -> bool:
        """One turn of xenstored's loop: whether something moved."""
        moved = self._handle_output() if self.out else False
        if self._is_notified and not self._is_ignored and self._may_ask():
            moved = self._handle_input() or moved
        return moved

    def _may_ask(self) -> bool:
        """domain_can_read(), but for what is in the ring."""
        account = self.account
        quotas = self.store.tree.quotas
        is_behind = account.nboutstanding >= quotas.req_outstanding
        return not is_behind and account.memory < quotas.memory_per_domain_hard

    def _ignore(self, error: int) -> None:
        """ignore_connection(): the client broke the protocol."""
        _U32.pack_into(self.ring, XENSTORE_ERROR, error)
        self._is_ignored = True
        self.drop_all()
        self.notify()

    def _indices(self, cons_at: int, prod_at: int) -> tuple[int, int]:
        """Where a ring is read or written, and how many bytes are in it; more than fit are a lie."""
        cons = _U32.unpack_from(self.ring, cons_at)[0]
        prod = _U32.unpack_from(self.ring, prod_at)[0]
        return cons if cons_at == XENSTORE_REQ_CONS else prod, prod - cons & _WORD

    def _read(self, size: int) -> bool:
        """readchn(): so many bytes more of the request, or all there are; False where the indices lie."""
        cons, used = self._indices(XENSTORE_REQ_CONS, XENSTORE_REQ_PROD)
        if used > XENSTORE_RING_SIZE:
            return False
        size = min(size, used)
        start = XENSTORE_REQ + (cons & (XENSTORE_RING_SIZE - 1))
        first = min(size, XENSTORE_REQ + XENSTORE_RING_SIZE - start)
        self._in += self.ring[start : start + first]
        self._in += self.ring[XENSTORE_REQ : XENSTORE_REQ + size - first]
        _U32.pack_into(self.ring, XENSTORE_REQ_CONS, cons + size & _WORD)
        if size:
            self.notify()
        return True

    def _handle_input(self) -> bool:
        """handle_input(): read on, and answer the request when it is whole; whether something was read."""
        before, wanted = len(self._in), xsd_sockmsg.size
        if before < wanted and not self._read(wanted - before):
            self._ignore(XENSTORE_ERROR_RINGIDX)
            return True
        if len(self._in) >= wanted:
            kind, req_id, tx_id, length = xsd_sockmsg.unpack_from(self._in)
            if length > XENSTORE_PAYLOAD_MAX:
                self._ignore(XENSTORE_ERROR_PROTO)
                return True
            if not self._read(wanted + length - len(self._in)):
                self._ignore(XENSTORE_ERROR_RINGIDX)
                return True
            if len(self._in) == wanted + length:
                payload = bytes(self._in[wanted:])
                self._in.clear()
                self.store.answer(self, (kind, req_id, tx_id), payload)
                return True
        moved = len(self._in) > before
        self._is_notified = moved
        return moved

    def _handle_output(self) -> bool:
        """handle_output(): move waiting messages into the ring, as far as there is room."""
        self._drop_expired()
        moved = False
        while self.out:
            prod, used = self._indices(XENSTORE_RSP_CONS, XENSTORE_RSP_PROD)
            if used > XENSTORE_RING_SIZE:
                self._ignore(XENSTORE_ERROR_RINGIDX)
                return True
            message = self.out[0]
            data = message.data[message.used : message.used + XENSTORE_RING_SIZE - used]
            if not data:
                break
            self._write(prod, data)
            moved = True
            message.used += len(data)
            if message.used == len(message.data):
                del self.out[0]
                self.store.free(message, self.domid)
        if moved:
            self.notify()
        return moved

    def _write(self, prod: int, data: bytes) -> None:
        ring, size = self.ring, len(data)
        start = XENSTORE_RSP + (prod & (XENSTORE_RING_SIZE - 1))
        first = min(size, XENSTORE_RSP + XENSTORE_RING_SIZE - start)
        ring[start : start + first] = data[:first]
        ring[XENSTORE_RSP : XENSTORE_RSP + size - first] = data[first:]
        _U32.pack_into(ring, XENSTORE_RSP_PROD, prod + size & _WORD)

    def _drop_expired(self) -> None:
        """check_event_timeout(): events that nobody took in their time are lost."""
        now = self.now()
        late = [m for m in self.out if m.expires and m.expires <= now and not m.used]
        for message in late:
            self.out.remove(message)
            self.store.free(message, self.domid)
