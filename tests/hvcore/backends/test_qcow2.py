"""qcow2 against QEMU's own tools: what they made is read, what is written they check, compare and read.

Sequences of acts on images of every geometry are in test_qcow2_chains.py.
"""

from __future__ import annotations

import os
import random
import subprocess
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pytest

from hvcore.backends.block_image import BlockImage, Layer
from hvcore.backends.disk import Disk
from hvcore.backends.images import open_image
from hvcore.backends.qcow2 import Qcow2Image
from hvcore.backends.qcow2_header import Qcow2Error
from tests.hvcore.backends.qcow2_chain import SECTOR, contents, do, note, random_acts, tool

SIZE = 3 << 20
OPTIONS = (
    "cluster_size=512,compat=1.1",
    "cluster_size=4096,compat=0.10",
    "cluster_size=65536,compat=1.1",
    "cluster_size=4096,compat=1.1,refcount_bits=1",
    "cluster_size=1024,compat=1.1,refcount_bits=64",
    "cluster_size=2097152,compat=1.1,refcount_bits=8",
    "cluster_size=16384,compat=1.1,compression_type=zstd",
)


def qemu_img(*arguments: object) -> subprocess.CompletedProcess[str]:
    return tool("qemu-img", *arguments)


def acts(image: BlockImage, model: bytearray, chance: random.Random, count: int) -> None:
    """So many random acts, on the image and on the model."""
    for act in islice(random_acts(chance, len(model)), count):
        found = do(image, act)
        if act.kind == "read":
            assert found == model[act.offset : act.offset + act.length]
        note(model, act)


def made(path: Path, options: str, *more: object, size: int = SIZE) -> Path:
    done = qemu_img("create", "-q", "-f", "qcow2", "-o", options, *more, path, size)
    assert done.returncode == 0, done.stderr
    return path


def read(image: BlockImage, offset: int, size: int) -> bytes:
    data = bytearray(size)
    image.read(offset, [memoryview(data)[: size // 3], memoryview(data)[size // 3 :]])
    return bytes(data)


def checked(path: Path, model: bytes) -> None:
    """QEMU finds nothing wrong, and reads what was written."""
    done = qemu_img("check", "-f", "qcow2", path)
    assert done.returncode == 0, done.stdout + done.stderr
    raw = path.with_suffix(".raw")
    assert qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw).returncode == 0
    assert raw.read_bytes() == model


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_what_qemu_made_is_read(tmp_path: Path, options: str, packed: bool) -> None:
    model = contents(SIZE, random.Random(1))
    raw, path = tmp_path / "raw", tmp_path / "disk.qcow2"
    raw.write_bytes(model)
    pack = ["-c"] if packed else []
    done = qemu_img("convert", *pack, "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
    assert done.returncode == 0, done.stderr
    image = open_image(Disk("xvda", str(path), format="qcow2"))
    assert read(image, 0, SIZE) == model
    for at, size in ((512, 1024), (SIZE - 512, 512), (65024, 70144)):
        assert read(image, at, size) == model[at : at + size]
    image.write(1536, [memoryview(b"x" * 5120)])
    image.close()
    checked(path, model[:1536] + b"x" * 5120 + model[6656:])


def test_a_snapshot_of_qemus_stays_as_it_was(tmp_path: Path) -> None:
    path, before = made(tmp_path / "disk.qcow2", OPTIONS[1]), contents(SIZE, random.Random(3))
    image = Qcow2Image(str(path), writable=True)
    image.write(0, [memoryview(before)])
    image.close()
    assert qemu_img("snapshot", "-c", "then", path).returncode == 0
    image, model = Qcow2Image(str(path), writable=True), bytearray(before)
    acts(image, model, random.Random(5), 40)
    image.close()
    checked(path, bytes(model))
    assert qemu_img("snapshot", "-a", "then", path).returncode == 0
    checked(path, before)


def test_backing_files_behind_each_other(tmp_path: Path) -> None:
    made(tmp_path / "0.qcow2", OPTIONS[0])
    model = bytearray(SIZE)
    for number in range(4):
        if number:
            made(tmp_path / f"{number}.qcow2", OPTIONS[number], "-b", f"{number - 1}.qcow2", "-F", "qcow2")
        image = Qcow2Image(str(tmp_path / f"{number}.qcow2"), writable=True)
        acts(image, model, random.Random(number), 12)
        image.close()
        checked(tmp_path / f"{number}.qcow2", bytes(model))
    layer = open_image(Disk("xvda", str(tmp_path / "3.qcow2"), format="qcow2", snapshot=True))
    assert isinstance(layer, Layer)
    stamp = (tmp_path / "3.qcow2").read_bytes()
    acts(layer, model, random.Random(9), 12)
    layer.close()
    assert (tmp_path / "3.qcow2").read_bytes() == stamp


def test_refcounts_grow(tmp_path: Path) -> None:
    """Clusters of 512 bytes fill a refcount table of one cluster after 8 MB."""
    size = 12 << 20
    path, model = made(tmp_path / "disk.qcow2", OPTIONS[0], size=size), contents(size, random.Random(2))
    image = Qcow2Image(str(path), writable=True)
    image.write(0, [memoryview(model)])
    image.close()
    checked(path, model)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"RAW!", "not a qcow2 image"),
        (4, b"\0\0\0\4", "version 4"),
        (20, b"\0\0\0\x16", "sizes that cannot be"),
        (24, b"\x7f" + b"\xff" * 7, "a disk of"),
        (32, b"\0\0\0\1", "encrypted"),
        (36, b"\x7f\xff\xff\xff", "entries in its L1 table"),
        (40, b"\0\0\0\0\0\0\1\1", "within a cluster"),
        (56, b"\0\0\0\0", "a refcount table"),
        (72, b"\0\0\0\0\0\0\0\1", "was not closed"),
        (72, b"\0\0\0\0\0\0\0\2", "corrupt"),
        (72, b"\0\0\0\0\0\0\0\4", "external data file"),
        (72, b"\0\0\0\0\0\0\0\x10", "extended L2 entries"),
        (72, b"\x80\0\0\0\0\0\0\0", "features that are not known"),
        (96, b"\0\0\0\7", "sizes that cannot be"),
    ],
)
def test_what_is_refused_by_name(tmp_path: Path, at: int, value: bytes, message: str) -> None:
    path = made(tmp_path / "disk.qcow2", OPTIONS[2])
    with path.open("r+b") as file:
        file.seek(at)
        file.write(value)
    with pytest.raises(Qcow2Error, match=message):
        Qcow2Image(str(path), writable=True)


def test_backing_files_that_are_none(tmp_path: Path) -> None:
    path = made(tmp_path / "loop.qcow2", OPTIONS[2])
    assert qemu_img("rebase", "-u", "-b", "loop.qcow2", "-F", "qcow2", path).returncode == 0
    with pytest.raises(Qcow2Error, match="more than 16 backing files"):
        Qcow2Image(str(path), writable=False)
    for name, kind, message in (
        ("nbd://localhost", "raw", "not a file's name"), ("json:{}", "raw", "not a file's name"),
        ("x.vmdk", "vmdk", "format vmdk"),
    ):  # fmt: skip
        assert qemu_img("rebase", "-u", "-b", name, "-F", kind, path).returncode == 0
        with pytest.raises(Qcow2Error, match=message):
            Qcow2Image(str(path), writable=False)
    assert qemu_img("rebase", "-u", "-b", "none.raw", "-F", "raw", path).returncode == 0
    with pytest.raises(FileNotFoundError):
        Qcow2Image(str(path), writable=False)


def test_damaged_images_give_errors_alone(tmp_path: Path) -> None:
    """Random bytes in headers and tables: every access works or fails with an OSError."""
    model = contents(SIZE, random.Random(4))
    raw, path, bad = tmp_path / "raw", tmp_path / "disk.qcow2", tmp_path / "bad.qcow2"
    raw.write_bytes(model)
    assert qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", OPTIONS[1], raw, path).returncode == 0
    whole, chance = path.read_bytes(), random.Random(7)
    data = memoryview(bytes(64 * SECTOR))
    for _ in range(int(os.environ.get("QCOW2_DAMAGED", "150"))):
        damaged = bytearray(whole)
        for _ in range(chance.randrange(1, 12)):
            damaged[chance.randrange(0x120 if chance.random() < 0.3 else 0x6000)] = chance.randrange(256)
        bad.write_bytes(damaged)
        try:
            image = Qcow2Image(str(bad), writable=True)
        except OSError:
            continue
        for at in range(0, min(image.size, SIZE) - len(data), 100 * SECTOR):
            with suppress(OSError):
                read(image, at, len(data))
            with suppress(OSError):
                image.write(at, [data])
        image.close()
        assert bad.stat().st_size < 4 * len(whole) + (1 << 26)
