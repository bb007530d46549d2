"""PV-GRUB inside a domain reads its disks: partitions and ext4, xfs and btrfs, too; and boots from there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from tests.domainbuilder.bootloader import images
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


# What is typed at the prompt, and what PV-GRUB says to it.
AT_THE_PROMPT = (
    ("ls", r"\(xen/xvda\) \(xen/xvda,gpt2\) \(xen/xvda,gpt1\) "),
    ("ls (xen/xvda,gpt1)/", r"lost\+found/ empty "),
    ("ls (xen/xvda,gpt2)/", r"lost\+found/ boot/ "),
    ("ls -l (xen/xvda,gpt2)/boot/", r"DIR +\d+ grub/\n+{size} +\d+ kernel\n"),
    ("search --file /boot/kernel", r"\n xen/xvda,gpt2\n"),
    ("cat (xen/xvda,gpt2)/boot/grub/grub.cfg", r"menuentry 'Kernel' \{{\n+ linux /boot/kernel ticks=3\n+\}}"),
)


@pytest.mark.guest
@pytest.mark.parametrize(("width", "said"), [("i386", "tick 3"), ("x86_64", "SUCCESS")])
def test_pv_grub_reads_a_gpt_disk_at_its_prompt(
    width: str,
    said: str,
    tmp_path: Path,
    guest_kernel: Callable[[str], Path],
    sample_guest: Callable[[str], Path],
    conformance_guest: Callable[[str], Path],
) -> None:
    """The menu that PV-GRUB finds by itself is left; its commands read the disk, and configfile boots."""
    kernel = (sample_guest("hello") if width == "i386" else conformance_guest("xen_version-64")).read_bytes()
    config = b"menuentry 'Kernel' {\n linux /boot/kernel ticks=3\n}\n"
    files = {"/boot/kernel": kernel, "/boot/grub/grub.cfg": config}
    root = images.ext(tmp_path / "root.img", images.tree(tmp_path / "root", files))
    other = images.ext(tmp_path / "other.img", images.tree(tmp_path / "other", {"/empty": b""}), size=4 << 20)
    disk = images.disk(tmp_path / "disk.img", "gpt", [("type=linux", other), ("type=linux", root)])
    played = ["--expect", "Kernel", "--send", "c"]
    for command, _ in AT_THE_PROMPT:
        played += ["--expect", "grub> ", "--send", f"{command}\\n"]
    played += ["--expect", "grub> ", "--send", r"configfile (xen/xvda,gpt2)/boot/grub/grub.cfg\n"]
    played += ["--expect", "Kernel", "--send", r"\n", "--expect", said]
    grub = guest_kernel(f"grub-{width}-xen.bin")
    launch = [sys.executable, "-m", "domainbuilder", "launch", str(grub), "-m", "64"]
    guards = ["--disk", f"{disk},raw,xvda,r", "--max-guest-seconds", "60"]
    done = subprocess.run([*launch, *guards, *played], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    # Between its prompts, as a person reads it: the echo of a key moves the cursor.
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", done.stdout.decode(errors="replace")).split("grub> ")[1:]
    for text, (command, answer) in zip(shown, AT_THE_PROMPT, strict=False):
        assert text.startswith(f"{command}\n")
        assert re.search(answer.format(size=len(kernel)), text), text
    assert len(shown) == len(AT_THE_PROMPT) + 1
