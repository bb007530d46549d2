"""The tree of xenstored: nodes with permissions, quotas and transactions, and who may do what to them.

Source: tools/xenstore/xenstored_core.c, xenstored_transaction.c and xenstored_domain.c. Nodes are values: a
change puts a new node in place of the old. A transaction has a copy of each node that it met, as it was then,
and conflicts where one that it read is another by the end. Paths are absolute strings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hvcore.backends.xenstore_nodes import (
    PERM_IGNORE,
    PERM_OWNER,
    PERM_READ,
    PERM_WRITE,
    Accessed,
    Account,
    Fire,
    Node,
    Perm,
    Perms,
    Quotas,
    Transaction,
    XenstoreError,
    child_of,
    is_valid_path,
    parent_of,
)
from hvcore.public.errno import EACCES, EAGAIN, EINVAL, EIO, ENOENT, ENOMEM, ENOSPC, EPERM

_DOM0 = 0
_SPECIAL = ("@introduceDomain", "@releaseDomain")  # names that only watches know
_OF_DOM0 = (Perm(_DOM0, 0),)


class Tree:
    """All nodes, and the account of each domain.

    Operations take their transaction, or None, and the domain that asks; domain 0 may do anything. `exists`
    says whether there is a domain of that number. What is changed goes to `fire`: path, node as far as it is
    known, whether only watches of that very path are meant, and permissions that it had before.
    """

    WIRING = frozenset(("exists", "fire"))

    def __init__(self, exists: Callable[[int], bool], fire: Fire) -> None:
        self.exists = exists
        self.fire = fire
        self.quotas = Quotas()
        self.special: dict[str, Perms] = {}  # of paths in _SPECIAL that others than domain 0 may watch
        self.targets: dict[int, int] = {}  # a domain that serves another -> that one, whose rights it has
        self.generation = 0
        self.accounts: dict[int, Account] = {_DOM0: Account(0)}
        self.nodes: dict[str, Node] = {}
        for path, children in (("/", ("tool",)), ("/tool", ("xenstored",)), ("/tool/xenstored", ())):
            self._put(None, _DOM0, path, Node(b"", children, (Perm(_DOM0, 0),)), check=False)

    # --- accounts -----------------------------------------------------------------------------------------

    def account_of(self, domid: int) -> Account | None:
        """find_or_alloc_existing_domain()."""
        account = self.accounts.get(domid)
        if account is None and self.exists(domid):
            account = self.accounts[domid] = Account(self.generation)
        return account

    def add_memory(self, domid: int, size: int, *, check: bool) -> None:
        """domain_memory_add(). Raises XenstoreError(ENOMEM) where the domain would have too much."""
        account = self.accounts.get(domid)
        if account is None:
            return
        is_bounded = check and size > 0 and domid != _DOM0
        if is_bounded and account.memory + size >= self.quotas.memory_per_domain_hard:
            raise XenstoreError(ENOMEM)
        account.memory += size

    def _count_entry(self, t: Transaction | None, owner: int, by: int) -> None:
        """domain_entry_inc() and domain_entry_dec()."""
        if t is not None:
            t.changed_domains[owner] = t.changed_domains.get(owner, 0) + by
            return
        account = self.account_of(owner) if by > 0 else self.accounts.get(owner)
        if account is not None:
            account.nbentry += by
        elif by > 0:
            raise XenstoreError(ENOMEM)

    def forget_domain(self, domid: int) -> None:
        """domain_tree_remove(): the domain is gone, and its nodes go with all that is below them."""
        for path in [path for path, node in self.nodes.items() if node.owner == domid]:
            if path in self.nodes:
                self._remove(None, path, _DOM0)
        for name, (owner, *others) in self.special.items():
            stays = [perm for perm in others if perm.domid != domid]
            self.special[name] = (owner if owner.domid != domid else _OF_DOM0[0], *stays)
        self.accounts.pop(domid, None)
        self.targets.pop(domid, None)

    # --- reading ------------------------------------------------------------------------------------------

    def read(self, t: Transaction | None, path: str, domid: int) -> Node | None:
        """read_node(): the node as a transaction sees it, whoever asks. XenstoreError(ENOSPC): too many."""
        if t is None:
            return self._adjusted(self.nodes.get(path))
        met = t.accessed.get(path)
        if met is None:
            met = self._meet(t, path, self._adjusted(self.nodes.get(path)), domid, check=True)
        return self._adjusted(met.node)

    def _meet(self, t: Transaction, path: str, node: Node | None, domid: int, *, check: bool) -> Accessed:
        """access_node(): the transaction meets the node."""
        if len(t.accessed) >= self.quotas.trans_nodes and domid != _DOM0:
            t.fail = True
            raise XenstoreError(ENOSPC)
        met = t.accessed[path] = Accessed(node, check=check)
        if met.node is not None:
            self.add_memory(t.domid, met.node.size + t.key_size(path), check=False)
        return met

    def _adjusted(self, node: Node | None) -> Node | None:
        """domain_adjust_node_perms(): nothing is for a domain that is younger than what allows it."""
        if node is None or len(node.perms) == 1:
            return node
        for at, perm in enumerate(node.perms[1:], 1):
            account = self.accounts.get(perm.domid)
            if not perm.bits & PERM_IGNORE and (account is None or account.generation > node.generation):
                perms = list(node.perms)
                perms[at] = Perm(perm.domid, perm.bits | PERM_IGNORE)
                node = node._replace(perms=tuple(perms))
        return node

    def allowed(self, perms: Perms, domid: int) -> int:
        """perm_for_conn()."""
        who = (domid, self.targets.get(domid, domid))
        if domid == _DOM0 or perms[0].domid in who:
            return PERM_READ | PERM_WRITE | PERM_OWNER
        for perm in perms[1:]:
            if perm.domid in who and not perm.bits & PERM_IGNORE:
                return perm.bits
        return perms[0].bits

    def get(self, t: Transaction | None, path: str, domid: int, wanted: int) -> Node:
        """get_node(). Raises XenstoreError: EINVAL, ENOENT, or EACCES where it may not even know."""
        if not is_valid_path(path):
            raise XenstoreError(EINVAL)
        node = self.read(t, path, domid)
        if node is not None and self.allowed(node.perms, domid) & wanted == wanted:
            return node
        above = path
        while True:
            above = parent_of(above)
            parent = self.read(t, above, domid)
            if parent is not None:
                known = self.allowed(parent.perms, domid) & wanted
                raise XenstoreError(ENOENT if node is None and known else EACCES)

    # --- changes ------------------------------------------------------------------------------------------

    def _put(self, t: Transaction | None, domid: int, path: str, node: Node | None, *, check: bool) -> None:
        """write_node() and do_tdb_delete(). Raises XenstoreError where a quota is exceeded."""
        self.generation += 1
        if node is not None:
            node = node._replace(generation=self.generation)
        if t is not None:
            self._put_private(t, domid, path, node, check=check)
            return
        self._check_size(domid, node, check=check)
        before = self.nodes.get(path)
        self._charge(before, node, len(path), check=check)
        if node is None:
            del self.nodes[path]
        else:
            self.nodes[path] = node

    def _check_size(self, domid: int, node: Node | None, *, check: bool) -> None:
        if check and domid != _DOM0 and node is not None and node.size >= self.quotas.max_entry_size:
            raise XenstoreError(ENOSPC)

    def _charge(self, before: Node | None, after: Node | None, key: int, *, check: bool) -> None:
        if before is not None:
            self.add_memory(before.owner, -before.size - key, check=False)
        if after is not None:
            try:
                self.add_memory(after.owner, after.size + key, check=check)
            except XenstoreError:
                if before is not None:
                    self.add_memory(before.owner, before.size + key, check=False)
                raise XenstoreError(EIO) from None

    def _put_private(self, t: Transaction, domid: int, path: str, node: Node | None, *, check: bool) -> None:
        met = t.accessed.get(path)
        if met is None:
            met = self._meet(t, path, self.nodes.get(path), domid, check=False)
        met.modified = True
        key = t.key_size(path)
        try:
            self._check_size(domid, node, check=check)
            if met.node is not None:
                self.add_memory(t.domid, -met.node.size - key, check=False)
                met.node = None
            if node is not None:
                self.add_memory(t.domid, node.size + key, check=check)
        except XenstoreError as error:
            t.fail = True
            raise XenstoreError(EIO) if error.errno == ENOMEM else error from None
        met.node = node

    def _fire(
        self,
        t: Transaction | None,
        path: str,
        node: Node,
        *,
        exact: bool = False,
        before: Perms | None = None,
    ) -> None:
        """fire_watches(), or queue_watches() in a transaction."""
        if t is None:
            self.fire(path, node, exact, before)
            return
        met = t.accessed[path]
        met.fire_exact = exact and (met.fire_exact or not met.fire)
        met.fire = True

    def _check_room_for_entry(self, domid: int) -> None:
        account = self.accounts.get(domid)
        if domid != _DOM0 and account is not None and account.nbentry >= self.quotas.nb_entry_per_domain:
            raise XenstoreError(ENOSPC)

    def _missing(self, t: Transaction | None, path: str, domid: int) -> tuple[list[str], Node]:
        """The nodes to be made for `path`, from the lowest up, and the one above them, which exists."""
        missing = [path]
        while True:
            above = parent_of(missing[-1])
            parent = self.read(t, above, domid)
            if parent is not None:
                return missing, parent
            missing.append(above)

    def _create(self, t: Transaction | None, path: str, value: bytes, domid: int) -> Node:
        """create_node(): the node and those missing above it, with the permissions of the one that exists."""
        missing, parent = self._missing(t, path, domid)
        if t is not None:
            t.node_created = True
        perms = parent.perms
        if domid != _DOM0:
            perms = (Perm(domid, perms[0].bits), *perms[1:])
        made: list[str] = []
        below: tuple[str, ...] = ()
        try:
            for name in missing:
                self._check_room_for_entry(domid)
                self._put(t, domid, name, Node(b"" if made else value, below, perms), check=True)
                made.append(name)
                self._count_entry(t, perms[0].domid, 1)
                below = (name.rpartition("/")[2],)
            above = parent_of(missing[-1])
            self._put(t, domid, above, parent._replace(children=parent.children + below), check=True)
        except XenstoreError:
            for name in made:
                self._put(t, domid, name, None, check=False)
                self._count_entry(t, perms[0].domid, -1)
            if t is not None:
                t.fail = True
            raise
        node = self.read(t, path, domid)
        assert node is not None
        return node

    def write(self, t: Transaction | None, path: str, value: bytes, domid: int) -> None:
        """XS_WRITE."""
        try:
            node = self.get(t, path, domid, PERM_WRITE)
        except XenstoreError as error:
            if error.errno != ENOENT:
                raise
            node = self._create(t, path, value, domid)
        else:
            self._put(t, domid, path, node._replace(value=value), check=True)
        self._fire(t, path, node)

    def mkdir(self, t: Transaction | None, path: str, domid: int) -> None:
        """XS_MKDIR; fine where the node is there."""
        try:
            self.get(t, path, domid, PERM_WRITE)
        except XenstoreError as error:
            if error.errno != ENOENT:
                raise
            self._fire(t, path, self._create(t, path, b"", domid))

    def rm(self, t: Transaction | None, path: str, domid: int) -> None:
        """XS_RM. Removing what is not there is fine where its parent is."""
        try:
            self.get(t, path, domid, PERM_WRITE)
        except XenstoreError as error:
            if error.errno == ENOENT and self.read(t, parent_of(path), domid) is not None:
                return
            raise
        if path == "/":
            raise XenstoreError(EINVAL)
        self._remove(t, path, domid)

    def _below(self, t: Transaction | None, path: str, domid: int) -> Iterator[str]:
        """A node and those below it, children before parents."""
        node = self.read(t, path, domid)
        stack: list[tuple[str, list[str]]] = [(path, list(node.children[::-1]) if node else [])]
        while stack:
            at, children = stack[-1]
            if not children:
                yield at
                stack.pop()
                continue
            name = child_of(at, children.pop())
            node = self.read(t, name, domid)
            stack.append((name, list(node.children[::-1]) if node else []))

    def _remove(self, t: Transaction | None, root: str, domid: int) -> None:
        """rm_node(): watches of what is below are told of it one by one."""
        for path in self._below(t, root, domid):
            node = self.read(t, path, domid)
            if node is None:
                continue
            self._put(t, domid, path, None, check=False)
            self._fire(t, path, node, exact=path != root)
            self._count_entry(t, node.owner, -1)
            above = parent_of(path)
            parent = self.read(t, above, domid)
            if parent is not None:
                name = path.rpartition("/")[2]
                children = tuple(child for child in parent.children if child != name)
                self._put(t, domid, above, parent._replace(children=children), check=False)

    def may_watch(self, name: str, domid: int) -> bool:
        """check_perms_special(): whether a domain is told that others come, or go."""
        return bool(self.allowed(self.special.get(name, _OF_DOM0), domid) & PERM_READ)

    def set_special(self, name: str, perms: Perms, domid: int) -> None:
        """set_perms_special(): who is told so. Raises XenstoreError: EINVAL, EACCES."""
        if name not in _SPECIAL:
            raise XenstoreError(EINVAL)
        wanted = PERM_WRITE | PERM_OWNER
        if self.allowed(self.special.get(name, _OF_DOM0), domid) & wanted != wanted:
            raise XenstoreError(EACCES)
        self.special[name] = perms

    def set_perms(self, t: Transaction | None, path: str, perms: Perms, domid: int) -> None:
        """XS_SET_PERMS, for the node's owner, who stays its owner; domain 0 may give it away."""
        node = self.get(t, path, domid, PERM_WRITE | PERM_OWNER)
        if domid != _DOM0 and perms[0].domid != node.owner:
            raise XenstoreError(EPERM)
        self._count_entry(t, perms[0].domid, 1)
        try:
            self._put(t, domid, path, node._replace(perms=perms), check=True)
        except XenstoreError:
            self._count_entry(t, perms[0].domid, -1)
            raise
        self._count_entry(t, node.owner, -1)
        self._fire(t, path, node._replace(perms=perms), before=node.perms)

    def known_perms(self, perms: Perms) -> Perms:
        """domain_alloc_permrefs(): what names a domain that there is not is marked."""
        return tuple(
            perm if self.account_of(perm.domid) else Perm(perm.domid, perm.bits | PERM_IGNORE)
            for perm in perms
        )

    # --- transactions -------------------------------------------------------------------------------------

    def start(self, domid: int) -> Transaction:
        """A new transaction."""
        self.generation += 1
        return Transaction(domid, self.generation)

    def end(self, t: Transaction) -> None:
        """destroy_transaction(): what it has of its own is let go."""
        for path, met in t.accessed.items():
            if met.node is not None:
                self.add_memory(t.domid, -met.node.size - t.key_size(path), check=False)
        t.accessed.clear()

    def commit(self, t: Transaction) -> None:
        """Make a transaction real and end it. Raises XenstoreError: EAGAIN for a conflict, ENOSPC, ENOMEM."""
        try:
            if t.fail:
                raise XenstoreError(ENOMEM)
            self._check_entries(t)
            if any(
                met.check and self._generation(path) != met.generation for path, met in t.accessed.items()
            ):
                raise XenstoreError(EAGAIN)
            changes = [(path, met) for path, met in t.accessed.items() if met.modified]
        finally:
            self.end(t)
        for path, met in changes:
            before = self.nodes.get(path)
            if met.node is not None:
                self.generation += 1
                node = met.node._replace(generation=self.generation)
                self._charge(before, node, len(path), check=False)
                self.nodes[path] = node
            elif before is not None:
                self._charge(before, None, len(path), check=False)
                del self.nodes[path]
            if met.fire:
                self.fire(path, None, met.fire_exact, met.perms)
        for domid, by in t.changed_domains.items():
            account = self.accounts.get(domid)
            if account is not None:
                account.nbentry += by

    def _generation(self, path: str) -> int | None:
        node = self.nodes.get(path)
        return None if node is None else node.generation

    def _check_entries(self, t: Transaction) -> None:
        """transaction_fix_domains(): whether each domain may have the nodes that it would."""
        for domid, by in t.changed_domains.items():
            account = self.account_of(domid)
            if account is None:
                raise XenstoreError(ENOMEM)
            too_many = domid != _DOM0 and account.nbentry + by >= self.quotas.nb_entry_per_domain
            if too_many and t.node_created and t.domid != _DOM0:
                raise XenstoreError(ENOSPC)
