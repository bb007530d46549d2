"""Requests that domain 0 alone may make of xenstored: XS_INTRODUCE and its kin, XS_CONTROL.

Domains come and go with their host: what would bring or remove one behind its back is refused with EPERM,
where xenstored finds nothing else wrong with the request. Source: tools/xenstore/xenstored_domain.c,
xenstored_control.c.
"""

from __future__ import annotations

from collections.abc import Callable

from hvcore.backends.xenstore_nodes import XenstoreError
from hvcore.backends.xenstore_requests import atoi, onearg, strings
from hvcore.backends.xenstore_tree import (
    QUOTA_MEMORY,
    QUOTA_NODE_SIZE,
    QUOTA_NODES,
    QUOTA_PERMS,
    QUOTA_TRANSACTION_NODES,
)
from hvcore.public.errno import EINVAL, ENOENT, EPERM
from hvcore.public.xen import DOMID_SELF
from hvcore.public.xs_wire import (
    XENSTORE_REL_PATH_MAX,
    XS_CONTROL,
    XS_INTRODUCE,
    XS_IS_DOMAIN_INTRODUCED,
    XS_RELEASE,
    XS_RESUME,
    XS_SET_TARGET,
)

QUOTA_WATCHES = 128
QUOTA_TRANSACTIONS = 10
QUOTA_OUTSTANDING = 20  # answers and events that a domain's requests caused and nobody has taken
_OK = b"OK\0"
_QUOTAS = (
    ("nodes", QUOTA_NODES, "Nodes per domain"),
    ("watches", QUOTA_WATCHES, "Watches per domain"),
    ("transactions", QUOTA_TRANSACTIONS, "Transactions per domain"),
    ("outstanding", QUOTA_OUTSTANDING, "Outstanding requests per domain"),
    ("transaction-nodes", QUOTA_TRANSACTION_NODES, "Max. number of accessed nodes per transaction"),
    ("memory", QUOTA_MEMORY, "Total Xenstore memory per domain (error level)"),
    ("node-size", QUOTA_NODE_SIZE, "Max. size of a node"),
    ("path-max", XENSTORE_REL_PATH_MAX, "Max. length of a node path"),
    ("permissions", QUOTA_PERMS, "Max. number of permissions per node"),
)


IsConnected = Callable[[int], bool]  # whether there is a connection of that domain's


def _find_connected(there: IsConnected, payload: bytes) -> None:
    """onearg_domain(). Raises XenstoreError(EINVAL) for domain 0, ENOENT for one that is not there."""
    domid = atoi(onearg(payload))
    if not domid:
        raise XenstoreError(EINVAL)
    if not there(domid):
        raise XenstoreError(ENOENT)


def do_introduce(_there: IsConnected, payload: bytes) -> bytes:
    """A domain is introduced by who makes it, and once."""
    given = strings(payload)
    if len(given) < 3 or not 0 < atoi(given[2]) < 1 << 31:
        raise XenstoreError(EINVAL)
    raise XenstoreError(EPERM)


def do_release(there: IsConnected, payload: bytes) -> bytes:
    """A domain is released when it is destroyed."""
    _find_connected(there, payload)
    raise XenstoreError(EPERM)


def do_resume(there: IsConnected, payload: bytes) -> bytes:
    """What it resets, a shutdown that was told of, is not kept here."""
    _find_connected(there, payload)
    return _OK


def do_set_target(there: IsConnected, payload: bytes) -> bytes:
    """There are no stub domains, whose permissions it is about."""
    given = strings(payload)
    if len(given) < 2:
        raise XenstoreError(EINVAL)
    if not all(there(atoi(text)) for text in given[:2]):
        raise XenstoreError(ENOENT)
    raise XenstoreError(EPERM)


def do_is_domain_introduced(there: IsConnected, payload: bytes) -> bytes:
    """XS_IS_DOMAIN_INTRODUCED."""
    domid = atoi(onearg(payload))
    return b"T\0" if domid == DOMID_SELF or there(domid) else b"F\0"


def _help(given: list[str]) -> bytes:
    if given:
        raise XenstoreError(EINVAL)
    return "".join(f"{name}\t{pars}\n" for name, (_, pars) in _COMMANDS.items()).encode() + b"\0"


def _check(given: list[str]) -> bytes:
    """check_store(): this tree cannot have what it looks for."""
    if given:
        raise XenstoreError(EINVAL)
    return _OK


def _quota(given: list[str]) -> bytes:
    if given:  # those of one domain, or new ones
        raise XenstoreError(EINVAL)
    lines = (f"{name:<17}: {value:8} {text}\n" for name, value, text in _QUOTAS)
    return f"Quota settings:\n{''.join(lines)}".encode() + b"\0"


_COMMANDS: dict[str, tuple[Callable[[list[str]], bytes], str]] = {
    "check": (_check, ""),
    "quota": (_quota, ""),
    "help": (_help, ""),
}


def do_control(_there: IsConnected, payload: bytes) -> bytes:
    """XS_CONTROL: those of its commands that are about the store and not about the program that keeps it."""
    given = strings(payload)
    if not given or given[0] not in _COMMANDS:
        raise XenstoreError(EINVAL)
    return _COMMANDS[given[0]][0](given[1:])


HANDLERS: dict[int, Callable[[IsConnected, bytes], bytes]] = {
    XS_CONTROL: do_control,
    XS_INTRODUCE: do_introduce,
    XS_IS_DOMAIN_INTRODUCED: do_is_domain_introduced,
    XS_RELEASE: do_release,
    XS_RESUME: do_resume,
    XS_SET_TARGET: do_set_target,
}
