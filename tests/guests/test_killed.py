"""A domain that writes to its disk, and is killed with its process: what it was told is written is there.

`DISK_KILLS=100` for so many. The guest is saved when it is about to write, and each run goes on from there.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

import domainbuilder
from tests.needs import find_tool

KILLS = int(os.environ.get("DISK_KILLS", "2"))
MODULES = ("crc16", "crc32c_generic", "mbcache", "jbd2", "ext4", "xen-blkfront")
SLOTS, LINES = 97, 3000  # as killed.sh has them


def told(data: bytes) -> int:
    """How many files the guest was told of that they are on the disk."""
    numbers = [int(number) for number in re.findall(rb"<(\d+)>", data)]
    assert numbers == [*range(len(numbers))]
    return len(numbers)


def content(number: int) -> bytes:
    return "".join(f"{i}\n" for i in range(number, number + LINES + 1)).encode()


def run_until_killed(saved: Path, disk: str, chance: Random) -> int:
    """How many files were told of before the process was killed, at a random moment."""
    command = [sys.executable, "-m", "domainbuilder", "restore", str(saved), "--disk", disk]
    last = b"<%d>" % chance.randrange(12)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        output = b""
        while last not in output:
            piece = os.read(process.stdout.fileno(), 4096)
            assert piece, output
            output += piece
        time.sleep(chance.random() / 5)
        process.send_signal(signal.SIGKILL)
        return told(output + process.stdout.read())


def check(disk: Path, kind: str, done: int) -> None:
    """The image is whole, and so is the file system in it, with all that was told of."""
    raw = disk
    if kind == "qcow2":
        checked = subprocess.run(
            [find_tool("qemu-img"), "check", "-f", "qcow2", disk], capture_output=True, text=True, check=False
        )
        assert checked.returncode in (0, 3), checked.stdout  # 3: clusters that nobody uses
        raw = disk.with_suffix(".raw")
        subprocess.run([find_tool("qemu-img"), "convert", "-f", "qcow2", "-O", "raw", disk, raw], check=True)
    replayed = subprocess.run([find_tool("e2fsck"), "-p", raw], capture_output=True, text=True, check=False)
    assert replayed.returncode in (0, 1), replayed.stdout  # 1: from its journal, as a mount does it
    clean = subprocess.run([find_tool("e2fsck"), "-fn", raw], capture_output=True, text=True, check=False)
    assert clean.returncode == 0, clean.stdout
    folder = disk.parent / "files"
    folder.mkdir()
    subprocess.run([find_tool("debugfs"), "-R", f"rdump / {folder}", raw], capture_output=True, check=True)
    for number in range(max(done - SLOTS + 1, 0), done):  # the oldest of these may be under way again
        assert (folder / str(number % SLOTS)).read_bytes() == content(number), f"{number} of {done}"
    shutil.rmtree(folder)


@pytest.mark.guest
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_what_a_killed_domain_was_told_is_there(
    kind: str, guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path], tmp_path: Path
) -> None:
    whole, disk, saved = tmp_path / "whole", tmp_path / "disk", tmp_path / "saved"
    raw = tmp_path / "empty"
    with raw.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run([find_tool("mke2fs"), "-q", "-F", "-t", "ext4", raw], check=True)
    subprocess.run([find_tool("qemu-img"), "convert", "-f", "raw", "-O", kind, raw, disk], check=True)
    modules = {f"{m}.ko": guest_kernel(f"{m}-bookworm-amd64.ko").read_bytes() for m in MODULES}
    spec = f"{disk},{kind},xvda,w"
    with domainbuilder.launch(
        guest_kernel("vmlinuz-bookworm-amd64"),
        memory_mib=128,
        ramdisk=ramdisk("killed.sh", modules),
        cmdline="console=hvc0 loglevel=3",
        disks=[spec],
    ) as dom:
        dom.console.expect("mounted")
        dom.run_for(0.2)
        dom.save(saved)
    shutil.copy2(disk, whole)  # with its times, which the saved domain knows
    chance, numbers = Random(kind), []
    for _ in range(KILLS):
        shutil.copy2(whole, disk)
        numbers.append(run_until_killed(saved, spec, chance))
        check(disk, kind, numbers[-1])
    print(f"{kind}: killed behind {numbers} files")
