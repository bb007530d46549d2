"""Objects and links made with the real assembler and linkers of the machine."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

# A kernel in miniature: code, page-aligned data without .balign, tables, zeroed data, common symbols.
MAIN = """
    .globl _start, boot_pgd, counter, table_entry
    .text
_start: .fill 27, 1, 0x90
    .section .text.hot, "ax"
    .balign 16
hot: .fill 5, 1, 0x90
    .section .rodata, "a"
    .balign 8
    .quad 1, 2, 3
    .section .rodata.str, "a"
    .ascii "hello"
    .data
counter: .byte 1, 2, 3
    .section .data.page_aligned, "aw"
boot_pgd: .fill 4096, 1, 0
    .section .table, "a"
    .balign 4
table_entry: .long 1, 2, 3
    .bss
    .balign 32
    .skip 100
    .comm shared, 24, 8
"""
OTHER = """
    .text
    .balign 4
other: .fill 13, 1, 0x90
    .data
    .balign 2
    .byte 9
    .section .table, "a"
    .balign 8
    .long 4, 5
    .section .noinit, "aw", @nobits
    .skip 40
    .bss
    .skip 3
    .section .extra, "aw"
    .balign 64
    .fill 7, 1, 1
"""


class Linked(NamedTuple):
    """The files of a link, and what the linker said."""

    script: Path
    map: Path
    elf: Path
    said: str


def run(*words: object) -> str:
    """Run a program that must succeed; return what it wrote."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def assemble(directory: Path, name: str, source: str, bits: int, assembler: str) -> Path:
    """Assemble x86 source; return the object file."""
    target = directory / f"{name}{bits}.o"
    if not target.exists():
        text = directory / f"{name}{bits}.s"
        text.write_text(source)
        run(assembler, f"--{bits}", "-o", target, text)
    return target


def link(
    linker: str | tuple[str, ...],
    directory: Path,
    name: str,
    script: str,
    objects: Iterable[Path],
    bits: int,
    *options: str,
) -> Linked:
    """Link with the script; return its files."""
    lds, elf, link_map = (directory / f"{name}{suffix}" for suffix in (".lds", ".elf", ".map"))
    lds.write_text(script)
    emulation = "elf_i386" if bits == 32 else "elf_x86_64"
    words = (linker,) if isinstance(linker, str) else linker
    said = run(
        *words, "-m", emulation, "-z", "max-page-size=4096", "--build-id=none", "-T", lds, "-o", elf,
        "-Map", link_map, *options, *objects,
    )  # fmt: skip
    return Linked(lds, link_map, elf, said)
