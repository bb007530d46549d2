"""Divisions whose quotient does not fit are #DE to the guest, and nothing to this process."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DIVIDE_ERROR = 0

# What runs in a process of its own, which it would have ended: each dividend by each divisor.
_GUEST = """
from hvcore.cpu.processor import RAX, RBX, RDX
from tests.hvcore.rig import Rig
rig = Rig()
for code, high, low, divisor in {cases}:
    rig.code(0, code + "cc")
    rig.engine.flush_code()
    q = rig.engine.q
    q[RDX], q[RAX], q[RBX] = high, low, divisor
    vector, rip, _, _ = rig.run(0)
    print(vector, rip, f"{{q[RAX]:x}} {{q[RDX]:x}}")
"""
WORD, LONG = 0xFFFF, 0xFFFFFFFF


def divide(*cases: tuple[str, int, int, int]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _GUEST.format(cases=cases)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("code", "high", "low", "divisor"),
    [
        ("f7fb", 0x80000000, 0, LONG),  # idiv ebx: the one
        ("66f7fb", 0x8000, 0, WORD),
        ("f6fb", 0, 0x8000, 0xFF),
        ("f7fb", 0x80000000, 0, 0),
        ("f7fb", 0xC0000000, 0, LONG),
        ("f7f3", 1, 0, 1),
    ],
)
def test_an_overflow_is_a_divide_error(code: str, high: int, low: int, divisor: int) -> None:
    assert divide((code, high, low, divisor)) == [f"{DIVIDE_ERROR} 0 {low:x} {high:x}"]


def test_others_divide() -> None:
    assert divide(
        ("f7fb", 0x80000000, 0, LONG), ("f7fb", LONG, LONG - 6, LONG - 1), ("f7fb", 0, 7, LONG - 1)
    )[1:] == ["3 3 3 ffffffff", f"3 3 {LONG - 2:x} 1"]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="not on this processor: no trap")
def test_other_floating_point_exceptions_are_as_they_were() -> None:
    """An error elsewhere in the process still ends it, or goes to the handler that there was."""
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGFPE)"
    for first, said in (("", ""), ("import faulthandler; faulthandler.enable()", "exception")):
        done = subprocess.run(
            [sys.executable, "-c", f"{first}\nfrom tests.hvcore.rig import Rig\nrig = Rig()\n{kill}"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == -8
        assert said in done.stderr  # "Floating point exception", and with a hyphen from Python 3.13 on
