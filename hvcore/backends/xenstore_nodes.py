"""Nodes of xenstored's tree as values: permissions, paths, what a transaction and an account hold.

Source: tools/xenstore/xenstored_core.c, xenstored_transaction.c and xenstored_domain.c.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from hvcore.public.errno import EINVAL
from hvcore.public.xs_wire import XENSTORE_REL_PATH_MAX

PERM_READ = 1
PERM_WRITE = 2
PERM_OWNER = 4
PERM_IGNORE = 16  # it names a domain that did not exist then
_LETTERS = {"n": 0, "r": PERM_READ, "w": PERM_WRITE, "b": PERM_READ | PERM_WRITE}
_NAMES = {bits: letter for letter, bits in _LETTERS.items()}
_CHARS = re.compile(r"[A-Za-z0-9/_@-]*")
_DOMAIN_PATH = re.compile(r"/local/domain/(?:-\d{1,4}|\d{1,5})/")
_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
_RECORD_BYTES = 24  # struct xs_tdb_record_hdr
_PERM_BYTES = 8
_LONG_MAX = (1 << 63) - 1


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
    def owner(self) -> int:
        """The domain that it counts for."""
        return self.perms[0].domid

    @property
    def size(self) -> int:
        """The bytes of its record."""
        names = sum(map(len, self.children)) + len(self.children)
        return _RECORD_BYTES + _PERM_BYTES * len(self.perms) + len(self.value) + names


class Account:
    """What xenstored keeps for a domain (its struct domain). It exists since `generation`."""

    __slots__ = ("generation", "memory", "nbentry", "nboutstanding", "nbwatch")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.nbentry = 0
        self.nbwatch = 0
        self.nboutstanding = 0
        self.memory = 0


class Quotas:
    """quota_*: how much is kept for an unprivileged domain at most. XS_CONTROL tells and changes them."""

    __slots__ = (
        "max_entry_size",
        "max_path_len",
        "max_transaction",
        "memory_per_domain_hard",
        "memory_per_domain_soft",
        "nb_entry_per_domain",
        "nb_perms_per_node",
        "nb_watch_per_domain",
        "req_outstanding",
        "trans_nodes",
    )

    def __init__(self) -> None:
        self.max_entry_size = 2048  # bytes of a node's record
        self.max_path_len = XENSTORE_REL_PATH_MAX
        self.max_transaction = 10
        self.memory_per_domain_hard = 2560 << 10
        self.memory_per_domain_soft = 2 << 20  # beyond which xenstored complains in its log
        self.nb_entry_per_domain = 1000
        self.nb_perms_per_node = 5
        self.nb_watch_per_domain = 128
        self.req_outstanding = 20  # answers and events that requests caused and nobody has taken
        self.trans_nodes = 1024  # that one transaction may meet


class Accessed:
    """A node that a transaction met: `node` as the transaction sees it, and what it was at first."""

    __slots__ = ("check", "fire", "fire_exact", "generation", "modified", "node", "perms")

    def __init__(self, node: Node | None, *, check: bool) -> None:
        self.node = node if check else None
        self.generation = None if node is None else node.generation
        self.perms: Perms | None = None if node is None else node.perms
        self.check = check  # it was read: the transaction fails if it has changed by the end
        self.modified = False
        self.fire = False
        self.fire_exact = False


class Transaction:
    """What a transaction of domain `domid` met and did, in that order."""

    __slots__ = ("accessed", "changed_domains", "domid", "fail", "generation", "node_created")

    def __init__(self, domid: int, generation: int) -> None:
        self.domid = domid
        self.generation = generation
        self.accessed: dict[str, Accessed] = {}
        self.changed_domains: dict[int, int] = {}  # by how many nodes each domain has more
        self.node_created = False
        self.fail = False

    def key_size(self, path: str) -> int:
        """The length of the name under which xenstored keeps its copy of a node."""
        return len(str(self.generation)) + 1 + len(path)


def parse_perm(text: str) -> Perm:
    """`r5` and the like, the number as strtol() reads it. Raises XenstoreError(EINVAL)."""
    number = _NUMBER.fullmatch(text[1:])
    if text[:1] not in _LETTERS or number is None:
        raise XenstoreError(EINVAL)
    sign, digits = number.groups()
    value = int(digits, 8 if digits[0] == "0" and digits[1:2] not in ("x", "X") else 0)
    value = max(-value, -_LONG_MAX - 1) if sign == "-" else min(value, _LONG_MAX)
    return Perm(value & 0xFFFFFFFF, _LETTERS[text[0]])


def format_perm(perm: Perm) -> str:
    """The reverse of parse_perm()."""
    domid = perm.domid - (1 << 32) if perm.domid >> 31 else perm.domid
    return f"{_NAMES[perm.bits & ~PERM_IGNORE]}{domid}"


def parent_of(path: str) -> str:
    """The path of the node above; "/" is its own."""
    return path[: path.rindex("/")] or "/"


def child_of(path: str, name: str) -> str:
    """The path of the child `name` of a node."""
    return f"/{name}" if path == "/" else f"{path}/{name}"


def is_valid_path(path: str) -> bool:
    """is_valid_nodename()."""
    if not path.startswith("/") or (path.endswith("/") and path != "/") or "//" in path:
        return False
    local = _DOMAIN_PATH.match(path)
    if len(path) > (local.end() if local else 0) + XENSTORE_REL_PATH_MAX:
        return False
    return _CHARS.fullmatch(path) is not None


Fire = Callable[[str, Node | None, bool, Perms | None], None]
