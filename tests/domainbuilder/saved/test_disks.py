"""Domains with disks, saved: what the guest wrote comes back, and only with the disks as they were."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from domainbuilder import restore
from domainbuilder.errors import BuildError, SavedError
from domainbuilder.launch.domain import RunningDomain, launch
from domainbuilder.launch.options import Chosen
from domainbuilder.saved.domain import thaw
from domainbuilder.saved.frozen import read_frozen, write_frozen
from domainbuilder.xl.disk import parse_disk
from hvcore.backends.block import BlockBackend
from hvcore.backends.block_image import Layer

PROMPT = "^hello> "
SECTOR = 512


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 40)  # the last block of a layer is not full
    return path


def layer_of(dom: RunningDomain) -> Layer:
    device = dom.machine.devices.backends["vbd51712"]
    assert isinstance(device, BlockBackend)
    assert isinstance(device.image, Layer)
    return device.image


def sector(dom: RunningDomain, number: int) -> bytes:
    found = bytearray(SECTOR)
    layer_of(dom).read(number * SECTOR, [memoryview(found)])
    return bytes(found)


@pytest.fixture
def saved(sample_guest: Callable[[str], Path], image: Path, tmp_path: Path) -> Path:
    """A domain that has written two sectors of a disk, which its file does not have."""
    disk = parse_disk(f"{image},raw,xvda,w", snapshot=True)
    with launch(sample_guest("hello"), 16, disks=[disk]) as dom:
        dom.console.expect(PROMPT)
        for number, byte in ((1, b"b"), (19, b"z")):
            layer_of(dom).write(number * SECTOR, [memoryview(byte * SECTOR)])
        dom.save(tmp_path / "saved.domain")
        dom.console.send("halt\n")  # and goes on
        assert dom.wait().reason == "poweroff"
    return tmp_path / "saved.domain"


def test_what_was_written_to_memory_comes_back(saved: Path, image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    elsewhere = tmp_path / "moved.img"
    shutil.copy2(image, elsewhere)
    for disk in (image, elsewhere):  # without `snapshot`: what was saved with it goes on with it
        with restore(saved, disks=[f"{disk},raw,xvda,w"]) as dom:
            assert sector(dom, 0) == before[:SECTOR]
            assert (sector(dom, 1), sector(dom, 19)) == (b"b" * SECTOR, b"z" * SECTOR)
            layer_of(dom).write(0, [memoryview(b"c" * SECTOR)])
            again = tmp_path / "again.domain"
            dom.save(again)
        with restore(again, disks=[f"{disk},raw,xvda,w"]) as dom:
            assert (sector(dom, 0), sector(dom, 1)) == (b"c" * SECTOR, b"b" * SECTOR)
            dom.console.send("halt\n")
            assert dom.wait().reason == "poweroff"
    assert image.read_bytes() == before


def test_disks_are_given_again_and_are_the_same(saved: Path, image: Path) -> None:
    for disks, said in (
        ([], "given again, by --disk or its configuration; found none; expected xvda"),
        ([f"{image},raw,xvdb,w"], "found xvdb; expected xvda"),
        ([f"{image},raw,xvda,w", f"{image},raw,xvdb,w"], "found xvda, xvdb; expected xvda"),
        ([f"{image},raw,xvda,r"], "given as another than it was; found access=ro; expected access=rw"),
    ):
        with pytest.raises(SavedError) as refused:
            restore(saved, disks=disks)
        assert said in str(refused.value)


def test_a_disk_that_another_domain_has(
    saved: Path, image: Path, sample_guest: Callable[[str], Path]
) -> None:
    disks = [f"{image},raw,xvda,w"]
    with launch(sample_guest("hello"), disks=disks), pytest.raises(SavedError) as refused:
        restore(saved, disks=disks)
    assert str(refused.value) == f"{image}: another domain has it, and one of the two would write to it"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "its size; found 0x2801; expected 0x2800"),
        (lambda path: os.utime(path, ns=(0, 5)), "the time of its last change, in ns; found 0x5"),
        (lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]), "the digest of its first MiB"),
    ],
)
def test_a_disk_that_has_changed(
    saved: Path, image: Path, change: Callable[[Path], object], said: str
) -> None:
    times = image.stat()
    change(image)
    if "time" not in said:
        os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    command = [sys.executable, "-m", "domainbuilder", "restore", str(saved), "--disk", f"{image},raw,xvda,w"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_disk_whose_file_is_written(
    sample_guest: Callable[[str], Path], image: Path, tmp_path: Path
) -> None:
    with launch(sample_guest("hello"), 16, disks=[f"{image},raw,xvda,w"]) as dom:
        dom.console.expect(PROMPT)
        device = dom.machine.devices.backends["vbd51712"]
        assert isinstance(device, BlockBackend)
        device.image.write(0, [memoryview(b"a" * SECTOR)])
        dom.save(tmp_path / "saved")
    with restore(tmp_path / "saved", disks=[parse_disk(f"{image},raw,xvda,w", snapshot=True)]) as dom:
        layer_of(dom).write(0, [memoryview(b"b" * SECTOR)])  # which the file does not get
        assert sector(dom, 0) == b"b" * SECTOR
    with restore(tmp_path / "saved", disks=[f"{image},raw,xvda,w"]) as dom:
        dom.console.send("halt\n")
        assert dom.wait().reason == "poweroff"
    assert image.read_bytes()[:SECTOR] == b"a" * SECTOR


def test_made_up_disks_open_nothing(saved: Path, image: Path, tmp_path: Path) -> None:
    """A file of anybody's names no file of this host."""
    frozen = read_frozen(saved)
    domain = frozen.state.domains[0]
    disk = domain.options["disks"][0]
    made_up = tmp_path / "made-up"
    for changed, said in (
        (disk | {"readwrite": 1}, "what is said of a disk cannot be"),
        (disk | {"vdev": "../../x"}, "what is said of a disk cannot be"),
        ({"vdev": "xvda"}, "what is said of a disk cannot be"),
        (disk | {"target": "/etc/passwd"}, "expected xvda"),
    ):
        options = domain.options | {"disks": [changed]}
        write_frozen(
            replace(frozen, state=replace(frozen.state, domains=(replace(domain, options=options),))), made_up
        )
        with pytest.raises(BuildError, match=said):
            restore(made_up)
    made_up_layers: tuple[dict[str, Any], ...] = (
        {"vbd51712": {3: bytes(4096)}},
        {"vbd51712": {0: bytes(4095)}},
        {"vbd51712": {-1: bytes(4096)}},
        {"vbd5": {0: bytes(4096)}},
        {"vbd51712": [1]},
    )
    for layers in made_up_layers:
        state = replace(frozen.state, domains=(replace(domain, layers=layers),))
        with pytest.raises(SavedError, match=r"layers\.vbd5"):
            thaw(replace(frozen, state=state), "made-up", 0.0, Chosen(disks=[f"{image},raw,xvda,w"]))
