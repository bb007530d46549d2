"""What xenstored is in domain 0: the store of a host, the connections of its domains, requests and watches.

Source: tools/xenstore/xenstored_core.c, xenstored_domain.c, xenstored_watch.c. Domain 0 is trusted and talks
to the store by `write()`, `read()` and `watch()`. What is not here: the limit on the rate of writes, which
keeps domains from holding up the one xenstored that they share, and Live-Update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from hvcore.backends.xenstore_kept import Message, Request, Watch, is_child
from hvcore.backends.xenstore_nodes import (
    PERM_IGNORE,
    PERM_READ,
    Account,
    Node,
    Perms,
    Transaction,
    XenstoreError,
    format_perm,
    is_valid_path,
    parent_of,
    parse_perm,
)
from hvcore.backends.xenstore_privileged import HANDLERS as PRIVILEGED
from hvcore.backends.xenstore_requests import atoi, onearg, pair, strings
from hvcore.backends.xenstore_tree import Tree
from hvcore.public.errno import E2BIG, EACCES, EBUSY, EEXIST, EINVAL, ENOENT, ENOSPC, ENOSYS, NAMES
from hvcore.public.xs_wire import (
    XENSTORE_PAYLOAD_MAX,
    XENSTORE_REL_PATH_MAX,
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_ERROR,
    XS_GET_DOMAIN_PATH,
    XS_GET_PERMS,
    XS_MKDIR,
    XS_READ,
    XS_RESET_WATCHES,
    XS_RM,
    XS_SET_PERMS,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_UNWATCH,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
    xsd_errors,
    xsd_sockmsg,
)

if TYPE_CHECKING:
    from hvcore.backends.xenstore import XenstoreBackend

WATCH_EVENT_TIMEOUT_NS = 20_000_000_000
_DEFAULT_BUFFER_SIZE = 16
_DOM0 = 0
_WORD = 0xFFFFFFFF
_WITHOUT_TRANSACTION = frozenset((XS_WATCH, XS_UNWATCH))
_OK = b"OK\0"


class Connection(Protocol):
    """struct connection: who asks, a domain by its ring or a tool of domain 0's by a socket."""

    store: Xenstored
    domid: int
    home: str
    is_unprivileged: bool
    watches: list[Watch]
    transactions: dict[int, Transaction]
    next_transaction: int
    out: list[Message]
    _in: bytearray  # a request as far as it has come

    @property
    def account(self) -> Account:
        """What the store keeps for the domain."""

    @property
    def most_watches(self) -> int:
        """How many watches it may have."""

    @property
    def most_transactions(self) -> int:
        """How many transactions it may have at a time."""

    def now(self) -> int:
        """The domain's time."""

    def canonicalize(self, path: str) -> str:
        """An absolute path from what it wrote."""
        return path if path[:1] in ("/", "@") else f"{self.home}/{path}"

    def drop_watches(self) -> None:
        """conn_delete_all_watches() and conn_delete_all_transactions()."""
        for watch in self.watches:
            self.store.forget_watch(self, watch)
        self.watches.clear()
        for transaction in self.transactions.values():
            self.store.tree.end(transaction)
        self.transactions.clear()

    def drop_all(self) -> None:
        """Nothing is left of the connection but that it is there."""
        self.drop_watches()
        for message in self.out:
            self.store.free(message, self.domid)
        self.out.clear()
        self._in.clear()

    def check_room(self, kind: int) -> None:
        """Raise XenstoreError where too much is kept for it to make a request of this kind."""


Handler = Callable[[Connection, Transaction | None, bytes], bytes]


class Xenstored:
    """The store of one host. `exists` says whether there is a domain of that number."""

    WIRING = frozenset(
        (
            "tree", "connections", "_released", "tools", "_handlers", "_watchers", "_told", "_is_running",
            "_current",
        )
    )  # fmt: skip

    def __init__(self, exists: Callable[[int], bool]) -> None:
        self.tree = Tree(exists, self._fire)
        self.connections: dict[int, XenstoreBackend] = {}
        self._released: dict[int, XenstoreBackend] = {}  # of domains that are there
        self.tools: list[Connection] = []
        self.requests: dict[int, Request] = {}
        self._next_request = 1
        self._watchers: dict[str, tuple[str, Callable[[str], None]]] = {}  # domain 0's, by name
        self._told: list[tuple[str, str]] = []  # what those are to be told next
        self._is_running = False
        self._current = 0  # the request of a domain that is being handled
        self._handlers: dict[int, Handler] = {
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

    def write(self, path: str, value: str, perms: Perms | None = None) -> None:
        """Write a node as domain 0, by its absolute path, and set its permissions where some are given.

        A byte of a file's name that is no UTF-8, which Python has as a surrogate, is written as it is.
        """
        self.tree.write(None, path, value.encode("utf-8", "surrogateescape"), _DOM0)
        if perms is not None:
            self.tree.set_perms(None, path, self.tree.known_perms(perms), _DOM0)
        self.run()

    def rm(self, path: str) -> None:
        """Remove a node as domain 0, if it is there."""
        if path in self.tree.nodes:
            self.tree.rm(None, path, _DOM0)
            self.run()

    def read(self, path: str) -> str | None:
        """A node's value as domain 0, or None."""
        node = self.tree.nodes.get(path)
        return None if node is None else node.value.decode("utf-8", "replace")

    def ls(self, path: str) -> tuple[str, ...]:
        """The names of a node's children as domain 0 sees them; none where there is no node."""
        node = self.tree.nodes.get(path)
        return () if node is None else node.children

    def watch(self, name: str, path: str, callback: Callable[[str], None]) -> None:
        """Have `callback` called with each path at or below `path` that changes; `name` is to unwatch it."""
        self._watchers[name] = (path, callback)

    def unwatch(self, name: str) -> None:
        """No longer tell the watcher of that name."""
        self._watchers.pop(name, None)

    def introduce(self, domid: int, connection: XenstoreBackend) -> None:
        """introduce_domain(): the domain has a connection from now on."""
        self.tree.account_of(domid)
        self.connections[domid] = connection
        self._fire("@introduceDomain", None, True, None)
        self.run()

    def introduce_again(self, domid: int, port: int) -> bool:
        """do_introduce() of a domain that is there, whether it was released or not; False for no domain's."""
        released = self._released.pop(domid, None)
        if released is not None:
            released.begin_anew()
            self.introduce(domid, released)
        connection = self.connections.get(domid)
        if connection is not None:
            connection.rebind(port)
        return connection is not None

    def release(self, domid: int, *, is_gone: bool = True) -> None:
        """destroy_domain(): the domain is forgotten, with its connection and what it owned.

        One that `is_gone` will not be introduced again.
        """
        connection = self.connections.pop(domid, None)
        if is_gone:
            self._released.pop(domid, None)
        if connection is None:
            return
        connection.drop_all()
        if not is_gone:
            self._released[domid] = connection
        self.tree.forget_domain(domid)
        self._fire("@releaseDomain", None, True, None)
        self.run()

    def is_connected(self, domid: int) -> bool:
        """Whether there is a connection of that domain's."""
        return domid == _DOM0 or domid in self.connections

    # --- the loop -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve whoever has something to be served, until nothing moves any more."""
        if self._is_running:
            return
        self._is_running = True
        try:
            moved = True
            while moved:
                moved = False
                for connection in list(self.connections.values()):
                    moved = connection.step() or moved
                while self._told:
                    name, path = self._told.pop(0)
                    if name in self._watchers:
                        self._watchers[name][1](path)
                    moved = True
        finally:
            self._is_running = False

    def answer(self, c: Connection, header: tuple[int, int, int], payload: bytes) -> None:
        """process_message(): do what is asked for and queue the answer; `header` is type, req_id, tx_id."""
        kind, req_id, tx_id = header
        number = self._current = self._begin(c)
        events_at = len(c.out)
        try:
            answer = self._bounded(c, kind, tx_id, payload)
            self.tree.add_memory(
                c.domid, len(answer) + xsd_sockmsg.size, check=len(answer) > _DEFAULT_BUFFER_SIZE
            )
        except XenstoreError as error:
            errno = error.errno if NAMES[error.errno] in xsd_errors else EINVAL
            kind, answer = XS_ERROR, NAMES[errno].encode() + b"\0"
            self.tree.add_memory(c.domid, len(answer) + xsd_sockmsg.size, check=False)
        finally:
            self._current = 0
        data = xsd_sockmsg.pack(kind, req_id, tx_id, len(answer)) + answer
        message = Message(data, number, is_event=False, expires=0)
        # A watch is answered before its first event; a change after the events that it caused.
        c.out.insert(events_at if kind == XS_WATCH else len(c.out), message)

    def _begin(self, c: Connection) -> int:
        """The number of a request; 0 for one of a tool's, which are not counted."""
        if not c.is_unprivileged:
            return 0
        number = self._next_request
        self._next_request += 1
        self.requests[number] = Request(c.domid)
        c.account.nboutstanding += 1
        return number

    def free(self, message: Message, domid: int) -> None:
        """free_buffered_data(): a message of that domain's is taken, or nobody will."""
        self.tree.add_memory(domid, -len(message.data), check=False)
        request = self.requests.get(message.request)
        if request is None:
            return
        if message.is_event:
            request.events -= 1
        else:
            request.is_answered = True
        if request.is_answered and not request.events:
            del self.requests[message.request]
            account = self.tree.accounts.get(request.domid)
            if account is not None:
                account.nboutstanding -= 1

    # --- requests -----------------------------------------------------------------------------------------

    def _bounded(self, c: Connection, kind: int, tx_id: int, payload: bytes) -> bytes:
        answer = self._handle(c, kind, tx_id, payload)
        if len(answer) > XENSTORE_PAYLOAD_MAX:
            raise XenstoreError(E2BIG)
        return answer

    def _handle(self, c: Connection, kind: int, tx_id: int, payload: bytes) -> bytes:
        if kind in PRIVILEGED and c.is_unprivileged:
            raise XenstoreError(EACCES)
        if kind != XS_TRANSACTION_END and kind not in self._handlers and kind not in PRIVILEGED:
            raise XenstoreError(ENOSYS)
        c.check_room(kind)
        t = None
        if tx_id and kind not in _WITHOUT_TRANSACTION:
            t = c.transactions.get(tx_id)
            if t is None:
                raise XenstoreError(ENOENT)
        if kind == XS_TRANSACTION_END:
            return self._transaction_end(c, tx_id, t, payload)
        if kind in PRIVILEGED:
            return PRIVILEGED[kind](self, payload)
        return self._handlers[kind](c, t, payload)

    def _directory(self, c: Connection, t: Transaction | None, payload: bytes) -> bytes:
        node = self.tree.get(t, c.canonicalize(onearg(payload)), c.domid, PERM_READ)
        return b"".join(child.encode() + b"\0" for child in node.children)

    def _directory_part(self, c: Connection, t: Transaction | None, payload: bytes) -> bytes:
        path, offset = pair(payload)
        node = self.tree.get(t, c.canonicalize(path), c.domid, PERM_READ)
        names = b"".join(child.encode() + b"\0" for child in node.children)
        generation = b"%d\0" % node.generation
        at = atoi(offset)
        if at >= len(names):
            return generation + b"\0"
        room = XENSTORE_PAYLOAD_MAX - len(generation) - 1
        part = names[at:]
        if len(part) > room:
            return generation + part[: part.rfind(b"\0", 0, room) + 1]
        return generation + part + b"\0"

    def _read(self, c: Connection, t: Transaction | None, payload: bytes) -> bytes:
        return self.tree.get(t, c.canonicalize(onearg(payload)), c.domid, PERM_READ).value

    def _get_perms(self, c: Connection, t: Transaction | None, payload: bytes) -> bytes:
        node = self.tree.get(t, c.canonicalize(onearg(payload)), c.domid, PERM_READ)
        return b"".join(format_perm(perm).encode() + b"\0" for perm in node.perms)

    def _set_perms(self, c: Connection, t: Transaction | None, payload: bytes) -> bytes:
        path, *texts = strings(payload) or [""]
        if not texts:
            raise XenstoreError(EINVAL)
        if len(texts) > self.tree.quotas.nb_perms_per_node:
            raise XenstoreError(ENOSPC)
        perms = self.tree.known_perms(tuple(parse_perm(text) for text in texts))
        if perms[0].bits & PERM_IGNORE:
            raise XenstoreError(ENOENT)
        if path.startswith("@"):
            self.tree.set_special(path, perms, c.domid)
            return _OK
        self.tree.set_perms(t, c.canonicalize(path), perms, c.domid)
        return _OK

    def _write(self, c: Connection, t: Transaction | None, payload: bytes) -> bytes:
        path, nul, value = payload.partition(b"\0")
        if not nul:
            raise XenstoreError(EINVAL)
        self.tree.write(t, c.canonicalize(path.decode("latin-1")), value, c.domid)
        return _OK

    def _mkdir(self, c: Connection, t: Transaction | None, payload: bytes) -> bytes:
        self.tree.mkdir(t, c.canonicalize(onearg(payload)), c.domid)
        return _OK

    def _rm(self, c: Connection, t: Transaction | None, payload: bytes) -> bytes:
        self.tree.rm(t, c.canonicalize(onearg(payload)), c.domid)
        return _OK

    def _get_domain_path(self, _c: Connection, _t: Transaction | None, payload: bytes) -> bytes:
        return b"/local/domain/%d\0" % atoi(onearg(payload))

    # --- transactions -------------------------------------------------------------------------------------

    def _transaction_start(self, c: Connection, t: Transaction | None, _payload: bytes) -> bytes:
        if t is not None:
            raise XenstoreError(EBUSY)
        if len(c.transactions) > c.most_transactions:
            raise XenstoreError(ENOSPC)
        while c.next_transaction in c.transactions:
            c.next_transaction = c.next_transaction % _WORD + 1
        number = c.next_transaction
        c.next_transaction = number % _WORD + 1
        c.transactions[number] = self.tree.start(c.domid)
        return b"%d\0" % number

    def _transaction_end(self, c: Connection, tx_id: int, t: Transaction | None, payload: bytes) -> bytes:
        decision = onearg(payload)
        if decision not in ("T", "F"):
            raise XenstoreError(EINVAL)
        if t is None:
            raise XenstoreError(ENOENT)
        del c.transactions[tx_id]
        if decision == "T":
            self.tree.commit(t)
        else:
            self.tree.end(t)
        return _OK

    # --- watches ------------------------------------------------------------------------------------------

    def _watch(self, c: Connection, _t: Transaction | None, payload: bytes) -> bytes:
        path, token = pair(payload)
        relative = path[:1] not in ("/", "@")
        node = c.canonicalize(path)
        valid = len(node) <= XENSTORE_REL_PATH_MAX if node.startswith("@") else is_valid_path(node)
        if not valid:
            raise XenstoreError(EINVAL)
        if any((watch.node, watch.token) == (node, token) for watch in c.watches):
            raise XenstoreError(EEXIST)
        if len(c.watches) > c.most_watches:
            raise XenstoreError(E2BIG)
        watch = Watch(node, token, relative=relative)
        self.tree.add_memory(c.domid, watch.size, check=True)
        c.watches.append(watch)
        c.account.nbwatch += 1
        self._send_event(c, watch, node, request=0)  # once up front
        return _OK

    def _unwatch(self, c: Connection, _t: Transaction | None, payload: bytes) -> bytes:
        path, token = pair(payload)
        node = c.canonicalize(path)
        for watch in c.watches:
            if (watch.node, watch.token) == (node, token):
                c.watches.remove(watch)
                self.forget_watch(c, watch)
                return _OK
        raise XenstoreError(ENOENT)

    def _reset_watches(self, c: Connection, _t: Transaction | None, _payload: bytes) -> bytes:
        c.drop_watches()
        return _OK

    def forget_watch(self, c: Connection, watch: Watch) -> None:
        """A watch of `c` is gone."""
        self.tree.add_memory(c.domid, -watch.size, check=False)
        c.account.nbwatch -= 1

    def _fire(self, path: str, node: Node | None, exact: bool, before: Perms | None) -> None:
        """fire_watches(): tell whoever watches `path` and may know of it."""
        special = path.startswith("@")
        for name, (watched, _) in self._watchers.items():
            if path == watched or (not exact and is_child(path, watched)):
                self._told.append((name, path))
        for c in (*self.connections.values(), *self.tools):
            if not c.watches:
                continue
            if special and not self.tree.may_watch(path, c.domid):
                continue
            if not special and not self._watch_permitted(c.domid, path, node, before):
                continue
            for watch in c.watches:
                if path == watch.node or (not exact and is_child(path, watch.node)):
                    self._send_event(c, watch, path, self._current)

    def _watch_permitted(self, domid: int, path: str, node: Node | None, before: Perms | None) -> bool:
        tree = self.tree
        if before is not None and tree.allowed(before, domid) & PERM_READ:
            return True
        if node is None:
            node = tree.read(None, path, domid)
            if node is None:
                return False
        if tree.allowed(node.perms, domid) & PERM_READ:
            return True
        parent = tree.read(None, parent_of(path), domid)
        return parent is not None and bool(tree.allowed(parent.perms, domid) & PERM_READ)

    def _send_event(self, c: Connection, watch: Watch, path: str, request: int) -> None:
        """send_event(); one that waits already is not repeated, one for which there is no room is lost."""
        shown = path[len(c.home) :].removeprefix("/") if watch.relative else path
        payload = f"{shown}\0{watch.token}\0".encode("latin-1")
        if len(payload) > XENSTORE_PAYLOAD_MAX:
            return
        data = xsd_sockmsg.pack(XS_WATCH_EVENT, 0, 0, len(payload)) + payload
        if not shown.startswith("@") and any(m.is_event and m.data == data for m in c.out):
            return
        try:
            self.tree.add_memory(c.domid, len(data), check=True)
        except XenstoreError:
            return
        if not c.is_unprivileged:
            request = 0  # a slow tool does not count against the domain that caused the event
        if request:
            self.requests[request].events += 1
        expires = c.now() + WATCH_EVENT_TIMEOUT_NS
        c.out.append(Message(data, request, is_event=True, expires=expires))
