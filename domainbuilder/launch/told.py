"""What xl's lists show of a running domain: disks and interfaces as both ends have them, vCPUs, refusals.

Source: libxl__device_disk_getinfo() and its kin in tools/libs/light, print_vcpuinfo() in tools/xl/xl_vcpu.c
of Xen 4.17.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hvcore.common.kernel import CAPABILITIES, CHANGESET, COMPILE_INFO, EXTRAVERSION, XEN_VERSION
from hvcore.common.schedule import vcpu_runstate_get
from hvcore.public.xen import PAGE_SIZE
from hvcore.trace import FailedEntry
from hvcore.vcpu import VPF_down

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from domainbuilder.launch.running import RunningDomain

_DISK_NODES = {"state": "state", "event_channel": "event-channel", "ring_ref": "ring-ref"}
_VIF_NODES = {
    "state": "state",
    "event_channel": "event-channel",
    "tx_ring_ref": "tx-ring-ref",
    "rx_ring_ref": "rx-ring-ref",
}


def _device(dom: RunningDomain, kind: str, devid: int, nodes: Mapping[str, str]) -> dict[str, Any]:
    """What is in the frontend's nodes, -1 for what is not there, and where the backend's are."""
    store = dom.machine.xenstore
    told: dict[str, Any] = {"be": 0, "handle": devid if kind == "vif" else 0}
    for name, node in nodes.items():
        text = store.read(f"device/{kind}/{devid}/{node}") or ""
        told[name] = int(text) if text.isascii() and text.isdigit() else -1
    return told | {"be_path": store.read(f"device/{kind}/{devid}/backend") or ""}


def told_xen() -> dict[str, object]:
    """What guests are told of their Xen, as `xl info` has it."""
    major, minor, extra = XEN_VERSION >> 16, XEN_VERSION & 0xFFFF, EXTRAVERSION.decode()
    return {
        "xen_major": major,
        "xen_minor": minor,
        "xen_extra": extra,
        "xen_version": f"{major}.{minor}{extra}",
        "xen_caps": CAPABILITIES.decode(),
        "xen_pagesize": PAGE_SIZE,
        "xen_changeset": CHANGESET.decode(),
        "cc_compiler": COMPILE_INFO[0].decode(),
    }


def told_disks(dom: RunningDomain) -> list[dict[str, Any]]:
    """A row for each disk."""
    return [
        {"vdev": disk.devid, "name": disk.vdev, **_device(dom, "vbd", disk.devid, _DISK_NODES)}
        for disk in dom.machine.devices.disks
    ]


def told_vifs(dom: RunningDomain) -> list[dict[str, Any]]:
    """A row for each network interface."""
    return [
        {
            "idx": vif.devid,
            "mac": vif.address(dom.domain_id, vif.devid),
            **_device(dom, "vif", vif.devid, _VIF_NODES),
        }
        for vif in dom.machine.devices.vifs
    ]


def told_vcpus(dom: RunningDomain) -> list[dict[str, Any]]:
    """A row for each vCPU: whether it is online, its state (r: runs, b: blocked), the seconds it ran."""
    machine = dom.machine
    return [
        {
            "vcpu": v.vcpu_id,
            "online": not v.pause_flags & VPF_down,
            "state": "r" if machine.running is v else "b" if v.pause_flags else "-",
            "seconds": round(vcpu_runstate_get(v)[2] / 1e9, 1),
        }
        for v in machine.domain.vcpus
    ]


def told_refusals(dom: RunningDomain) -> list[str]:
    """What Xen's console would say of the domain: the last acts of its guest's that were refused, and why."""
    version = f"Xen version {told_xen()['xen_version']}"
    crash = dom.machine.crash
    last = [] if crash is None else [f"Domain {dom.domain_id} crashed: {crash.reason}"]
    return [version, *(f"d{dom.domain_id} {text}" for text in _refusals(dom)), *last]


def _refusals(dom: RunningDomain) -> Iterator[str]:
    trace = dom.machine.domain.trace
    for call in trace.refused_calls:
        entries: tuple[FailedEntry, ...] = call.entries
        yield from map(str, (*call.refusals, *(one for entry in entries for one in entry.refusals)))
    for fault in trace.refused_faults:
        yield from (f"{refusal} (at {fault.address:#x}, rip {fault.rip:#x})" for refusal in fault.refusals)
