"""Files read out of images that others made: the bytes are the same, and damage is one line."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import pytest

from domainbuilder.bootloader.disk import Budget, DiskError, open_disk
from domainbuilder.bootloader.filesystems import FileSystem, file_system
from tests.domainbuilder.bootloader.images import MIB, ext, fat, iso, tree

_MOST = 8 * MIB
FILES = {
    "/boot/vmlinuz-6.1.0-18-amd64": random.Random(1).randbytes(1_500_003),
    "/boot/Config of a rather long Name.cfg": b"timeout=5\n",
    "/boot/grub/grub.cfg": b"set default=0\n" * 700,
    "/EMPTY": b"",
    **{f"/many/file{n:03}": bytes([n % 256]) * n for n in range(300)},
}


def _make(kind: str, folder: Path) -> Path:
    root = tree(folder / "root", FILES)
    image = folder / f"{kind}.img"
    made = {
        "ext2": lambda: ext(image, root, "ext2"),
        "ext2-1k": lambda: ext(image, root, "ext2", "-b", "1024"),
        "ext3": lambda: ext(image, root, "ext3"),
        "ext4": lambda: ext(image, root, "ext4"),
        "ext4-inline": lambda: ext(image, root, "ext4", "-O", "inline_data", "-I", "512"),
        "ext4-sparse": lambda: ext(image, root, "ext4", "-O", "^extents,^64bit"),
        "fat12": lambda: fat(image, root, 12, 8 * MIB),
        "fat16": lambda: fat(image, root, 16, 24 * MIB),
        "fat32": lambda: fat(image, root, 32, 48 * MIB),
        "iso-rock-ridge": lambda: iso(image, root, "-R", "-J"),
        "iso-joliet": lambda: iso(image, root, "-J", "-joliet-long"),
    }
    return made[kind]()


KINDS = (
    *("ext2", "ext2-1k", "ext3", "ext4", "ext4-inline", "ext4-sparse"),
    *("fat12", "fat16", "fat32", "iso-rock-ridge", "iso-joliet"),
)


def _open(raw: object, name: str = "image") -> FileSystem:
    found = file_system(raw, Budget(name))  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_read_as_it_was_written(kind: str, tmp_path: Path) -> None:
    with open_disk(str(_make(kind, tmp_path))) as raw:
        fs = _open(raw)
        for path, data in FILES.items():
            assert fs.read(path, _MOST) == data, path
        assert set(fs.listdir("/boot")) == {
            "vmlinuz-6.1.0-18-amd64",
            "Config of a rather long Name.cfg",
            "grub",
        }
        assert len(fs.listdir("/many")) == 300
        for path in ("/no", "/boot/no", "/EMPTY/x"):
            with pytest.raises((FileNotFoundError, NotADirectoryError)):
                fs.read(path, _MOST)
        with pytest.raises(IsADirectoryError):
            fs.read("/boot", _MOST)
        with pytest.raises(DiskError, match="too large"):
            fs.read("/boot/vmlinuz-6.1.0-18-amd64", 1_000_000)


@pytest.mark.parametrize("kind", ["ext4", "iso-rock-ridge"])
def test_symbolic_links_are_followed(kind: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "root", {"/boot/vmlinuz-1": b"kernel"})
    (root / "vmlinuz").symlink_to("boot/vmlinuz-1")
    (root / "boot" / "vmlinuz").symlink_to("/vmlinuz")
    (root / "loop").symlink_to("loop")
    image = tmp_path / "image"
    with open_disk(str(ext(image, root) if kind == "ext4" else iso(image, root, "-R"))) as raw:
        fs = _open(raw)
        assert fs.read("/vmlinuz", _MOST) == fs.read("/boot/vmlinuz", _MOST) == b"kernel"
        with pytest.raises(OSError, match=r"links|/loop"):
            fs.read("/loop", _MOST)


@pytest.mark.parametrize(
    ("name", "offset", "magic"),
    [
        ("btrfs", 0x10040, b"_BHRfS_M"),
        ("xfs", 0, b"XFSB"),
        ("LVM", 0x218, b"LVM2 001"),
        ("swap", 4086, b"SWAPSPACE2"),
    ],
)
def test_what_cannot_be_read_is_called_by_its_name(
    name: str, offset: int, magic: bytes, tmp_path: Path
) -> None:
    data = bytearray(1 << 17)
    data[offset : offset + len(magic)] = magic
    image = tmp_path / "image"
    image.write_bytes(data)
    with open_disk(str(image)) as raw, pytest.raises(DiskError, match=f"{name}.* cannot be read here"):
        _open(raw)


def test_nothing_known_is_nothing(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 17))
    with open_disk(str(image)) as raw:
        assert file_system(raw, Budget("image")) is None


class _Bytes:
    """A disk in memory."""

    def __init__(self, data: bytes) -> None:
        self.name = "image"
        self.size = len(data)
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise DiskError("the disk ends too early")
        return self._data[offset : offset + length]


@pytest.mark.parametrize("kind", ["ext2-1k", "ext4", "fat16", "iso-rock-ridge"])
def test_a_damaged_image_is_an_error_or_read_as_it_is(kind: str, tmp_path: Path) -> None:
    """Bytes of the metadata changed at random: what comes is data, an OSError or a DiskError, and soon."""
    data = bytearray(_make(kind, tmp_path).read_bytes()[: 4 * MIB])
    marks = [n for n in range(0, MIB, 64) if any(data[n : n + 64])]  # metadata, mostly
    randomly = random.Random(kind)
    for _ in range(int(os.environ.get("DAMAGED_IMAGES", "20"))):
        places = [
            randomly.choice(marks) + randomly.randrange(64) for _ in range(randomly.choice((1, 8, 64, 512)))
        ]
        before = {place: data[place] for place in places}
        for place in places:
            data[place] = randomly.choice((0, 1, 0x7F, 0x80, 0xFF))
        disk = _Bytes(bytes(data[: randomly.choice((len(data), len(data) // 2))]))
        for path in ("/boot/grub/grub.cfg", "/many/file077"):
            with contextlib.suppress(OSError, DiskError):
                if fs := file_system(disk, Budget("image", 16 * MIB)):
                    fs.read(path, _MOST)
                    fs.listdir("/boot")
        for place, byte in before.items():
            data[place] = byte


def test_the_budget_ends_what_leads_in_circles() -> None:
    budget = Budget("disk.img", 10_000)
    budget.spend(1)
    budget.spend(5_000)
    with pytest.raises(DiskError, match=r"disk.img: the file system leads in circles"):
        budget.spend(1)
