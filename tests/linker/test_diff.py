"""`lint diff` on links that differ by what is known, with nm as the other reader."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from linker.diff import Change, compare, render
from linker.elffile import Elf, read_elf
from tests.linker.linking import assemble, link, run
from tests.needs import Tool

SCRIPT = """SECTIONS {{ . = 0x100000; .text : {{ *(.text) }} .rodata : ALIGN(4096) {{ *(.rodata) }}
{} .data : ALIGN(4096) {{ *(.data) }} top = 0x{:x}; }}
"""
SOURCE = """
    .globl first, second, third, table, late
    .text
first: .fill {grow}, 1, 0x90
    .size first, . - first
second: .fill 8, 1, 0x90
third: .fill 8, 1, 0x90
    .section .{where}, "aw"
table: .quad 1
    .data
late: .quad 2
{more}
"""


# Of a link by its name: the ELF, and its symbols as nm reads them.
Make = Callable[..., tuple[Elf, dict[str, int]]]


@pytest.fixture
def linked(tool: Tool, tmp_path: Path) -> Make:
    def make(
        name: str,
        *,
        grow: int = 16,
        where: str = "data",
        more: str = "",
        between: str = "",
        top: int = 0x1000,
    ) -> tuple[Elf, dict[str, int]]:
        text = SOURCE.format(grow=grow, where=where, more=more)
        objects = [assemble(tmp_path, name, text, 64, tool("as"))]
        _, _, elf, _ = link(
            tool("ld.bfd", "ld"), tmp_path, name, SCRIPT.format(between, top), objects, 64,
            "--no-warn-rwx-segments", "-e0",
        )  # fmt: skip
        addresses = {
            words[2]: int(words[0], 16)
            for words in (line.split() for line in run(tool("nm"), elf).splitlines())
        }
        return read_elf(str(elf)), addresses

    return make


def by_kind(changes: Iterable[Change], kind: str) -> list[Change]:
    return [change for change in changes if change.kind == kind]


def test_nothing_moved(linked: Make) -> None:
    (one, _), (two, _) = linked("a"), linked("b")
    assert render(compare(one, two)) == "the layouts are the same\n"


def test_what_grows_moves_what_is_behind_it_together(linked: Make) -> None:
    (old, was), (new, now) = linked("a"), linked("b", grow=48)
    changes = compare(old, new)
    (moved,) = by_kind(changes, "symbols-moved")
    assert moved[1:4] == ("second", was["second"], now["second"])
    assert (moved.last, moved.several, moved.section) == ("third", 2, ".text")
    (grown,) = by_kind(changes, "symbol-size")
    assert grown[1:4] == ("first", 16, 48)
    text = render(changes)
    assert f"moved    2 symbols, second to third: {was['second']:#x} -> {now['second']:#x} in .text\n" in text
    assert "grew     first: 16 -> 48 bytes (+32) in .text\n" in text


def test_a_symbol_that_moves_with_its_section_has_not_moved(linked: Make) -> None:
    (old, was), (new, now) = linked("a"), linked("b", between=". += 0x3000;")
    assert now["late"] == was["late"] + 0x3000
    changes = compare(old, new)
    assert {(change.kind, change.name) for change in changes} == {("moved", ".data")}


def test_another_section_absolute_values_new_and_gone(linked: Make) -> None:
    (old, was), (new, now) = (
        linked("a"),
        linked("b", where="rodata", more=".globl extra\nextra: .quad 3\n", top=0x2000),
    )
    changes = compare(old, new)
    (elsewhere,) = by_kind(changes, "symbol-section")
    assert elsewhere[1:4] == ("table", was["table"], now["table"])
    assert elsewhere.section == ".data -> .rodata"
    assert [change.name for change in by_kind(changes, "symbol-added")] == ["extra"]
    assert [change.name for change in by_kind(compare(new, old), "symbol-removed")] == ["extra"]
    top = next(change for change in by_kind(changes, "symbols-moved") if change.name == "top")
    assert top[2:4] == (0x1000, 0x2000)


def test_the_text_is_short_and_all_of_it_is_not(linked: Make) -> None:
    def tables(size: int) -> str:
        return "".join(f".globl t{i}\nt{i}: .fill {size}, 1, 0\n.size t{i}, {size}\n" for i in range(30))

    (old, _), (new, _) = linked("a", more=tables(8)), linked("b", more=tables(16))
    changes = compare(old, new)
    assert "and 10 more symbols that grew or shrank\n" in render(changes)
    assert render(changes, everything=True).count("grew     t") == 30
