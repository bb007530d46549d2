"""What a domain in the background can be asked to do: a table of verbs, each with its arguments.

What acts on the guest is what xl writes to xenstore (tools/libs/light/libxl_domain.c of Xen 4.17), or nothing
that the guest could notice.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from domainbuilder.launch.guest_control import GuestControl
from domainbuilder.launch.session import Input
from domainbuilder.launch.told import told_disks, told_refusals, told_vcpus, told_vifs
from domainbuilder.launch.waiting import Ends
from domainbuilder.xl.config_json import to_json
from hvcore.public.xs_wire import XENSTORE_REL_PATH_MAX

if TYPE_CHECKING:
    from domainbuilder.background.runtime import Place
    from domainbuilder.launch.running import RunningDomain
    from domainbuilder.launch.session import Outcome
    from domainbuilder.xl.domain_config import DomainConfig

_MOST_NODES = 10_000  # that are told at a time
_MOST_DEPTH = 64
_PATH = re.compile(r"(/[A-Za-z0-9_@-]+)+")  # is_valid_nodename() of tools/xenstore/xenstored_core.c


class Served(Input, Protocol):
    """The domain as its server has it, which is its input.

    `ended` is how it ended, where it is kept; `end` why it is to end.
    """

    place: Place
    config: DomainConfig
    dom: RunningDomain | None
    started: float
    is_paused: bool
    end: str
    ended: Outcome | None

    def renamed(self, name: str, uuid: str | None = None) -> None:
        """The domain has that name."""


class Refused(Exception):
    """The verb cannot be done, and why."""


class Verb(NamedTuple):
    """What is called with the server, and the arguments it takes by name, with their types."""

    do: Callable[..., Any]
    takes: Mapping[str, type] = MappingProxyType({})

    def checked(self, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a request. Raises Refused where they are others."""
        if set(given) != set(self.takes) or any(
            type(given[name]) is not kind for name, kind in self.takes.items()
        ):
            raise Refused(f"arguments of another verb: {', '.join(sorted(given))[:80]}")
        return given


def _dom(server: Served) -> RunningDomain:
    assert server.dom is not None
    return server.dom


def _alive(server: Served) -> RunningDomain:
    if server.ended is not None:
        raise Refused(f"{server.config.name} has ended: {server.ended}")
    return _dom(server)


def _control(server: Served) -> GuestControl:
    return GuestControl(_alive(server).machine)


def _info(server: Served) -> dict[str, Any]:
    machine, ended = _dom(server).machine, server.ended
    domain = machine.domain
    state = "p" if server.is_paused else "r" if machine.running is not None else "b"
    if ended is not None:
        state = "c" if ended.report is not None else "s"
    return {
        "id": server.place.id,
        "name": server.config.name,
        "uuid": str(machine.xenstore.read("vm") or "").rpartition("/")[2],
        "pid": os.getpid(),
        "memory_mib": domain.tot_pages >> 8,
        "vcpus": sum(row["online"] for row in told_vcpus(_dom(server))),
        "state": state,
        "cpu_seconds": round(machine.clock.busy_ns / 1e9, 1),
        "guest_seconds": round(_dom(server).stats().guest_ns / 1e9, 3),
        "uptime_seconds": int(time.time() - server.started),
    }


def _pause(server: Served, *, paused: bool) -> None:
    _alive(server)
    server.is_paused = paused


def _shutdown(server: Served, reason: str) -> None:
    if reason not in ("poweroff", "reboot"):
        raise Refused("a domain is asked to poweroff or to reboot")
    if server.is_paused:
        raise Refused(f"{server.config.name} is paused")
    _control(server).shutdown(reason)


def _destroy(server: Served) -> None:
    server.end = "destroyed"


def _rename(server: Served, to: str) -> None:
    """main_rename()."""
    if not to:
        raise Refused("a domain needs a name")
    if "/" in to:
        raise Refused("a domain's name has no slash")
    server.place.rename(to)
    server.renamed(to)


def _check_path(path: str, what: str) -> None:
    """The domain's process has a folder of its own."""
    if not path.startswith("/"):
        raise Refused(f"{what} needs a path from the root on")


def _dump_core(server: Served, path: str) -> int:
    _check_path(path, "the core's file")
    return _dom(server).dump_core(path)


def _screenshot(server: Served, path: str) -> int:
    _check_path(path, "the picture's file")
    return len(_dom(server).screenshot(path))


class _Nobody:
    """The input of a domain that is not to be disturbed: its idle time passes at once."""

    open = detached = real_time = False

    def ends(self) -> Ends[int]:
        return Ends()

    def read(self) -> bytes:
        return b""


@contextmanager
def _undisturbed(server: Served) -> Iterator[RunningDomain]:
    """The domain, which hears nobody within the block."""
    dom = _alive(server)
    dom.attach(_Nobody())
    try:
        yield dom
    finally:
        dom.attach(server)


def _save(server: Served, path: str, form: str, after: str) -> int:
    """Write the domain for `restore`; the file's bytes. `after`: destroy, continue or pause."""
    _check_path(path, "the saved domain's file")
    if form not in ("frozen", "xen") or after not in ("destroy", "continue", "pause"):
        raise Refused(f"no way to save a domain: {form[:80]}, {after[:80]}")
    with _undisturbed(server) as dom:
        size = dom.save(path, "xen" if form == "xen" else "frozen")
    if after == "destroy":
        server.end = "saved"
        return size
    if form == "xen":
        dom.resume()
    server.is_paused = server.is_paused or after == "pause"
    return size


def _migrate(server: Served, address: str) -> str:
    """Move the domain to who waits for it at "unix:PATH"; how that went."""
    with _undisturbed(server) as dom:
        moved = str(dom.migrate(address))
    server.end = f"moved: {moved}"
    return moved


def _config(server: Served) -> dict[str, Any]:
    config = json.loads(to_json(server.config))
    assert isinstance(config, dict)
    return config


def _trigger(server: Served, kind: str, vcpu: int) -> None:
    """main_trigger(), of whose kinds a PV guest knows one."""
    if kind != "nmi":
        raise Refused(f"a PV guest knows no trigger but nmi, and not {kind[:40]}")
    _alive(server).trigger_nmi(vcpu)


def _store_ls(server: Served, path: str) -> list[tuple[int, str, str]]:
    """The nodes below `path`: how deep, the name, the value."""
    store = _dom(server).machine.xenstore.store
    found: list[tuple[int, str, str]] = []

    def walk(at: str, depth: int) -> None:
        for name in sorted(store.ls(at or "/")):
            below = f"{at}/{name}"
            found.append((depth, name, store.read(below) or ""))
            if len(found) > _MOST_NODES or depth > _MOST_DEPTH:
                raise Refused(f"more than {_MOST_NODES} nodes")
            walk(below, depth + 1)

    if store.read(path) is None:
        raise Refused(f"no such node: {path[:200]}")
    walk(path.rstrip("/"), 0)
    return found


def _store_read(server: Served, path: str) -> str:
    value = _dom(server).machine.xenstore.store.read(path)
    if value is None:
        raise Refused(f"couldn't read path {path[:200]}")
    return value


def _store_write(server: Served, path: str, value: str) -> None:
    if len(path) > XENSTORE_REL_PATH_MAX or not _PATH.fullmatch(path):
        raise Refused(f"no path of the store: {path[:200]}")
    _alive(server).machine.xenstore.write(path, value)


def _store_rm(server: Served, path: str) -> None:
    if path in ("", "/"):
        raise Refused("the root stays")
    _store_read(server, path)
    _alive(server).machine.xenstore.rm(path)


VERBS: dict[str, Verb] = {
    "info": Verb(_info),
    "console": Verb(lambda _server: "console"),
    "pause": Verb(lambda server: _pause(server, paused=True)),
    "unpause": Verb(lambda server: _pause(server, paused=False)),
    "shutdown": Verb(_shutdown, {"reason": str}),
    "destroy": Verb(_destroy),
    "rename": Verb(_rename, {"to": str}),
    "dump-core": Verb(_dump_core, {"path": str}),
    "vnc": Verb(lambda server: _dom(server).vnc_address),
    "screenshot": Verb(_screenshot, {"path": str}),
    "save": Verb(_save, {"path": str, "form": str, "after": str}),
    "migrate": Verb(_migrate, {"address": str}),
    "config": Verb(_config),
    "block-list": Verb(lambda server: told_disks(_dom(server))),
    "block-attach": Verb(lambda server, disk: _alive(server).attach_disk(disk), {"disk": str}),
    "block-detach": Verb(
        lambda server, vdev, force: _alive(server).detach_disk(vdev, force=force),
        {"vdev": str, "force": bool},
    ),
    "network-list": Verb(lambda server: told_vifs(_dom(server))),
    "network-attach": Verb(lambda server, vif: _alive(server).attach_vif(vif), {"vif": str}),
    "network-detach": Verb(
        lambda server, vif, force: _alive(server).detach_vif(vif, force=force), {"vif": str, "force": bool}
    ),
    "vcpu-list": Verb(lambda server: told_vcpus(_dom(server))),
    "dmesg": Verb(lambda server: told_refusals(_dom(server))),
    "trigger": Verb(_trigger, {"kind": str, "vcpu": int}),
    "sysrq": Verb(lambda server, letter: _control(server).sysrq(letter), {"letter": str}),
    "mem-set": Verb(lambda server, kib: _control(server).set_memory_target(kib), {"kib": int}),
    "vcpu-set": Verb(lambda server, count: _control(server).set_vcpus(count), {"count": int}),
    "xenstore-ls": Verb(_store_ls, {"path": str}),
    "xenstore-read": Verb(_store_read, {"path": str}),
    "xenstore-write": Verb(_store_write, {"path": str, "value": str}),
    "xenstore-rm": Verb(_store_rm, {"path": str}),
}
