"""What pygrub does: a disk's configuration, the entry that is wanted, its kernel and ramdisk.

The places where a configuration may be are those of tools/pygrub/src/pygrub of Xen 4.17, and the Boot Loader
Specification's. The partition with the boot flag is looked at first, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from domainbuilder.bootloader.disk import Budget, Disk, DiskError
from domainbuilder.bootloader.filesystems import FileSystem, file_system
from domainbuilder.bootloader.grub_config import Grub2
from domainbuilder.bootloader.menu import Boot, Menu
from domainbuilder.bootloader.other_configs import bls, extlinux, grub1
from domainbuilder.bootloader.partitions import Partition, partitions
from domainbuilder.inputs import LIMITS

_LARGEST = LIMITS["file on a disk"].size
_DEBIAN = (("/vmlinuz", "/initrd.img"), ("/boot/vmlinuz", "/boot/initrd.img"))


def grub2(fs: FileSystem, path: str) -> Menu:
    """A grub.cfg. Raises OSError where there is none, DiskError for what GRUB would not take."""
    return Grub2(fs, path).menu()


_CONFIGURATIONS: tuple[tuple[Callable[[FileSystem, str], Menu], tuple[str, ...]], ...] = (
    (grub2, ("/boot/grub/grub.cfg", "/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub2/grub.cfg")),
    (
        extlinux,
        (
            "/boot/isolinux/isolinux.cfg",
            "/isolinux/isolinux.cfg",
            "/boot/extlinux/extlinux.conf",
            "/boot/extlinux.conf",
            "/extlinux/extlinux.conf",
            "/extlinux.conf",
            "/boot/syslinux/syslinux.cfg",
            "/syslinux/syslinux.cfg",
            "/syslinux.cfg",
        ),
    ),
    (grub1, ("/boot/grub/menu.lst", "/boot/grub/grub.conf", "/grub/menu.lst", "/grub/grub.conf")),
    (bls, ("/loader/entries",)),
)


class Place(NamedTuple):
    """A file system on the disk. `partition` is 0 where the disk has no table."""

    partition: int
    fs: FileSystem


class Chosen(NamedTuple):
    """What is to be booted, read from the disk."""

    title: str
    boot: Boot
    kernel: bytes
    ramdisk: bytes | None


class Survey(NamedTuple):
    """The file systems of a disk, what could not be read, and the menu where there is one."""

    disk: str
    places: tuple[Place, ...]
    unreadable: tuple[str, ...]
    menu: Menu | None


def _order(disk: Disk) -> list[Partition]:
    """Where to look: the partitions with the boot flag, the others; the whole disk where it has none."""
    whole = Partition(0, 0, disk.size, active=False, kind="")
    return sorted(partitions(disk) or [whole], key=lambda one: not one.active)


def survey(disk: Disk) -> Survey:
    """Look through a disk. Raises DiskError where its partition table or its configuration is damaged."""
    budget = Budget(disk.name)
    places, unreadable = [], []
    for partition in _order(disk):
        which = f"partition {partition.number}: " if partition.number else ""
        if partition.start + partition.size > disk.size:
            unreadable.append(f"{which}ends behind the end of the disk")
        try:
            if (fs := file_system(partition.on(disk), budget)) is not None:
                places.append(Place(partition.number, fs))
        except DiskError as error:
            unreadable.append(f"{which}{error}")
    menu = next((menu for place in places for menu in _menus(place.fs) if menu.entries), None)
    return Survey(disk.name, tuple(places), tuple(unreadable), menu)


def _menus(fs: FileSystem) -> Iterator[Menu]:
    for read, paths in _CONFIGURATIONS:
        for path in paths:
            try:
                yield read(fs, path)
            except OSError:
                continue


def _no_configuration(found: Survey) -> DiskError:
    reasons = "; ".join(found.unreadable)
    if not found.places:
        return DiskError(f"{found.disk}: no file system that can be read{reasons and ': '}{reasons}")
    hint = next((pair for pair in _DEBIAN if any(_names(place.fs, pair[0]) for place in found.places)), None)
    if hint is not None:
        reasons = f"it has a kernel, which --kernel {hint[0]} --ramdisk {hint[1]} boots"
    more = reasons and f"; {reasons}"
    return DiskError(f"{found.disk}: no configuration of GRUB, extlinux or systemd-boot{more}")


def _names(fs: FileSystem, path: str) -> bool:
    folder, _, name = path.rpartition("/")
    try:
        return name in fs.listdir(folder or "/")
    except (OSError, DiskError):
        return False


def _read(found: Survey, path: str) -> bytes:
    """A file from the first file system that has it. Raises DiskError where none does."""
    for place in found.places:
        try:
            return place.fs.read(path, _LARGEST)
        except OSError:
            continue
    raise DiskError(f"{found.disk}: there is no {path!r}")


def wanted(
    found: Survey,
    entry: str | None = None,
    *,
    kernel: str | None = None,
    ramdisk: str | None = None,
    args: str | None = None,
) -> tuple[str, Boot]:
    """The title of what is to be booted, and its paths: the entry's, with what is given put in their place.

    As in pygrub, `args` are added to an entry's own, and a kernel that is given needs no configuration.
    Raises DiskError where there is nothing to choose.
    """
    if kernel is not None:
        return kernel, Boot(kernel, (ramdisk,) if ramdisk else (), args or "")
    if found.menu is None:
        raise _no_configuration(found)
    chosen = found.menu.chosen(entry)
    boot = chosen.boot()
    ramdisks = (ramdisk,) if ramdisk else boot.ramdisks
    return chosen.title, Boot(boot.kernel, ramdisks, " ".join(filter(None, (boot.args, args))))


def read_boot(found: Survey, title: str, boot: Boot) -> Chosen:
    """The files of a boot. Several ramdisks are put together, each padded to 4 bytes, as in GRUB."""
    kernel = _read(found, boot.kernel)
    ramdisk = None
    if boot.ramdisks:
        pieces = [_read(found, path) for path in boot.ramdisks]
        ramdisk = b"".join(piece + bytes(-len(piece) % 4) for piece in pieces[:-1]) + pieces[-1]
        if len(ramdisk) > LIMITS["ramdisk"].size:
            raise DiskError(f"{found.disk}: the ramdisks of {title!r} are too large", found=len(ramdisk))
    return Chosen(title, boot, kernel, ramdisk)
