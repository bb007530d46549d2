"""A guest's first look around: equal to what it saw under real Xen 4.17."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from tests.hvcore import statedump_compare as comparison


@pytest.mark.parametrize("width", ["32", "64"])
@pytest.mark.parametrize("linuxlike", [False, True])
def test_the_initial_state_is_xens(
    width: str,
    linuxlike: bool,
    statedump: Callable[..., Path],
    statedump_ramdisk: Path,
) -> None:
    output = bytearray()
    with domainbuilder.launch(
        statedump(width, linuxlike=linuxlike),
        memory_mib=64,
        ramdisk=statedump_ramdisk,
        cmdline="hello=world",
        timeout=60,
        console_output=output.extend,
    ) as dom:
        assert dom.wait().reason == "poweroff"
    reference = f"domU-{width}" + ("-linuxlike" if linuxlike else "")
    assert comparison.compare(output.decode(), reference) == []


@pytest.mark.parametrize("name", ["domU-32", "domU-32-linuxlike", "domU-64", "domU-64-linuxlike"])
def test_a_reference_equals_itself(name: str) -> None:
    assert comparison.compare((comparison.DATA / f"{name}.txt").read_text(), name) == []


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("flags=0x021", "flags=0x023", "MAP[9].flags"),
        ("cs=0xe019", "cs=0xe01b", "REGS.cs"),
        ("mod_len=0xb5610", "mod_len=0xb6000", "START_INFO.mod_len"),
        ("pfn=0x1da", "pfn=0x1db", "L3E.pfn"),
        ("+0x0=101", "+0x0=1", "SHARED_INFO.+0x0"),
    ],
)
def test_a_difference_is_noticed(old: str, new: str, where: str) -> None:
    text = (comparison.DATA / "domU-32.txt").read_text()
    assert old in text
    assert [line.split(":")[0] for line in comparison.compare(text.replace(old, new), "domU-32")] == [where]


@pytest.mark.parametrize(("old", "new"), [("cr3=0x7f1d9000", "cr3=0x10000"), ("+0x28=ebca6d85", "+0x28=1")])
def test_machine_frames_and_time_are_masked(old: str, new: str) -> None:
    text = (comparison.DATA / "domU-32.txt").read_text()
    assert old in text
    assert comparison.compare(text.replace(old, new), "domU-32") == []


def test_no_dump_is_a_difference() -> None:
    assert comparison.compare("nothing", "domU-32") == ["no dump in the console's text"]
