"""qcow2 against QEMU's own tools: what they made is read, what is written they check, compare and read.

`QCOW2_SEQUENCES=10000` for that many random sequences of acts instead of a few.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hvcore.backends.block_image import BlockImage, Layer
from hvcore.backends.disk import Disk
from hvcore.backends.images import open_image
from hvcore.backends.qcow2 import Qcow2Error, Qcow2Image
from tests.needs import find_tool

SECTOR = 512
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
    command = [find_tool("qemu-img"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def made(path: Path, options: str, *more: object, size: int = SIZE) -> Path:
    done = qemu_img("create", "-q", "-f", "qcow2", "-o", options, *more, path, size)
    assert done.returncode == 0, done.stderr
    return path


def contents(size: int, seed: int) -> bytes:
    """Half random, half zeros and repetitions, in pieces."""
    chance, out = random.Random(seed), bytearray()
    while len(out) < size:
        piece = chance.randrange(1, 40) * SECTOR
        kind = chance.random()
        out += (
            chance.randbytes(piece) if kind < 0.5 else bytes(piece) if kind < 0.75 else b"ab" * (piece // 2)
        )
    return bytes(out[:size])


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
    model = contents(SIZE, 1)
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


def acts(image: BlockImage, model: bytearray, chance: random.Random, count: int) -> None:
    """Random reads, writes and discards, on the image and on the model."""
    sectors = len(model) // SECTOR
    for _ in range(count):
        at = chance.randrange(sectors)
        size = min(chance.choice((1, 2, 7, 8, 63, 200, 900)), sectors - at) * SECTOR
        start, kind = at * SECTOR, chance.random()
        if kind < 0.6:
            data = chance.randbytes(size)
            image.write(start, [memoryview(data)[:SECTOR], memoryview(data)[SECTOR:]])
            model[start : start + size] = data
        elif kind < 0.75:
            image.discard(start, size)
            model[start : start + size] = bytes(size)
        else:
            assert read(image, start, size) == model[start : start + size]


@pytest.mark.parametrize("options", OPTIONS)
def test_random_acts_against_a_model_and_qemu_img(tmp_path: Path, options: str) -> None:
    rounds = int(os.environ.get("QCOW2_SEQUENCES", "7")) // len(OPTIONS)
    for seed in range(rounds):
        chance = random.Random(f"{options}{seed}")
        base, path = tmp_path / "base", tmp_path / "disk.qcow2"
        below = contents(SIZE - 700 * SECTOR, seed)
        base.write_bytes(below)
        made(path, options, "-b", base.name, "-F", "raw")
        model = bytearray(below + bytes(SIZE - len(below)))
        for _ in range(2):
            image = Qcow2Image(str(path), writable=True)
            acts(image, model, chance, 25)
            image.flush()
            image.close()
        checked(path, bytes(model))
        assert base.read_bytes() == below


def test_a_snapshot_of_qemus_stays_as_it_was(tmp_path: Path) -> None:
    path, before = made(tmp_path / "disk.qcow2", OPTIONS[1]), contents(SIZE, 3)
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
    path, model = made(tmp_path / "disk.qcow2", OPTIONS[0], size=size), contents(size, 2)
    image = Qcow2Image(str(path), writable=True)
    image.write(0, [memoryview(model)])
    image.close()
    checked(path, model)


def test_who_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    """Whatever was answered is there, and QEMU finds nothing wrong but clusters that nobody uses."""
    for seed in range(int(os.environ.get("QCOW2_KILLS", "4"))):
        path = made(tmp_path / f"{seed}.qcow2", OPTIONS[seed % len(OPTIONS)])
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                image, chance = Qcow2Image(str(path), writable=True), random.Random(seed)
                while True:
                    at = chance.randrange(SIZE // 4096)
                    image.write(at * 4096, [memoryview(bytes((at % 255 + 1,)) * 4096)])
                    os.write(writer, struct.pack("<I", at))
            finally:
                os._exit(1)
        os.close(writer)
        time.sleep(0.02 + 0.01 * seed)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with os.fdopen(reader, "rb") as answered:
            places = {place for (place,) in struct.iter_unpack("<I", answered.read())}
        assert qemu_img("check", "-f", "qcow2", path).returncode in (0, 3)  # 3: leaked clusters alone
        image = Qcow2Image(str(path), writable=False)
        for place in places:
            assert read(image, place * 4096, 4096) == bytes((place % 255 + 1,)) * 4096
        image.close()


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
    model = contents(SIZE, 4)
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
