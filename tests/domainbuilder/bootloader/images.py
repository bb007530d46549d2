"""Disk images made by the tools that people make them with, without root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.needs import find_tool, missing

_SECTOR = 512
_FIRST = 2048  # where sfdisk puts the first partition
MIB = 1 << 20


def run(*command: str | Path, text: str | None = None) -> str:
    """Run one of the tools, and give its output."""
    # Reproducible: mke2fs and mkfs.vfat take their UUID and their times from the machine otherwise.
    return subprocess.run(
        [str(find_tool(str(command[0]))), *map(str, command[1:])],
        input=text,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    ).stdout


def tree(folder: Path, files: Mapping[str, bytes]) -> Path:
    """The files below `folder`."""
    for name, data in files.items():
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def ext(image: Path, folder: Path, kind: str = "ext4", *options: str, size: int = 24 * MIB) -> Path:
    """A file system of the ext family with what is in `folder`."""
    run("mke2fs", "-q", "-t", kind, "-d", folder, *options, image, f"{size >> 10}k")
    return image


def fat(image: Path, folder: Path, bits: int, size: int) -> Path:
    """A FAT with what is in `folder`."""
    run("mkfs.vfat", "-F", str(bits), "-C", image, str(size >> 10))
    for path in sorted(folder.iterdir()):
        run("mcopy", "-s", "-i", image, path, "::/")
    return image


def iso(image: Path, folder: Path, *options: str) -> Path:
    """An ISO 9660 image with what is in `folder`."""
    run("xorrisofs", "-quiet", *options, "-o", image, folder)
    return image


def disk(image: Path, label: str, parts: Sequence[tuple[str, Path | None]], *more: str) -> Path:
    """A disk with a partition table of the kind `label`, with (sfdisk's words, contents or nothing)."""
    at = _FIRST
    lines = [f"label: {label}", *more]
    places = []
    for words, contents in parts:
        size = (contents.stat().st_size if contents else MIB) // _SECTOR
        lines.append(f"start={at}, size={size}, {words}")
        places.append((at, contents))
        at += -(-size // _FIRST) * _FIRST + _FIRST
    with image.open("wb") as file:
        file.truncate((at + _FIRST) * _SECTOR)
    run("sfdisk", "-q", image, text="\n".join(lines) + "\n")
    with image.open("r+b") as file:
        for start, contents in places:
            if contents is not None:
                file.seek(start * _SECTOR)
                file.write(contents.read_bytes())
    return image


def grub_mkconfig(folder: Path, boot: Path, device: str, uuid: str) -> str:
    """What Debian's grub-mkconfig writes for the kernels in `boot`, on a root file system with that UUID.

    Its scripts run as they are, but for three paths: the probe of devices, /boot and the configuration.
    """
    installed = Path("/usr/sbin/grub-mkconfig")
    if not installed.exists() or not Path("/etc/grub.d/10_linux").exists():
        missing("grub-mkconfig is not installed (see tests/domainbuilder/apt-packages.txt)")
    scripts = folder / "grub.d"
    scripts.mkdir()
    probe = folder / "grub-probe"
    probe.write_text(f"""#!/bin/sh
case "$*" in
*--target=device*) echo {device} ;;
*--target=fs_uuid*) echo {uuid} ;;
*--target=partuuid*) echo {uuid[:8]}-01 ;;
*--target=fs*) echo ext2 ;;
*--target=partmap*) echo gpt ;;
*--target=abstraction*) ;;
*--target=hints_string*) echo --hint-bios=hd0,gpt1 ;;
*--target=compatibility_hint*) echo hd0,gpt1 ;;
*--target=drive*) echo '(hd0,gpt1)' ;;
esac
""")
    (folder / "default").mkdir()
    (folder / "default" / "grub").write_text(
        'GRUB_DEFAULT=saved\nGRUB_TIMEOUT=7\nGRUB_CMDLINE_LINUX="console=hvc0"\nGRUB_DISTRIBUTOR=Debian\n'
        "GRUB_DISABLE_OS_PROBER=true\n"
    )
    for name in ("00_header", "10_linux"):
        text = (Path("/etc/grub.d") / name).read_text().replace("/boot/", f"{boot}/")
        (scripts / name).write_text(text)
        (scripts / name).chmod(0o755)
    probe.chmod(0o755)
    text = installed.read_text()
    text = text.replace('grub_probe="${sbindir}/grub-probe"', f'grub_probe="{probe}"')
    text = text.replace('sysconfdir="/etc"', f'sysconfdir="{folder}"').replace('EUID" != 0', 'EUID" = none')
    mkconfig = folder / "grub-mkconfig"
    mkconfig.write_text(text)
    environment = {**os.environ, "LC_ALL": "C"}
    told = subprocess.run(["sh", mkconfig], check=True, capture_output=True, text=True, env=environment)
    return told.stdout.replace(str(boot), "/boot")
