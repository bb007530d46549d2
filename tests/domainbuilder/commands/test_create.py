"""`domainbuilder create`: domains of configurations run, end and begin again as these say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from tests.domainbuilder.bootloader.images import disk, ext, run, tree


def _create(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "domainbuilder", "create", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, input=stdin, env=os.environ)


@pytest.fixture
def config(tmp_path: Path, sample_guest: Callable[[str], Path]) -> Path:
    path = tmp_path / "hello.cfg"
    path.write_text(f"""\
# The smallest guest
name = "hello"
kernel = "{sample_guest("hello")}"
extra = "ticks=1"
memory = 16
vif = ['bridge=xenbr0']
vif2 = ['bridge=xenbr1']
""")
    return path


def test_a_domain_runs(config: Path) -> None:
    ran = _create(config, "--timeout", "60", "--expect", "tick 1", "--expect", "hello> ", "--send", r"halt\n")
    assert (ran.returncode, ran.stdout.count("tick 1,")) == (0, 1), ran.stderr
    assert f"{config}:7: vif2 has no effect: " in ran.stderr
    assert "vif has no effect" not in ran.stderr


def test_a_run_is_watched_and_saved_as_one_of_launch_is(config: Path, tmp_path: Path) -> None:
    trace, saved = tmp_path / "run.txt", tmp_path / "hello.domain"
    ran = _create("-q", config, "--timeout", "60", "--trace", trace, "--save-at", "hello> ", "-o", saved)
    assert ran.returncode == 0, ran.stderr
    assert "set_trap_table" in trace.read_text()
    again = [sys.executable, "-m", "domainbuilder", "restore", str(saved), "--send", r"halt\n"]
    assert subprocess.run(again, capture_output=True, check=False, timeout=60).returncode == 0


def test_settings_of_the_command_line_go_before_the_files(config: Path) -> None:
    ran = _create(
        "-q", config, "extra='ticks=2'", "memory=32", "--timeout", "60", "--expect", "tick 2", "--until-match"
    )
    assert ran.returncode == 0, ran.stderr
    assert "no effect" not in ran.stderr
    shown = json.loads(_create("-n", config, "vcpus=2").stdout)
    assert (shown["vcpus"], shown["memory"], shown["vif"]) == (2, 16, ["bridge=xenbr0"])


def test_a_dry_run_shows_json_that_is_read_again(config: Path, tmp_path: Path) -> None:
    shown = _create("-n", config).stdout
    again = tmp_path / "hello.json"
    again.write_text(shown)
    assert _create("-n", again).stdout == shown
    assert _create("-n", "-", stdin=shown).stdout == shown
    assert _create(again, "--timeout", "60", "--expect", "hello> ", "--until-match").returncode == 0


@pytest.mark.parametrize("action", ["restart", "destroy"])
def test_a_domain_that_reboots_begins_again_where_its_configuration_says_so(
    config: Path, action: str
) -> None:
    arguments = ["-m", "domainbuilder", "create", str(config), f"on_reboot='{action}'", "--timeout", "60"]
    child = pexpect.spawn(sys.executable, arguments, encoding="utf-8", timeout=60)
    child.expect_exact("hello> ")
    child.send("reboot\r")
    if action == "restart":
        child.expect_exact("hello is started again: reboot")
        child.expect_exact("hello> ")
        child.send("halt\r")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_crash_leaves_a_core_where_the_configuration_says_so(config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text() + "on_crash = 'coredump-destroy'\n")
    typed = ("--expect", "hello> ", "--send", r"crash\n")
    command = [sys.executable, "-m", "domainbuilder", "create", str(config), *typed]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.returncode == 3, ran.stderr
    inspected = [sys.executable, "-m", "domainbuilder", "inspect", str(tmp_path / "hello.core")]
    assert subprocess.run(inspected, capture_output=True, check=False).returncode == 0


def test_pygrub_boots_what_is_on_the_first_disk(tmp_path: Path, sample_guest: Callable[[str], Path]) -> None:
    entry = (
        b"menuentry 'Hello' --id hello {\n linux /boot/hello ticks=3\n}\nmenuentry 'Other' {\n linux /no\n}\n"
    )
    files = {
        "boot/grub/grub.cfg": b"set default=1\n" + entry,
        "boot/hello": sample_guest("hello").read_bytes(),
    }
    root = ext(tmp_path / "root.img", tree(tmp_path / "root", files))
    image = disk(tmp_path / "disk.img", "gpt", [("type=linux", root)])
    config = tmp_path / "disk.cfg"
    config.write_text(
        f"name='d'\nbootloader='/usr/lib/xen-4.4/bin/pygrub'\nbootloader_args=['--entry=hello']\nmemory=32\ndisk=['{image},raw,xvda,r']\n"
    )
    ran = _create(config, "--timeout", "60", "--expect", "tick 3", "--until-match")
    assert ran.returncode == 0, ran.stderr
    run("qemu-img", "convert", "-O", "qcow2", image, tmp_path / "disk.qcow2")
    packed = f"disk=['{tmp_path}/disk.qcow2,qcow2,xvda,r']"
    ran = _create(config, packed, "--timeout", "60", "--expect", "tick 3", "--until-match")
    assert ran.returncode == 0, ran.stderr
    ran = _create(config, "bootloader_args=[]", "--timeout", "60")
    assert (ran.returncode, ran.stderr) == (2, f"domainbuilder: error: {image}: there is no '/no'\n")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("memory=True", "argument 1:1:8: a character that no configuration has; found 'True'"),
        ("bootloader='/usr/sbin/my-loader'", "no other boot loader than pygrub is here"),
        ("bootloader='pygrub'", "pygrub needs a disk"),
        (
            "bootloader='pygrub'; bootloader_args=['--offset=x']",
            "bootloader_args: --offset is a number of bytes; found 'x'",
        ),
        ("pci=['01:00.0']", "argument 1:1:1: pci: cannot be had: there is no hardware to hand over"),
    ],
)
def test_what_is_refused_is_one_line(config: Path, more: str, told: str) -> None:
    ran = _create("-q", config, more)
    assert ran.returncode == 2
    assert told in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "large").write_text("#\n" * (1 << 20))
    (tmp_path / "folder").mkdir()
    cases = {
        "binary": "not UTF-8",
        "large": "too large",
        "nowhere": "No such file",
        "folder": "not a regular",
    }
    for name, told in cases.items():
        ran = _create(tmp_path / name)
        assert ran.returncode == 2
        assert told in ran.stderr
        assert ran.stderr.count("\n") == 1


def test_several_domains_share_a_host_and_a_terminal(
    tmp_path: Path, sample_guest: Callable[[str], Path]
) -> None:
    """Who printed a line, who is typed to, and what follows each one's end."""
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"name='{name}'\nkernel='{sample_guest('hello')}'\nvif=['']\n")
    command = ["-m", "domainbuilder", "create", "one", "memory=16", "two", "memory=24", "--timeout", "120"]
    command += ["--pcap", "wire.pcapng", "--console-log", "log"]
    child = pexpect.spawn(sys.executable, command, encoding="utf-8", timeout=120, cwd=str(tmp_path))
    child.expect_exact("Ctrl-] and a number type to that domain (1 one, 2 two)")
    child.expect(r"one\| memory +16 MiB")
    child.expect(r"two\| memory +24 MiB")
    child.expect_exact("two| hello> ")
    child.send("halt\r")
    child.expect(r"one\| (hello> )?halt")
    child.expect_exact("domainbuilder: one: the guest powered off")
    child.send("\x1d2")
    child.expect_exact("typing to two")
    child.send("reboot\r")
    child.expect_exact("two is started again: reboot")
    child.expect_exact("two| hello> ")
    child.send("\x1d1")
    child.expect_exact("one has ended")
    child.send("halt\r")
    child.expect_exact("domainbuilder: two: the guest powered off")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert (tmp_path / "log.one").read_bytes().count(b"Hello from a paravirtual guest") == 1
    assert (tmp_path / "log.two").read_bytes().count(b"Hello from a paravirtual guest") == 2
    assert (tmp_path / "wire.pcapng").read_bytes()[:4] == bytes.fromhex("0a0d0d0a")


def test_what_several_domains_cannot_have(config: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.cfg"
    other.write_text(config.read_text())
    for arguments, said in (
        ((str(other),), "two domains have the same name"),
        ((str(other), "name='b'", "--expect", "x"), "--timeout, --console-log, --pcap and --gdb"),
        ((str(other), "name='b'", "-b"), "one at a time"),
    ):
        ran = _create(str(config), *arguments)
        assert ran.returncode == 2, ran.stderr
        assert said in " ".join(ran.stderr.replace("│", " ").split())


def test_several_domains_name_the_stream_that_is_full(config: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.cfg"
    other.write_text(config.read_text())
    command = [sys.executable, "-m", "domainbuilder", "create", str(config), str(other), "name='b'"]
    with Path("/dev/full").open("wb") as out:
        ran = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, check=False)
    assert (ran.returncode, ran.stderr.splitlines()[-1]) == (
        2, b"domainbuilder: error: stdout: No space left on device",
    )  # fmt: skip


def test_several_domains_write_over_no_input_and_no_log_before_they_are_planned(
    config: Path, tmp_path: Path, sample_guest: Callable[[str], Path]
) -> None:
    other, kernel, log = tmp_path / "other.cfg", tmp_path / "log.other", tmp_path / "kept.hello"
    content = sample_guest("hello").read_bytes()
    kernel.write_bytes(content)
    log.write_text("of a run before\n")
    other.write_text(f"name='other'\nkernel='{kernel}'\n")
    for option, value in (("--pcap", kernel), ("--console-log", tmp_path / "log")):
        ran = _create(config, other, option, value)
        assert (ran.returncode, "would be overwritten" in ran.stderr) == (2, True), ran.stderr
        assert kernel.read_bytes() == content
    ran = _create(config, other, f"kernel='{config}'", "--console-log", tmp_path / "kept")
    assert ran.returncode == 2
    assert log.read_text() == "of a run before\n"
