"""The plain profile: nothing of Unicorn but what it documents, and the same results."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from domainbuilder.conform.run import MEMORY_MIB, VCPUS, bundled
from domainbuilder.launch.domain import launch
from domainbuilder.launch.run_stats import Statistics
from hvcore.cpu import library, process_memory
from hvcore.cpu.patches import PATCHES

DOCUMENTED = {
    "uc_open", "uc_close", "uc_ctl", "uc_mem_map_ptr", "uc_hook_add", "uc_emu_start", "uc_emu_stop",
    "uc_reg_read",
    "uc_reg_write", "uc_context_alloc", "uc_context_save", "uc_context_restore", "uc_context_free",
    "uc_context_size",
}  # fmt: skip


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOMAINBUILDER_PLAIN", "1")


class Spy:
    """The library, and which of its functions were looked up."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> object:
        self.names.add(name)
        return getattr(self._library, name)


def hello(kernel: Path) -> tuple[Statistics, str]:
    with launch(kernel, timeout=120, cmdline="ticks=2") as dom:
        dom.console.expect("hello> ")
        dom.console.send("trap\nhalt\n")
        assert dom.wait().reason == "poweroff"
        return dom.stats(), dom.console.transcript


@pytest.mark.usefixtures("plain")
def test_nothing_is_called_that_is_not_documented(
    sample_guest: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(library.unicorn())
    monkeypatch.setattr(library, "unicorn", lambda: spy)
    before = {slot: ctypes.c_uint64.from_address(slot).value for slot in PATCHES.slots}
    hello(sample_guest("hello"))
    assert spy.names <= DOCUMENTED
    assert before == {slot: ctypes.c_uint64.from_address(slot).value for slot in PATCHES.slots}


def test_a_plain_run_is_the_run(sample_guest: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fast = hello(sample_guest("hello"))
    monkeypatch.setenv("DOMAINBUILDER_PLAIN", "1")
    assert hello(sample_guest("hello")) == fast


@pytest.mark.parametrize("name", ["event_channel", "multicall", "ptwr", "timers", "traps", "vcpus"])
def test_conformance_guests_find_the_same(name: str) -> None:
    with bundled() as guests:
        guest = next((guest for guest in guests if guest.name == name), None)
        if guest is None:
            pytest.fail(f"there is no {name}")
        results = []
        for plain in (False, True):
            with launch(guest.kernel, MEMORY_MIB, vcpus=VCPUS, timeout=120, plain=plain) as dom:
                assert dom.wait().reason == "poweroff"
                assert "SUCCESS" in dom.console.transcript
                results.append((dom.stats(), dom.console.transcript))
        assert results[0] == results[1]


def test_the_option_is_the_variable(sample_guest: Callable[[str], Path]) -> None:
    with launch(sample_guest("hello"), plain=True) as dom:
        assert dom.machine.engine.plain
        assert not dom.machine.engine.window.live
        assert not dom.machine.engine.native_pacing


PATCHED = """
import ctypes
from hvcore.cpu.patches import PATCHES
from hvcore.errors import EngineError
from tests.hvcore.rig import Rig
import signal
def words():
    return [ctypes.c_uint64.from_address(slot).value for slot in PATCHES.slots]
def once(rig):
    rig.code(0, "890500100000 cc")
    return rig.run(0)[0]
first, second = Rig(), Rig()
assert once(first) == once(second) == 3
ours, own = [w for w, _ in PATCHES.slots.values()], [w for _, w in PATCHES.slots.values()]
assert PATCHES.users == 2 and words() == ours != own
first.engine.close()
first.engine.close()
assert PATCHES.users == 1 and words() == ours
second.engine.close()
assert PATCHES.users == 0 and words() == own
third = Rig()
assert words() == ours and once(third) == 3
from tests.hvcore import opened
opened.forget()
del third
import gc; gc.collect()
assert PATCHES.users == 0 and words() == own
print(len(ours))
"""


def test_the_library_is_left_as_it_was_found() -> None:
    """In a process of its own, which has no engines but these."""
    environment = os.environ | {"DOMAINBUILDER_PLAIN": ""}
    command = [sys.executable, "-c", PATCHED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0 or process_memory.ranges("r") == []
