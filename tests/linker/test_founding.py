"""The experiment the linter was founded on: one line of a script decides where a page directory lands.

Four variants are linked with GNU ld and lld. Neither says a word; each defect must be found from the script
where the script shows it, from the map, and from the ELF.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from linker.elffile import read_elf
from linker.lint import Inputs
from linker.lint import run as lint
from linker.mapfile import read_map
from linker.settings import DEFAULTS
from linker.source import read_script
from tests.linker.linking import MAIN, assemble, link, run
from tests.needs import Tool

HEAD = "ENTRY(_start)\nSECTIONS\n{\n  . = 0x100000;\n  .text : { *(.text .text.*) *(.rodata*) *(.table) }\n"
TAIL = "\n  .bss : { *(.bss) *(COMMON) }\n  _end = .;\n}\n"
ALIGNED = MAIN.replace("boot_pgd: .fill", ".balign 4096\nboot_pgd: .fill")

# variant -> (.data of the script, whether the object aligns its page directory)
VARIANTS = {
    "missing": ("  .data : { *(.data) _edata = .; }", False),
    "behind": ("  .data : { *(.data) *(.data.page_aligned) _edata = .; }", False),
    "first": (
        "  . = ALIGN(4096);\n  .data : { *(.data.page_aligned) . = ALIGN(4096); *(.data) _edata = .; }",
        False,
    ),
    "missing-aligned": ("  .data : { *(.data) _edata = .; }", True),
}
EXPECTED = DEFAULTS._replace(expected_inputs=(".data.page_aligned",), severities={"rwx-load": "off"})

# What must be found by which input alone. An orphan that has its own .balign is aligned, and still outside.
FOUND: dict[str, dict[str, set[str]]] = {
    "missing": {
        "script": {"missing-pattern"},
        "map": {"page-aligned-address"},
        "elf": {"symbol-alignment", "page-aligned-address"},
        "script+elf": {"orphan-section"},
    },
    "behind": {
        "script": {"page-aligned-order"},
        "map": {"page-aligned-address"},
        "elf": {"symbol-alignment"},
        "script+elf": set(),
    },
    "first": {"script": set(), "map": set(), "elf": set(), "script+elf": set()},
    "missing-aligned": {
        "script": {"missing-pattern"},
        "map": set(),
        "elf": set(),
        "script+elf": {"orphan-section"},
    },
}
TELLING = {
    "missing-pattern",
    "page-aligned-order",
    "page-aligned-address",
    "symbol-alignment",
    "orphan-section",
}


def rules(inputs: Inputs) -> set[str]:
    return {diagnostic.rule for diagnostic in lint(inputs, EXPECTED).diagnostics} & TELLING


@pytest.fixture(scope="module", params=["gnu", "lld"])
def linker(request: pytest.FixtureRequest, tool: Tool) -> str:
    return tool("ld.bfd", "ld") if request.param == "gnu" else tool("ld.lld", "ld.lld-14")


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_defect_is_found(tmp_path: Path, tool: Tool, linker: str, variant: str, bits: int) -> None:
    data, aligned = VARIANTS[variant]
    source = ALIGNED if aligned else MAIN
    objects = [assemble(tmp_path, variant, source, bits, tool("as"))]
    script, link_map, elf, said = link(linker, tmp_path, variant, HEAD + data + TAIL, objects, bits)
    assert "page_aligned" not in said, "the linker itself told: the experiment has changed"
    expected = FOUND[variant]
    the_script, the_map, the_elf = read_script(str(script)), read_map(str(link_map)), read_elf(str(elf))
    assert rules(Inputs(the_script)) == expected["script"]
    found_in_map = rules(Inputs(map=the_map))
    if the_map.flavor == "gnu" and variant.startswith("missing"):
        # Only GNU ld's map shows which pattern took a section, and so that none did.
        assert "orphan-section" in found_in_map
    assert found_in_map - {"orphan-section"} == expected["map"]
    assert rules(Inputs(elf=the_elf)) == expected["elf"]
    assert rules(Inputs(the_script, elf=the_elf)) >= expected["script+elf"] | expected["elf"]
    if the_map.flavor == "lld" and variant.startswith("missing"):
        assert "orphan-section" in rules(Inputs(the_script, map=the_map))


@pytest.mark.parametrize("variant", ["missing", "missing-aligned"])
def test_orphan_lies_outside_of_the_symbols(tmp_path: Path, tool: Tool, variant: str) -> None:
    """What makes the orphan a defect even when it is aligned: `_edata` does not cover it."""
    data, aligned = VARIANTS[variant]
    objects = [assemble(tmp_path, variant, ALIGNED if aligned else MAIN, 32, tool("as"))]
    _, _, elf, _ = link(tool("ld.bfd", "ld"), tmp_path, variant, HEAD + data + TAIL, objects, 32)
    symbols = read_elf(str(elf)).find(("_edata", "boot_pgd"))
    assert symbols["boot_pgd"].address >= symbols["_edata"].address
    assert (symbols["boot_pgd"].address % 4096 == 0) is aligned
    # The same address by an independent reader.
    listed = [line.split() for line in run("nm", elf).splitlines()]
    assert {int(words[0], 16) for words in listed if words[2] == "boot_pgd"} == {symbols["boot_pgd"].address}
