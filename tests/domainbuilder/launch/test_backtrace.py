"""Who called whom when a guest died: by debug information, by frame pointers, by guessing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from domainbuilder.errors import SymbolsError
from domainbuilder.launch.crash_report import CrashReport
from domainbuilder.launch.crash_text import render_crash
from domainbuilder.launch.domain import launch
from domainbuilder.symbols.backtrace import CALL_FRAME_INFORMATION, FRAME_POINTER, GUESS, Frame
from tests.conftest import ROOT
from tests.domainbuilder.tiny_guest import CODE, STACK_TOP, UD2, kernel, mov

FUNCTION = 2


def crash(kernel_file: Path, symbols: Path | None = None) -> CrashReport:
    with launch(kernel_file, memory_mib=32, timeout=120, symbols=symbols) as dom:
        if b"hello" in kernel_file.name.encode():
            dom.console.expect("hello> ")
            dom.console.send("crash\n")
        report = dom.wait().report
    assert report is not None
    return report


def line_of(source: str, text: str) -> str:
    """ "hello/main.c:34" of the first line there that contains `text`."""
    lines = (ROOT / "samples" / source).read_text().splitlines()
    return f"{source}:{next(i for i, line in enumerate(lines, 1) if text in line)}"


def test_a_guest_with_debug_information(debug_hello: Path) -> None:
    """hello's `crash` stores to address 16; no handler takes that, and the runtime reports a crash."""
    report = crash(debug_hello)
    frames = {frame.symbol.partition("+")[0]: frame for frame in report.backtrace}
    names = list(frames)
    assert names[0] == "hypercall_page"
    assert names.index("from_xen") < names.index("main") < names.index("guest_main") < names.index("_start")
    assert frames["guest_main"].line == line_of("common/main.c", "(u32)main()")
    assert frames["main"].line.startswith("hello/main.c:")
    assert frames["from_xen"].line.startswith("common/traps.c:")
    assert frames["_start"].how == CALL_FRAME_INFORMATION
    text = render_crash(report)
    assert re.search(
        r"^  \[<c01[0-9a-f]{5}>\] <guest_main\+0x[0-9a-f]+> at common/main\.c:\d+   \(", text, re.MULTILINE
    )
    assert "Call trace (every word" not in text


def test_the_symbols_of_another_file(
    debug_hello: Path, sample_guest: Callable[[str], Path], tmp_path: Path
) -> None:
    """The guest that ships is stripped: names come from the one it was made from, or from a list of them."""
    stripped = crash(sample_guest("hello"))
    assert {frame.symbol for frame in stripped.backtrace} == {""}
    report = crash(sample_guest("hello"), debug_hello)
    assert [frame.symbol for frame in report.backtrace] == [
        frame.symbol for frame in crash(debug_hello).backtrace
    ]
    assert report.symbols == f"symbol table of {debug_hello}"
    listed = tmp_path / "System.map"
    from domainbuilder.kernel.elf import parse_elf
    from domainbuilder.symbols.symtab import symtab_symbols

    table = symtab_symbols(parse_elf(debug_hello.read_bytes(), "hello"))
    assert table is not None
    letters = {"function": "T", "object": "D", "label": "t", "absolute": "A"}
    listed.write_text("".join(f"{s.value:08x} {letters[s.kind]} {s.name}\n" for s in table))
    named = crash(sample_guest("hello"), listed)
    assert named.backtrace[-1].symbol.startswith("_start+")
    with pytest.raises(SymbolsError, match="line 1 is no symbol"):
        launch(sample_guest("hello"), symbols=sample_guest("hello").parent / "__init__.py")


def tiny(tmp_path: Path, code: bytes, symbols: list[tuple[str, int, int, int]]) -> tuple[Frame, ...]:
    path = tmp_path / "tiny.elf"
    path.write_bytes(kernel(code, symbols))
    return crash(path).backtrace


def call(at: int, to: int) -> bytes:
    return b"\xe8" + (to - at - 5).to_bytes(4, "little", signed=True)


def test_frame_pointers(tmp_path: Path) -> None:
    """push ebp; mov ebp, esp; sub esp, 16 in three functions; what lies about on the stack is no frame."""
    prologue = b"\x55\x89\xe5\x83\xec\x10"
    outer = mov("esp", STACK_TOP) + mov("ebp", 0) + call(CODE + 10, CODE + 32) + UD2
    middle = prologue + b"\x68" + (CODE + 15).to_bytes(4, "little") + call(CODE + 43, CODE + 64) + UD2
    inner = prologue + UD2
    code = outer.ljust(32, b"\x90") + middle.ljust(32, b"\x90") + inner
    names = [
        ("outer", CODE, 32, FUNCTION),
        ("middle", CODE + 32, 32, FUNCTION),
        ("inner", CODE + 64, 9, FUNCTION),
    ]
    assert tiny(tmp_path, code, names) == (
        Frame(CODE + 70, "inner+0x6", "", ""),
        Frame(CODE + 48, "middle+0x10", "", FRAME_POINTER),
        Frame(CODE + 15, "outer+0xf", "", FRAME_POINTER),
    )


def test_words_behind_calls(tmp_path: Path) -> None:
    """Without frame pointers: of the words on the stack those that a call can have left."""
    pushes = b"\x68" + (CODE + 3).to_bytes(4, "little") + b"\x68\x2a\0\0\0"  # an address of code, and 42
    outer = mov("ebp", 0x1234) + mov("esp", STACK_TOP) + call(CODE + 10, CODE + 32) + UD2
    middle = pushes + mov("eax", CODE + 64) + b"\xff\xd0" + UD2  # call eax
    code = outer.ljust(32, b"\x90") + middle.ljust(32, b"\x90") + UD2
    names = [
        ("outer", CODE, 15, FUNCTION),
        ("middle", CODE + 32, 32, FUNCTION),
        ("inner", CODE + 64, 2, FUNCTION),
    ]
    assert tiny(tmp_path, code, names) == (
        Frame(CODE + 64, "inner+0x0", "", ""),
        Frame(CODE + 49, "middle+0x11", "", GUESS),
        Frame(CODE + 15, "outer+0xf", "", GUESS),  # where the next function could begin
    )


def test_a_stack_of_garbage_ends(tmp_path: Path) -> None:
    for code in (mov("esp", 0x1000) + UD2, mov("esp", STACK_TOP) + mov("ebp", STACK_TOP - 8) + UD2):
        assert len(tiny(tmp_path, code, [("start", CODE, 64, FUNCTION)])) == 1


def test_the_command_takes_symbols(debug_hello: Path, sample_guest: Callable[[str], Path]) -> None:
    command = [sys.executable, "-m", "domainbuilder", "launch", str(sample_guest("hello")), "--timeout", "60"]
    script = ["--expect", "hello> ", "--send", r"crash\n", "--format", "json", "--symbols", str(debug_hello)]
    done = subprocess.run([*command, *script], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    crash_json = json.loads(done.stderr)["crash"]
    assert crash_json["symbols"] == f"symbol table of {debug_hello}"
    assert crash_json["backtrace"][0]["symbol"].startswith("hypercall_page+")
    assert crash_json["backtrace"][-1]["line"].startswith("common/start.S:")
    done = subprocess.run([*command, "--symbols", "/dev/null"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "domainbuilder: error: /dev/null: cannot be read: not a regular file, and no pipe\n",
    )
