"""How full regions are, held to `--print-memory-usage` of ld and lld; the table in its forms; drawings."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import pytest

from linker.elffile import Elf, read_elf
from linker.errors import LayoutInputError
from linker.kinds import read
from linker.mapfile import read_map
from linker.outline import Outline
from linker.output import fill as forms
from linker.output import svg
from linker.output.units import in_units, percent
from linker.regions import CODE, CONSTANT, DATA, ZERO, Fill, Part, fill, parts_of_elf, symbols_of
from linker.settings import DEFAULTS
from tests.linker.differential import linker_of
from tests.linker.elftext import build
from tests.linker.examples import bad_example, settings_of
from tests.linker.linking import MAIN, OTHER, Linked, assemble, link, run
from tests.needs import Tool, find_tool

MEMORY = (
    "MEMORY { FLASH (rx) : ORIGIN = 0x08000000, LENGTH = 64K  RAM (rwx) : ORIGIN = 0x20000000, LENGTH = 32K"
    "  LATE (rw) : ORIGIN = 0x30000000, LENGTH = 16K }\n"
)
SCRIPTS = {
    "image": "SECTIONS { .text : { *(.text .text.*) *(.rodata .rodata.*) *(.table) } >FLASH\n"
    ".data : { *(.data .data.*) *(.extra) } >RAM AT>FLASH\n"
    ".bss : { *(.bss .bss.*) *(COMMON) *(.noinit) } >RAM }",
    "aligned": "SECTIONS { .text : { *(.text .text.*) } >FLASH .table : ALIGN(256) { *(.table) } >FLASH\n"
    ".rodata : ALIGN(64) { *(.rodata .rodata.*) } >FLASH\n"
    ".data : ALIGN(32) { *(.data .data.*) . = ALIGN(128); } >RAM AT>FLASH\n"
    ".extra : { *(.extra) } >LATE AT>FLASH .bss (NOLOAD) : { *(.bss .bss.*) *(COMMON) *(.noinit) } >LATE }",
    "reserved": "SECTIONS { .text : { *(.text .text.*) *(.rodata .rodata.*) *(.table) } >FLASH\n"
    ".data : { *(.data .data.*) *(.extra) } >RAM AT>FLASH\n"
    ".bss : { *(.bss .bss.*) *(COMMON) *(.noinit) } >RAM\n"
    ".stack (NOLOAD) : { . = ALIGN(8); . += 0x400; } >RAM }",
}
_USED = re.compile(r"^\s*(\w+):\s+([0-9]+) (B|KB|MB|GB)\s+([0-9]+) (B|KB|MB|GB)", re.MULTILINE)
_UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


def by_ld(said: str) -> dict[str, int]:
    return {name: int(used) * _UNITS[unit] for name, used, unit, _, _ in _USED.findall(said)}


@pytest.fixture(params=product(SCRIPTS, ("gnu", "new-lld")), ids="-".join)
def linked(request: pytest.FixtureRequest, tool: Tool, tmp_path: Path) -> Linked:
    """A link of each script by GNU ld and by an lld that has --print-memory-usage."""
    name, which = request.param
    objects = [assemble(tmp_path, name, text, 64, tool("as")) for name, text in (("a", MAIN), ("b", OTHER))]
    linker = linker_of(which)
    assert linker.usage
    options = () if linker.lld else ("--no-warn-rwx-segments",)
    return link(
        linker.words, tmp_path, name, MEMORY + SCRIPTS[name], objects, 64, "--print-memory-usage", *options
    )


def test_used_is_what_ld_prints(linked: Linked) -> None:
    lds, link_map, elf, said = linked
    outline = Outline(read(lds.read_text()).script)
    expected = by_ld(said)
    assert sum(bool(size) for size in expected.values()) >= 2
    for the_map, the_elf in (
        (read_map(str(link_map)), read_elf(str(elf))),
        (None, read_elf(str(elf))),
        (read_map(str(link_map)), None),
    ):  # fmt: skip
        fills = fill(outline, the_map, the_elf, DEFAULTS)
        assert {one.name: one.used for one in fills} == expected
        for one in fills:
            assert one.free == one.length - one.used >= 0
            assert 0 <= one.gaps <= one.used
            assert (one.shares != ()) is (one.used > 0)


def test_largest_are_the_object_files_of_the_map(linked: Linked) -> None:
    lds, link_map, elf, _ = linked
    the_map = read_map(str(link_map))
    # GNU ld's map lists the regions, lld's does not.
    outline = None if the_map.regions else Outline(read(lds.read_text()).script)
    flash = fill(outline, the_map, read_elf(str(elf)), DEFAULTS)[0]
    assert [name for name, _ in flash.shares] == ["a64.o", "b64.o"]
    sizes = [size for _, size in flash.shares]
    assert flash.used - flash.gaps >= sum(sizes) > 0.9 * (flash.used - flash.gaps) - 256


def example(budget: str) -> list[Fill]:
    text = f'[[region]]\nname = "RAM"\norigin = "4K"\nlength = "0x10K"\nbudget = {budget}\n'
    elf = Elf("a.elf", build("elf32 entry=0x1000\nload 0x1000 0x2000 rwx\nsection .t<&|x 0x1800 0x100 ax\n"))
    return fill(None, None, elf, settings_of(text))


def test_forms_of_the_table() -> None:
    fills = example('"1K"')
    assert (fills[0].used, fills[0].gaps, fills[0].over) == (0x900, 0x800, True)
    text = forms.render(fills)
    assert "RAM     0x1000  16 KiB  2.3 KiB  14.06%  13.8 KiB  2 KiB   1 KiB" in text
    assert "1.3 KiB over budget" in text
    markdown = forms.markdown(fills)
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows[:3]} == {8}
    data = json.loads(forms.as_json(fills))["regions"][0]
    assert (data["used"], data["free"], data["budget"]) == (0x900, 0x4000 - 0x900, 1024)
    assert data["sections"] == [{"section": ".t<&|x", "verb": "runs", "address": 0x1800, "size": 0x100}]
    assert not example('"4 KiB"')[0].over


@pytest.mark.parametrize("text", ['"4X"', '"K"', '"-1"', "-1", "1.5", "true", '"99999999999999999999"'])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(LayoutInputError, match=r"region\.0\.budget"):
        example(text)


# Drawings

_SVG = "{http://www.w3.org/2000/svg}"


def boxes(document: ElementTree.Element) -> Iterator[tuple[float, float, float, float, str | None]]:
    """Where each text is: a monospace character is at most 0.61 em wide."""
    for node in document.iter(_SVG + "text"):
        x, y, width = float(node.get("x", "")), float(node.get("y", "")), 0.61 * 11 * len(node.text or "")
        left = x - width if node.get("text-anchor") == "end" else x
        yield left, y - 9, left + width, y + 2, node.text


def check_drawing(text: str) -> ElementTree.Element:
    document = ElementTree.fromstring(text)
    width, height = float(document.get("width", "")), float(document.get("height", ""))
    found = sorted(boxes(document), key=lambda box: box[1])
    for index, (left, _, right, bottom, said) in enumerate(found):
        assert left >= 0, said
        assert right <= width, said
        assert bottom <= height
        for other in found[index + 1 :]:
            if other[1] >= bottom:
                break
            assert other[0] >= right or other[2] <= left, (said, other[4])
    return document


def test_drawing_has_a_bar_for_each_section() -> None:
    elf = Elf("a.elf", build(bad_example("xen-shared-page").elf))
    document = check_drawing(svg.render(parts_of_elf(elf), 'title <&"'))
    titles = [node.text for node in document.iter(_SVG + "title")]
    assert len(titles) == 1 + len([s for s in elf.sections if s.allocated and s.size])
    assert any(".data.page_aligned: 0x4000 to 0x4800, 2048 bytes" in (title or "") for title in titles)


def test_drawing_shows_images_and_what_is_free() -> None:
    parts = [
        Part(".text", 0x8000000, 0x1000, CODE, 0x8000000),
        Part(".data", 0x20000000, 0x200, DATA, 0x8001000),
        Part(".bss", 0x20000200, 0x100, ZERO, 0x20000200),
    ]
    regions = [svg.Extent("FLASH", 0x8000000, 0x10000), svg.Extent("RAM", 0x20000000, 0x4000)]
    texts = [node.text for node in check_drawing(svg.render(parts, "k", regions)).iter(_SVG + "text")]
    assert "FLASH: 64 KiB" in texts
    assert "image of .data  512 B" in texts
    assert texts.index("image of .data  512 B") < texts.index("59.5 KiB free") < texts.index("RAM: 16 KiB")
    columns = [node.text for node in check_drawing(svg.render(parts, "k")).iter(_SVG + "text")]
    assert {"where it runs", "where it is loaded"} <= set(columns)


def test_symbols_stand_at_their_addresses() -> None:
    parts = [Part(".text", 0x8000000, 0x1000, CODE, 0x8000000), Part(".bss", 0x20000010, 0x100, ZERO, 0)]
    regions = [svg.Extent("FLASH", 0x8000000, 0x10000), svg.Extent("RAM", 0x20000000, 0x4000)]
    marks = [
        svg.Mark("_etext", 0x8001000), svg.Mark("_sbss", 0x20000010), svg.Mark("_same", 0x20000010),
        svg.Mark("_inside", 0x20000050), svg.Mark("_estack", 0x20004000), svg.Mark("_nowhere", 0x123),
    ]  # fmt: skip
    document = check_drawing(svg.render(parts, "k", regions, marks))
    texts = [node.text for node in document.iter(_SVG + "text")]
    for text in (
        "_etext  0x8001000", "_sbss, _same  0x20000010", "_inside  0x20000050", "_estack  0x20004000",
    ):  # fmt: skip
        assert texts.count(text) == 1, text
    assert "_nowhere" not in " ".join(text or "" for text in texts)
    bars = [node.find(f"{_SVG}rect") for node in document.iter(_SVG + "g") if ".bss" in (node[0].text or "")]
    assert len(bars) == 2, "the bar is cut where a symbol lies in it"
    assert [one.get("fill") for one in bars if one is not None] == ["#b8b8b8"] * 2


def test_symbols_of_the_script_by_a_real_link(linked: Linked) -> None:
    text = linked.script.read_text().replace("SECTIONS {", "SECTIONS { size = 0x40; ", 1)
    text = text.replace("*(.bss ", "_sbss = .; *(.bss ", 1) + "_estack = ORIGIN(RAM) + LENGTH(RAM);\n"
    script = linked.script.with_name("marked.lds")
    script.write_text(text)
    elf = script.with_suffix(".elf")
    objects = sorted(script.parent.glob("*64.o"))
    run(find_tool("ld.bfd", "ld"), "-T", script, "-o", elf, "--no-warn-rwx-segments", *objects)
    outline = Outline(read(text).script)
    found = symbols_of(outline, read_elf(str(elf)), [(0x20000000, 32 << 10)])
    by_nm = {line.split()[2]: int(line.split()[0], 16) for line in run(find_tool("nm"), elf).splitlines()}
    assert found == {"_sbss": by_nm["_sbss"], "_estack": 0x20008000}


@pytest.mark.parametrize("seed", range(40))
def test_labels_never_overlap(seed: int) -> None:
    source = random.Random(seed)
    parts = [
        Part(
            source.choice([".t", ".a_very_long_name" * source.randrange(1, 12), "\N{SNOWMAN}<&", ".bss"]),
            source.choice([0x1000, 1 << 63, source.randrange(1 << 64)]) + source.randrange(256),
            1 << source.randrange(40),
            source.choice([CODE, CONSTANT, DATA, ZERO]),
            source.choice([0, source.randrange(1 << 64)]),
        )
        for _ in range(source.randrange(60))
    ]
    regions = [
        svg.Extent("R" * source.randrange(1, 90), source.randrange(1 << 64), 1 << source.randrange(1, 60))
        for _ in range(source.randrange(4))
    ]
    marks = [
        svg.Mark(source.choice(["_end", "_a_long_one" * source.randrange(1, 9)]), part.address + shift)
        for part in parts[:20]
        for shift in (0, source.randrange(part.size), part.size)
    ]
    check_drawing(svg.render(parts, "t" * source.randrange(300), regions, marks))
    halves = [svg.Column("h" * source.randrange(90), half, marks=marks) for half in (parts[::2], parts[1::2])]
    check_drawing(svg.beside("t", halves))


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (-1536, "-1.5 KiB"),
        (1 << 20, "1 MiB"),
        ((1 << 30) - 1, "1024.0 MiB"), (1 << 1100, f"{1 << 1070} GiB"),
        ((1 << 1100) + 1, f"{1 << 1070}.0 GiB"),
    ],
)  # fmt: skip
def test_sizes_as_people_write_them(size: int, said: str) -> None:
    assert in_units(size) == said


def test_shares_as_people_write_them() -> None:
    assert percent(1, 3) == "33.33%"
    assert percent(2, 3, 1) == "66.7%"
    assert percent(1 << 1200, 1 << 1201) == "50.00%"
    assert (percent(0, 7), percent(7, 0)) == ("0.00%", "-")
