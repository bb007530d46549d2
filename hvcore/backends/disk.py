"""A disk of a domain as data, what struct libxl_device_disk is to tools/libs/light/libxl_disk.c."""

from __future__ import annotations

import re
from dataclasses import dataclass

_MAX_DISK, _MAX_PARTITION = (1 << 20) - 1, 255
_INT_MAX = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk: what the guest calls it (`vdev`), where it is kept (`target`), and how it may be used.

    `snapshot`: what the guest writes stays in memory. `is_cdrom` makes it read-only, as libxl does.
    """

    vdev: str
    target: str
    format: str = "raw"
    readwrite: bool = True
    is_cdrom: bool = False
    removable: bool = False
    discard: bool = True
    direct_io_safe: bool = False
    trusted: bool = True
    snapshot: bool = False
    script: str = "block"

    @property
    def is_written(self) -> bool:
        """Whether what the guest writes changes `target`."""
        return self.readwrite and not self.snapshot

    @property
    def devid(self) -> int:
        """Its number in the store; -1 where `vdev` names no disk."""
        return disk_dev_number(self.vdev)


def _letters(text: str) -> int:
    """Which disk the letters behind `xvd` name: a is 0, z 25, aa 26."""
    index = -1
    for letter in text:
        index = (index + 1) * 26 + ord(letter) - ord("a")
        if index > _MAX_DISK:
            return index
    return index


def _matches(vdev: str, prefix: str, most: int, partitions: int) -> tuple[int, int] | None:
    """device_virtdisk_matches(): (disk, partition)."""
    found = re.fullmatch(prefix + r"([a-z]*)([1-9][0-9]{0,9})?", vdev)
    if found is None:
        return None
    disk, partition = _letters(found[1]), int(found[2] or 0)
    return (disk, partition) if 0 <= disk <= most and partition <= partitions else None


def disk_dev_number(vdev: str) -> int:
    """libxl__device_disk_dev_number(): the number that `xvda`, `d1p2`, `hdc` or a number stands for."""
    plain = re.fullmatch(r"d([0-9]{1,9})p([0-9]{1,9})", vdev)
    place = (int(plain[1]), int(plain[2])) if plain else None
    if place is None or place[0] > _MAX_DISK or place[1] > _MAX_PARTITION:
        place = _matches(vdev, "xvd", _MAX_DISK, _MAX_PARTITION)
    if place is not None:
        disk, partition = place
        if disk <= 15 and partition <= 15:
            return 202 << 8 | disk << 4 | partition
        return 1 << 28 | disk << 8 | partition
    if re.fullmatch(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*", vdev):
        number = int(vdev, 8 if vdev[0] == "0" and vdev[1:2] not in ("x", "X") else 0)
        return number if number <= _INT_MAX else -1
    place = _matches(vdev, "hd", 3, 63)
    if place is not None:
        return (3 if place[0] < 2 else 22) << 8 | (place[0] & 1) << 6 | place[1]
    place = _matches(vdev, "sd", 15, 15)
    return -1 if place is None else 8 << 8 | place[0] << 4 | place[1]
