"""Debian's kernels with a disk: an ext4 that mke2fs made, read, written, checked by e2fsck, met again."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.xl.disk import parse_disk
from hvcore.backends.block import BlockBackend
from hvcore.backends.disk import Disk
from hvcore.host import Host
from hvcore.host_state import HostState
from hvcore.machine import Machine, Stop
from hvcore.pv.audit import audit
from tests.hvcore.saved import run_on
from tests.hvcore.stops import Schedule, Subject, launched, run
from tests.needs import find_tool

MODULES = ("crc16", "crc32c_generic", "mbcache", "jbd2", "ext4", "xen-blkfront")
NUMBERS = "".join(f"{i}\n" for i in range(1, 30001)).encode()
CMDLINE = "console=hvc0 loglevel=3"
LIMIT_NS = 60 * 10**9
DIGEST = hashlib.sha256(NUMBERS).hexdigest()

Prepare = Callable[[str, Disk], Subject]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An ext4 of 32 MB with one file."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "greeting").write_text("from mke2fs\n")
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(32 << 20)
    options = ["-q", "-F", "-t", "ext4", "-U", "5d3d8a1e-0000-4000-8000-000000000001", "-E", "root_owner=0:0"]
    subprocess.run([find_tool("mke2fs"), *options, "-d", root, path], check=True)
    return path


@pytest.fixture
def prepared(guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path]) -> Prepare:
    """`prepared(suite, disk)`: that Debian's kernel with its modules in the ramdisk, and the disk."""

    def prepare(suite: str, disk: Disk) -> Subject:
        modules = {f"{m}.ko": guest_kernel(f"{m}-{suite}-amd64.ko").read_bytes() for m in MODULES}
        kernel, path = guest_kernel(f"vmlinuz-{suite}-amd64"), ramdisk("disk.sh", modules)
        return Subject(kernel, LIMIT_NS, 256, cmdline=CMDLINE, ramdisk=path, disks=(disk,))

    return prepare


def clean(image: Path) -> None:
    done = subprocess.run([find_tool("e2fsck"), "-fn", image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def inside(image: Path, name: str) -> bytes:
    return subprocess.run(
        [find_tool("debugfs"), "-R", f"cat {name}", image], capture_output=True, check=True
    ).stdout


@pytest.mark.guest
def test_files_survive_from_one_debian_to_the_next(prepared: Prepare, image: Path) -> None:
    """Linux 6.1 writes; 6.12 finds that, and writes to a layer over it.

    In the middle of writing, with requests under way, the host is saved; both it and the one that is restored
    come to the same end.
    """
    output = bytearray()
    with launched(prepared("bookworm", parse_disk(f"{image},raw,xvda,w")), output) as dom:
        assert dom.wait(1500).reason == "poweroff", output.decode(errors="replace")[-2000:]
        assert audit(dom.machine.domain) == []
        assert {m.ref for m in dom.machine.domain.domain_list[0].grant_table.maptrack.values()} == {0, 1}
    text = output.decode().replace("\r\n", "\n")
    assert "65536\nmounted\nfrom mke2fs\ngreeting    lost+found\n=== write" in text
    assert f"{DIGEST}  /disk/numbers\ntrimmed\nunmounted\n64+0 records out" in text
    clean(image)
    assert (inside(image, "numbers"), inside(image, "folder/8")) == (NUMBERS, b"8\n")
    first = image.read_bytes()

    output, again = bytearray(), bytearray()
    subject = prepared("trixie", parse_disk(f"{image},raw,xvda,w", snapshot=True))
    with launched(subject, output) as dom:
        dom.console.expect("=== write")
        state = save_with_requests_under_way(dom.machine)
        again += output
        ends = [run_on(dom.machine.host, subject, output)]
        assert audit(dom.machine.domain) == []
    host = Host.restore(state, lambda _domid, data: again.extend(data))
    ends.append(run_on(host, subject, again))
    host.close()
    assert ends[0] == ends[1]
    assert ends[0].stop is Stop.SHUTDOWN
    text = output.decode().replace("\r\n", "\n")
    assert re.search(r"greeting.*written\n6\.1\.", text)
    assert f"{DIGEST}  /disk/numbers\ntrimmed\nunmounted\n64+0 records out" in text
    assert image.read_bytes() == first


def save_with_requests_under_way(machine: Machine) -> HostState:
    """The host where the disk has taken requests that it has not answered."""
    host, backend = machine.host, machine.devices.backends["vbd51712"]
    assert isinstance(backend, BlockBackend)
    host.idle = host.advance_to
    while not backend.answers:
        host.set_timer("look", machine.clock.now() + 10_000, host.pause)
        host.run()
    return host.save()


@pytest.mark.guest
def test_random_stops_are_not_seen(prepared: Prepare, image: Path) -> None:
    """`DISK_RUNS=5` for that many runs, each stopped and restored at times of its own."""
    runs = int(os.environ.get("DISK_RUNS", "1"))
    subject = prepared("bookworm", parse_disk(f"{image},raw,xvda,w", snapshot=True))
    whole = run(subject)
    assert whole.stop is Stop.SHUTDOWN
    for seed in range(runs):
        assert run(subject, Schedule(seed, 1_000_000, 3_000_000, restores=2)) == whole


def test_what_is_written_cannot_be_copied(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    """A clone, and a mark to go back to."""
    hello, disk = sample_guest("hello"), tmp_path / "disk"
    disk.write_bytes(bytes(4096))
    with domainbuilder.launch(hello, disks=[f"{disk},raw,xvda,w"]) as dom:
        for copy in (dom.fork, dom.snapshot):
            with pytest.raises(RuntimeError, match="needs a snapshot of it"):
                copy()
    with domainbuilder.launch(hello, disks=[parse_disk(f"{disk},raw,xvda,w", snapshot=True)]) as dom:
        device = dom.machine.devices.backends["vbd51712"]
        assert isinstance(device, BlockBackend)
        layer = device.image
        layer.write(0, [memoryview(b"a" * 512)])
        here = dom.snapshot()
        layer.write(512, [memoryview(b"b" * 5000)[:512]])
        dom.rewind(here)
        found = bytearray(1024)
        layer.read(0, [memoryview(found)])
        assert found == b"a" * 512 + bytes(512)
    assert disk.read_bytes() == bytes(4096)
