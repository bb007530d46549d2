"""`domainbuilder pygrub`: what a disk would boot, as Xen's pygrub finds it."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from domainbuilder.visible import visible

if TYPE_CHECKING:
    from domainbuilder.bootloader.menu import Boot, Menu
    from domainbuilder.bootloader.pygrub import Survey


class DiskFormat(StrEnum):
    """What an image is."""

    RAW = "raw"
    QCOW2 = "qcow2"


class Format(StrEnum):
    """What is printed."""

    TEXT = "text"
    SXP = "sxp"
    SIMPLE = "simple"
    SIMPLE0 = "simple0"


def pygrub(
    disk: Annotated[
        str, typer.Argument(metavar="DISK", help="A disk image or a block device.", show_default=False)
    ],
    output_directory: Annotated[
        str | None,
        typer.Option(
            "--output-directory",
            "-o",
            metavar="DIR",
            help="Write the kernel and the ramdisk there, as vmlinuz and initrd.",
        ),
    ] = None,
    list_entries: Annotated[
        bool, typer.Option("--list-entries", "-l", help="Show the menu, and read no kernel.")
    ] = False,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Ask at the terminal which entry it shall be.")
    ] = False,
    entry: Annotated[
        str | None,
        typer.Option(metavar="ENTRY", help='The number, title or id of an entry; "1>2" in a submenu.'),
    ] = None,
    kernel: Annotated[
        str | None, typer.Option(metavar="PATH", help="A kernel on the disk, whatever the menu says.")
    ] = None,
    ramdisk: Annotated[
        str | None, typer.Option(metavar="PATH", help="A ramdisk on the disk, in place of the entry's.")
    ] = None,
    args: Annotated[str | None, typer.Option(metavar="TEXT", help="Is added to the command line.")] = None,
    offset: Annotated[
        int | None, typer.Option(metavar="BYTES", help="Where the file system begins on the disk.", min=0)
    ] = None,
    disk_format: Annotated[
        DiskFormat, typer.Option(help="What the image is: its bytes are the disk's, or QEMU's qcow2.")
    ] = DiskFormat.RAW,
    output_format: Annotated[
        Format, typer.Option(help="For people, or as Xen's pygrub has it (sxp, simple, simple0).")
    ] = Format.TEXT,
) -> None:
    """Find the kernel, the ramdisk and the command line that a disk would boot.

    Configurations of GRUB 2, GRUB 1, extlinux, isolinux and systemd-boot are known, on GPT and MBR disks,
    and on ext2 to ext4, FAT and ISO 9660. The disk is only read.

    \b
    Examples:
      domainbuilder pygrub disk.img --list-entries
      domainbuilder pygrub disk.img -o boot
      domainbuilder pygrub cloud.qcow2 --disk-format qcow2
      domainbuilder launch boot/vmlinuz --ramdisk boot/initrd \\
          --cmdline 'root=/dev/xvda1'
    """
    from domainbuilder.bootloader.disk import PartOfDisk
    from domainbuilder.bootloader.pygrub import survey, wanted
    from domainbuilder.launch.boot_disk import open_boot_disk

    with open_boot_disk(disk, disk_format.value) as whole:
        found = survey(whole if offset is None else PartOfDisk(whole, offset, whole.size))
        if list_entries:
            _list(found)
            return
        if interactive and found.menu is not None and entry is None and kernel is None:
            entry = _ask(found.menu)
        title, boot = wanted(found, entry, kernel=kernel, ramdisk=ramdisk, args=args)
        paths = _write(found, title, boot, output_directory, disk) if output_directory else None
    print(_FORMATS[output_format](title, boot, paths))


def _list(found: Survey) -> None:
    from domainbuilder.errors import BuildError

    if found.menu is None:
        from domainbuilder.bootloader.pygrub import wanted

        wanted(found)  # says why there is none
        return
    default = found.menu.chosen(None)
    for number, entry in found.menu.every():
        print(f"{number:>4} {'*' if entry is default else ' '} {visible(entry.title)}")
        try:
            boot = entry.boot()
        except BuildError as error:
            print(f"         {visible(str(error))}")
            continue
        print(f"         kernel   {visible(boot.kernel)}")
        for path in boot.ramdisks:
            print(f"         ramdisk  {visible(path)}")
        if boot.args:
            print(f"         args     {visible(boot.args)}")


def _ask(menu: Menu) -> str | None:
    """The entry that the person at the terminal names; None, the default, when the menu's time is up."""
    import select
    import sys

    default = menu.chosen(None)
    for number, entry in menu.every():
        print(f"{number:>4} {'*' if entry is default else ' '} {visible(entry.title)}", file=sys.stderr)
    wait = f", {menu.timeout} s" if menu.timeout else ""
    print(f"Which entry? [*{wait}] ", end="", file=sys.stderr, flush=True)
    if not select.select([sys.stdin], [], [], menu.timeout or None)[0]:
        print(file=sys.stderr)
        return None
    return sys.stdin.readline().strip() or None


def _write(found: Survey, title: str, boot: Boot, folder: str, disk: str) -> tuple[str, str | None]:
    """The files as they are called in `folder`; whole, or not there at all."""
    import os

    from domainbuilder.bootloader.pygrub import read_boot
    from domainbuilder.output import refuse_to_overwrite, write_whole

    files = [(os.path.join(folder, name), name) for name in ("vmlinuz", "initrd")]  # noqa: PTH118
    refuse_to_overwrite([path for path, _ in files], [disk])
    chosen = read_boot(found, title, boot)
    os.makedirs(folder, exist_ok=True)  # noqa: PTH103
    contents = {"vmlinuz": chosen.kernel, "initrd": chosen.ramdisk}
    written: list[str | None] = []
    for path, name in files:
        if (data := contents[name]) is not None:
            write_whole(path, data)
        written.append(None if data is None else path)
    return str(written[0]), written[1]


_Paths = tuple[str, str | None] | None


def _files(boot: Boot, paths: _Paths) -> tuple[str, str | None]:
    """What was written, else as pygrub --not-really has it."""
    ramdisk = f"<ramdisk:{boot.ramdisks[0]}>" if boot.ramdisks else None
    return paths or (f"<kernel:{boot.kernel}>", ramdisk)


def _text(title: str, boot: Boot, paths: _Paths) -> str:
    rows = [("entry", title), ("kernel", boot.kernel), *(("ramdisk", path) for path in boot.ramdisks)]
    rows += [("args", boot.args)] if boot.args else []
    rows += [("written", " ".join(filter(None, paths)))] if paths else []
    return "\n".join(f"{name:9}{visible(value)}" for name, value in rows)


def _sxp(_title: str, boot: Boot, paths: _Paths) -> str:
    kernel, ramdisk = _files(boot, paths)
    more = (f"(ramdisk {ramdisk!r})" if ramdisk else "") + (f"(args {boot.args!r})" if boot.args else "")
    return f"linux (kernel {kernel!r}){more}"


def _simple(_title: str, boot: Boot, paths: _Paths, separator: str = "\n") -> str:
    from domainbuilder.bootloader.disk import DiskError

    kernel, ramdisk = _files(boot, paths)
    values = {"kernel": kernel, "ramdisk": ramdisk, "args": boot.args}
    if any(separator in value for value in values.values() if value):
        raise DiskError("the format cannot hold a value with the separator in it")
    return "".join(f"{name} {value}{separator}" for name, value in values.items() if value)


def _simple0(title: str, boot: Boot, paths: _Paths) -> str:
    return _simple(title, boot, paths, "\0")


_FORMATS = {Format.TEXT: _text, Format.SXP: _sxp, Format.SIMPLE: _simple, Format.SIMPLE0: _simple0}
