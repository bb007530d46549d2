"""What comes and goes while Debian's kernel runs: devices, memory and vCPUs beyond what it began with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from hvcore.pv.audit import audit

UUID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
CMDLINE = "console=hvc0 loglevel=4"
MODULES = ("xen-blkfront", "xen-netfront")


@pytest.mark.guest
def test_disks_and_interfaces_come_and_go(
    guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path], tmp_path: Path
) -> None:
    modules = {f"{m}.ko": guest_kernel(f"{m}-bookworm-amd64.ko").read_bytes() for m in MODULES}
    image = tmp_path / "disk"
    image.write_bytes(bytes(range(256)) * 4096)
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    with domainbuilder.launch(
        guest_kernel("vmlinuz-bookworm-amd64"), memory_mib=128, maxmem_mib=192, max_vcpus=2,
        uuid=UUID, ramdisk=ramdisk("shell.sh", modules), cmdline=CMDLINE, timeout=300,
    ) as dom:  # fmt: skip
        machine, console = dom.machine, dom.console
        store = machine.host.xenstored

        def said(command: str) -> str:
            console.expect(r"guest# ")
            console.send(f"{command}; echo END''\n")
            return console.expect(r"(?s)END''\r?\n(.*?)END\r?\n")[1].replace("\r", "").strip()

        said("for m in /bin/*.ko; do insmod $m; done")
        assert said("ls /sys/block /sys/class/net | grep -E 'xvd|eth'") == ""
        before = dom.snapshot()
        for _ in range(2):  # a second time under the same name
            dom.attach_disk(f"{image},raw,xvdb,w")
            dom.run_for(1.0)
            assert said("cat /sys/block/xvdb/size") == "2048"
            assert said("sha256sum </dev/xvdb | cut -c-64") == digest
            dom.detach_disk("xvdb")
            dom.run_for(1.0)
            assert said("ls /sys/block | grep xvd") == ""
            assert (machine.devices.disks, machine.devices.backends) == ((), {})
        assert store.ls("/local/domain/0/backend/vbd") == store.ls("/libxl/1/device/vbd") == ()
        with pytest.raises(ValueError, match="Device xvdb not connected"):
            dom.detach_disk("xvdb")

        dom.attach_disk(f"{image},raw,xvdd,r")
        dom.run_for(1.0)
        dom.detach_disk("xvdd", force=True)
        assert machine.devices.disks == ()
        dom.run_for(1.0)
        assert said("ls /sys/block | grep xvd") == ""

        assert dom.attach_vif("mac=00:16:3e:00:00:07") == 0
        dom.run_for(1.0)
        assert said("cat /sys/class/net/eth0/address") == "00:16:3e:00:00:07"
        sent: list[bytes] = []
        machine.host.switches["xenbr0"].taps.append(
            lambda _when, _port, frame: sent.append(bytes(frame.data))
        )
        said("ifconfig eth0 10.0.0.1; ping -c 1 -W 1 10.0.0.2")
        assert any(frame[12:14] == b"\x08\x06" for frame in sent)  # it asks who has that address
        dom.detach_vif("00:16:3e:00:00:07")
        dom.run_for(1.0)
        assert said("ls /sys/class/net | grep eth") == ""
        assert (machine.devices.vifs, machine.devices.backends) == ((), {})
        with pytest.raises(RuntimeError, match="devices were attached or detached"):
            dom.rewind(before)

        domain, began = machine.domain, int(said("awk '/MemTotal/ { print $2 }' /proc/meminfo"))
        assert (said("nproc"), said("cat /sys/hypervisor/uuid")) == ("1", UUID)
        dom.set_memory_target(192)
        dom.set_vcpus(2)
        dom.run_for(3.0)
        assert (domain.tot_pages, domain.max_pages) == (192 << 8, 193 << 8)
        assert int(said("awk '/MemTotal/ { print $2 }' /proc/meminfo")) - began == 64 << 10
        assert said("echo 1 > /sys/devices/system/cpu/cpu1/online; nproc") == "2"
        with pytest.raises(ValueError, match="not within 1 and 192"):
            dom.set_memory_target(193)
        assert audit(domain) == []
