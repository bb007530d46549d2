"""PV-GRUB inside a domain reads from its disks what pygrub does not: xfs and btrfs; and boots from there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from tests.needs import find_tool

CONFIG = b"menuentry 'Hello' {\n linux /boot/hello ticks=3\n}\n"
# mkfs.xfs's description of a tree: nobody has to mount anything.
PROTOTYPE = """/
0 0
d--755 0 0
boot d--755 0 0
grub.cfg ---644 0 0 {folder}/boot/grub.cfg
hello ---755 0 0 {folder}/boot/hello
$
$
"""


@pytest.fixture
def tree(tmp_path: Path, sample_guest: Callable[[str], Path]) -> Path:
    """A kernel and GRUB's configuration."""
    boot = tmp_path / "tree" / "boot"
    boot.mkdir(parents=True)
    (boot / "grub.cfg").write_bytes(CONFIG)
    (boot / "hello").write_bytes(sample_guest("hello").read_bytes())
    return boot.parent


def made(path: Path, mib: int, *command: str | Path) -> Path:
    """An image of that size, and a file system in it."""
    with path.open("wb") as file:
        file.truncate(mib << 20)
    subprocess.run([find_tool(str(command[0])), *command[1:], path], check=True, capture_output=True)
    return path


@pytest.mark.guest
def test_pv_grub_boots_from_xfs_and_reads_btrfs(
    tree: Path, tmp_path: Path, guest_kernel: Callable[[str], Path]
) -> None:
    prototype = tmp_path / "prototype"
    prototype.write_text(PROTOTYPE.format(folder=tree))
    xfs = made(tmp_path / "xfs.img", 320, "mkfs.xfs", "-q", "-p", prototype)
    btrfs = made(tmp_path / "btrfs.img", 128, "mkfs.btrfs", "-q", "-r", tree)
    refused = subprocess.run(
        [sys.executable, "-m", "domainbuilder", "pygrub", btrfs], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "btrfs cannot be read here, but PV-GRUB reads it inside the domain" in refused.stderr
    disks = [f"{xfs},raw,xvda,r", f"{btrfs},raw,xvdb,r"]
    with domainbuilder.launch(guest_kernel("grub-i386-xen.bin"), 64, disks=disks) as dom:
        console = dom.console
        console.expect("grub> ")
        console.send("cat (xen/xvdb)/boot/grub.cfg\n")
        console.expect("linux /boot/hello ticks=3")
        console.expect("grub> ")
        console.send("set root=(xen/xvda)\n")
        console.expect("grub> ")
        console.send("configfile /boot/grub.cfg\n")
        console.expect("Hello")
        console.send("\n")
        console.expect("tick 3")
