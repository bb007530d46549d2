"""The tree of xenstored: nodes with permissions, transactions, and the rules of who may do what.

As tools/xenstore/xenstored_core.c of Xen 4.17 has them for an unprivileged domain. Nodes are values: a change
puts a new node in place of the old, so a transaction is a copy of the table of nodes and a conflict is a node
that is no longer the same. Paths are absolute strings.
"""

from __future__ import annotations

from typing import NamedTuple

from hvcore.public.errno import EACCES, EAGAIN, EINVAL, ENOENT, ENOSPC, EPERM
from hvcore.public.xs_wire import XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX

QUOTA_NODES = 1000  # that the guest may own
QUOTA_NODE_SIZE = 2048  # bytes of value, children's names and permissions
QUOTA_PERMS = 5

PERM_READ = 1
PERM_WRITE = 2
PERM_OWNER = 4
_LETTERS = {"n": 0, "r": PERM_READ, "w": PERM_WRITE, "b": PERM_READ | PERM_WRITE}
_NAMES = {bits: letter for letter, bits in _LETTERS.items()}
_CHARS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@")
_PERM_BYTES = 8


class XenstoreError(Exception):
    """A request fails with this errno."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


class Perm(NamedTuple):
    """One entry of a permission list; the first of a node names its owner and what all others may do."""

    domid: int
    bits: int


Perms = tuple[Perm, ...]


class Node(NamedTuple):
    """A node: its value, the names of its children in order of creation, its permissions."""

    value: bytes
    children: tuple[str, ...]
    perms: Perms
    generation: int = 0

    @property
    def size(self) -> int:
        """What counts against QUOTA_NODE_SIZE."""
        return (
            len(self.value)
            + sum(map(len, self.children))
            + len(self.children)
            + _PERM_BYTES * len(self.perms)
        )


def parse_perm(text: str) -> Perm:
    """`r5` and the like. Raises XenstoreError(EINVAL)."""
    if text[:1] not in _LETTERS or not text[1:].isdecimal() or len(text) > 6 or not text.isascii():
        raise XenstoreError(EINVAL)
    return Perm(int(text[1:]), _LETTERS[text[0]])


def format_perm(perm: Perm) -> str:
    """The reverse of parse_perm()."""
    return f"{_NAMES[perm.bits]}{perm.domid}"


def parent_of(path: str) -> str:
    """The path of the node above; "/" is its own."""
    return path[: path.rindex("/")] or "/"


def is_valid_path(path: str) -> bool:
    """is_valid_nodename() of an absolute path."""
    if not path.startswith("/") or (path.endswith("/") and path != "/") or "//" in path:
        return False
    return len(path) <= XENSTORE_ABS_PATH_MAX and not set(path) - _CHARS


class Transaction:
    """A private copy of the tree, and what of it was looked at and changed."""

    __slots__ = ("accessed", "base", "changed", "nodes", "owned")

    def __init__(self, nodes: dict[str, Node], owned: int) -> None:
        self.base = nodes
        self.nodes = dict(nodes)
        self.owned = owned
        self.accessed: set[str] = set()
        self.changed: dict[str, bool] = {}  # path -> was it removed, in order of the changes


class Tree:
    """All nodes. Operations take their transaction, or None, and the domain that asks (0 may do anything)."""

    WIRING = frozenset(("guest", "home"))

    def __init__(self, guest: int) -> None:
        self.guest = guest
        self.home = f"/local/domain/{guest}"
        self.nodes: dict[str, Node] = {"/": Node(b"", (), (Perm(0, 0),))}
        self.owned = 0  # nodes that belong to the guest
        self._generation = 0

    # --- access -------------------------------------------------------------------------------------------

    def canonicalize(self, path: str) -> str:
        """An absolute path from what a guest wrote. Raises XenstoreError(EINVAL)."""
        if not path.startswith("/"):
            if len(path) > XENSTORE_REL_PATH_MAX:
                raise XenstoreError(EINVAL)
            path = f"{self.home}/{path}"
        if not is_valid_path(path):
            raise XenstoreError(EINVAL)
        return path

    def _allowed(self, node: Node, domid: int) -> int:
        """perm_for_conn()."""
        if domid in (0, node.perms[0].domid):
            return PERM_READ | PERM_WRITE | PERM_OWNER
        for perm in node.perms[1:]:
            if perm.domid == domid:
                return perm.bits
        return node.perms[0].bits

    def _table(self, t: Transaction | None, path: str) -> dict[str, Node]:
        if t is None:
            return self.nodes
        t.accessed.add(path)
        return t.nodes

    def get(self, t: Transaction | None, path: str, domid: int, wanted: int) -> Node:
        """The node, if `domid` may; otherwise ENOENT or, where it may not even know, EACCES."""
        node = self._table(t, path).get(path)
        if node is not None:
            if self._allowed(node, domid) & wanted != wanted:
                raise XenstoreError(EACCES)
            return node
        above = path
        while above != "/":
            above = parent_of(above)
            parent = self._table(t, above).get(above)
            if parent is not None:
                raise XenstoreError(ENOENT if self._allowed(parent, domid) & wanted else EACCES)
        raise XenstoreError(ENOENT)

    # --- changes ------------------------------------------------------------------------------------------

    def _put(self, t: Transaction | None, path: str, node: Node, domid: int) -> None:
        if domid and node.size >= QUOTA_NODE_SIZE:
            raise XenstoreError(ENOSPC)
        self._generation += 1
        self._table(t, path)[path] = node._replace(generation=self._generation)
        if t is not None:
            t.changed[path] = False

    def _count(self, t: Transaction | None, owner: int, by: int) -> None:
        if owner != self.guest:
            return
        counter = t or self
        counter.owned += by
        if by > 0 and counter.owned > QUOTA_NODES:
            counter.owned -= by
            raise XenstoreError(ENOSPC)

    def _create(self, t: Transaction | None, path: str, value: bytes, domid: int) -> None:
        """A new node and those missing above it, with the permissions of the nearest that exists."""
        missing = [path]
        while parent_of(missing[-1]) not in self._table(t, parent_of(missing[-1])):
            missing.append(parent_of(missing[-1]))
        above = parent_of(missing[-1])
        parent = self._table(t, above)[above]
        perms = parent.perms
        if domid:
            perms = (Perm(domid, perms[0].bits), *perms[1:])
        counter = t or self
        if domid and perms[0].domid == self.guest and counter.owned + len(missing) > QUOTA_NODES:
            raise XenstoreError(ENOSPC)
        first = missing[-1].rpartition("/")[2]
        if domid and parent.size + len(first) + 1 >= QUOTA_NODE_SIZE:
            raise XenstoreError(ENOSPC)
        new = []
        below: tuple[str, ...] = ()
        for name in missing:
            new.append((name, Node(value if name == path else b"", below, perms)))
            below = (name.rpartition("/")[2],)
        if domid and any(node.size >= QUOTA_NODE_SIZE for _, node in new):
            raise XenstoreError(ENOSPC)
        self._put(t, above, parent._replace(children=(*parent.children, first)), 0)
        for name, node in reversed(new):
            self._put(t, name, node, 0)
            self._count(t, perms[0].domid, 1)

    def write(self, t: Transaction | None, path: str, value: bytes, domid: int) -> None:
        """XS_WRITE."""
        try:
            node = self.get(t, path, domid, PERM_WRITE)
        except XenstoreError as e:
            if e.errno != ENOENT:
                raise
            self._create(t, path, value, domid)
        else:
            self._put(t, path, node._replace(value=value), domid)

    def mkdir(self, t: Transaction | None, path: str, domid: int) -> bool:
        """XS_MKDIR; True when there was no such node."""
        try:
            self.get(t, path, domid, PERM_WRITE)
        except XenstoreError as e:
            if e.errno != ENOENT:
                raise
            self._create(t, path, b"", domid)
            return True
        return False

    def rm(self, t: Transaction | None, path: str, domid: int) -> list[str]:
        """XS_RM; the nodes that went. Removing what is not there is fine where its parent is."""
        try:
            self.get(t, path, domid, PERM_WRITE)
        except XenstoreError as e:
            above = parent_of(path)
            if e.errno == ENOENT and above in self._table(t, above):
                return []
            raise
        if path == "/":
            raise XenstoreError(EINVAL)
        above = parent_of(path)
        parent = self._table(t, above)[above]
        name = path.rpartition("/")[2]
        self._put(t, above, parent._replace(children=tuple(c for c in parent.children if c != name)), 0)
        gone = [path]
        for removed in gone:
            node = self._table(t, removed).pop(removed)
            gone += [f"{removed}/{child}" for child in node.children]
            self._count(t, node.perms[0].domid, -1)
            if t is not None:
                t.changed[removed] = True
        return gone

    def set_perms(self, t: Transaction | None, path: str, perms: Perms, domid: int) -> None:
        """XS_SET_PERMS, for the node's owner, who stays its owner."""
        node = self.get(t, path, domid, PERM_WRITE | PERM_OWNER)
        if domid and perms[0].domid != node.perms[0].domid:
            raise XenstoreError(EPERM)
        self._count(t, node.perms[0].domid, -1)
        self._count(t, perms[0].domid, 1)
        self._put(t, path, node._replace(perms=perms), domid)

    # --- transactions -------------------------------------------------------------------------------------

    def start(self) -> Transaction:
        """A new transaction on the tree as it is."""
        return Transaction(dict(self.nodes), self.owned)

    def commit(self, t: Transaction) -> dict[str, bool]:
        """Make a transaction's changes (path -> removed) real. Raises XenstoreError(EAGAIN) on a conflict."""
        if any(self.nodes.get(path) is not t.base.get(path) for path in t.accessed):
            raise XenstoreError(EAGAIN)
        for path in t.changed:
            node = t.nodes.get(path)
            before = self.nodes.get(path)
            if before is not None and before.perms[0].domid == self.guest:
                self.owned -= 1
            if node is None:
                self.nodes.pop(path, None)
            else:
                self.nodes[path] = node
                self.owned += node.perms[0].domid == self.guest
        return t.changed
