"""Requests that domain 0 alone may make of xenstored: XS_INTRODUCE and its kin, XS_CONTROL.

A domain that is there is introduced again, and released, as xenstored does it; others come and go with their
host. Source: tools/xenstore/xenstored_domain.c, xenstored_control.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from hvcore.backends.xenstore_nodes import Transaction, XenstoreError
from hvcore.backends.xenstore_requests import atoi, onearg, strings
from hvcore.backends.xenstore_tree import Tree
from hvcore.public.errno import EINVAL, ENOENT
from hvcore.public.xen import DOMID_SELF
from hvcore.public.xs_wire import (
    XS_CONTROL,
    XS_INTRODUCE,
    XS_IS_DOMAIN_INTRODUCED,
    XS_RELEASE,
    XS_RESUME,
    XS_SET_TARGET,
)

_OK = b"OK\0"
# hard_quotas and soft_quotas of tools/xenstore/xenstored_control.c: name, field of Quotas, what it is.
_HARD_QUOTAS = (
    ("nodes", "nb_entry_per_domain", "Nodes per domain"),
    ("watches", "nb_watch_per_domain", "Watches per domain"),
    ("transactions", "max_transaction", "Transactions per domain"),
    ("outstanding", "req_outstanding", "Outstanding requests per domain"),
    ("transaction-nodes", "trans_nodes", "Max. number of accessed nodes per transaction"),
    ("memory", "memory_per_domain_hard", "Total Xenstore memory per domain (error level)"),
    ("node-size", "max_entry_size", "Max. size of a node"),
    ("path-max", "max_path_len", "Max. length of a node path"),
    ("permissions", "nb_perms_per_node", "Max. number of permissions per node"),
)
_SOFT_QUOTAS = (("memory", "memory_per_domain_soft", "Total Xenstore memory per domain (warning level)"),)
_MOST = 0x7FFFFFFF

Quota = tuple[str, str, str]


class Connected(Protocol):
    """A domain's connection, as far as it is told of."""

    transactions: dict[int, Transaction]


class Store(Protocol):
    """What these requests want of the store, which is Xenstored."""

    tree: Tree

    @property
    def connections(self) -> Mapping[int, Connected]:
        """Those of domains."""

    def is_connected(self, domid: int) -> bool:
        """Whether there is a connection of that domain's."""

    def introduce_again(self, domid: int, port: int) -> bool:
        """Bind the channel of a domain anew; False for no domain's number."""

    def release(self, domid: int, *, is_gone: bool = True) -> None:
        """Forget the domain, for good where it `is_gone`."""


Handler = Callable[[Store, bytes], bytes]


def _connected(store: Store, payload: bytes) -> int:
    """onearg_domain(). Raises XenstoreError(EINVAL) for domain 0, ENOENT for one that is not there."""
    domid = atoi(onearg(payload))
    if not domid:
        raise XenstoreError(EINVAL)
    if not store.is_connected(domid):
        raise XenstoreError(ENOENT)
    return domid


def do_introduce(store: Store, payload: bytes) -> bytes:
    """XS_INTRODUCE: the domain's channel is bound anew. Of no domain's number no ring can be mapped."""
    given = strings(payload)
    if len(given) < 3 or not 0 < atoi(given[2]) < 1 << 31:
        raise XenstoreError(EINVAL)
    if not store.introduce_again(atoi(given[0]), atoi(given[2])):
        raise XenstoreError(EINVAL)
    return _OK


def do_release(store: Store, payload: bytes) -> bytes:
    """XS_RELEASE: the domain has no connection, and its nodes are gone, until it is introduced again."""
    store.release(_connected(store, payload), is_gone=False)
    return _OK


def do_resume(store: Store, payload: bytes) -> bytes:
    """What it resets, a shutdown that was told of, is not kept here."""
    _connected(store, payload)
    return _OK


def do_set_target(store: Store, payload: bytes) -> bytes:
    """XS_SET_TARGET: one domain has the rights of another one from now on."""
    given = strings(payload)
    if len(given) < 2:
        raise XenstoreError(EINVAL)
    domid, target = atoi(given[0]), atoi(given[1])
    if not (store.is_connected(domid) and store.is_connected(target)):
        raise XenstoreError(ENOENT)
    store.tree.targets[domid] = target
    return _OK


def do_is_domain_introduced(store: Store, payload: bytes) -> bytes:
    """XS_IS_DOMAIN_INTRODUCED."""
    domid = atoi(onearg(payload))
    return b"T\0" if domid == DOMID_SELF or store.is_connected(domid) else b"F\0"


def _help(_store: Store, given: list[str]) -> bytes:
    if given:
        raise XenstoreError(EINVAL)
    return "".join(f"{name}\t{pars}\n" for name, (_, pars) in _COMMANDS.items()).encode() + b"\0"


def _check(_store: Store, given: list[str]) -> bytes:
    """check_store(): this tree cannot have what it looks for."""
    if given:
        raise XenstoreError(EINVAL)
    return _OK


def _live_update(_store: Store, given: list[str]) -> bytes:
    """do_control_lu(), which finds no other xenstored to go on with. What it says is what xenstored says."""
    match given:
        case ["-a"]:
            return b"No live-update session active.\0"
        case ["-c", _] | ["-s", *_]:
            return b"Not in live-update session.\0"
        case ["-f", _]:
            return b"File not accessible.\0"
    raise XenstoreError(EINVAL)


def _logfile(_store: Store, given: list[str]) -> bytes:
    """do_control_logfile(), which does not say whether there is such a log."""
    if len(given) != 1:
        raise XenstoreError(EINVAL)
    return _OK


def _memreport(_store: Store, _given: list[str]) -> bytes:
    """do_control_memreport(): no file to write to is EBADF, and EINVAL on the wire (send_error())."""
    raise XenstoreError(EINVAL)


def _log(_store: Store, given: list[str]) -> bytes:
    """There is no log to switch on and off, and nobody would see the difference."""
    if given not in (["on"], ["off"]):
        raise XenstoreError(EINVAL)
    return _OK


def _print(_store: Store, given: list[str]) -> bytes:
    if len(given) != 1:
        raise XenstoreError(EINVAL)
    return _OK


def _told(store: Store, quotas: tuple[Quota, ...]) -> bytes:
    """quota_show_current()."""
    values = store.tree.quotas
    lines = (f"{name:<17}: {getattr(values, field):8} {text}\n" for name, field, text in quotas)
    return f"Quota settings:\n{''.join(lines)}".encode() + b"\0"


def _set(store: Store, given: list[str], quotas: tuple[Quota, ...]) -> bytes:
    """quota_set()."""
    fields = {name: field for name, field, _ in quotas}
    if len(given) != 2 or not 1 <= atoi(given[1]) <= _MOST or given[0] not in fields:
        raise XenstoreError(EINVAL)
    setattr(store.tree.quotas, fields[given[0]], atoi(given[1]))
    return _OK


def _quota(store: Store, given: list[str]) -> bytes:
    """do_control_quota()."""
    if not given:
        return _told(store, _HARD_QUOTAS)
    if given[0] == "set":
        return _set(store, given[1:], _HARD_QUOTAS)
    if len(given) != 1:
        raise XenstoreError(EINVAL)
    return _used(store, atoi(given[0]))


def _used(store: Store, domid: int) -> bytes:
    """domain_get_quota(): how much is kept for a domain. Raises XenstoreError(ENOENT)."""
    account, connection = store.tree.accounts.get(domid), store.connections.get(domid)
    if account is None:
        raise XenstoreError(ENOENT)
    told = {
        "nodes": account.nbentry,
        "watches": account.nbwatch,
        "transactions": len(connection.transactions) if connection is not None else 0,
        "outstanding": account.nboutstanding,
        "memory": account.memory,
    }
    lines = (f"{name:<16}: {value:8}\n" for name, value in told.items())
    return f"Domain {domid}:\n{''.join(lines)}".encode() + b"\0"


def _soft_quota(store: Store, given: list[str]) -> bytes:
    """do_control_quota_s(): beyond these xenstored would complain in its log, which is not here."""
    if not given:
        return _told(store, _SOFT_QUOTAS)
    if given[0] == "set":
        return _set(store, given[1:], _SOFT_QUOTAS)
    raise XenstoreError(EINVAL)


_COMMANDS: dict[str, tuple[Callable[[Store, list[str]], bytes], str]] = {
    "check": (_check, ""),
    "log": (_log, "on|off"),
    "live-update": (
        _live_update,
        "[-c <cmdline>] [-F] [-t <timeout>] <file>\n    Default timeout is 60 seconds.",
    ),
    "logfile": (_logfile, "<file>"),
    "memreport": (_memreport, "[<file>]"),
    "print": (_print, "<string>"),
    "quota": (_quota, "[set <name> <val>|<domid>]"),
    "quota-soft": (_soft_quota, "[set <name> <val>]"),
    "help": (_help, ""),
}


def do_control(store: Store, payload: bytes) -> bytes:
    """XS_CONTROL: those of its commands that are about the store and not about the program that keeps it."""
    given = strings(payload)
    if not given or given[0] not in _COMMANDS:
        raise XenstoreError(EINVAL)
    return _COMMANDS[given[0]][0](store, given[1:])


HANDLERS: dict[int, Handler] = {
    XS_CONTROL: do_control,
    XS_INTRODUCE: do_introduce,
    XS_IS_DOMAIN_INTRODUCED: do_is_domain_introduced,
    XS_RELEASE: do_release,
    XS_RESUME: do_resume,
    XS_SET_TARGET: do_set_target,
}
