"""Disks and interfaces in Xen's stream: what the file says of them, what it cannot, and who has the files."""

from __future__ import annotations

import json
import lzma
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from domainbuilder import RunningDomain, SavedError, launch, restore
from domainbuilder.saved.stream_restore import Restorer
from domainbuilder.xl.disk import parse_disk
from domainbuilder.xl.vfb import parse_vfb
from hvcore.backends.block import BlockBackend
from hvcore.backends.images import open_image
from tests.domainbuilder.saved.test_stream import REAL, goes_on, verified


@pytest.fixture(scope="module")
def guest(suspend_guests: dict[str, Path]) -> Path:
    return suspend_guests["64"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8192))
    return path


@pytest.fixture
def dom(guest: Path, image: Path) -> Iterator[RunningDomain]:
    disks, vifs = [f"{image},raw,xvda,w"], ["mac=00:16:3e:00:00:07,bridge=lan,rate=1MB/s"]
    with launch(
        guest, 8, cmdline="rounds=1", disks=disks, vifs=vifs, vfb="vnc=0", max_guest_seconds=60
    ) as dom:
        dom.console.expect("ready for round 1")
        yield dom


def configuration(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    (size,) = struct.unpack_from("<I", data, 48)
    found: dict[str, Any] = json.loads(data[52 : 52 + size].rstrip(b"\0"))
    return found


def test_what_real_xen_saved_with_devices_goes_on_here(tmp_path: Path, image: Path) -> None:
    """`xl save` of Xen 4.17.7 wrote it, of samples/suspend with a phy:/dev/loop0 and a vif."""
    path = tmp_path / "stream"
    path.write_bytes(lzma.decompress((REAL / "suspend-64-devices.xl.xz").read_bytes()))
    with pytest.raises(SavedError, match="found none; expected xvda"):
        restore(path)
    with restore(path, disks=[f"{image},raw,xvda,w"], max_guest_seconds=60) as dom:
        store = dom.machine.xenstore
        assert store.read("device/vif/0/mac") == "00:16:3e:00:00:09"
        assert store.read("device/vbd/51712/device-type") == "disk"
        assert [disk.vdev for disk in dom.machine.devices.disks] == ["xvda"]
        assert list(dom.machine.host.switches) == ["xenbr0"]
        goes_on(dom)


def test_the_file_says_of_devices_what_xl_would(dom: RunningDomain, image: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    dom.save(saved, "xen")
    verified(saved)
    config = configuration(saved)
    assert config["disks"] == [
        {
            "pdev_path": str(image), "vdev": "xvda", "format": "raw", "readwrite": 1,
            "discard_enable": "True", "trusted": "True",
        }
    ]  # fmt: skip
    assert config["nics"] == [
        {
            "devid": 0, "mac": "00:16:3e:00:00:07", "bridge": "lan", "mtu": 1500, "script": "vif-bridge",
            "nictype": "vif", "rate_bytes_per_interval": 50000, "rate_interval_usecs": 50000,
            "trusted": "True",
        }
    ]  # fmt: skip
    vnc = {"enable": "False", "listen": "127.0.0.1", "display": 0, "findunused": "False"}
    assert config["vfbs"] == [{"devid": 0, "vnc": vnc, "sdl": {"enable": "False", "opengl": "False"}}]
    assert config["vkbs"] == [{"devid": 0, "backend_type": "qemu"}]
    dom.close()
    with restore(saved, disks=[f"{image},raw,xvda,w"]) as again:
        assert again.machine.devices.vfb == parse_vfb("vnc=0")
        assert again.machine.devices.disks == (parse_disk(f"{image},raw,xvda,w"),)
        assert [vif.mac for vif in again.machine.devices.vifs] == ["00:16:3e:00:00:07"]
        again.console.expect("SUCCESS")


def test_what_is_in_memory_instead_of_a_disk_is_not_left_behind(
    guest: Path, image: Path, tmp_path: Path
) -> None:
    disk = parse_disk(f"{image},raw,xvda,w", snapshot=True)
    with launch(guest, 8, cmdline="rounds=1", disks=[disk], max_guest_seconds=60) as dom:
        dom.console.expect("ready for round 1")
        backend = dom.machine.devices.backends["vbd51712"]
        assert isinstance(backend, BlockBackend)
        backend.image.write(512, [memoryview(b"x" * 512)])
        for form in (lambda: dom.save(tmp_path / "saved", "xen"), lambda: dom.migrate("unix:nowhere")):
            with pytest.raises(SavedError, match=r"instead of disk xvda \(--snapshot\) has no place"):
                form()
        assert not (tmp_path / "saved").exists()
        dom.save(tmp_path / "saved")  # the frozen form has it
        assert dom.outcome is None


@pytest.mark.parametrize(
    ("disks", "said"),
    [
        (
            [],
            "the other side is gone: the disks of a saved domain are given again, by --disk or its conf",
        ),
        (["none.img,raw,xvda,w"], "could not go on with the domain: .*No such file"),
    ],
)
def test_a_disk_that_cannot_be_had_there_stays_here(
    dom: RunningDomain, image: Path, tmp_path: Path, disks: list[str], said: str
) -> None:
    address, there = f"unix:{tmp_path / 'there'}", [f"{tmp_path}/{disk}" for disk in disks]
    raised: list[BaseException] = []

    def receive() -> None:
        try:
            restore(address, disks=there, timeout=60)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=receive)
    thread.start()
    while not (tmp_path / "there").exists():
        threading.Event().wait(0.01)
    with pytest.raises(SavedError, match=said):
        dom.migrate(address)
    thread.join()
    assert isinstance(raised[0], SavedError if not disks else FileNotFoundError)
    with pytest.raises(OSError, match="another domain has it"):
        open_image(parse_disk(f"{image},raw,xvda,r"))
    backend = dom.machine.devices.backends["vbd51712"]
    assert isinstance(backend, BlockBackend)
    backend.image.write(0, [memoryview(b"y" * 512)])
    assert image.read_bytes()[:513] == b"y" * 512 + b"\0"
    if disks:
        dom.console.expect("cancelled in round 1")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"b_info": {"max_vcpus": "\n" * 9000}}, "that many vCPUs cannot be had; found \\n\\n"),
        ({"disks": 5}, "disks of xl's configuration cannot be"),
        ({"disks": [5]}, "disk 0 is no object; found int"),
        ({"disks": [{"vdev": "xvda", "format": "vhd"}]}, "format of disk 0 cannot be; found 'vhd'"),
        ({"disks": [{"vdev": "no", "format": "raw"}]}, "vdev of disk 0 cannot be; found 'no'"),
        ({"disks": [{"vdev": "xvda", "format": "raw", "readwrite": 2}]}, "readwrite of disk 0 cannot be"),
        ({"disks": [{"vdev": ["xvda"], "format": "raw"}]}, "vdev of disk 0 cannot be"),
        ({"disks": [{"vdev": "xvda", "format": "raw"}] * 2}, "two disks have the same vdev"),
        ({"disks": [{"vdev": "xvda", "format": "raw"}] * 257}, "a list of at most 256"),
        ({"nics": [{"mac": "00:16:3e:00:00:07,type=user"}]}, "mac of interface 0 cannot be"),
        ({"nics": [{"bridge": "lan,type=user"}]}, "bridge of interface 0 cannot be"),
        ({"vfbs": [{"vnc": {"enable": 1}}]}, "enable of the framebuffer's vnc cannot be"),
        ({"vfbs": [{"vnc": {"display": -1}}]}, "display of the framebuffer's vnc cannot be"),
        ({"vfbs": [{"vnc": []}]}, "the framebuffer's vnc is no object"),
        ({"vfbs": [{}, {}]}, "vfbs of xl's configuration cannot be"),
        ({"nics": [{"devid": -1}]}, "devid of interface 0 cannot be; found -1"),
        ({"nics": [{"trusted": True}]}, "trusted of interface 0 cannot be"),
        ({"nics": [{}, {}]}, "two interfaces have the same number"),
        ({"nics": [{"mtu": 1 << 80}]}, "mtu of interface 0 cannot be"),
        ({"b_info": {"rtc_timeoffset": -1}}, "rtc_timeoffset cannot be; found -1"),
        ({"b_info": {"rtc_timeoffset": "1"}}, "rtc_timeoffset cannot be; found '1'"),
        ({"domainbuilder": {"wallclock_ns": 1 << 63}}, "wallclock_ns cannot be"),
    ],
)
def test_devices_that_cannot_be(config: dict[str, Any], said: str) -> None:
    with pytest.raises(SavedError) as refused:
        Restorer("file").config(config)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_named_in_the_file_is_not_opened(image: Path, tmp_path: Path) -> None:
    """Its name is only told: the disk that is given may have another."""
    other = tmp_path / "other.img"
    other.write_bytes(bytes(512))
    restorer = Restorer("file", [parse_disk(f"{other},raw,xvda,r")])
    restorer.config({"disks": [{"pdev_path": str(image), "vdev": "xvda", "format": "raw"}]})
    assert [disk.target for disk in restorer.disks] == [str(other)]
    with pytest.raises(SavedError, match="as another than it was; found access=ro; expected access=rw"):
        restorer.config({"disks": [{"vdev": "xvda", "format": "raw", "readwrite": 1}]})
    restorer.config({})  # a stream of libxl's alone tells of no disks
    assert [disk.target for disk in restorer.disks] == [str(other)]
