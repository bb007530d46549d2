"""Rules that hold a linked ELF to what the project's configuration says."""

from __future__ import annotations

from collections.abc import Iterator

from linker.findings import ERROR, Context, Example, Hit, Rule, elf_place, map_place
from linker.match import matches
from linker.regions import fill
from linker.settings import Budget

from .given import elf_of


def _budgets(context: Context) -> Iterator[tuple[Budget, str, int, int, int]]:
    """Yield each budget with name, address, size and alignment of each section it is about."""
    for budget in context.settings.sections:
        for section in elf_of(context).sections:
            if section.allocated and matches(budget.name, section.name):
                yield budget, section.name, section.address, section.size, section.alignment


def pinned_address(context: Context) -> Iterator[Hit]:
    """A symbol or section is not where the configuration pins it."""
    elf = elf_of(context)
    pinned = [rule for rule in context.settings.symbols if rule.address is not None or rule.section]
    symbols = elf.find(rule.name for rule in pinned)
    for rule in pinned:
        symbol = symbols.get(rule.name)
        if symbol is None:
            yield Hit(f"there is no symbol {rule.name}", elf_place(rule.name))
            continue
        if rule.address is not None and symbol.address != rule.address:
            yield Hit(
                f"{rule.name} is at {symbol.address:#x}, expected {rule.address:#x}",
                elf_place(rule.name, symbol.address),
            )
        section = elf.section_index(symbol.section)
        if rule.section and (section is None or not matches(rule.section, section.name)):
            found = section.name if section is not None else "no section"
            yield Hit(
                f"{rule.name} is in {found}, expected {rule.section}", elf_place(rule.name, symbol.address)
            )
    for budget, name, address, _, _ in _budgets(context):
        if budget.address is not None and address != budget.address:
            found = f"{name} starts at {address:#x}, expected {budget.address:#x}"
            yield Hit(found, elf_place(name, address))


def size_modulus(context: Context) -> Iterator[Hit]:
    """A section's size is no multiple of what the configuration says."""
    for budget, name, address, size, _ in _budgets(context):
        if budget.size_modulus and size % budget.size_modulus:
            yield Hit(
                f"{name} is {size:#x} bytes, no multiple of {budget.size_modulus}", elf_place(name, address)
            )


def section_alignment(context: Context) -> Iterator[Hit]:
    """A section starts less aligned than the configuration says."""
    for budget, name, address, _, _ in _budgets(context):
        if budget.min_align and address % budget.min_align:
            yield Hit(
                f"{name} starts at {address:#x}, no multiple of {budget.min_align:#x}",
                elf_place(name, address),
            )


def size_budget(context: Context) -> Iterator[Hit]:
    """A section or the whole image is larger than its budget."""
    for budget, name, address, size, _ in _budgets(context):
        if budget.max_size is not None and size > budget.max_size:
            over = size - budget.max_size
            yield Hit(
                f"{name} is {size} bytes, {over} over its budget of {budget.max_size}",
                elf_place(name, address),
            )
    limit = context.settings.image_max_size
    loads = [segment for segment in elf_of(context).loads if segment.size]
    if limit is not None and loads:
        start = min(segment.address for segment in loads)
        size = max(segment.end for segment in loads) - start
        if size > limit:
            yield Hit(
                f"the image is {size} bytes in memory, {size - limit} over its budget of {limit}",
                elf_place("image", start),
            )


def region_budget(context: Context) -> Iterator[Hit]:
    """A memory region is fuller than its budget."""
    if not any(rule.budget is not None for rule in context.settings.regions):
        return
    for region in fill(context.outline, context.map, context.elf, context.settings):
        if region.budget is not None and region.used > region.budget:
            message = (
                f"{region.name} uses {region.used} bytes, {region.used - region.budget} over its budget of "
                f"{region.budget}"
            )
            last = max(region.places, key=lambda place: place.end)
            if context.elf is not None:
                yield Hit(message, elf_place(region.name, last.address))
            else:
                yield Hit(message, map_place(last.part.line, region.name, last.address))


_ELF = "elf32 entry=0x1000\nload 0x1000 0x2000 rwx\nsection .text 0x1000 0x100 ax\n"
_BSS = "section .bss 0x2000 {} aw nobits\n"

_REGION = '[[region]]\nname = "RAM"\norigin = 0x1000\nlength = "64K"\nbudget = {}\n'

RULES = (
    Rule(
        "pinned-address",
        ERROR,
        "a symbol or section is not at the address that the configuration pins",
        "Firmware, hypervisors and debug scripts know addresses by heart; a new section before the code "
        "moves them (ClangBuiltLinux issue 1218).",
        "give the output section its address in the script.",
        ("E",),
        pinned_address,
        Example(
            elf=_ELF + "symbol _start 0x1010\n",
            config='[[symbol]]\nname = "_start"\naddress = 0x1000\n',
        ),
        Example(
            elf=_ELF + "symbol _start 0x1000\n",
            config='[[symbol]]\nname = "_start"\naddress = 0x1000\n',
        ),
    ),
    Rule(
        "size-modulus",
        ERROR,
        "a section's size is no multiple of the stride that clears or copies it",
        "Start-up code that clears .bss in words or cache lines runs over its end, or never meets it "
        "(cheribsd issue 1167).",
        "write `. = ALIGN(16);` as the last statement of the output section, before its end symbol.",
        ("E",),
        size_modulus,
        Example(elf=_ELF + _BSS.format("0x105"), config='[[section]]\nname = ".bss"\nsize-modulus = 8\n'),
        Example(elf=_ELF + _BSS.format("0x108"), config='[[section]]\nname = ".bss"\nsize-modulus = 8\n'),
    ),
    Rule(
        "section-alignment",
        ERROR,
        "a section starts less aligned than the configuration demands",
        "Protection, relocation and caches work in pages and lines; an output section has no more alignment "
        "than its most aligned input unless the script says so.",
        "write ALIGN on the output section.",
        ("E",),
        section_alignment,
        Example(
            elf=_ELF + _BSS.format("0x100").replace("0x2000", "0x2010"),
            config='[[section]]\nname = ".bss"\nmin-align = 4096\n',
        ),
        Example(elf=_ELF + _BSS.format("0x100"), config='[[section]]\nname = ".bss"\nmin-align = 4096\n'),
    ),
    Rule(
        "size-budget",
        ERROR,
        "a section or the image is over its budget",
        "An image that outgrows its window is cut by whoever loads it, or overwrites its neighbour "
        "(ClangBuiltLinux issue 1556).",
        "make it smaller or raise the budget on purpose.",
        ("E",),
        size_budget,
        Example(elf=_ELF, config="image-max-size = 4096\n"),
        Example(elf=_ELF, config="image-max-size = 8192\n"),
    ),
    Rule(
        "region-budget",
        ERROR,
        "a memory region is fuller than its budget",
        "ld refuses a region that overflows and says nothing while it fills up. A budget keeps room for the "
        "next version, for the heap, or for a bootloader that shares the region.",
        "see who takes the most with `domainbuilder lint regions`, or raise the budget on purpose.",
        ("M", "E"),
        region_budget,
        Example(elf=_ELF, config=_REGION.format("128")),
        Example(elf=_ELF, config=_REGION.format('"1K"')),
    ),
)
