"""`launch` with disks: what is refused before anything runs, and what a record says of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.errors import BuildError
from domainbuilder.xl.disk import parse_disk


@pytest.fixture
def hello(sample_guest: Callable[[str], Path]) -> Path:
    return sample_guest("hello")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 64)
    return path


def test_the_store_has_the_disk_and_the_name(hello: Path, image: Path) -> None:
    with domainbuilder.launch(hello, disks=[f"{image},raw,xvdb,r"], name="with-disk") as dom:
        store = dom.machine.host.xenstored
        assert store.read("/local/domain/1/name") == "with-disk"
        assert store.read("/local/domain/1/device/vbd/51728/virtual-device") == "51728"
        back = store.read("/local/domain/1/device/vbd/51728/backend")
        assert back == "/local/domain/0/backend/vbd/1/51728"
        assert (store.read(f"{back}/params"), store.read(f"{back}/mode")) == (str(image), "r")
        assert store.read(f"{back}/state") == "2"


def test_a_file_whose_name_is_no_utf8(hello: Path, tmp_path: Path) -> None:
    """The store has the bytes of the name, as libxl writes them."""
    image = Path(os.fsdecode(os.fsencode(tmp_path) + b"/disk\xff"))
    image.write_bytes(bytes(4096))
    with domainbuilder.launch(hello, disks=[f"{image},raw,xvda,r"]) as dom:
        nodes = dom.machine.host.xenstored.tree.nodes
        (params,) = (n.value for path, n in nodes.items() if "/vbd/1/" in path and path.endswith("/params"))
        assert params == os.fsencode(image)


def test_what_cannot_be_had_is_refused_and_leaves_nothing(hello: Path, image: Path) -> None:
    with pytest.raises(BuildError, match="two disks have the same vdev"):
        domainbuilder.launch(hello, disks=[f"{image},raw,xvda", f"{image},raw,d0p0"])
    with domainbuilder.Host(memory_mib=64) as host:
        with pytest.raises(FileNotFoundError):
            host.launch(hello, 16, disks=[f"{image},raw,xvda", f"{image}.none,raw,xvdb"])
        with host.launch(hello, 16, disks=[f"{image},raw,xvda"]) as dom:
            dom.console.expect("hello> ")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("none.img,raw,xvda", "none.img: No such file or directory"),
        ("/dev/null,raw,xvda", "/dev/null: neither a file nor a block device"),
        ("none.img,raw,ada0", "disk 'none.img,raw,ada0': Invalid or unsupported virtual disk identifier"),
    ],
)
def test_the_command_says_it_in_one_line(hello: Path, spec: str, message: str) -> None:
    command = [sys.executable, "-m", "domainbuilder", "launch", str(hello), "--disk", spec]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"domainbuilder: error: {message}")
    assert done.stderr.count("\n") == 1


def test_a_record_is_of_a_disk_too(hello: Path, image: Path) -> None:
    disks = [parse_disk(f"{image},raw,xvda", snapshot=True)]
    with domainbuilder.launch(hello, disks=disks, record=True) as dom:
        dom.console.expect("hello> ")
        dom.console.send("halt\n")
        assert dom.wait().reason == "poweroff"
        record, stats = dom.input_record(), dom.stats()
    with domainbuilder.launch(hello, disks=disks, replay=record) as dom:
        assert dom.wait().reason == "poweroff"
        assert dom.stats().guest_ns == stats.guest_ns
    with pytest.raises(BuildError, match="what is on its disks at the start"):
        domainbuilder.launch(hello, replay=record)
    image.write_bytes(b"x" + image.read_bytes()[1:])
    with pytest.raises(BuildError, match="what is on its disks at the start"):
        domainbuilder.launch(hello, disks=disks, replay=record)
