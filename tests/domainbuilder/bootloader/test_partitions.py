"""Partition tables as sfdisk writes them, and what is left when they are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from domainbuilder.bootloader.disk import DiskError, PartOfDisk, open_disk
from domainbuilder.bootloader.partitions import partitions
from tests.domainbuilder.bootloader.images import MIB, disk, fat, run, tree


def _by_sfdisk(image: Path) -> list[tuple[int, int, int]]:
    table = json.loads(run("sfdisk", "--json", image))["partitiontable"]
    sector = table["sectorsize"]
    return [
        (int(part["node"].removeprefix(str(image))), part["start"] * sector, part["size"] * sector)
        for part in table["partitions"]
    ]


def _by_us(image: Path) -> list[tuple[int, int, int]]:
    with open_disk(str(image)) as raw:
        return [(part.number, part.start, part.size) for part in partitions(raw)]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("gpt", ("type=linux", "type=uefi", 'type=linux, attrs="LegacyBIOSBootable"')),
        ("dos", ("type=83", "type=82", "type=83, bootable")),
    ],
)
def test_the_partitions_that_sfdisk_made(tmp_path: Path, label: str, words: tuple[str, ...]) -> None:
    image = disk(tmp_path / "disk.img", label, [(one, None) for one in words])
    assert _by_us(image) == _by_sfdisk(image)
    with open_disk(str(image)) as raw:
        assert [part.active for part in partitions(raw)] == [False, False, True]


def test_logical_partitions(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    lines = (*["size=4M, type=83"] * 3, "size=40M, type=5", *["size=4M, type=83"] * 3)
    run("sfdisk", "-q", image, text="\n".join(("label: dos", *lines, "")))
    extended = 4
    assert _by_us(image) == [part for part in _by_sfdisk(image) if part[0] != extended]
    assert [number for number, *_ in _by_us(image)] == [1, 2, 3, 5, 6, 7]


def test_a_chain_of_logical_partitions_that_is_a_ring_ends(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    record = bytearray(512)
    record[446 + 4], record[446 + 8], record[446 + 12] = 0x83, 1, 1
    record[462 + 4], record[462 + 8], record[462 + 12] = 0x05, 0, 1  # the next record: this one
    record[510:] = b"\x55\xaa"
    first = bytearray(512)
    first[446 + 4], first[446 + 8], first[446 + 12] = 0x05, 1, 1
    first[510:] = b"\x55\xaa"
    image.write_bytes(bytes(first) + bytes(record) + bytes(4096))
    assert len(_by_us(image)) == 64


def test_the_second_copy_of_a_gpt_serves_when_the_first_is_damaged(tmp_path: Path) -> None:
    image = disk(tmp_path / "disk.img", "gpt", [("type=linux", None), ("type=linux", None)])
    whole = _by_us(image)
    data = bytearray(image.read_bytes())
    data[512 + 40] ^= 1
    image.write_bytes(data)
    assert _by_us(image) == whole
    data[-512 + 40] ^= 1
    image.write_bytes(data)
    with pytest.raises(DiskError, match="the GPT is damaged"):
        _by_us(image)


def test_a_file_system_without_a_table_has_no_partitions(tmp_path: Path) -> None:
    assert _by_us(fat(tmp_path / "fat.img", tree(tmp_path / "root", {"a": b"x"}), 16, 16 * MIB)) == []
    (tmp_path / "empty").write_bytes(b"")
    assert _by_us(tmp_path / "empty") == []


def test_a_partition_ends_where_it_ends(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(range(256)) * 16)
    with open_disk(str(image)) as raw:
        part = PartOfDisk(raw, 256, 512)
        assert part.read(1, 3) == bytes((1, 2, 3))
        for offset, length in ((510, 3), (-1, 2), (0, 513)):
            with pytest.raises(DiskError, match="outside the partition"):
                part.read(offset, length)
        assert PartOfDisk(raw, 4000, 1 << 40).size == 96
        with pytest.raises(DiskError, match="ends too early"):
            raw.read(4090, 10)
