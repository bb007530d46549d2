"""Source lines and call frames of compiled programs, against binutils; and of what is broken."""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import pytest

from domainbuilder.kernel.elf import parse_elf
from domainbuilder.symbols.frames import CallFrames
from domainbuilder.symbols.lines import SourceLines
from domainbuilder.symbols.read import kernel_symbols
from domainbuilder.symbols.symtab import symtab_symbols
from tests.needs import find_tool

SOURCE = """
__attribute__((noinline)) int inner(int a, int *b)
{
    volatile char room[200];
    room[a & 127] = (char)*b;
    return room[3] + a;
}

__attribute__((noinline)) int outer(int n)
{
    int sum = 0;
    for (int i = 0; i < n; i++) {
        sum += inner(i, &sum);
        sum ^= 5;
    }
    return sum;
}

void _start(void)
{
    for (;;)
        outer(3);
}
"""
VARIANTS = {
    "64 dwarf 5": ("-m64", "-gdwarf-5"),
    "64 dwarf 4": ("-m64", "-gdwarf-4"),
    "64 eh_frame": ("-m64", "-gdwarf-5", "-fasynchronous-unwind-tables"),
    "64 compressed": ("-m64", "-gdwarf-5", "-gz=zlib"),
    "32": ("-m32", "-gdwarf-5"),
    "32 frame pointers": ("-m32", "-gdwarf-4", "-fno-omit-frame-pointer"),
}


def compiled(variant: str, folder: Path) -> Path:
    gcc = find_tool("gcc")
    source, program = folder / "program.c", folder / "program"
    source.write_text(SOURCE)
    flags = ("-O2", "-ffreestanding", "-nostdlib", "-static", "-no-pie", "-fno-pic", "-fno-stack-protector")
    plain = () if "eh_frame" in variant else ("-fno-asynchronous-unwind-tables",)
    command = [gcc, *flags, *plain, *VARIANTS[variant], source.name, "-o", program.name]
    subprocess.run(command, cwd=folder, check=True)
    return program


def code_addresses(program: Path, bits: int) -> list[int]:
    """Every instruction, by objdump."""
    text = subprocess.run(
        [find_tool("objdump"), "-d", program], capture_output=True, text=True, check=True
    ).stdout
    assert bits in {4, 8}
    return [int(found, 16) for found in re.findall(r"^ +([0-9a-f]+):\t", text, re.MULTILINE)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_lines_are_addr2lines(variant: str, tmp_path: Path) -> None:
    program = compiled(variant, tmp_path)
    elf = parse_elf(program.read_bytes(), "program")
    lines, addresses = SourceLines(elf), code_addresses(program, elf.elf_class // 8)
    assert len(addresses) > 30
    command: list[str | Path] = [find_tool("addr2line"), "-e", program, *map(hex, addresses)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    theirs = [re.sub(r" \(discriminator.*", "", line).removeprefix(f"{tmp_path}/") for line in said[:-1]]
    assert [lines.at(address) for address in addresses] == theirs
    assert lines.at(0) == lines.at(1 << 60) == ""


def readelf_rows(program: Path, elf_class: int) -> dict[int, tuple[str, int]]:
    """Where the CFA is, by `readelf -wF`: address of a row -> (register, offset)."""
    command: list[str | Path] = [find_tool("readelf"), "-wF", program]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    width = 16 if elf_class == 64 else 8
    rows = re.findall(rf"^([0-9a-f]{{{width}}}) ([re][a-z]+)\+(\d+)", text, re.MULTILINE)
    return {int(at, 16): (register, int(offset)) for at, register, offset in rows}


@pytest.mark.parametrize("variant", VARIANTS)
def test_frames_are_readelfs(variant: str, tmp_path: Path) -> None:
    program = compiled(variant, tmp_path)
    elf = parse_elf(program.read_bytes(), "program")
    frames, rows = CallFrames(elf), readelf_rows(program, elf.elf_class)
    assert frames
    word = elf.elf_class // 8
    registers = {name: 0x10000 * (i + 1) for i, name in enumerate(frames.numbers)}
    starts = sorted(rows)
    symbols = symtab_symbols(elf)
    assert symbols is not None
    tried = 0
    for address in code_addresses(program, word):
        at = max((start for start in starts if start <= address), default=None)
        if not at or symbols.name(address).partition("+")[0] not in {"inner", "outer"}:
            continue
        register, offset = rows[at]
        caller = frames.caller(address, registers, lambda place: place)
        assert caller is not None
        cfa = registers["r" + register[1:]] + offset
        assert (caller["rsp"], caller["rip"]) == (cfa, cfa - word), hex(address)
        tried += 1
    assert tried > 20
    assert frames.caller(1, registers, lambda place: place) is None
    assert frames.caller(starts[0], registers, lambda _place: None) is None


def test_what_is_broken_is_not_told(tmp_path: Path) -> None:
    """Thousands of changed bytes in the debug sections: no line or a wrong one, and never an error."""
    program = compiled("64 eh_frame", tmp_path)
    good = program.read_bytes()
    elf = parse_elf(good, "program")
    places = [
        at
        for section in elf.sections
        if section.name.startswith((".debug", ".eh_frame"))
        for at in range(section.offset, section.offset + section.size)
    ]
    chance = random.Random(3)
    address = next(iter(code_addresses(program, 8)))
    for _ in range(150):
        image = bytearray(good)
        for _ in range(chance.choice((1, 4, 40))):
            image[chance.choice(places)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        symbols = kernel_symbols(parse_elf(bytes(image), "program"))
        assert isinstance(symbols.line(address + 4), str)
        assert symbols.frames is not None
        registers = dict.fromkeys(symbols.frames.numbers, 0x1000)
        caller = symbols.frames.caller(address + 4, registers, lambda place: place)
        assert caller is None or "rip" in caller
