"""Debian's kernel with a disk and an interface, saved as xl does and moved: it goes on with both."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.errors import SavedError
from domainbuilder.launch.running import RunningDomain
from domainbuilder.xl.disk import parse_disk
from hvcore.backends.images import open_image
from hvcore.pv.audit import audit
from tests.domainbuilder.saved.test_stream import verified
from tests.needs import find_tool

MODULES = ("crc16", "crc32c_generic", "mbcache", "jbd2", "ext4", "xen-blkfront", "xen-netfront")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run([find_tool("mke2fs"), "-q", "-F", "-t", "ext4", path], check=True)
    return path


@pytest.fixture
def writing(
    guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path], image: Path
) -> Callable[[], RunningDomain]:
    """A Debian that writes to its disk all the time, a number a line."""

    def launched() -> RunningDomain:
        modules = {f"{m}.ko": guest_kernel(f"{m}-bookworm-amd64.ko").read_bytes() for m in MODULES}
        dom = domainbuilder.launch(
            guest_kernel("vmlinuz-bookworm-amd64"), 128, ramdisk=ramdisk("shell.sh", modules),
            cmdline="console=hvc0 quiet", max_guest_seconds=200,
            disks=[f"{image},raw,xvda,w"], vifs=["mac=00:16:3e:00:00:07"],
        )  # fmt: skip
        said(dom, f"for m in {' '.join(MODULES)}; do insmod /bin/$m.ko; done; sleep 1")
        said(dom, "mkdir /disk; mount -t ext4 /dev/xvda /disk; ifconfig eth0 10.0.0.1")
        said(dom, "(i=0; while [ ! -e /stop ]; do i=$((i+1)); echo $i; done >/disk/numbers) & sync")
        said(dom, "sleep 0.2; echo first >/disk/file")
        return dom

    return launched


def said(dom: RunningDomain, command: str) -> str:
    dom.console.expect("guest# ")
    dom.console.send(f"{command}; echo END''\n")
    return dom.console.expect(r"(?s)END''\r?\n(.*?)END\r?\n")[1].replace("\r", "").strip()


END = "cat /disk/file; touch /stop; wait; umount /disk; poweroff -f"


def check(image: Path, dom_said: str) -> None:
    """The file system is whole, and has every number once and in order."""
    assert re.search(r"\bfirst\r?\n", dom_said)
    done = subprocess.run([find_tool("e2fsck"), "-fn", image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    show = [find_tool("debugfs"), "-R", "cat numbers", str(image)]
    numbers = subprocess.run(show, capture_output=True, text=True, check=True).stdout.split()
    assert len(numbers) > 1000
    assert numbers == [str(i) for i in range(1, len(numbers) + 1)]


@pytest.mark.guest
def test_a_disk_and_an_interface_come_back(
    writing: Callable[[], RunningDomain], image: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    with writing() as dom:
        written = said(dom, "wc -l </disk/numbers")
        dom.save(saved, "xen")
    assert "vcpu0 basic context" in verified(saved)
    with pytest.raises(
        SavedError, match="given again, by --disk or its configuration; found none; expected xvda"
    ):
        domainbuilder.restore(saved)
    with domainbuilder.restore(saved, disks=[f"{image},raw,xvda,w"], max_guest_seconds=200) as dom:
        dom.console.send("\n")
        assert int(said(dom, "sleep 0.2; wc -l </disk/numbers")) > int(written)
        sent: list[bytes] = []
        taps = dom.machine.host.switches["xenbr0"].taps
        taps.append(lambda _when, _port, frame: sent.append(bytes(frame.data)))
        assert "00:16:3e:00:00:07" in said(dom, "ping -c 1 -W 1 10.0.0.2; cat /sys/class/net/eth0/address")
        assert any(frame[12:14] == b"\x08\x06" for frame in sent)  # it asks who has that address
        assert audit(dom.machine.domain) == []
        with pytest.raises(OSError, match="another domain has it"):
            open_image(parse_disk(f"{image},raw,xvda,r"))
        dom.console.send(f"{END}\n")
        assert dom.wait().reason == "poweroff"
        check(image, dom.transcript.text())
    with pytest.raises(SavedError, match="disk xvda has changed since the domain was saved"):
        domainbuilder.restore(saved, disks=[f"{image},raw,xvda,w"])


@pytest.mark.guest
def test_a_disk_goes_along(writing: Callable[[], RunningDomain], image: Path, tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'there'}"
    command = [
        *(sys.executable, "-m", "domainbuilder", "restore", address, "--disk", f"{image},raw,xvda,w"),
        *("--timeout", "300", "--send", f"\\n{END}\\n"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as there:
        with writing() as dom:
            while not (tmp_path / "there").exists() and there.poll() is None:
                threading.Event().wait(0.01)
            result = dom.migrate(address)
            assert dom.closed
        out, err = there.communicate()
    assert there.returncode == 0, err
    assert len(result.rounds) > 2
    check(image, out)
