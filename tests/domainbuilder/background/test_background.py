"""Domains in the background: `domainbuilder xl`, what killed ones leave, who gets in, hostile clients."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pexpect
import pytest

from domainbuilder.background import client, life, runtime
from domainbuilder.background.client import ask
from domainbuilder.background.server import MOST_CLIENTS
from domainbuilder.background.wire import MOST_BYTES
from domainbuilder.errors import BuildError

Xl = Callable[..., "subprocess.CompletedProcess[str]"]
_PATIENCE = 120.0  # seconds: for a domain that does not come or go at all


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Directories of a user who has no domain yet; afterwards none is left."""
    for name, folder in (
        ("XDG_RUNTIME_DIR", "run"),
        ("XDG_STATE_HOME", "state"),
        ("XDG_CACHE_HOME", "cache"),
    ):
        (tmp_path / folder).mkdir(mode=0o700)
        monkeypatch.setenv(name, str(tmp_path / folder))
    yield tmp_path
    if (tmp_path / "run/domainbuilder").is_dir():
        for domain in runtime.domains():
            os.kill(domain.pid, signal.SIGKILL)


@pytest.fixture
def xl(home: Path, sample_guest: Callable[[str], Path]) -> Xl:
    """`xl("list")`, where hello.cfg is a configuration."""
    (home / "hello.cfg").write_text(f"name='hello'\nkernel='{sample_guest('hello')}'\nmemory=16\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "domainbuilder", "xl", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=home, stdin=subprocess.DEVNULL
        )

    return run


def gone() -> bool:
    """Whether no domain is left, waited for."""
    end = time.monotonic() + _PATIENCE
    while runtime.domains() and time.monotonic() < end:
        time.sleep(0.05)
    return not runtime.domains()


def dialled(domain: runtime.Domain) -> socket.socket:
    sock = runtime.connect(domain)
    sock.settimeout(_PATIENCE)
    return sock


def test_a_framebuffer_is_seen_from_outside(xl: Xl, home: Path) -> None:
    with (home / "hello.cfg").open("a") as config:
        config.write(f"vfb=['vnclisten=unix:{home}/vnc']\n")
    assert xl("create", "hello.cfg").returncode == 0
    assert xl("vncviewer", "hello").stdout == f"unix:{home}/vnc\n"
    with socket.socket(socket.AF_UNIX) as viewer:
        viewer.connect(f"{home}/vnc")
        viewer.settimeout(_PATIENCE)
        assert viewer.recv(12) == b"RFB 003.008\n"
        done = xl("screenshot", "hello", "shot.png")  # hello has no driver for it
        assert (done.returncode, "the guest has drawn nothing yet" in done.stderr) == (2, True)
    assert not (home / "shot.png").exists()
    assert "vncviewer unix:" in client.log_path("hello").read_text()
    assert xl("destroy", "hello").returncode == 0
    assert not (home / "vnc").exists()
    (home / "hello.cfg").write_text((home / "hello.cfg").read_text().replace("vfb=['", "vfb=['vnc=0,"))
    assert xl("create", "hello.cfg").returncode == 0
    assert "hello is not seen by VNC" in xl("vncviewer", "hello").stderr
    assert xl("destroy", "hello").returncode == 0


def test_a_domain_lives_in_the_background_and_is_talked_to(xl: Xl, home: Path) -> None:
    assert xl("list").stdout == f"{'Name':40} {'ID':>5} {'Mem':>5} VCPUs\tState\tTime(s)\n"
    made = xl("create", "hello.cfg")
    assert (made.returncode, made.stderr) == (0, "domainbuilder: hello is domain 1\n")
    (told,) = json.loads(xl("list", "--json").stdout)
    assert (told["name"], told["id"], told["memory_mib"], told["vcpus"]) == ("hello", 1, 16, 1)
    assert xl("list", "hello").stdout.splitlines()[1].split()[:4] == ["hello", "1", "16", "1"]
    assert (xl("domid", "hello").stdout, xl("domname", "1").stdout) == ("1\n", "hello\n")
    again = xl("create", "hello.cfg")
    assert (again.returncode, again.stdout) == (2, "")
    assert "a domain of that name runs already" in again.stderr

    child = pexpect.spawn(
        sys.executable, ["-m", "domainbuilder", "xl", "console", "hello"], encoding="utf-8", timeout=_PATIENCE
    )
    child.expect_exact("Hello from a paravirtual guest")  # what it printed before anybody looked
    child.expect_exact("hello> ")
    child.send("time\r")
    child.expect_exact("hello> ")
    child.send("\x1d")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0

    assert xl("dump-core", "hello", "hello.core").returncode == 0
    inspected = [sys.executable, "-m", "domainbuilder", "inspect", str(home / "hello.core")]
    assert subprocess.run(inspected, capture_output=True, check=False).returncode == 0
    assert xl("xenstore-read", "hello", "/local/domain/1/name").stdout == "hello\n"
    assert 'name = "hello"\n' in xl("xenstore-ls", "hello", "/local/domain/1").stdout
    (domain,) = runtime.domains()
    with dialled(domain) as sock:
        sock.sendall(b'{"do":"console"}\nhalt\n')  # as one piece: what is behind the line is typed
        while sock.recv(4096):
            pass
    assert gone()
    log = (home / "state/domainbuilder/xl-hello.log").read_text().splitlines()
    assert log[-1].endswith("hello: the guest powered off")


def test_pausing_restarting_and_destroying(xl: Xl, home: Path) -> None:
    assert xl("create", "-q", "-p", "hello.cfg").returncode == 0
    (domain,) = runtime.domains()
    first = ask(domain, "info")
    assert (first["state"], first["guest_seconds"]) == ("p", 0.0)
    time.sleep(0.1)
    assert ask(domain, "info")["guest_seconds"] == 0.0
    assert xl("shutdown", "hello").stderr == "domainbuilder: error: hello is paused\n"
    assert xl("unpause", "hello").returncode == 0
    with dialled(domain) as sock:
        sock.sendall(b'{"do":"console"}\n')
        seen, typed = b"", [b"reboot\n", b""]
        while typed:
            seen += sock.recv(4096)
            if seen.endswith(b"hello> "):
                sock.sendall(typed.pop(0))
                seen = b""
    assert xl("reboot", "hello").returncode == 0
    assert ask(domain, "xenstore-read", path="/local/domain/1/control/shutdown") == "reboot"
    assert xl("destroy", "hello").returncode == 0
    assert gone()
    log = (home / "state/domainbuilder/xl-hello.log").read_text()
    assert "hello: the guest asked for a reboot" in log
    assert "hello is started again" in log
    assert log.endswith("hello was destroyed\n")


def test_a_killed_process_leaves_nothing_that_hinders(xl: Xl, home: Path) -> None:
    assert xl("create", "hello.cfg").returncode == 0
    (domain,) = runtime.domains()
    os.kill(domain.pid, signal.SIGKILL)
    assert gone()
    assert sorted(path.name for path in (home / "run/domainbuilder").iterdir()) == ["lock"]
    asked = xl("pause", "hello")
    assert asked.returncode == 2
    assert "an invalid domain identifier; found 'hello'" in asked.stderr.replace("\n", " ")
    assert xl("create", "hello.cfg").returncode == 0
    assert [(one.id, one.name) for one in runtime.domains()] == [(2, "hello")]


def test_what_cannot_be_started_is_told_at_once(xl: Xl, home: Path) -> None:
    (home / "hello.cfg").write_text("name='no'\nkernel='/nowhere/vmlinuz'\n")
    made = xl("create", "hello.cfg")
    assert made.returncode == 2
    assert made.stderr == "domainbuilder: error: /nowhere/vmlinuz: No such file or directory\n"
    assert gone()


def test_a_folder_that_others_may_touch_is_refused(home: Path) -> None:
    folder = home / "run/domainbuilder"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(BuildError, match="others may get into the directory"):
        runtime.domains()
    folder.rmdir()
    (home / "mine").mkdir(mode=0o700)
    folder.symlink_to(home / "mine")
    with pytest.raises(BuildError, match="no directory"):
        runtime.domains()
    assert list((home / "mine").iterdir()) == []
    folder.unlink()


HOSTILE = (
    b"\n",
    b"{}\n",
    b"[]\n",
    b"null\n",
    b'{"do":"nothing"}\n',
    b'{"do":{}}\n',
    b'{"do":"info","path":"/"}\n',
    b'{"do":"xenstore-ls","path":7}\n',
    b'{"do":"shutdown","reason":"suspend"}\n',
    b'{"do":"sysrq","letter":"\\ud800"}\n',
    b'{"do":"dump-core","path":"/\\u0000"}\n',
    b'{"do":"dump-core","path":"/\\ud800"}\n',
    b'{"do":"save","path":"/nowhere/at/all","form":"frozen","after":"pause"}\n',
    b'{"do":"save","path":"/tmp/x","form":"tar","after":"pause"}\n',
    b"[" * 60000 + b"\n",
    b"\xff\x00\n",
    b"x" * (MOST_BYTES + 5000),
)


def test_hostile_clients_get_a_line_and_the_domain_goes_on(xl: Xl) -> None:
    assert xl("create", "hello.cfg").returncode == 0
    (domain,) = runtime.domains()
    for request in HOSTILE:
        with dialled(domain) as sock, sock.makefile("rb") as answers:
            sock.sendall(request)
            assert set(json.loads(answers.readline())) == {"error"}, request[:40]
    idle = [dialled(domain) for _ in range(MOST_CLIENTS)]
    with dialled(domain) as sock, sock.makefile("rb") as answers:
        assert json.loads(answers.readline()) == {"error": "too many are connected to this domain"}
    for sock in idle:
        sock.close()
    assert ask(domain, "info")["name"] == "hello"


def test_saved_ones_go_on(xl: Xl, home: Path) -> None:
    assert xl("create", "hello.cfg").returncode == 0
    assert xl("save", "-p", "hello", "one").returncode == 0
    assert json.loads(xl("list", "--json").stdout)[0]["state"] == "p"
    assert xl("save", "-c", "hello", "two").returncode == 0
    assert xl("block-list", "hello").stdout == "Vdev  BE  handle state evt-ch ring-ref BE-path\n"
    refused = xl("save", "--as", "xen", "hello", "three")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "Bad mfn 0 for p2m frame list list" in refused.stderr
    assert xl("unpause", "hello").returncode == 0
    assert xl("save", "hello", "three").returncode == 0
    assert runtime.domains() == []
    for name in ("one", "two", "three"):
        arguments = ["restore", str(home / name), "--send", "halt\\n", "--expect", "bye", "--timeout", "60"]
        command = [sys.executable, "-m", "domainbuilder", *arguments]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_guest_suspends_to_be_saved(xl: Xl, home: Path, suspend_guests: dict[str, Path]) -> None:
    (home / "s.cfg").write_text(f"name = 's'\nkernel = '{suspend_guests['32']}'\nmemory = 16\n")
    assert xl("create", "s.cfg").returncode == 0
    saved = xl("save", "--pause", "--as", "xen", "s", "s.save")
    assert saved.returncode == 0, saved.stderr
    assert (home / "s.save").read_bytes().startswith(b"Xen saved domain, xl format\n")  # tools/xl/xl.h
    assert json.loads(xl("list", "--json").stdout)[0]["state"] == "p"
    assert xl("destroy", "s").returncode == 0
    assert runtime.domains() == []


def test_a_process_that_does_not_answer(xl: Xl, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is listed, hinders nobody, and is destroyed."""
    assert xl("create", "hello.cfg").returncode == 0
    (domain,) = runtime.domains()
    os.kill(domain.pid, signal.SIGSTOP)
    monkeypatch.setattr(client, "PATIENCE", 0.5)
    with pytest.raises(BuildError, match="does not answer"):
        ask(domain, "info", 0.5)
    assert xl("list").stdout.splitlines()[1].split()[:5] == ["hello", "1", "0", "0", "------"]
    client.destroy(domain)
    assert runtime.domains() == []


def test_devices_come_and_go(xl: Xl, home: Path) -> None:
    (home / "data").write_bytes(bytes(8192))
    assert xl("create", "-q", "hello.cfg").returncode == 0
    assert xl("block-attach", "hello", "data,raw,xvdb,w").returncode == 0
    assert xl("block-attach", "hello", "data,raw,xvdb,w").stderr == (
        "domainbuilder: error: there is a disk xvdb already\n"
    )
    wrong = xl("block-attach", "hello", "data,raw,nonsense")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    rows = json.loads(xl("block-list", "--json", "hello").stdout)
    assert [(row["name"], row["vdev"], row["state"]) for row in rows] == [("xvdb", 51728, 1)]
    shown = xl("block-list", "hello").stdout.splitlines()
    assert shown[1].split() == ["51728", "0", "0", "1", "-1", "-1", "/local/domain/0/backend/vbd/1/51728"]
    target = xl("xenstore-read", "hello", "/local/domain/0/backend/vbd/1/51728/params").stdout
    assert target == f"{home}/data\n"
    assert xl("block-detach", "--force", "hello", "xvdb").returncode == 0
    assert json.loads(xl("block-list", "--json", "hello").stdout) == []
    assert xl("block-detach", "hello", "xvdb").stderr == "domainbuilder: error: Device xvdb not connected\n"

    assert xl("network-attach", "hello", "mac=00:16:3e:00:00:01", "bridge=br7").stderr == (
        "domainbuilder: interface 0\n"
    )
    shown = xl("network-list", "hello").stdout.splitlines()
    assert shown[0].startswith("Idx BE Mac Addr.         handle state evt-ch   tx-/rx-ring-ref BE-path")
    assert shown[1].split()[:6] == ["0", "0", "00:16:3e:00:00:01", "0", "1", "-1"]
    (domain,) = runtime.domains()
    with pytest.raises(BuildError, match="Unknown device 7"):
        ask(domain, "network-detach", vif="7", force=False)
    ask(domain, "network-detach", vif="00:16:3E:00:00:01", force=True)
    assert ask(domain, "network-list") == []


def test_what_is_told_of_a_domain(xl: Xl, home: Path) -> None:
    config = home / "hello.cfg"
    config.write_text(config.read_text() + "vcpus=1\nmaxvcpus=2\nmaxmem=24\nuuid='" + "12" * 16 + "'\n")
    assert xl("create", "-q", "--console-log", "log", "hello.cfg").returncode == 0
    (domain,) = runtime.domains()
    (one,) = json.loads(xl("list", "--long", "hello").stdout)
    assert (one["domid"], one["config"]["name"], one["config"]["maxmem"]) == (1, "hello", 24)
    assert xl("vm-list").stdout.splitlines()[1].split() == [
        "12121212-1212-1212-1212-121212121212",
        "1",
        "hello",
    ]
    rows = [line.split() for line in xl("vcpu-list").stdout.splitlines()]
    assert [row[:3] for row in rows[1:]] == [["hello", "1", "0"], ["hello", "1", "1"]]
    assert rows[2][3:5] == ["-", "--p"]
    for path, value in (
        ("memory/static-max", "24576"),
        ("memory/target", "16384"),
        ("cpu/1/availability", "offline"),
    ):
        assert ask(domain, "xenstore-read", path=f"/local/domain/1/{path}") == value
    assert xl("trigger", "hello", "power").stderr.startswith(
        "domainbuilder: error: a PV guest knows no trigger"
    )
    assert xl("dmesg", "hello").stdout.startswith("(XEN) [hello] Xen version 4.17.7\n")
    told = xl("info").stdout
    assert "xen_version            : 4.17.7\n" in told
    assert "nr_domains             : 1\n" in told
    assert xl("trigger", "hello", "nmi").returncode == 0  # for which hello has a handler that gives up
    assert gone()
    assert b"Hello from a paravirtual guest" in (home / "log").read_bytes()
    log = (home / "state/domainbuilder/xl-hello.log").read_text()
    assert "hello: the guest reported that it crashed" in log


def test_one_that_ended_is_kept_and_one_is_started_beside_it(xl: Xl, home: Path) -> None:
    """rename-restart: what was started has the name and the disk, what ended has a name with the time."""
    (home / "disk").write_bytes(bytes(1 << 20))
    settings = ("disk=['disk,raw,xvda,w']", "on_reboot='rename-restart'")
    assert xl("create", "-q", "hello.cfg", *settings).returncode == 0
    (domain,) = runtime.domains()
    with dialled(domain) as sock:
        sock.sendall(b'{"do":"console"}\nreboot\n')
        while len(runtime.domains()) < 2:
            assert sock.recv(4096)
    again, kept = runtime.domains()
    assert (again, kept.id) == (domain, 2)
    assert re.fullmatch(r"hello-\d{8}T\d{4}Z", kept.name)
    assert ask(kept, "xenstore-read", path="/local/domain/1/name") == kept.name
    told = ask(kept, "info")
    assert (told["state"], told["pid"]) == ("s", kept.pid)
    assert told["uuid"] != ask(again, "info")["uuid"]
    assert xl("dump-core", kept.name, "core").returncode == 0
    assert b"Hello from a paravirtual guest" in (home / "core").read_bytes()
    assert [xl("destroy", name).returncode for name in (kept.name, "hello")] == [0, 0]
    assert gone()


def test_one_is_renamed(xl: Xl) -> None:
    assert xl("create", "-q", "hello.cfg").returncode == 0
    assert xl("rename", "hello", "hello").returncode == 0  # which it has already
    assert xl("rename", "hello", "other").returncode == 0
    assert xl("xenstore-read", "other", "/local/domain/1/name").stdout == "other\n"
    assert xl("rename", "other", "").stderr == "domainbuilder: error: a domain needs a name\n"
    assert xl("rename", "other", "a/b").stderr == "domainbuilder: error: a domain's name has no slash\n"
    assert xl("create", "-q", "hello.cfg", "name='third'").returncode == 0
    assert "a domain of that name runs already" in xl("rename", "third", "other").stderr
    assert [xl("destroy", name).returncode for name in ("other", "third")] == [0, 0]
    assert gone()


def test_one_of_the_foreground_is_kept(xl: Xl, home: Path) -> None:
    """preserve: it is listed in the background, its name is taken, and its disk is free again."""
    (home / "disk").write_bytes(bytes(1 << 20))
    settings = ("disk=['disk,raw,xvda,w']", "on_poweroff='preserve'")
    command = [sys.executable, "-m", "domainbuilder", "create", "hello.cfg", *settings]
    ended = subprocess.run(command, input="halt\n", capture_output=True, text=True, check=False, cwd=home)
    assert ended.returncode == 0
    (kept,) = runtime.domains()
    assert ended.stderr.endswith(
        f"hello is kept as it ended: hello, domain {kept.id}, until `domainbuilder xl destroy {kept.id}`\n"
    )
    assert ask(kept, "info")["state"] == "s"
    assert "hello has ended" in xl("pause", "hello").stderr
    refused = subprocess.run(command, input="halt\n", capture_output=True, text=True, check=False, cwd=home)
    assert refused.returncode == 2
    assert "a domain of that name runs already" in refused.stderr
    assert xl("destroy", "hello").returncode == 0
    assert gone()


def test_restored_ones_go_on_in_the_background(xl: Xl) -> None:
    """With and without a configuration."""
    assert xl("create", "-q", "hello.cfg").returncode == 0
    assert xl("save", "hello", "saved").returncode == 0
    restored = xl("restore", "-p", "saved")
    assert (restored.returncode, restored.stderr) == (0, "domainbuilder: hello is domain 2\n")
    assert json.loads(xl("list", "--json").stdout)[0]["state"] == "p"
    assert "a domain of that name runs already" in xl("restore", "saved").stderr
    assert xl("destroy", "hello").returncode == 0
    assert xl("restore", "hello.cfg", "saved").returncode == 0
    (domain,) = runtime.domains()
    with dialled(domain) as sock:
        sock.sendall(b'{"do":"console"}\nhalt\n')
        while sock.recv(4096):
            pass
    assert gone()


def test_one_is_moved_while_it_runs(xl: Xl, home: Path, suspend_guests: dict[str, Path]) -> None:
    """From its process to another of the same folder, where it has its name again."""
    (home / "s.cfg").write_text(f"name = 's'\nkernel = '{suspend_guests['32']}'\nmemory = 16\n")
    assert xl("create", "-q", "s.cfg").returncode == 0
    waiting = subprocess.Popen(
        [sys.executable, "-m", "domainbuilder", "xl", "restore", f"unix:{home}/moved"],
        cwd=home, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end = time.monotonic() + _PATIENCE
    while not (home / "moved").exists() and time.monotonic() < end:
        time.sleep(0.05)
    moved = xl("migrate", "s", f"unix:{home}/moved")
    assert moved.returncode == 0, moved.stderr
    _, told = waiting.communicate(timeout=_PATIENCE)
    assert (waiting.returncode, told) == (0, "domainbuilder: s is domain 2\n")
    assert "s was moved: " in (home / "state/domainbuilder/xl-s.log").read_text()


def test_killed_at_any_moment_it_leaves_nothing_that_hinders(xl: Xl, home: Path) -> None:
    """`BACKGROUND_KILLS=50` for so many, from the process's first steps to a guest that runs."""
    kills = int(os.environ.get("BACKGROUND_KILLS", "4"))
    moment = random.Random(7)
    for _ in range(kills):
        command = [sys.executable, "-m", "domainbuilder", "xl", "create", "-q", "hello.cfg"]
        with subprocess.Popen(command, cwd=home, stderr=subprocess.DEVNULL) as starter:
            time.sleep(moment.uniform(0.0, 2.0))
            starter.send_signal(signal.SIGSTOP)  # it starts nobody else
            for process in [*_children(starter.pid), *(one.pid for one in runtime.domains()), starter.pid]:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        assert gone()
    assert xl("create", "-q", "hello.cfg").returncode == 0
    assert [domain.name for domain in runtime.domains()] == ["hello"]
    left = {path.name for path in (home / "run/domainbuilder").iterdir()}
    assert len(left) == 3, left  # the lock, and two of the domain that runs


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def test_the_log_is_bounded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = home / "log"
    monkeypatch.setattr(life, "MOST_LOGGED", 10_000)
    with log.open("a+b") as file:
        monkeypatch.setattr(life, "_LOG", file.fileno())
        for number in range(2000):
            life._log(f"line {number}")
    lines = log.read_text().splitlines()
    assert log.stat().st_size <= 10_000
    assert lines[-1].endswith("line 1999")
    assert all(" line " in line for line in lines)
