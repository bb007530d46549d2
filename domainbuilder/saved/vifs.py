"""The network interfaces of a saved domain: which of them lead out of the host again.

A saved domain may come from anybody, so nothing in it opens a port here or sends a frame to anybody: an
interface that led out has nobody at its other end, until whoever restores the domain gives it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from domainbuilder.errors import SavedError, Where
from domainbuilder.saved.told_device import has_fields_of
from hvcore.backends.vif import Vif
from hvcore.host_state import HostState


def with_vifs(state: HostState, given: Sequence[Vif], name: str) -> HostState:
    """The state of one domain, with the interfaces that are given as they are given.

    Raises SavedError where it had no such interfaces.
    """
    if not given:
        return state
    options = state.domains[0].options
    saved = options.get("vifs", []) if isinstance(options, dict) else []
    had = [_vif(one, name) for one in saved] if isinstance(saved, list) else []
    again = [asdict(vif) for vif in led_again(had, given, name, tells=True)]
    domain = replace(state.domains[0], options=options | {"vifs": again})
    return replace(state, domains=(domain,))


def led_again(had: Sequence[Vif], given: Sequence[Vif], name: str, *, tells: bool) -> list[Vif]:
    """The interfaces that a domain goes on with; those that are given have their ports of this machine.

    `tells`: what it had tells which of them led out of the host; Xen's streams do not. An interface that
    is not given is as it was. Raises SavedError for one that it did not have.
    """
    by_number = {vif.devid: vif for vif in given}
    unknown = sorted(by_number.keys() - {vif.devid for vif in had})
    if unknown:
        raise SavedError(
            f"the saved domain has no interface {unknown[0]} (--vif ...,devid=NUMBER says which is given)",
            where=Where(name), found=_numbers(given), expected=_numbers(had),
        )  # fmt: skip
    return [_again(vif, by_number[vif.devid], tells) if vif.devid in by_number else vif for vif in had]


def _again(had: Vif, given: Vif, tells: bool) -> Vif:  # noqa: FBT001 - see led_again()
    """The interface `had`, which leads where `given` does. Raises SavedError."""
    if (tells and given.is_outside != had.is_outside) or (given.mac and given.mac != had.mac):
        raise SavedError(
            f"interface {had.devid} is given as another than it was",
            found=_manner(given),
            expected=_manner(had),
        )
    return replace(had, is_outside=given.is_outside, tcp=given.tcp, udp=given.udp)


def _manner(vif: Vif) -> str:
    """Where an interface leads, in xl's words."""
    return f"type={'user' if vif.is_outside else 'vif'}" + (f",mac={vif.mac}" if vif.mac else "")


def _numbers(vifs: Sequence[Vif]) -> str:
    return ", ".join(str(vif.devid) for vif in vifs) or "none"


def _vif(saved: Any, name: str) -> Vif:
    """An interface as the file says that it was, its numbers and flags checked."""
    if not has_fields_of(Vif, saved):
        raise SavedError("what is said of an interface cannot be", where=Where(name))
    return Vif(**saved)
