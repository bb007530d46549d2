"""Frozen domains: what comes back goes on as it would have; what is damaged or made up is refused."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from domainbuilder import BuildError, SavedError, launch, restore
from domainbuilder.launch.running import RunningDomain
from domainbuilder.saved.frozen import MAGIC, is_frozen, read_about, read_frozen
from hvcore.errors import StateError
from hvcore.host import Host
from tests.domainbuilder.saved import hostile

ROOT = Path(__file__).resolve().parents[3]
MUTANTS = int(os.environ.get("SAVED_MUTANTS", "120"))
KILLS = int(os.environ.get("SAVED_KILLS", "4"))
HEADER, ENTRY = 64, 64


def cli(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "domainbuilder", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def hello(sample_guest: Callable[[str], Path]) -> Path:
    return sample_guest("hello")


@pytest.fixture(scope="module")
def saved(hello: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hello, saved after its second tick."""
    path = tmp_path_factory.mktemp("saved") / "hello.domain"
    with launch(hello, cmdline="ticks=3") as dom:
        dom.console.expect("tick 2,")
        dom.save(path)
    return path


def the_rest(dom: RunningDomain) -> tuple[str, str, object]:
    """What a domain does to its end."""
    dom.console.expect("hello> ")
    dom.console.send("halt\n")
    outcome = dom.wait()
    return outcome.reason, dom.console.transcript, dom.stats()


def test_a_saved_domain_goes_on_as_the_one_that_was_not_disturbed(hello: Path, tmp_path: Path) -> None:
    with launch(hello, cmdline="ticks=3") as dom:
        undisturbed = the_rest(dom)
    path = tmp_path / "domain"
    with launch(hello, cmdline="ticks=3") as dom:
        dom.console.expect("tick 2,")
        dom.save(path)
        assert the_rest(dom) == undisturbed
    with restore(path) as dom:
        assert the_rest(dom) == undisturbed
        assert dom.plan is not None
        assert dom.plan.kernel == hello.name


def test_it_goes_on_in_another_process_by_the_command_line(hello: Path, tmp_path: Path) -> None:
    path, again = tmp_path / "domain", tmp_path / "again"
    whole = cli(
        "launch", hello, "--cmdline", "ticks=3", "--expect", "hello> ", "--send", r"halt\n", "--stats"
    )
    first = cli("launch", hello, "--cmdline", "ticks=3", "--save-at", "tick 1,", "-o", path)
    assert (first.returncode, first.stderr.count("\n")) == (0, 1)
    assert first.stderr.startswith(f"domainbuilder: the domain was saved: {path}, ")
    second = cli("restore", path, "--save-at", "0.015", "-o", again)
    assert second.returncode == 0
    third = cli("restore", again, "--expect", "hello> ", "--send", r"halt\n", "--stats")
    assert third.returncode == 0
    assert first.stdout + second.stdout + third.stdout == whole.stdout
    ours = "on this host, this time:"
    assert third.stderr.partition(ours)[0] == whole.stderr.partition(ours)[0]


def test_a_guest_that_ends_before_it_is_saved(hello: Path, tmp_path: Path) -> None:
    path = tmp_path / "domain"
    ran = cli("launch", hello, "--send", r"halt\n", "--save-at", "900", "-o", path)
    assert (ran.returncode, path.exists()) == (1, False)
    said = "the guest powered off, and was not saved: 900 s of its time did not come"
    assert ran.stderr == f"domainbuilder: {said}\n"


def test_it_comes_through_a_pipe(saved: Path, tmp_path: Path) -> None:
    """And a pipe that nobody writes is one line, not a wait."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    nobody = cli("restore", pipe, stdin=subprocess.DEVNULL, timeout=60)
    assert (nobody.returncode, nobody.stderr.count("\n")) == (2, 1)
    with subprocess.Popen(["cat", saved], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        piped = cli("restore", f"/dev/fd/{cat.stdout.fileno()}", "--expect", "tick 3,",
                    pass_fds=[cat.stdout.fileno()], timeout=60)  # fmt: skip
    assert piped.returncode == 0, piped.stderr
    assert "tick 3," in piped.stdout


def test_what_was_matched_stays_matched(saved: Path) -> None:
    with restore(saved) as dom:
        assert dom.console.read().startswith(" 20 ms later")
        assert "tick 1," in dom.console.transcript


def test_limits_count_from_where_it_was_saved(saved: Path) -> None:
    with restore(saved, max_guest_seconds=0.004) as dom:
        before = dom.stats().guest_ns
        assert dom.wait().reason == "timeout"
        assert 4_000_000 <= dom.stats().guest_ns - before < 4_100_000


@pytest.mark.guest
def test_debian_goes_on(guest_kernel: Callable[[str], Path], tmp_path: Path) -> None:
    kernel, path = guest_kernel("vmlinuz-bookworm-amd64"), tmp_path / "domain"
    options = {"memory_mib": 128, "cmdline": "console=hvc0 earlyprintk=xen", "vcpus": 2}
    with launch(kernel, **options) as dom:  # type: ignore[arg-type]
        dom.console.expect("Kernel command line")
        dom.save(path)
        dom.run_for(0.2)
        memory = hashlib.sha256(dom.machine.mem.view).digest()
        undisturbed = dom.console.transcript, dom.stats(), memory
    with restore(path) as dom:
        dom.run_for(0.2)
        memory = hashlib.sha256(dom.machine.mem.view).digest()
        assert (dom.console.transcript, dom.stats(), memory) == undisturbed


def test_it_says_what_it_is(saved: Path, hello: Path) -> None:
    assert is_frozen(saved)
    assert not is_frozen(hello)
    about = read_about(saved)
    assert (about["kernel"], about["memory_mib"], about["vcpus"]) == (hello.name, 64, 1)
    said = cli("launch", saved)
    assert said.returncode == 2
    assert "`domainbuilder restore` goes on with it" not in said.stderr
    assert "a saved domain, which `domainbuilder restore` goes on with" in said.stderr


def test_what_cannot_be_saved(hello: Path, tmp_path: Path) -> None:
    with launch(hello) as dom:
        dom.console.expect("hello> ")
        dom.console.send("halt\n")
        dom.wait()
        with pytest.raises(RuntimeError, match="has ended"):
            dom.save(tmp_path / "domain")
    with pytest.raises(RuntimeError, match="closed"):
        dom.save(tmp_path / "domain")
    assert not list(tmp_path.iterdir())


def test_usage(hello: Path, saved: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (("launch", hello, "--save-at", "x"), "both or neither"),
        (("launch", hello, "-o", tmp_path / "x"), "both or neither"),
        (("launch", hello, "--save-at", "x", "-o", hello), "would be overwritten"),
        (("launch", hello, "--save-at", "x", "-o", tmp_path / "no" / "x"), "no such directory"),
        (("launch", hello, "--save-at", "(", "-o", tmp_path / "x"), "no regular expression"),
        (("restore", saved, "--save-at", "x", "-o", saved), "would be overwritten"),
        (("restore", hello), "not a frozen domain"),
        (("restore", tmp_path), "not a regular file"),
        (("restore", tmp_path / "none"), "No such file"),
    ):
        done = cli(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert said in done.stderr
    ended = cli("launch", hello, "--save-at", "never", "-o", tmp_path / "x", "--send", r"halt\n")
    assert ended.returncode == 1
    assert not (tmp_path / "x").exists()


# --- damaged, and made up -----------------------------------------------------------------------------------


def refused(data: bytes, folder: Path) -> str:
    path = folder / "damaged"
    path.write_bytes(data)
    with pytest.raises(SavedError) as error:
        restore(path)
    line = str(error.value)
    assert line.startswith(f"{path}+0x")
    assert "\n" not in line
    return line.removeprefix(str(path))


def sealed(data: bytearray) -> bytes:
    """With the checksums put right."""
    for at in range(HEADER, HEADER + 5 * ENTRY, ENTRY):
        offset, size = struct.unpack_from("<QQ", data, at + 8)
        data[at + 32 : at + 64] = hashlib.sha256(data[offset : offset + size]).digest()
    table = data[HEADER : HEADER + 5 * ENTRY]
    data[32:64] = hashlib.sha256(data[:32] + table).digest()
    return bytes(data)


def test_the_format_is_the_one_that_is_described(saved: Path) -> None:
    """Read by its description in docs/saving.md alone."""
    import cbor2
    from backports import zstd

    data = saved.read_bytes()
    assert data[:16] == MAGIC
    assert struct.unpack_from("<IIQ", data, 16) == (1, 5, len(data))
    assert sealed(bytearray(data)) == data
    sections = {}
    for at in range(HEADER, HEADER + 5 * ENTRY, ENTRY):
        name, offset, size, unpacked = struct.unpack_from("<8sQQQ", data, at)
        sections[name.rstrip(b"\0").decode()] = data[offset : offset + size], unpacked
    assert list(sections) == ["about", "session", "state", "runs", "pages"]
    assert cbor2.loads(sections["about"][0]) == read_about(saved)
    state = cbor2.loads(zstd.decompress(sections["state"][0]))
    assert len(state["domains"]) == 1
    runs = struct.iter_unpack("<QQ", zstd.decompress(sections["runs"][0]))
    packed, at, memory = sections["pages"][0], 0, b""
    while at < len(packed):
        (size,) = struct.unpack_from("<I", packed, at)
        memory += zstd.decompress(packed[at + 4 : at + 4 + size])
        at += 4 + size
    assert len(memory) == sections["pages"][1]
    with restore(saved) as dom:
        for first, count in runs:
            here = dom.machine.mem.view[first * 4096 : (first + count) * 4096]
            assert here == memory[: count * 4096]
            memory = memory[count * 4096 :]
    assert not memory


def test_every_cut_is_refused(saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    for size in (0, 1, 15, 63, 64, 200, HEADER + 5 * ENTRY, len(data) // 2, len(data) - 1):
        refused(data[:size], tmp_path)
    assert "has something behind its end" in refused(data + b"x", tmp_path)


def test_every_changed_byte_is_refused_with_its_section(saved: Path, tmp_path: Path) -> None:
    data, chance = saved.read_bytes(), random.Random(5)
    for _ in range(MUTANTS):
        changed = bytearray(data)
        at = chance.choice((chance.randrange(HEADER + 5 * ENTRY), chance.randrange(len(data))))
        changed[at] ^= 1 << chance.randrange(8)
        line = refused(bytes(changed), tmp_path)
        assert int(line[3:].partition(":")[0], 16) <= at or at < HEADER + 5 * ENTRY


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (16, struct.pack("<I", 2), "of another version of domainbuilder; found 0x2; expected 0x1"),
        (20, struct.pack("<I", 4), "other sections; found 0x4; expected 0x5"),
        (HEADER, b"abouts\0\0", "another section comes here; found abouts; expected about"),
        (HEADER + ENTRY + 8, struct.pack("<Q", 1 << 63), "section session lies elsewhere"),
        (HEADER + 2 * ENTRY + 24, struct.pack("<Q", 1 << 40), "section state is too large"),
        (HEADER + 2 * ENTRY + 24, struct.pack("<Q", 1 << 26), "section state cannot be unpacked"),
        (HEADER + 2 * ENTRY + 24, struct.pack("<Q", 7), "section state cannot be unpacked"),
        (HEADER + 4 * ENTRY + 24, struct.pack("<Q", 4096), "the stretches are not those of the pages"),
    ],
)
def test_a_header_that_was_made_up(saved: Path, tmp_path: Path, at: int, value: bytes, said: str) -> None:
    data = bytearray(saved.read_bytes())
    data[at : at + len(value)] = value
    if at > 24:
        table = data[HEADER : HEADER + 5 * ENTRY]
        data[32:64] = hashlib.sha256(data[:32] + table).digest()
    assert said in refused(bytes(data), tmp_path)


def test_values_that_no_host_has_are_refused_by_name(saved: Path) -> None:
    frozen = read_frozen(saved)
    domain = frozen.state.domains[0]
    vcpu = domain.owners["vcpu0"]
    for field, value, expected in (
        ("cr3_mfn", 0x7FFFFFFF, "a number from"),
        ("info", [None, 1 << 62], "a number from"),
        ("saved_state", b"", "5464 to 5464 bytes"),
        ("vcpu_id", 1, "a number from 0x0 to 0x0"),
        ("kernel_mode", 1, "true or false"),
        ("gdt_frames", ["tuple", [1]], "a tuple of at most 14"),
    ):
        kept, vcpu[field] = vcpu[field], value
        with pytest.raises(StateError, match=f"vcpu0.{field}") as error:
            Host.restore(frozen.state)
        assert expected in error.value.expected
        vcpu[field] = kept
    vcpu["__class__"] = 1
    with pytest.raises(StateError, match="vcpu0"):
        Host.restore(frozen.state)


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (604, struct.pack("<I", 8), "FPU's stack"),
        (777, b"\x04", "rounding"),
        (176, struct.pack("<I", 0), "no mode of a guest"),
        (1 << 12, b"\xff", "not for a guest to change"),
        (352, struct.pack("<I", 8), "task register"),
    ],
)
def test_a_processor_that_no_guest_has_is_refused(saved: Path, at: int, value: bytes, said: str) -> None:
    frozen = read_frozen(saved)
    context = frozen.state.domains[0].context
    state = bytearray(context["state"])
    state[at : at + len(value)] = value
    context["state"] = bytes(state)
    with pytest.raises(StateError, match=said):
        Host.restore(frozen.state)


def test_interfaces_that_no_domain_has_are_refused(hello: Path, tmp_path: Path) -> None:
    path = tmp_path / "saved"
    with launch(hello, timeout=60, vifs=["mac=00:16:3e:00:00:01"]) as dom:
        dom.save(path)
    state = read_frozen(path).state
    options = state.domains[0].options
    vif = options["vifs"][0]
    made_up: list[Any] = ["x", [1], ["mac"], [{}], [vif | {"devid": -1}], [vif | {"rate": "1"}], [vif] * 65]
    for options["vifs"] in made_up:
        with pytest.raises(StateError) as error:
            Host.restore(state, lambda _domid, _data: None)
        assert error.value.name == "domain 1.options.vifs"
    options["vifs"] = [vif]
    assert Host.restore(state, lambda _domid, _data: None).machines[1].devices.vifs[0].devid == 0


def test_made_up_values_are_a_domain_that_misbehaves_at_worst(saved: Path) -> None:
    """`SAVED_MUTANTS=100000` by hand."""
    done = subprocess.run(
        hostile.run(saved, 1, 0, MUTANTS), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    without, ran = map(int, done.stdout.split())
    assert without + ran == MUTANTS
    assert min(without, ran) > MUTANTS // 30


# --- whole or not at all ------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_written_leaves_guest_and_old_file_whole(saved: Path, tmp_path: Path) -> None:
    old = tmp_path / "domain"
    old.write_bytes(b"an old file")
    program = f"""
import resource, sys
from domainbuilder import restore
with restore({str(saved)!r}) as dom:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        dom.save({str(old)!r})
    except OSError as error:
        print(error.filename)
    dom.console.expect("hello> ")
"""
    ignore = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
    done = subprocess.run(
        [sys.executable, "-c", ignore + program], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{old}\n"
    assert old.read_bytes() == b"an old file"
    assert list(tmp_path.iterdir()) == [old]


def test_a_kill_leaves_the_old_file_or_the_new_one(saved: Path, tmp_path: Path) -> None:
    """`SAVED_KILLS=200` by hand."""
    path, chance = tmp_path / "domain", random.Random(9)
    program = f"""
from domainbuilder import restore
with restore({str(saved)!r}) as dom:
    print("saving", flush=True)
    while True:
        dom.save({str(path)!r})
"""
    for _ in range(KILLS):
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(chance.random() / 10)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if path.exists():
            assert read_frozen(path).about == read_about(saved)
        assert set(tmp_path.iterdir()) <= {path}
    with pytest.raises(BuildError):
        restore(ROOT / "README.md")
