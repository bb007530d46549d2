"""launch --resume-at, and domains kept by a name: found again, by all that matters, or not used."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.errors import BuildError, SavedError
from domainbuilder.launch import domain as domain_module
from domainbuilder.launch.domain import RunningDomain
from domainbuilder.launch.options import Chosen
from domainbuilder.launch.session import ExpectEOF, ExpectTimeout
from domainbuilder.saved.kept import Inputs, KeptDomains, resume_at

PROMPT = "^hello> "


@pytest.fixture
def hello(sample_guest: Callable[[str], Path]) -> Path:
    return sample_guest("hello")


@pytest.fixture
def kept(tmp_path: Path) -> KeptDomains:
    return KeptDomains(tmp_path / "domains")


def ask(dom: RunningDomain) -> tuple[object, ...]:
    """A conversation to the end, and all that it can be told by."""
    with dom:
        dom.console.send("about\n")
        dom.console.expect(PROMPT)
        memory = dom.memory_sha256()
        dom.console.send("halt\n")
        outcome = dom.wait()
        return memory, outcome, dom.stats(), dom.console.transcript


def entry(kept: KeptDomains) -> Path:
    (path,) = kept.folder.glob("*.domain")
    return path


def test_the_second_stands_there_at_once_and_goes_on_as_the_first(hello: Path, kept: KeptDomains) -> None:
    printed: list[bytes] = []
    first = resume_at(hello, PROMPT, 16, kept=kept, console_output=printed.append, timeout=60)
    before, so_far = first.stats(), b"".join(printed)
    results = [ask(first)]
    for _ in range(2):
        again: list[bytes] = []
        dom = resume_at(hello, PROMPT, 16, kept=kept, console_output=again.append, timeout=60)
        assert again == [so_far]
        assert dom.stats() == before
        assert dom.console.read() == ""
        results.append(ask(dom))
        assert b"".join(again) == b"".join(printed)
    assert results[0] == results[1] == results[2]


def test_it_was_not_run_again(hello: Path, kept: KeptDomains, monkeypatch: pytest.MonkeyPatch) -> None:
    resume_at(hello, PROMPT, 16, kept=kept, timeout=60).close()
    monkeypatch.setattr(domain_module, "launch", None)
    resume_at(hello, PROMPT, 16, kept=kept).close()


def test_whatever_differs_is_another(hello: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.write_bytes(hello.read_bytes() + b"\0")
    ramdisks = [tmp_path / "a", tmp_path / "b"]
    for path in ramdisks:
        path.write_bytes(path.name.encode())
    copy = tmp_path / "copy"
    copy.write_bytes(hello.read_bytes())

    def key(kernel: Path = hello, memory: int | None = 16, until: str = PROMPT, **options: object) -> str:
        return Inputs(kernel, memory, until, Chosen(**options)).key  # type: ignore[arg-type]

    keys = [
        key(), key(other), key(memory=None), key(memory=17), key(until="^hello>"), key(cmdline="a"),
        key(cmdline="b"), key(cmdline=b"b"), key(ramdisk=ramdisks[0]), key(ramdisk=ramdisks[1]), key(vcpus=2),
        key(upper_ptwr=True), key(plain=True), key(guest_type="xen-3.0-x86_32p"),
        key(cap=50), key(name="other"), key(date="2026-11-30"), key(date="2026-11-30T00:00:01Z"),
        key(time_offset=1), key(vfb="vnc=0"),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key(copy) == keys[0] == key(timeout=5, symbols="x", console_output=print)
    assert key(ramdisk=b"a") == key(ramdisk=ramdisks[0])
    assert key(date="2026-11-30T01:00:00+01:00") == key(date="2026-11-30")
    monkeypatch.setenv("DOMAINBUILDER_PLAIN", "1")
    assert key() == key(plain=True) != keys[0]
    monkeypatch.undo()
    monkeypatch.setattr(domainbuilder, "__version__", "0.0.0")
    assert key() != keys[0]


def test_every_option_is_part_of_the_key_or_known_not_to_matter() -> None:
    """One that is added has to be put into the key, or in here, with its reason."""
    in_key = {
        "ramdisk", "cmdline", "guest_type", "vcpus", "max_vcpus", "maxmem_mib", "upper_ptwr", "cap", "name",
        "uuid", "vfb", "plain", "date", "time_offset",
    }  # fmt: skip
    guards = {"timeout", "max_guest_seconds"}  # they end a run, and change none
    shown = {"console_output", "symbols", "cache", "past"}  # what is done outside of the guest
    refused = {"record", "replay", "disks", "vifs"}
    assert {field.name for field in fields(Chosen)} == in_key | guards | shown | refused


def test_what_is_no_file_is_refused(tmp_path: Path, kept: KeptDomains, hello: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(BuildError, match="cannot be read twice"):
        resume_at(pipe, PROMPT, kept=kept)
    with pytest.raises(BuildError, match="No such file"):
        resume_at(tmp_path / "none", PROMPT, kept=kept)
    with pytest.raises(BuildError, match="disks is not kept"):
        resume_at(hello, PROMPT, kept=kept, disks=["disk.img,raw,xvda,w"])
    with pytest.raises(BuildError, match="with interfaces is not kept"):
        resume_at(hello, PROMPT, kept=kept, vifs=["type=user"])
    with pytest.raises(BuildError, match="recorded or replayed"):
        resume_at(hello, PROMPT, kept=kept, record=True)


def test_a_place_that_is_not_reached_is_not_kept(hello: Path, kept: KeptDomains) -> None:
    with pytest.raises(ExpectEOF):
        resume_at(hello, "never", 16, kept=kept, timeout=60)
    assert not kept.folder.exists()


def test_guest_time_counts_from_the_start(hello: Path, kept: KeptDomains) -> None:
    ends = []
    for _ in range(2):
        with resume_at(hello, "tick 1,", 16, kept=kept, max_guest_seconds=0.02, timeout=60) as dom:
            with pytest.raises(ExpectTimeout, match="its own time"):
                dom.console.expect("tick 3,")
            ends.append(dom.stats())
    assert ends[0] == ends[1]


def test_a_kernel_that_changes_meanwhile_is_not_kept(hello: Path, kept: KeptDomains, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(hello.read_bytes())

    def touch(_data: bytes) -> None:
        kernel.write_bytes(hello.read_bytes())

    resume_at(kernel, PROMPT, 16, kept=kept, console_output=touch).close()
    assert not kept.folder.exists()


# --- what is damaged


def used(hello: Path, kept: KeptDomains) -> list[str]:
    """What is told when the entry is looked for; the domain that comes of it is a good one."""
    told: list[str] = []
    with resume_at(hello, PROMPT, 16, kept=kept, tell=told.append, timeout=60) as dom:
        dom.console.send("halt\n")
        assert dom.wait().reason == "poweroff"
        assert dom.console.transcript.endswith("hello> halt\nbye\n")
    return told


def test_damaged_entries_are_one_line_and_a_fresh_boot(hello: Path, kept: KeptDomains) -> None:
    chance = random.Random(13)
    used(hello, kept)
    for _ in range(int(os.environ.get("DAMAGES", "12"))):
        assert used(hello, kept) == []
        path = entry(kept)
        data = bytearray(path.read_bytes())
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        else:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        (line,) = used(hello, kept)
        assert line.startswith("a kept domain is not used: ")
        assert "\n" not in line
        assert str(path) in line


@pytest.mark.parametrize("how", ["altered", "cut", "gone", "replaced", "linked", "others"])
def test_memory_that_is_not_what_was_kept(hello: Path, kept: KeptDomains, how: str) -> None:
    used(hello, kept)
    (memory,) = kept.folder.glob("*.memory")
    data = memory.read_bytes()
    if how == "altered":
        with memory.open("r+b") as file:
            file.write(b"\1")
    elif how == "cut":
        os.truncate(memory, len(data) - 4096)
    elif how == "others":
        memory.chmod(0o666)
    else:
        times = memory.stat().st_mtime_ns
        memory.unlink()
        if how == "replaced":
            memory.write_bytes(data)
            memory.chmod(0o600)
            os.utime(memory, ns=(times, times))
        elif how == "linked":
            target = kept.folder.parent / "target"
            target.write_bytes(data)
            memory.symlink_to(target)
    (line,) = used(hello, kept)
    assert str(memory) in line
    assert used(hello, kept) == []


def test_an_entry_of_something_else_is_not_used(hello: Path, kept: KeptDomains) -> None:
    used(hello, kept)
    path = entry(kept)
    elsewhere = path.with_name(f"{'0' * 64}.domain")
    path.rename(elsewhere)
    with pytest.raises(SavedError, match="of something else"):
        kept.find("0" * 64, 0.0, Chosen())
    elsewhere.rename(path)
    path.chmod(0o644)
    assert "others may have written" in used(hello, kept)[0]


# --- many at a time, and ends

KEEPER = """
import sys
from pathlib import Path
from domainbuilder.saved.kept import KeptDomains, resume_at
kept = KeptDomains(Path({folder!r}))
print("ready", flush=True)
for n in range({turns}):
    for path in kept.folder.glob("*.domain") if {again} else ():
        path.unlink(missing_ok=True)
    with resume_at({hello!r}, "^hello> ", 16, kept=kept, tell=lambda text: print("TOLD", text)) as dom:
        dom.console.send("halt\\n")
        assert dom.wait().reason == "poweroff"
        print(dom.stats().guest_ns, flush=True)
"""


def keeper(hello: Path, kept: KeptDomains, turns: int, *, again: bool) -> subprocess.Popen[str]:
    code = KEEPER.format(folder=str(kept.folder), hello=str(hello), turns=turns, again=again)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_several_writers_and_readers(hello: Path, kept: KeptDomains) -> None:
    keepers = [keeper(hello, kept, 3, again=True), keeper(hello, kept, 3, again=False)]
    words = [one.communicate()[0].split() for one in keepers]
    assert [one.returncode for one in keepers] == [0, 0]
    times = {word for line in words for word in line if word.isdigit()}
    assert len(times) == 1
    assert used(hello, kept) == []


def test_killed_at_any_moment(hello: Path, kept: KeptDomains) -> None:
    chance = random.Random(5)
    for _ in range(int(os.environ.get("KILLS", "4"))):
        with keeper(hello, kept, 1000, again=True) as process:
            assert process.stdout
            process.stdout.readline()
            time.sleep(chance.random() * 0.6)
            process.send_signal(signal.SIGKILL)
            assert not [line for line in process.stdout if "TOLD" in line]
        assert used(hello, kept) == []


def test_bounds(hello: Path, tmp_path: Path) -> None:
    kept = KeptDomains(tmp_path / "domains", most_domains=2)
    for n in range(4):
        resume_at(hello, PROMPT, 16, kept=kept, cmdline=str(n), timeout=60).close()
        for number, path in enumerate(sorted(kept.folder.iterdir(), key=lambda path: path.stat().st_mtime)):
            if path.suffix == ".domain":
                os.utime(path, (number, number + 1))
    assert len(list(kept.folder.glob("*.domain"))) == 2
    assert len(list(kept.folder.glob("*.memory"))) == 2
    left = kept.folder / ".abandoned.partial"
    left.write_bytes(b"")
    os.utime(left, (1, 1))
    resume_at(hello, PROMPT, 16, kept=kept, cmdline="5", timeout=60).close()
    assert not left.exists()
