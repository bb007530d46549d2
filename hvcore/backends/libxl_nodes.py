"""The nodes of the store that libxl makes for a PV domain, and takes away with it.

The kernel's path, which libxl writes too, is left out: a run does not depend on what its files are called.
Source: libxl__domain_make() and libxl__device_console_add() in tools/libs/light/libxl_create.c and
libxl_console.c, libxl__build_post() in libxl_dom.c, libxl__device_generic_add() in libxl_device.c.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, NamedTuple

from hvcore.backends.xenstore_nodes import PERM_READ, Perm, Perms
from hvcore.boot_image import AS_BUILT
from hvcore.public.xenbus import XenbusStateInitialising

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hvcore.backends.xenstored import Xenstored
    from hvcore.boot_image import BuildInfo
    from hvcore.domain import Domain


LIBXL_XENCONSOLE_LIMIT = 1048576
LIBXL_XENCONSOLE_PROTOCOL = "vt100"
_DOM0 = 0
_EMPTY = ("device/suspend/event-channel", "control/shutdown", "control/feature-poweroff",
    "control/feature-reboot", "control/feature-suspend", "control/sysrq", "data", "drivers", "feature",
    "attr", "error")  # fmt: skip


class Rings(NamedTuple):
    """Where a domain's first two rings are: frames and event channels."""

    store_mfn: int
    store_port: int
    console_mfn: int
    console_port: int


def home_of(domid: int) -> str:
    """libxl__xs_get_dompath()."""
    return f"/local/domain/{domid}"


def _vm_path(domain: Domain) -> str:
    return f"/vm/{uuid.UUID(bytes=domain.handle)}"


def add_dom0(store: Xenstored) -> None:
    """What xen-init-dom0 and the kernel of domain 0 write."""
    home = home_of(_DOM0)
    for path, value in (
        *((f"{home}/control/feature-{name}", "1") for name in ("poweroff", "reboot", "suspend")),
        (f"{home}/domid", str(_DOM0)),
        (f"{home}/name", "Domain-0"),
        ("/local/pool/0/name", "Pool-0"),
    ):
        store.write(path, value)


def add_domain(store: Xenstored, domain: Domain, name: str, rings: Rings, info: BuildInfo = AS_BUILT) -> None:
    """All nodes of a new domain without devices."""
    online = domain.max_vcpus if info.avail_vcpus is None else info.avail_vcpus
    static_max = domain.nr_pages if info.max_pages is None else info.max_pages
    domid = domain.domain_id
    read_only: Perms = (Perm(_DOM0, 0), Perm(domid, PERM_READ))
    guests: Perms = (Perm(domid, 0),)
    nobodys: Perms = (Perm(_DOM0, 0),)
    home, vm, libxl = home_of(domid), _vm_path(domain), f"/libxl/{domid}"
    store.write(home, "", read_only)
    store.write(f"{home}/vm", vm)
    store.write(f"{home}/name", name)
    for path, perms in (
        (vm, read_only),
        *((path, nobodys) for path in (libxl, f"{libxl}/device")),
        *((f"{home}/{path}", read_only) for path in ("cpu", "memory", "device", "control")),
        *((f"{home}/{path}", guests) for path in _EMPTY),
    ):
        store.write(path, "", perms)
    for path, value in (
        (f"{vm}/name", name),
        (f"{vm}/uuid", vm.rpartition("/")[2]),
        (f"{vm}/image/ostype", "linux"),
        (f"{vm}/start_time", f"{(domain.wallclock_ns + domain.clock.now()) / 1e9:.2f}"),
        (f"{home}/control/platform-feature-multiprocessor-suspend", "1"),
        (f"{home}/control/platform-feature-xs_reset_watches", "1"),
        (f"{libxl}/type", "pv"),
        (f"{libxl}/dm-version", "qemu_xen"),
        (f"{home}/memory/static-max", str(static_max * 4)),
        (f"{home}/memory/target", str(domain.nr_pages * 4)),
        (f"{home}/memory/videoram", "0"),
        (f"{home}/domid", str(domid)),
        (f"{home}/store/port", str(rings.store_port)),
        (f"{home}/store/ring-ref", str(rings.store_mfn)),
        *(
            (f"{home}/cpu/{i}/availability", "online" if i < online else "offline")
            for i in range(domain.max_vcpus)
        ),
    ):
        store.write(path, value)
    _add_console(store, domid, rings)


def _add_console(store: Xenstored, domid: int, rings: Rings) -> None:
    back = {"frontend-id": str(domid), "online": "1", "state": str(XenbusStateInitialising),
        "protocol": LIBXL_XENCONSOLE_PROTOCOL}  # fmt: skip
    front = {"limit": str(LIBXL_XENCONSOLE_LIMIT), "type": "xenconsoled", "output": "pty", "tty": "",
        "port": str(rings.console_port), "ring-ref": str(rings.console_mfn)}  # fmt: skip
    add_device(store, domid, "console", 0, back, {"backend-id": str(_DOM0)}, front)


def frontend_path(domid: int, kind: str, devid: int) -> str:
    """libxl__device_frontend_path(): the first console has a place of its own."""
    if kind == "console" and devid == 0:
        return f"{home_of(domid)}/console"
    return f"{home_of(domid)}/device/{kind}/{devid}"


def backend_path(domid: int, kind: str, devid: int) -> str:
    """libxl__device_backend_path()."""
    return f"{home_of(_DOM0)}/backend/{kind}/{domid}/{devid}"


def add_device(
    store: Xenstored,
    domid: int,
    kind: str,
    devid: int,
    back: Mapping[str, str],
    front: Mapping[str, str],
    ro_front: Mapping[str, str] = {},
) -> None:
    """libxl__device_generic_add(): a device's nodes on both sides."""
    fpath, bpath = frontend_path(domid, kind, devid), backend_path(domid, kind, devid)
    lpath = f"/libxl/{domid}/device/{kind}/{devid}"
    guests: Perms = (Perm(domid, 0), Perm(_DOM0, PERM_READ))
    ours: Perms = (Perm(_DOM0, 0), Perm(domid, PERM_READ))
    store.write(f"{lpath}/frontend", fpath)
    store.write(f"{lpath}/backend", bpath)
    store.write(fpath, "", ours if (kind, devid) == ("console", 0) else guests)
    store.write(f"{fpath}/backend", bpath)
    for fields, perms in ((front, guests), (ro_front, ours)):
        for name, value in fields.items():
            store.write(f"{fpath}/{name}", value, perms)
    store.write(bpath, "", ours)
    store.write(f"{bpath}/frontend", fpath)
    for name, value in back.items():
        store.write(f"{bpath}/{name}", value)
    for name, value in back.items():
        store.write(f"{lpath}/{name}", value)


def remove_domain(store: Xenstored, domain: Domain) -> None:
    """What libxl__destroy_domid() takes away, with the backends' sides of its devices."""
    domid = domain.domain_id
    backends = f"{home_of(_DOM0)}/backend"
    for kind in store.ls(backends):
        store.rm(f"{backends}/{kind}/{domid}")
    if store.read(f"{home_of(domid)}/vm") == _vm_path(domain):
        store.rm(_vm_path(domain))
    store.rm(home_of(domid))
    store.rm(f"/libxl/{domid}")


def path_cleanup(store: Xenstored, path: str) -> None:
    """libxl__xs_path_cleanup(): the node is removed, and those above it that are empty then."""
    store.rm(path)
    while path := path.rpartition("/")[0]:
        if store.read(path) != "" or store.ls(path):
            break
        store.rm(path)
