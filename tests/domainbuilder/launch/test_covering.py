"""`launch --coverage`: the blocks that ran, all of them and no others, and lines where there are some."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.errors import BuildError
from domainbuilder.launch.covering import covered
from domainbuilder.profile.coverage import Covered, lcov
from domainbuilder.symbols.table import no_symbols
from tests.needs import find_tool

SAMPLES = Path(__file__).resolve().parent.parent.parent.parent / "samples"
Blocks = list[tuple[int, int]]


def run(guest: Path, *, plain: bool = False, slots: int = 1 << 16) -> tuple[Blocks, int, object]:
    """The blocks of a run that is told to end, how many were dropped, and what it counted."""
    with domainbuilder.launch(guest, 32, plain=plain) as dom:
        assert dom.plan is not None
        parms = dom.plan.parms
        with dom.machine.engine.covering(parms.virt_kstart, parms.virt_kend, slots) as coverage:
            dom.console.expect("hello> ")
            dom.console.send("halt\n")
            dom.wait()
        return coverage.blocks(), coverage.dropped, dom.stats()


def test_the_blocks_are_those_that_python_counts(sample_guest: Callable[[str], Path]) -> None:
    """Of the plain profile, in which Unicorn calls Python at each block."""
    guest = sample_guest("hello")
    with domainbuilder.launch(guest, 32) as dom:
        dom.console.expect("hello> ")
        dom.console.send("halt\n")
        dom.wait()
        stats = dom.stats()
    blocks, dropped, covered_stats = run(guest)
    assert covered_stats == stats
    assert not dropped
    assert run(guest, plain=True)[0] == blocks
    assert len(blocks) > 100
    assert blocks[0][0] >= 0xC0100000


def test_a_set_that_is_full_says_so(sample_guest: Callable[[str], Path]) -> None:
    blocks, dropped, _ = run(sample_guest("hello"), slots=64)
    assert 32 < len(blocks) < 64
    assert dropped > 0


def parse_drcov(raw: bytes) -> tuple[list[str], Blocks]:
    head, _, rest = raw.partition(b"BB Table: ")
    count, _, table = rest.partition(b" bbs\n")
    assert len(table) == 8 * int(count)
    module = head.decode().splitlines()[-1].split(", ")
    rows = list(struct.iter_unpack("<IHH", table))
    assert {row[2] for row in rows} == {0}
    return module, [(row[0] + int(module[1], 16), row[1]) for row in rows]


def test_drcov(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "hello.drcov"
    arguments = ["launch", str(sample_guest("hello")), "--expect", "hello> ", "--send", "halt\\n"]
    command = [sys.executable, "-m", "domainbuilder", *arguments]
    subprocess.run([*command, "--coverage", str(path)], capture_output=True, check=True)
    raw = path.read_bytes()
    assert raw.startswith(
        b"DRCOV VERSION: 2\nDRCOV FLAVOR: domainbuilder\nModule Table: version 2, count 1\n"
    )
    module, blocks = parse_drcov(raw)
    assert module[6].endswith("hello.elf")
    assert blocks == run(sample_guest("hello"))[0]
    for wrong, reason in (("x.txt", "does not say its format"), ("x.info", "debug information")):
        done = subprocess.run(
            [*command, "--coverage", str(tmp_path / wrong)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert reason in done.stderr
        assert not (tmp_path / wrong).exists()


def test_lcov(debug_hello: Path, tmp_path: Path) -> None:
    """Lines that surely ran and lines that surely did not, and what lcov itself makes of the file."""
    path = tmp_path / "hello.info"
    with domainbuilder.launch(debug_hello, 32) as dom, covered(dom, path):
        dom.console.expect("hello> ")
        dom.console.send("halt\n")
        dom.wait()
    text = path.read_text()
    functions = {name: hit for hit, name in re.findall(r"^FNDA:(\d),(\w+)$", text, flags=re.MULTILINE)}
    assert functions["main"] == "1"
    assert "0" in functions.values()
    records = text.split("end_of_record\n")
    (record,) = (one for one in records if re.search(r"^SF:.*hello/main\.c$", one, re.MULTILINE))
    hits = dict(re.findall(r"^DA:(\d+),(\d)$", record, flags=re.MULTILINE))
    source = (SAMPLES / "hello" / "main.c").read_text().splitlines()
    for code, hit in (("shutdown(SHUTDOWN_poweroff);", "1"), ("shutdown(SHUTDOWN_reboot);", "0")):
        (line,) = (number for number, there in enumerate(source, 1) if there.strip() == code)
        assert hits[str(line)] == hit
    found = subprocess.run(
        [find_tool("lcov"), "--summary", str(path)], capture_output=True, text=True, check=True
    )
    lines = re.search(r"lines\.*: [\d.]+% \((\d+) of (\d+) lines\)", found.stdout + found.stderr)
    assert lines
    total = [tuple(map(int, pair)) for pair in re.findall(r"^LF:(\d+)\nLH:(\d+)$", text, flags=re.MULTILINE)]
    assert (int(lines[1]), int(lines[2])) == (sum(hit for _, hit in total), sum(all_ for all_, _ in total))


def test_lcov_without_lines() -> None:
    with pytest.raises(BuildError, match="debug information"):
        lcov(Covered("kernel", 0, 0, 0, (), no_symbols()))
