"""`domainbuilder xl`'s verbs for disks, interfaces, vCPUs and memory: list, attach, detach, set."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from domainbuilder.commands.xl import AsJson, Named, Some, ask_named, find_named
from domainbuilder.errors import BuildError

if TYPE_CHECKING:
    from domainbuilder.background.runtime import Domain

_PATIENCE = 10.0  # seconds until a guest that does not let go of a device is given up: LIBXL_DESTROY_TIMEOUT
_LOOK = 0.05
Specs = Annotated[list[str], typer.Argument(metavar="SPEC...", help="As in `disk=`.", show_default=False)]
VifSpecs = Annotated[
    list[str] | None, typer.Argument(metavar="[SPEC]...", help="As in `vif=`.", show_default=False)
]
Vdev = Annotated[
    str, typer.Argument(metavar="DISK", help="Its name, such as xvdb, or number.", show_default=False)
]
WhichVif = Annotated[str, typer.Argument(metavar="VIF", help="Its number or address.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", "-f", help="Do not ask the guest: take it away.")]


def _rows(name: str, verb: str, as_json: bool) -> list[dict[str, Any]]:  # noqa: FBT001
    """The rows of a list; none where they are printed already, as JSON."""
    rows = ask_named(name, verb)
    assert isinstance(rows, list)
    if not as_json:
        return rows
    print(json.dumps(rows, indent=2))
    return []


def block_list(domain: Named, as_json: AsJson = False) -> None:
    """List the disks of a domain in the background."""
    rows = _rows(domain, "block-list", as_json)
    if not as_json:
        print("Vdev  BE  handle state evt-ch ring-ref BE-path")
    for row in rows:
        print(
            f"{row['vdev']:<5} {row['be']:<3} {row['handle']:<6} {row['state']:<5} "
            f"{row['event_channel']:<6} {row['ring_ref']:<8} {row['be_path']}"
        )


def network_list(domain: Named, as_json: AsJson = False) -> None:
    """List the network interfaces of a domain in the background."""
    rows = _rows(domain, "network-list", as_json)
    if not as_json:
        print("Idx BE Mac Addr.         handle state evt-ch   tx-/rx-ring-ref BE-path")
    for row in rows:
        print(
            f"{row['idx']:<3} {row['be']:<2} {row['mac']:<17} {row['handle']:6} {row['state']:5} "
            f"{row['event_channel']:6} {row['tx_ring_ref']:5}/{row['rx_ring_ref']:<11} {row['be_path']}"
        )


def block_attach(domain: Named, spec: Specs) -> None:
    """Give a domain in the background one more disk, which its guest finds while it runs.

    \b
    Examples:
      domainbuilder xl block-attach guest data.img,raw,xvdb,w
      domainbuilder xl block-attach guest format=qcow2 vdev=xvdc target=more.qcow2
    """
    from domainbuilder.xl.config_json import disk_text
    from domainbuilder.xl.disk import parse_disk

    disk = parse_disk(",".join(spec))
    if disk.target:  # the domain's process may be in another directory
        disk = replace(disk, target=str(Path(disk.target).absolute()))
    ask_named(domain, "block-attach", disk=disk_text(disk))


def block_detach(domain: Named, disk: Vdev, force: Force = False) -> None:
    """Take a disk from a domain in the background, when its guest has let go of it.

    A guest that does not within ten seconds keeps it, and that is an error.
    """
    found = find_named(domain)
    devid = _ask(found, "block-detach", vdev=disk, force=force)
    if not _is_gone(found, "block-list", "vdev", devid):
        raise BuildError("the guest does not let go of the disk; --force takes it away", found=disk)


def network_attach(domain: Named, spec: VifSpecs = None) -> None:
    """Give a domain in the background one more network interface, which its guest finds while it runs.

    \b
    Examples:
      domainbuilder xl network-attach guest
      domainbuilder xl network-attach guest type=user tcp=8080:80
    """
    devid = ask_named(domain, "network-attach", vif=",".join(spec or []))
    print(f"domainbuilder: interface {devid}", file=sys.stderr)


def network_detach(domain: Named, vif: WhichVif) -> None:
    """Take a network interface from a domain in the background.

    It is taken by force from a guest that does not let go of it within ten seconds.
    """
    found = find_named(domain)
    devid = _ask(found, "network-detach", vif=vif, force=False)
    if not _is_gone(found, "network-list", "idx", devid):
        _ask(found, "network-detach", vif=vif, force=True)


def _ask(domain: Domain, verb: str, **arguments: Any) -> Any:
    from domainbuilder.background.client import ask

    return ask(domain, verb, **arguments)


def _those(domain: str | None) -> list[Domain]:
    """The domain of that number or name; all where none is named."""
    from domainbuilder.background.runtime import domains

    return domains() if domain is None else [find_named(domain)]


def _is_gone(domain: Domain, verb: str, key: str, number: int) -> bool:
    """Whether the device with that number goes in time."""
    end = time.monotonic() + _PATIENCE
    while any(row[key] == number for row in _ask(domain, verb)):
        if time.monotonic() >= end:
            return False
        time.sleep(_LOOK)
    return True


def vcpu_list(domain: Some = None) -> None:
    """List the vCPUs of domains in the background: state and the time that each has run.

    States are xl's: r running, b blocked, p not online.
    """
    print(f"{'Name':<32} {'ID':>5} {'VCPU':>5} {'CPU':>5} {'State':>5} {'Time(s)':>9} Affinity (Hard / Soft)")
    for found in _those(domain):
        for row in _ask(found, "vcpu-list"):
            running, blocked = ("r" if row["state"] == "r" else "-"), ("b" if row["state"] == "b" else "-")
            where = f"{'0':>5}   {running}{blocked}- " if row["online"] else f"{'-':>5}   --p "
            shown = f"{where}{row['seconds']:9.1f}  all / all"
            print(f"{found.name:<32} {found.id:5} {row['vcpu']:5} {shown}")


def trigger(
    domain: Named,
    kind: Annotated[str, typer.Argument(metavar="nmi", help="The trigger.", show_default=False)],
    vcpu: Annotated[int, typer.Argument(metavar="[VCPU]", help="Which vCPU.")] = 0,
) -> None:
    """Send a non-maskable interrupt to a vCPU of a domain in the background.

    Of xl's triggers it is the only one that a PV guest knows.
    """
    ask_named(domain, "trigger", kind=kind, vcpu=vcpu)


def dmesg(domain: Some = None) -> None:
    """Print what Xen's console would say of domains in the background.

    That is the last acts of each guest that were refused, and why, and what it was crashed for. Each domain
    has a host of its own, where its number is 1.
    """
    for found in _those(domain):
        for text in _ask(found, "dmesg"):
            print(f"(XEN) [{found.name}] {text}")


def info() -> None:
    """Print which machine this is, and which Xen its domains meet."""
    from domainbuilder.background.runtime import domains
    from domainbuilder.launch.told import told_xen

    here = os.uname()
    machine = {name: getattr(here, name) for name in ("release", "version", "machine")}
    told = {"host": here.nodename, **machine, "nr_domains": len(domains()), **told_xen()}
    for name, value in told.items():
        print(f"{name:<22} : {value}")


def mem_set(
    domain: Named,
    memory: Annotated[
        str, typer.Argument(metavar="MEM", help="In MB, or with a unit: b, k, m, g, t.", show_default=False)
    ],
) -> None:
    """Ask a domain in the background to have so much memory, by its balloon driver.

    At most `maxmem` of its configuration, which is what it began with if there is none.

    \b
    Examples:
      domainbuilder xl mem-set guest 128
      domainbuilder xl mem-set guest 1g
    """
    from domainbuilder.xl.sizes import parse_mem_size_kb

    ask_named(domain, "mem-set", kib=parse_mem_size_kb(memory))


def vcpu_set(
    domain: Named,
    count: Annotated[int, typer.Argument(metavar="N", help="How many.", show_default=False)],
) -> None:
    """Ask a domain in the background to use so many of its vCPUs.

    At most `maxvcpus` of its configuration. Linux takes the others out of use by itself; of those that come
    back it is told, and its udev, or /sys/devices/system/cpu/cpuN/online, puts them to use.
    """
    ask_named(domain, "vcpu-set", count=count)
