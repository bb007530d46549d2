"""A tool's connection to xenstored: a stream of bytes each way, for xenstore-ls and its kin.

A tool is domain 0's and may do anything, so no quota of xenstored's holds it. What bounds it here is how much
is kept for it. Nothing of a connection is state of the host: it ends with the process. Source:
handle_input() and handle_output() of tools/xenstore/xenstored_core.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from hvcore.backends.xenstore_kept import Message, Watch
from hvcore.backends.xenstore_nodes import Account, Transaction, XenstoreError
from hvcore.backends.xenstored import Connection, Xenstored
from hvcore.public.errno import ENOSPC
from hvcore.public.xs_wire import (
    XENSTORE_PAYLOAD_MAX,
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_GET_DOMAIN_PATH,
    XS_GET_PERMS,
    XS_IS_DOMAIN_INTRODUCED,
    XS_MKDIR,
    XS_READ,
    XS_SET_PERMS,
    XS_TRANSACTION_START,
    XS_UNWATCH,
    XS_WATCH,
    XS_WRITE,
    xsd_sockmsg,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_DOM0 = 0
_MOST_MEMORY = 64 << 20  # bytes of domain 0's account: beyond them tools may add nothing
_MOST_WAITING = 1 << 20  # bytes of answers and events that a tool has not taken
_ADDS = frozenset((XS_WRITE, XS_MKDIR, XS_SET_PERMS, XS_WATCH, XS_TRANSACTION_START))
# What no domain can notice; anything else waits until the guest's turn can end.
_UNSEEN = frozenset(
    (XS_DIRECTORY, XS_DIRECTORY_PART, XS_READ, XS_GET_PERMS, XS_WATCH, XS_UNWATCH, XS_GET_DOMAIN_PATH,
     XS_IS_DOMAIN_INTRODUCED)
)  # fmt: skip


class ToolRequest(NamedTuple):
    """A request that is whole. `header` is its type, req_id and tx_id."""

    header: tuple[int, int, int]
    payload: bytes

    @property
    def is_unseen(self) -> bool:
        """Whether it changes nothing that a domain could see."""
        return self.header[0] in _UNSEEN


class ToolConnection(Connection):
    """The store as one tool has it. The store knows it from its making until `close()`."""

    domid = _DOM0
    home = f"/local/domain/{_DOM0}"
    is_unprivileged = False
    most_watches = 4096
    most_transactions = 256

    def __init__(self, store: Xenstored) -> None:
        self.store = store
        self.watches: list[Watch] = []
        self.transactions: dict[int, Transaction] = {}
        self.next_transaction = 1
        self.out: list[Message] = []
        self._in = bytearray()
        store.tools.append(self)

    @property
    def account(self) -> Account:
        """What the store keeps for domain 0."""
        return self.store.tree.accounts[_DOM0]

    def now(self) -> int:
        """No event of a tool's expires."""
        return 0

    def close(self) -> None:
        """The tool is gone, with all that was kept for it."""
        self.drop_all()
        if self in self.store.tools:
            self.store.tools.remove(self)

    # --- from the tool ------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """So many bytes more have come."""
        self._in += data

    def next_request(self) -> ToolRequest | None:
        """The next request that is whole. Raises ValueError where it is too long: nothing can follow."""
        if len(self._in) < xsd_sockmsg.size:
            return None
        kind, req_id, tx_id, length = xsd_sockmsg.unpack_from(self._in)
        if length > XENSTORE_PAYLOAD_MAX:
            raise ValueError(f"a request of {length} bytes, and {XENSTORE_PAYLOAD_MAX} are the most")
        end = xsd_sockmsg.size + length
        if len(self._in) < end:
            return None
        payload = bytes(self._in[xsd_sockmsg.size : end])
        del self._in[:end]
        return ToolRequest((kind, req_id, tx_id), payload)

    def answer(self, request: ToolRequest) -> None:
        """Do what is asked for, and serve the domains that it is about."""
        self.store.answer(self, request.header, request.payload)
        self.store.run()

    def check_room(self, kind: int) -> None:
        """Raise XenstoreError(ENOSPC) where the tools have stored too much to be given more."""
        if kind in _ADDS and self.account.memory > _MOST_MEMORY:
            raise XenstoreError(ENOSPC)

    # --- to the tool --------------------------------------------------------------------------------------

    @property
    def is_behind(self) -> bool:
        """Whether it has taken so little of what it was told that it is told no more."""
        return sum(len(message.data) for message in self.out) > _MOST_WAITING

    def pieces(self) -> Iterator[memoryview]:
        """What waits to be sent, the first first; `sent()` says how much of it is."""
        for message in self.out:
            yield memoryview(message.data)[message.used :]

    def sent(self, size: int) -> None:
        """The tool has taken so many bytes."""
        while size:
            message = self.out[0]
            used = min(size, len(message.data) - message.used)
            message.used += used
            size -= used
            if message.used == len(message.data):
                del self.out[0]
                self.store.free(message, self.domid)
