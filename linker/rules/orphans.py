"""Rules about input sections that no pattern took, and patterns that took nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator

from linker.elffile import SHT_NOBITS
from linker.findings import ERROR, WARNING, Context, Example, Hit, Place, Rule, elf_place, map_place
from linker.mapfile import LinkMap, MapOutput
from linker.match import any_match, matches

# What linkers make themselves and place as they like.
_MADE_BY_LINKERS = (
    ".got*", ".plt*", ".iplt*", ".igot*", ".rel.*", ".rela.*", ".dyn*", ".hash", ".gnu.hash", ".interp",
    ".gnu.version*", ".eh_frame_hdr", ".comment", ".symtab*", ".strtab", ".shstrtab", ".debug*", ".stab*",
    ".note.GNU-stack", ".gnu.build.attributes*", ".*.attributes", ".gnu.warning.*", ".gnu_debug*",
    ".branch_lt",
    ".glink", ".tm_clone_table", ".gdb_index",
    ".note.gnu.property", ".relr.dyn", ".gnu.attributes", ".group",
    ".bss.rel.ro", ".v4_bx", ".vfp11_veneer", ".stm32l4xx_veneer", ".MIPS.abiflags", ".MIPS.options",
)  # fmt: skip


def _names_in(text: str) -> tuple[str, ...]:
    """Return the section patterns of a description as a map prints it."""
    inner = re.findall(r"\(([^()]*)\)", text)
    return tuple(word for group in inner for word in group.split() if word)


def orphan_section(context: Context) -> Iterator[Hit]:
    """An allocated section was placed by no pattern."""
    allowed = (*_MADE_BY_LINKERS, *context.settings.allowed_orphans)
    seen: set[str] = set()
    if context.map is not None and context.map.flavor == "gnu":
        yield from _orphans_in_map(context, context.map, allowed, seen)
    if context.outline is None or context.outline.inserts or not context.outline.sections:
        return
    for name, address, place in _allocated_sections(context):
        if name not in context.outline.names and name not in seen and not any_match(allowed, name):
            yield Hit(
                f"no output section of the script is called {name}: it is an orphan at {address:#x}", place
            )


def _allocated_sections(context: Context) -> Iterator[tuple[str, int, Place]]:
    """Name, address and place of each section of the ELF, or else of lld's map, that takes memory."""
    if context.elf is not None:
        for section in context.elf.sections:
            if section.allocated and section.size:
                yield section.name, section.address, elf_place(section.name, section.address)
    elif context.map is not None and context.map.flavor == "lld":
        for output in context.map.outputs:
            if output.size and output.address:
                yield output.name, output.address, map_place(output.line, output.name, output.address)


def _orphans_in_map(
    context: Context, link_map: LinkMap, allowed: tuple[str, ...], seen: set[str]
) -> Iterator[Hit]:
    for output in link_map.outputs:
        if not _allocated(context, output) or any_match(allowed, output.name):
            continue
        for item in output.inputs:
            taken = item.pattern and (
                any(matches(name, item.name) for name in _names_in(item.pattern)) or "(" not in item.pattern
            )
            if item.size and not taken and not any_match(allowed, item.name):
                # Anything with an exotic sort or exclusion counts as taken when the words do not tell.
                if item.pattern and "EXCLUDE" in item.pattern:
                    continue
                seen.add(output.name)
                yield Hit(
                    f"no pattern took '{item.name}' of {item.file}: it is an orphan at {item.address:#x} in "
                    f"{output.name}",
                    map_place(item.line, item.name, item.address),
                )


def _allocated(context: Context, output: MapOutput) -> bool:
    if context.elf is not None:
        section = context.elf.by_name.get(output.name)
        return section is not None and section.allocated
    return output.address != 0


def _bare(name: str) -> str:
    return re.sub(r"[._\-]", "", name).lower()


def pattern_near_miss(context: Context) -> Iterator[Hit]:
    """A pattern took nothing, and an orphan differs from it by a dot or an underscore only."""
    assert context.map is not None
    unplaced: dict[str, str] = {}
    for output in context.map.outputs:
        for item in output.inputs:
            if item.size and not item.pattern:
                unplaced.setdefault(_bare(item.name), item.name)
    for item in context.map.discarded:
        if item.size:
            unplaced.setdefault(_bare(item.name), item.name)
    for output in context.map.outputs:
        for pattern in output.patterns:
            if pattern.taken:
                continue
            for name in _names_in(pattern.text):
                near = unplaced.get(_bare(name))
                if near is not None and "*" not in name and near != name:
                    yield Hit(
                        f"'{name}' in {output.name} took nothing; '{near}' was taken by no pattern",
                        map_place(pattern.line, name),
                    )


def annobin_first(context: Context) -> Iterator[Hit]:
    """The compiler's .annobin notes were placed before everything else."""
    if context.elf is not None:
        placed = [
            section
            for section in context.elf.sections
            if section.occupies and section.type != SHT_NOBITS and section.address
        ]
        first = min(placed, key=lambda section: section.address, default=None)
        if first is not None and first.name.startswith(".annobin"):
            yield Hit(
                f"{first.name} is the first thing in memory, at {first.address:#x}",
                elf_place(first.name, first.address),
            )
        return
    assert context.map is not None
    inputs = [
        (item.address, item.line, item.name)
        for output in context.map.outputs
        for item in output.inputs
        if item.size and item.address
    ]
    address, line, name = min(inputs, default=(0, 0, ""))
    if name.startswith(".annobin"):
        yield Hit(f"{name} is the first thing in memory, at {address:#x}", map_place(line, name, address))


_HEAD = """Memory Configuration

Name             Origin             Length             Attributes
*default*        0x00000000         0xffffffff

Linker script and memory map

"""
_TAKEN = """.text           0x00001000       0x20
 *(.vectors)
 .vectors       0x00001000       0x10 a.o
 *(.text)
 .text          0x00001010       0x10 a.o
"""
_ORPHAN = """.text           0x00001000       0x10
 *(vectors)
 *(.text)
 .text          0x00001000       0x10 a.o

.vectors        0x00001010       0x10
 .vectors       0x00001010       0x10 a.o
"""

RULES = (
    Rule(
        "orphan-section",
        WARNING,
        "an allocated section is an orphan",
        "An input section that no pattern takes is placed where ld sees fit, outside of the symbols that "
        "bound its kind, and ld exits with 0 (ClangBuiltLinux issue 1432).",
        "add a pattern for it, discard it, or list it in allowed-orphans.",
        ("M", "SE"),
        orphan_section,
        Example(map=_HEAD + _ORPHAN),
        Example(map=_HEAD + _TAKEN),
    ),
    Rule(
        "pattern-near-miss",
        ERROR,
        "a pattern took nothing and an orphan is spelled almost like it",
        "`*(vectors)` does not take `.vectors`: the vector table lands elsewhere or is dropped "
        "(ChibiOS-Contrib issue 295).",
        "correct the pattern.",
        ("M",),
        pattern_near_miss,
        Example(map=_HEAD + _ORPHAN),
        Example(map=_HEAD + _TAKEN),
    ),
    Rule(
        "annobin-first",
        ERROR,
        "compiler notes lie before the code",
        "Fedora's annobin plugin emits notes that older scripts do not know; as first orphans they stand "
        "where Xen expects its header.",
        "discard them: /DISCARD/ : { *(.annobin.*) }, or compile with -fplugin-arg-annobin-disable.",
        ("M", "E"),
        annobin_first,
        Example(
            elf="elf64 entry=0x1040\nload 0x1000 0x200 rx\nsection .annobin.notes 0x1000 0x40 a\n"
            "section .text 0x1040 0x100 ax\n"
        ),
        Example(elf="elf64 entry=0x1000\nload 0x1000 0x200 rx\nsection .text 0x1000 0x100 ax\n"),
    ),
)
