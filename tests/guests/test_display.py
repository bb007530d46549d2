"""Debian's kernels draw their text terminal in a framebuffer: it is seen, typed at, saved, and seen again."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import domainbuilder
from domainbuilder import RunningDomain
from hvcore.given import Key, Pointer
from hvcore.pv.audit import audit
from tests.needs import find_tool

CMDLINE = "console=hvc0 quiet loglevel=1"
COLUMNS, ROWS = 100, 37
READ, PROMPT = 9, 5  # rows: an expectation has to match within 4096 characters
KEYS = {"a": 30, "c": 46, "e": 18, "h": 35, "o": 24, "x": 45, " ": 57, "\n": 28}  # of linux/input.h
# The guest's own text of its terminal, without the cursor, which blinks.
VCS = b"#!/bin/sh\nprintf '\\033[?25l' >/dev/tty1\nsleep 1\nhead -c 900 /dev/vcs1 | od -An -v -tx1\n"


def cells(png: bytes) -> list[list[bytes]]:
    """The picture of each character's cell: 8 by 16 pixels."""
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.size == (800, 600)
        return [
            [picture.crop((8 * x, 16 * y, 8 * x + 8, 16 * y + 16)).tobytes() for x in range(COLUMNS)]
            for y in range(ROWS)
        ]


def glyphs(png: bytes, lines: list[str]) -> dict[str, bytes]:
    """Character -> its picture, where each has one and no two have the same."""
    found: dict[str, bytes] = {}
    rows = cells(png)
    for row, line in zip(rows, lines + [" " * COLUMNS] * (ROWS - READ), strict=True):
        for cell, letter in zip(row, line, strict=True):
            assert found.setdefault(letter, cell) == cell, letter
    assert len(set(found.values())) == len(found)
    return found


def read(png: bytes, known: dict[str, bytes]) -> list[str]:
    """The text in a picture, by the characters that are known; ? for others and the cursor."""
    letters = {cell: letter for letter, cell in known.items()}
    return ["".join(letters.get(cell, "?") for cell in row).rstrip() for row in cells(png)]


def on_screen(dom: RunningDomain) -> list[str]:
    """What the guest says is on its terminal; its console stands at the prompt."""
    dom.console.send("vcs; echo END''\n")
    dump = dom.console.expect(r"(?s)END''\r?\n(.*?)END\r?\n")[1]
    text = bytes.fromhex("".join(dump.split())).decode("latin-1")
    return [text[at : at + COLUMNS] for at in range(0, COLUMNS * READ, COLUMNS)]


def type_at_screen(dom: RunningDomain, text: str) -> None:
    for letter in text:
        for pressed in (True, False):
            dom.machine.input(Key(KEYS[letter], pressed))


@pytest.fixture(params=["bookworm", "trixie"])
def kernel(request: pytest.FixtureRequest, guest_kernel: Callable[[str], Path]) -> Path:
    return guest_kernel(f"vmlinuz-{request.param}-amd64")


@pytest.mark.guest
def test_the_terminal_is_seen_and_typed_at(
    kernel: Path, ramdisk: Callable[..., Path], tmp_path: Path
) -> None:
    """What the guest says is on its screen, /dev/vcs1, is what the picture shows, cell by cell."""
    with domainbuilder.launch(
        kernel,
        memory_mib=128,
        ramdisk=ramdisk("screen.sh", {"vcs": VCS}),
        cmdline=CMDLINE,
        vfb="vnc=0",
        timeout=600,
    ) as dom:
        dom.console.expect("guest# ")
        lines = on_screen(dom)
        assert lines[PROMPT].rstrip() == "screen#"
        known = glyphs(dom.screenshot(), lines)
        type_at_screen(dom, "echo ceh aa xx\n")
        dom.console.expect("guest# ")
        lines = on_screen(dom)
        assert [line.rstrip() for line in lines[PROMPT:][:3]] == [
            "screen# echo ceh aa xx",
            "ceh aa xx",
            "screen#",
        ]
        known |= glyphs(dom.screenshot(), lines)
        assert audit(dom.machine.domain) == []
        dom.save(tmp_path / "saved")
        before, again = dom.stats(), dom.screenshot()
        assert dom.screenshot() == again
        assert dom.stats() == before  # who looks changes nothing

    with domainbuilder.restore(tmp_path / "saved", timeout=600) as dom:
        assert dom.screenshot() == again
        type_at_screen(dom, "xxaa")
        dom.run_for(1.0)
        assert read(dom.screenshot(tmp_path / "shot.png"), known)[PROMPT + 2] == "screen# xxaa"
        assert audit(dom.machine.domain) == []
        shown = (tmp_path / "shot.png").read_bytes()
        assert shown == dom.screenshot()
        dom.console.send("poweroff -f\n")
        assert dom.wait().reason == "poweroff"
        assert read(dom.screenshot(), known)[PROMPT + 2] == "screen# xxaa"  # what was seen last


@pytest.mark.guest
def test_the_command_takes_a_picture(
    guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path], tmp_path: Path
) -> None:
    kernel, disk = guest_kernel("vmlinuz-bookworm-amd64"), ramdisk("screen.sh")
    arguments = [kernel, "-m", "128", "--ramdisk", disk, "--cmdline", CMDLINE, "--expect", "guest# "]
    arguments += ["--until-match", "--screenshot", "shot.png"]

    def launch(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "domainbuilder", "launch", *map(str, arguments), *more]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    without = launch()
    assert (without.returncode, list(tmp_path.iterdir())) == (2, [])
    assert re.search(r"--screenshot: the domain has no framebuffer \(--vfb\)", without.stderr)
    done = launch("--vfb", "vnc=0")
    assert done.returncode == 0, done.stderr
    assert len(cells((tmp_path / "shot.png").read_bytes())) == ROWS
    early = launch("--vfb", "vnc=0", "--screenshot-at", "0.001")
    assert (early.returncode, "nothing yet" in early.stderr) == (2, True)


@pytest.mark.guest
def test_people_see_it_and_type_by_vnc(
    guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path], tmp_path: Path
) -> None:
    """Two viewers of other people's: one takes a snapshot, one types and clicks; then a replay without."""
    snapshot, vncdo = find_tool("vncsnapshot"), Path(sys.executable).with_name("vncdo")
    what: Any = {"memory_mib": 128, "ramdisk": ramdisk("screen.sh", {"vcs": VCS}), "cmdline": CMDLINE,
        "vfb": "vnclisten=127.0.0.1,vncdisplay=20", "timeout": 600}  # fmt: skip
    with domainbuilder.launch(guest_kernel("vmlinuz-bookworm-amd64"), **what, record=True) as dom:

        def during(*command: str | Path) -> None:
            """The domain runs while that does."""
            with subprocess.Popen([*map(str, command)], cwd=tmp_path) as viewer:
                while viewer.poll() is None:
                    dom.run_for(0.1)
            assert viewer.returncode == 0

        dom.console.expect("guest# ")
        dom.run_for(1.0)
        during(snapshot, "-quiet", "-quality", "100", dom.vnc_address, "seen.jpg")
        with Image.open(tmp_path / "seen.jpg") as seen, Image.open(io.BytesIO(dom.screenshot())) as shot:
            assert seen.size == shot.size
            # A JPEG is not exact; and the cursor blinks.
            bright = [
                [pixel > 128 for pixel in one.convert("L").crop((0, 0, 800, 80)).tobytes()]
                for one in (seen, shot)
            ]
            assert sum(bright[1]) > 100
            assert bright[0] == bright[1]
        typing = (
            "type",
            "echo vnc: a/b-c 123",
            "key",
            "enter",
            "move",
            "30",
            "40",
            "click",
            "1",
            "pause",
            "1",
        )
        during(vncdo, "-s", dom.vnc_address, *typing, "capture", "captured.png")
        dom.run_for(0.1)
        with (
            Image.open(tmp_path / "captured.png") as captured,
            Image.open(io.BytesIO(dom.screenshot())) as shot,
        ):
            area = (0, 80, 800, 96)  # the line that was typed
            assert captured.convert("RGB").crop(area).tobytes() == shot.crop(area).tobytes()
        assert [line.rstrip() for line in on_screen(dom)[PROMPT:][:3]] == [
            "screen# echo vnc: a/b-c 123", "vnc: a/b-c 123", "screen#",
        ]  # fmt: skip
        record, stats, picture = dom.input_record(), dom.stats(), dom.screenshot()
    assert Key(57, pressed=True) in [given for _, given in record.typed]
    assert Pointer(30, 40) in [given for _, given in record.typed]
    with domainbuilder.launch(guest_kernel("vmlinuz-bookworm-amd64"), **what, replay=record) as dom:
        assert dom.wait().reason == "replayed"
        assert (dom.stats(), dom.screenshot()) == (stats, picture)
