"""Conformance guests: what Xen 4.17 does and refuses, asked by a guest at ring 1, and by a 64-bit one.

tests/domainbuilder/conform compiles all of them, and compares them with those that run here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.conform.run import KNOWN_GAPS, Verdict, judge

SOURCES = Path(__file__).resolve().parent.parent.parent / "samples" / "conformance"
NAMES = sorted(path.stem for path in SOURCES.glob("*.c") if path.stem != "conform")


def case(name: str) -> object:
    gap = KNOWN_GAPS.get(name)  # strict: a mended one has to leave the table
    return pytest.param(name, marks=pytest.mark.xfail(strict=True, reason=gap)) if gap else name


@pytest.mark.parametrize("suffix", ["32", "64"])
@pytest.mark.parametrize("name", [case(name) for name in NAMES])
def test_conformance(name: str, suffix: str, conformance_guest: Callable[[str], Path]) -> None:
    output = bytearray()
    with domainbuilder.launch(
        conformance_guest(f"{name}-{suffix}"),
        memory_mib=64,
        vcpus=2,
        timeout=60,
        console_output=output.extend,
    ) as dom:
        outcome = dom.wait()
    verdict, messages = judge(output.decode(errors="replace").replace("\r\n", "\n"), outcome)
    assert (verdict, messages) == (Verdict.SUCCESS, ())


@pytest.mark.parametrize("suffix", ["32", "64"])
def test_both_widths_are_built_from_one_source(suffix: str, conformance_guest: Callable[[str], Path]) -> None:
    sizes = {name: conformance_guest(f"{name}-{suffix}").stat().st_size for name in NAMES}
    assert min(sizes.values()) > 4096
    assert max(sizes.values()) < 64 * 1024
