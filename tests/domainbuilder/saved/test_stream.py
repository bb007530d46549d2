"""Xen's migration stream: Xen's own tools accept ours, a stream of real Xen boots on here."""

from __future__ import annotations

import lzma
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from domainbuilder import Outcome, RunningDomain, SavedError, launch, restore
from domainbuilder.saved.suspend import suspend
from hvcore.pv.audit import audit
from hvcore.pv.vcpu_context import arch_get_info_guest, arch_set_info_guest
from tests.domainbuilder.saved import hostile_stream

ROOT = Path(__file__).resolve().parents[3]
REAL = Path(__file__).with_name("data")
MUTANTS = int(os.environ.get("SAVED_MUTANTS", "60"))
WIDTHS = ("32", "64")
XEN = Path("/usr/lib/xen-4.17")
MIB = 8


@pytest.fixture(scope="module")
def saved(suspend_guests: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The guest of each width, suspended before its first round is over."""
    folder = tmp_path_factory.mktemp("streams")
    for width in WIDTHS:
        with launch(suspend_guests[width], MIB, cmdline="rounds=1", max_guest_seconds=60) as dom:
            dom.console.expect("ready for round 1")
            dom.save(folder / width, "xen")
            assert dom.outcome == Outcome("suspend")
    return {width: folder / width for width in WIDTHS}


def verified(path: Path) -> str:
    """What verify-stream-v2 of Debian's xen-utils-4.17 says of a file."""
    program = XEN / "bin" / "verify-stream-v2"
    if not program.exists():
        assert not os.environ.get("CI"), "xen-utils-4.17 is not installed"
        pytest.skip("xen-utils-4.17 is not installed")
    command = ["/usr/bin/python3", str(program), "-v", "-f", "xl", "-i", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(XEN / "lib" / "python")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def goes_on(dom: RunningDomain) -> None:
    dom.console.expect("resumed after round 1")
    assert dom.wait().reason == "poweroff"
    assert "Test result: SUCCESS" in dom.console.transcript
    assert audit(dom.machine.domain) == []


def not_saved_after_all(dom: RunningDomain) -> str:
    """The guest suspends and is resumed here; what it prints then, until it powers off."""
    suspend(dom)
    dom.resume()
    assert dom.wait().reason == "poweroff"
    return dom.console.read().replace("\r", "")


@pytest.mark.parametrize("width", WIDTHS)
def test_xens_own_tool_accepts_it(saved: dict[str, Path], width: str) -> None:
    said = verified(saved[width])
    assert f"{width}bit guest" in said
    assert "vcpu0 basic context" in said
    assert said.count("Libxc Record: ") == 8


@pytest.mark.parametrize("width", WIDTHS)
def test_it_goes_on_with_other_frames(saved: dict[str, Path], width: str) -> None:
    with restore(saved[width], max_guest_seconds=60) as dom:
        assert dom.plan is None
        goes_on(dom)


@pytest.mark.parametrize("width", WIDTHS)
def test_what_real_xen_saved_goes_on_here(tmp_path: Path, width: str) -> None:
    """`xl save` of Xen 4.17.7 wrote data/suspend-*.xl.xz, of samples/suspend (samples/README.md)."""
    path = tmp_path / "stream"
    path.write_bytes(lzma.decompress((REAL / f"suspend-{width}.xl.xz").read_bytes()))
    with restore(path, max_guest_seconds=60) as dom:
        assert dom.machine.name == f"suspend-{width}"
        goes_on(dom)


@pytest.mark.parametrize("width", WIDTHS)
def test_ours_has_what_real_xens_has(saved: dict[str, Path], width: str) -> None:
    """Records in their order and of their sizes; what the guest's own registers and tables say."""
    real = lzma.decompress((REAL / f"suspend-{width}.xl.xz").read_bytes())
    ours, theirs = (list(records(data)) for data in (saved[width].read_bytes(), real))
    policies = {0x11, 0x12}  # of the processor: a restored guest gets the one that is there
    shape = [(kind, len(data)) for kind, data in theirs if kind not in policies]
    assert [(kind, len(data)) for kind, data in ours] == shape
    same = {2, 3, 0x10}
    assert [row for row in ours if row[0] in same] == [row for row in theirs if row[0] in same]
    assert words(ours) == words(theirs)


def records(data: bytes) -> list[tuple[int, bytes]]:
    at = 48 + struct.unpack_from("<I", data, 44)[0] + 16 + 8 + 24 + 16
    found = []
    while at < len(data) - 8:
        kind, length = struct.unpack_from("<II", data, at)
        found.append((kind, data[at + 8 : at + 8 + length]))
        at += 8 + -(-length // 8) * 8
    return found


def words(rows: list[tuple[int, bytes]]) -> list[int]:
    """The types and numbers of all frames."""
    found: list[int] = []
    for kind, data in rows:
        if kind == 1:
            found += struct.unpack_from(f"<{struct.unpack_from('<I', data)[0]}Q", data, 8)
    return found


@pytest.mark.parametrize("width", WIDTHS)
def test_a_guest_that_is_not_saved_after_all_goes_on(
    suspend_guests: dict[str, Path], width: str, tmp_path: Path
) -> None:
    with launch(suspend_guests[width], MIB, cmdline="rounds=2", max_guest_seconds=60) as dom:
        dom.console.expect("ready for round 1")
        suspend(dom)
        dom.resume()
        dom.console.expect("cancelled in round 1")
        dom.console.expect("ready for round 2")
        dom.machine.domain.shared_info[dom.machine.domain.abi.arch_shared_info] ^= 0xFF  # max_pfn
        dom.machine.domain.shared_info[dom.machine.domain.abi.arch_shared_info + 3] = 0xFF
        with pytest.raises(RuntimeError, match="has not suspended"):
            dom.resume()
        assert dom.wait().reason == "timeout"
    assert not list(tmp_path.iterdir())


def test_a_guest_that_does_not_suspend_goes_on(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    with launch(sample_guest("hello")) as dom:
        dom.console.expect("hello> ")
        with pytest.raises(SavedError, match=r"^Bad mfn 0 for p2m frame list list: .* in the frozen form$"):
            dom.save(tmp_path / "stream", "xen")
        dom.machine.domain.shared_info[dom.machine.domain.abi.arch_shared_info + 4] = 1  # as if it had a list
        with pytest.raises(SavedError, match=r"didn't acknowledge .* watches no control/shutdown"):
            dom.save(tmp_path / "stream", "xen")
        dom.console.send("halt\n")
        assert dom.wait().reason == "poweroff"
    assert not list(tmp_path.iterdir())


def test_it_is_a_way_of_the_command_line(suspend_guests: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "stream"
    options = ["--save-at", "ready for", "--save-as", "xen", "-o", str(path)]
    first = subprocess.run(
        [sys.executable, "-m", "domainbuilder", "launch", suspend_guests["64"], "-m", str(MIB), *options],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "the domain was saved" in first.stderr
    command = [sys.executable, "-m", "domainbuilder", "restore", str(path), "--expect", "SUCCESS"]
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert second.stdout.replace("\r", "") == "resumed after round 1\nTest result: SUCCESS\n"


@pytest.mark.guest
def test_a_context_is_what_was_set(guest_kernel: Callable[[str], Path]) -> None:
    """arch_get_info_guest() gives what arch_set_info_guest() makes the same vCPU of, its FPU included."""
    with launch(guest_kernel("vmlinuz-bookworm-amd64"), 96, cmdline="console=hvc0 earlyprintk=xen") as dom:
        dom.console.expect("Linux version")
        dom.run_for(0.05)
        v, state = dom.machine.domain.vcpus[0], dom.machine.engine.save_state()
        context = arch_get_info_guest(v, state)
        assert arch_set_info_guest(v, context) == 0
        assert v.saved_state is not None
        assert arch_get_info_guest(v, v.saved_state) == context


# --- refused ------------------------------------------------------------------------------------------------


def test_made_up_streams_are_refused_or_run(saved: dict[str, Path]) -> None:
    """`SAVED_MUTANTS=100000` by hand."""
    for width in WIDTHS:
        command = hostile_stream.run(saved[width], 3, 0, MUTANTS)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        refused, ran = map(int, done.stdout.split())
        assert refused + ran == MUTANTS
        assert min(refused, ran) > MUTANTS // 20


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (0, b"Y", "not a frozen domain"),
        (32, b"\1\2\3\4", "of another byte order"),
        (36, b"\x07", "mandatory flag(s) which are not supported"),
        (44, b"\xff\xff\xff\xff", "xl's optional data is too large"),
        (60, b"\xff", "xl's configuration is no JSON"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    saved: dict[str, Path], tmp_path: Path, at: int, value: bytes, said: str
) -> None:
    data = bytearray(saved["64"].read_bytes())
    data[at : at + len(value)] = value
    path = tmp_path / "stream"
    path.write_bytes(data)
    with pytest.raises(SavedError) as refused:
        restore(path)
    line = str(refused.value)
    assert said in line
    assert line.startswith(f"{path}+0x")
    assert "\n" not in line


def test_every_cut_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    data, path = saved["32"].read_bytes(), tmp_path / "stream"
    for size in (33, 47, 100, 500, 5000, len(data) // 2, len(data) - 3000, len(data) - 8, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(SavedError, match="the stream is cut short"):
            restore(path)
    path.write_bytes(data + b"x")
    with pytest.raises(SavedError, match="something follows the stream"):
        restore(path)
