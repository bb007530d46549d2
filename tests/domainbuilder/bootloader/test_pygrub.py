"""`domainbuilder pygrub` on disks as people have them: Debian's GRUB, a /boot of its own, a CD."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.domainbuilder.bootloader.images import MIB, disk, ext, fat, grub_mkconfig, iso, run, tree

UUID = "11111111-2222-3333-4444-555555555555"
KERNELS = {
    "/boot/vmlinuz-6.1.0-18-amd64": b"kernel 18" * 1000,
    "/boot/initrd.img-6.1.0-18-amd64": b"ramdisk 18" * 5000,
    "/boot/vmlinuz-6.1.0-13-amd64": b"kernel 13" * 1000,
    "/boot/initrd.img-6.1.0-13-amd64": b"ramdisk 13" * 5000,
}


def _pygrub(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "domainbuilder", "pygrub", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT disk with an EFI partition and a root file system, and what grub-mkconfig writes for it."""
    folder = tmp_path_factory.mktemp("debian")
    root = tree(folder / "root", KERNELS)
    config = grub_mkconfig(folder, root / "boot", "/dev/xvda2", UUID)
    environment = folder / "grubenv"
    run("grub-editenv", environment, "create")
    run(
        "grub-editenv",
        environment,
        "set",
        "saved_entry=gnulinux-advanced-/dev/xvda2>gnulinux-6.1.0-13-amd64-recovery-/dev/xvda2",
    )
    tree(root, {"/boot/grub/grub.cfg": config.encode(), "/boot/grub/grubenv": environment.read_bytes()})
    esp = fat(
        folder / "esp.img",
        tree(folder / "esp", {"EFI/debian/grub.cfg": b"search.fs_uuid x root\n"}),
        16,
        16 * MIB,
    )
    system = ext(folder / "root.img", root)
    return disk(folder / "disk.img", "gpt", [("type=uefi", esp), ("type=linux", system)])


def test_debians_disk(debian: Path, tmp_path: Path) -> None:
    """The saved entry is the default, in its submenu; what is written is what was put on the disk."""
    ran = _pygrub(debian, "-o", tmp_path / "boot")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines()[:4] == [
        "entry    Debian GNU/Linux, with Linux 6.1.0-13-amd64 (recovery mode)",
        "kernel   /boot/vmlinuz-6.1.0-13-amd64",
        "ramdisk  /boot/initrd.img-6.1.0-13-amd64",
        "args     root=/dev/xvda2 ro single console=hvc0",
    ]
    assert (tmp_path / "boot" / "vmlinuz").read_bytes() == KERNELS["/boot/vmlinuz-6.1.0-13-amd64"]
    assert (tmp_path / "boot" / "initrd").read_bytes() == KERNELS["/boot/initrd.img-6.1.0-13-amd64"]


def test_the_same_disk_as_qcow2(debian: Path, tmp_path: Path) -> None:
    """Packed, and over a backing file; what is in a qcow2 file is not looked for where it was not said."""
    packed, above = tmp_path / "packed.qcow2", tmp_path / "above.qcow2"
    run("qemu-img", "convert", "-c", "-O", "qcow2", debian, packed)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", packed, "-F", "qcow2", above)
    for image in (packed, above):
        ran = _pygrub(image, "--disk-format", "qcow2", "-o", tmp_path / "boot")
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout.splitlines()[:4] == _pygrub(debian).stdout.splitlines()[:4]
        assert (tmp_path / "boot" / "vmlinuz").read_bytes() == KERNELS["/boot/vmlinuz-6.1.0-13-amd64"]
    ran = _pygrub(packed)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "a qcow2 image, which is to be read as a raw disk" in ran.stderr
    ran = _pygrub(debian, "--disk-format", "qcow2")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "not a qcow2 image" in ran.stderr
    packed.write_bytes(packed.read_bytes()[:70000])  # where its clusters were there is nothing
    ran = _pygrub(above, "--disk-format", "qcow2")
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1, ran.stderr


def test_the_menu(debian: Path) -> None:
    told = _pygrub(debian, "--list-entries").stdout.splitlines()
    entries = [line for line in told if not line.startswith("      ")]
    assert [line.split(maxsplit=2)[0] for line in entries] == ["0", "1>0", "1>1", "1>2", "1>3"]
    assert [line for line in entries if " * " in line] == [
        " 1>3 * Debian GNU/Linux, with Linux 6.1.0-13-amd64 (recovery mode)"
    ]
    assert sum("kernel   /boot/vmlinuz-6.1.0-18-amd64" in line for line in told) == 3


@pytest.mark.parametrize(
    ("choice", "kernel"),
    [
        ("0", "6.1.0-18"),
        ("1>2", "6.1.0-13"),
        ("Debian GNU/Linux", "6.1.0-18"),
        ("Debian GNU/Linux, with Linux 6.1.0-13-amd64", "6.1.0-13"),
    ],
)
def test_an_entry_is_chosen(debian: Path, choice: str, kernel: str) -> None:
    ran = _pygrub(debian, "--entry", choice, "--output-format", "simple", "--args", "panic=1")
    lines = dict(line.split(" ", 1) for line in ran.stdout.splitlines() if line)
    assert lines["kernel"] == f"<kernel:/boot/vmlinuz-{kernel}-amd64>"
    assert lines["args"].endswith(" panic=1")
    sxp = _pygrub(debian, "--entry", choice, "--output-format", "sxp").stdout
    assert sxp.startswith(f"linux (kernel '<kernel:/boot/vmlinuz-{kernel}-amd64>')(ramdisk ")


def test_the_menu_on_a_terminal(debian: Path) -> None:
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "domainbuilder", "pygrub", debian, "-i", "--output-format", "simple"],
        stdin=follower,
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
    ) as process:
        os.close(follower)
        asked = b""
        while b"Which entry?" not in asked:
            asked += os.read(leader, 4096)
        os.write(leader, b"1>0\n")
        assert process.stdout is not None
        told = process.stdout.read()
    os.close(leader)
    assert process.returncode == 0
    assert b"1>3 * Debian" in asked
    assert "vmlinuz-6.1.0-18-amd64" in told


def test_a_separate_boot_partition_and_the_boot_flag(tmp_path: Path) -> None:
    config = b"menuentry 'a' {\n linux /vmlinuz root=/dev/xvda1\n initrd /a /b\n}\n"
    boot = {"grub/grub.cfg": config, "vmlinuz": b"K", "a": b"12345", "b": b"678"}
    other = tree(tmp_path / "1", {"boot/grub/grub.cfg": b"menuentry 'old' {\n linux /old\n}\n", "old": b"O"})
    parts = [
        ("type=83", ext(tmp_path / "1.img", other, "ext3", size=8 * MIB)),
        ("type=83, bootable", ext(tmp_path / "2.img", tree(tmp_path / "2", boot), "ext2", size=8 * MIB)),
    ]
    image = disk(tmp_path / "disk.img", "dos", parts)
    assert _pygrub(image, "-o", tmp_path / "out").returncode == 0
    assert (tmp_path / "out" / "vmlinuz").read_bytes() == b"K"
    assert (tmp_path / "out" / "initrd").read_bytes() == b"12345" + bytes(3) + b"678"
    # By its offset, a partition is a disk of its own.
    assert "kernel   /old" in _pygrub(image, "--offset", str(2048 * 512)).stdout


def test_a_cd(tmp_path: Path) -> None:
    """As Debian's installer has it, with isolinux."""
    config = b"""default install
label install
 kernel /install.amd/vmlinuz
 append initrd=/install.amd/initrd.gz x=1
"""
    files = {"isolinux/isolinux.cfg": config, "install.amd/vmlinuz": b"K", "install.amd/initrd.gz": b"R"}
    image = iso(tmp_path / "cd.iso", tree(tmp_path / "cd", files), "-R", "-J")
    told = _pygrub(image, "-o", tmp_path / "out").stdout
    assert "args     x=1" in told
    assert (tmp_path / "out" / "initrd").read_bytes() == b"R"


def test_a_kernel_without_a_configuration(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", {"vmlinuz": b"K", "initrd.img": b"R"})
    image = ext(tmp_path / "root.img", root, size=8 * MIB)
    ran = _pygrub(image)
    assert ran.returncode == 2
    assert ran.stderr == (
        f"domainbuilder: error: {image}: no configuration of GRUB, extlinux or systemd-boot; "
        "it has a kernel, which --kernel /vmlinuz --ramdisk /initrd.img boots\n"
    )
    assert (
        _pygrub(image, "--kernel", "/vmlinuz", "--ramdisk", "/initrd.img", "-o", tmp_path / "o").returncode
        == 0
    )
    assert (tmp_path / "o" / "vmlinuz").read_bytes() == b"K"


def test_what_is_refused_is_one_line(tmp_path: Path, debian: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(1 << 20))
    (tmp_path / "short").write_bytes(debian.read_bytes()[: 3 * MIB])
    (tmp_path / "empty").write_bytes(b"")
    for name, told in (
        ("zeros", "no file system that can be read"),
        ("short", "partition 2: ends behind the end of the disk"),
        ("empty", "no file system that can be read"),
        ("nowhere", "No such file"),
        (".", "not a disk image"),
    ):
        ran = _pygrub(tmp_path / name)
        assert (ran.returncode, ran.stdout) == (2, ""), name
        assert told in ran.stderr, ran.stderr
        assert ran.stderr.count("\n") == 1
    ran = _pygrub(debian, "--entry", "17")
    assert ran.returncode == 2
    assert "there is no entry '17'; expected 0 'Debian GNU/Linux', 1>0" in ran.stderr


def test_the_disk_is_not_overwritten(debian: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "initrd").symlink_to(debian)
    ran = _pygrub(debian, "-o", folder)
    assert ran.returncode == 2
    assert "out/initrd: this is an input and would be overwritten" in ran.stderr
    assert not (folder / "vmlinuz").exists()
