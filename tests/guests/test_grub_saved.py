"""A domain that PV-GRUB booted is saved as xl does; PV-GRUB at its own prompt is not, by xl either."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.launch.running import RunningDomain
from tests.domainbuilder.bootloader import images
from tests.domainbuilder.saved.test_stream import not_saved_after_all, verified

Guest = Callable[[str], Path]
DEBIAN = "uname -r; echo $((6 * 7)); cat /proc/cmdline; mount; ls -l /"


def booted_by_grub(grub: Path, disk: Path, *commands: str) -> RunningDomain:
    """What PV-GRUB was told to load from the disk, as it starts."""
    dom = domainbuilder.launch(grub, 128, disks=[f"{disk},raw,xvda,r"], timeout=600)
    for command in ("set root=(xen/xvda)", *commands, "boot"):
        dom.console.expect("grub> ")
        dom.console.send(f"{command}\n")
    return dom


def restored(path: Path, disk: Path, *options: str) -> str:
    """What the domain prints in a process of its own."""
    command = [sys.executable, "-m", "domainbuilder", "restore", str(path), "--disk", f"{disk},raw,xvda,r"]
    done = subprocess.run(
        [*command, "--timeout", "300", *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\r", "")


def untimed(text: str) -> str:
    """Without the kernel's time stamps: system time begins anew where a domain is restored."""
    return re.sub(r"\[ *\d+\.\d+\]", "[]", text)


@pytest.mark.guest
@pytest.mark.parametrize("width", ["i386", "x86_64"])
def test_what_pv_grub_booted_is_saved_and_goes_on_as_it_would_have(
    width: str, guest_kernel: Guest, pvkernel: Path, suspend_guests: dict[str, Path], tmp_path: Path
) -> None:
    kernel = {"i386": pvkernel, "x86_64": suspend_guests["64"]}[width]
    disk = images.ext(tmp_path / "disk.img", images.tree(tmp_path / "tree", {"/kernel": kernel.read_bytes()}))
    grub, load = guest_kernel(f"grub-{width}-xen.bin"), "linux /kernel suspend"
    ready = {"i386": "suspend: ready", "x86_64": "ready for round 1"}[width]
    path = tmp_path / "stream"
    with booted_by_grub(grub, disk, load) as dom:
        dom.console.expect(f"{ready}\r?\n")
        dom.save(path, "xen")
    verified(path)
    with booted_by_grub(grub, disk, load) as dom:
        dom.console.expect(f"{ready}\r?\n")
        undisturbed = not_saved_after_all(dom)
    others = {
        "cancelled in round": "resumed after round",
        "not saved after all": "here again, with other frames",
    }
    for cancelled, resumed in others.items():
        undisturbed = undisturbed.replace(cancelled, resumed)
    assert restored(path, disk) == undisturbed.removeprefix("suspending\n")


@pytest.mark.guest
def test_a_debian_that_pv_grub_booted(guest_kernel: Guest, tmp_path: Path) -> None:
    files = {
        "/vmlinuz": guest_kernel("vmlinuz-bookworm-amd64").read_bytes(),
        "/initrd": domainbuilder.initramfs(guest_kernel("busybox-amd64").read_bytes()),
    }
    disk = images.ext(tmp_path / "disk.img", images.tree(tmp_path / "tree", files), size=48 << 20)
    path = tmp_path / "stream"
    load = ("linux /vmlinuz console=hvc0 quiet", "initrd /initrd")
    with booted_by_grub(guest_kernel("grub-x86_64-xen.bin"), disk, *load) as dom:
        dom.console.expect("^/ # ")
        with dom.fork() as undisturbed:
            undisturbed.console.send(f"{DEBIAN}; poweroff -f\n")
            assert undisturbed.wait().reason == "poweroff"
            said = untimed(
                undisturbed.console.read().replace("\r", "").removeprefix("\x1b[6n")
            )  # of the prompt
        dom.save(path, "xen")
    assert "64bit guest" in verified(path)
    assert "\n42\n" in said
    assert untimed(restored(path, disk, "--send", f"{DEBIAN}; poweroff -f\\n")) == said


@pytest.mark.guest
def test_pv_grub_at_its_prompt_says_why_and_what_else(guest_kernel: Guest, tmp_path: Path) -> None:
    """In the words of real `xl save`, which Xen 4.17.7 refuses too."""
    grub, path = guest_kernel("grub-i386-xen.bin"), tmp_path / "grub"
    launch = [sys.executable, "-m", "domainbuilder", "launch", str(grub), "-m", "64", "--save-at", "grub> "]
    done = subprocess.run(
        [*launch, "--save-as", "xen", "-o", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "Bad mfn 0 for p2m frame list list: the guest tells nobody where its p2m list is, "
        "so xl cannot save it either; it can be saved as it stands, in the frozen form"
    )
    assert not path.exists()
    subprocess.run([*launch, "-o", str(path)], capture_output=True, check=True)
    typed = ["--send", "echo 4''2\\n", "--expect", r"\r42\b", "--until-match"]
    command = [sys.executable, "-m", "domainbuilder", "restore", str(path), *typed]
    subprocess.run([*command, "--timeout", "300"], capture_output=True, check=True)
