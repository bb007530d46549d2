"""Rules about --gc-sections: what nothing refers to and yet must stay."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from linker import ast
from linker.bounds import bounds_of
from linker.findings import ERROR, WARNING, Context, Edit, Example, Hit, Rule, map_place, script_place
from linker.match import any_match, may_match
from linker.outline import Outline, inputs_of, is_at_zero
from linker.section_kinds import TABLE, UNKNOWN, kind_of
from linker.trial import is_coff

from .given import map_of, outline_of

# Destructors are left alone: firmware never returns from main, so that losing them is wanted.
_CONSTRUCTORS = (".init_array*", ".ctors*")
_DESTRUCTORS = (".fini_array", ".dtors")
# Words that name a list which a loop walks, and no function of the program refers to its entries.
_TABLE_WORDS = re.compile(
    r"table|_tab\b|(?:^|[._])tab(?:$|[._])|initcalls?|init_?call|list|entries|registry|hooks|"
    r"handlers|cmds?\b|commands?|modules|drivers|services|(?:^|_)set_",
    re.IGNORECASE,
)


# Entries that lie in the vectors, and not in a function that the vectors point to.
_VECTORS = re.compile(r"vec")
_AT_VECTORS = re.compile(r"start|stext|vec|entry|boot")


def not_kept(context: Context) -> Iterator[Hit]:
    """Vectors, constructors, or a table between two symbols are not in KEEP()."""
    outline = outline_of(context)
    if _links_modules(outline) or is_coff(outline):
        return
    lost: dict[tuple[str, str], list[tuple[ast.InputSpec, ast.Pattern]]] = {}
    named = may_match((*_CONSTRUCTORS, *context.settings.keep), outline.words)
    between = _between_symbols(outline)
    for section, spec, pattern in _unkept(outline) if named or between else ():
        if (named or id(spec) in between) and _must_stay(context, outline, section, spec, pattern):
            family = pattern.name.lstrip(".").partition(".")[0].rstrip("*")
            lost.setdefault((section.name, family), []).append((spec, pattern))
    if len(lost) + _destructors(outline) > 2 and not any(spec.keep for _, spec in outline.inputs()):
        return  # with so many tables and no KEEP at all, nobody links this with --gc-sections
    for found in lost.values():
        specs = dict.fromkeys(spec for spec, _ in found)
        more = f" (and {len(specs) - 1} more of its kind)" if len(specs) > 1 else ""
        first = found[0][1]
        yield Hit(
            f"'{first.name}' is not in KEEP(){more}: --gc-sections drops it, nothing refers to it",
            script_place(first.span, first.name),
            tuple(edit for spec in specs for edit in keep_edits(spec)),
        )


def _destructors(outline: Outline) -> int:
    """Return how many kinds of tables of destructors the script places: no firmware needs them."""
    return sum(any(name.startswith(kind) for name in outline.patterns) for kind in _DESTRUCTORS)


def _links_modules(outline: Outline) -> bool:
    """Tell whether the script is for modules that stay relocatable: code at 0, no entry, no memory."""
    first = next((placed.section for placed in outline.kept_sections), None)
    return first is not None and is_at_zero(first) and not outline.entry and not outline.regions


def _unkept(outline: Outline) -> Iterator[tuple[ast.OutputSection, ast.InputSpec, ast.Pattern]]:
    """Yield the patterns that stand in no KEEP, neither here nor elsewhere."""
    kept = {pattern.name for _, spec in outline.inputs() if spec.keep for pattern in spec.sections or ()}
    for section, spec in outline.inputs():
        if not spec.keep and section.name != "/DISCARD/" and not is_at_zero(section):
            yield from ((section, spec, p) for p in spec.sections or () if p.name not in kept)


def _must_stay(
    context: Context, outline: Outline, section: ast.OutputSection, spec: ast.InputSpec, pattern: ast.Pattern
) -> bool:
    if any_match(_CONSTRUCTORS, pattern.name):
        # Where .init_array has a pattern, .ctors stands there for compilers of long ago.
        return not pattern.name.startswith(".ctors") or not _has_init_array(outline)
    if any_match(context.settings.keep, pattern.name.rstrip("*")):
        if _VECTORS.search(pattern.name) and id(spec) not in _leading(outline):
            return False  # code loads their address into a register, and so refers to them
        return not _rooted(outline, section)
    return id(spec) in _between_symbols(outline)


def _has_init_array(outline: Outline) -> bool:
    return any(pattern.startswith(".init_array") for pattern in outline.patterns)


@lru_cache(maxsize=2)
def _leading(outline: Outline) -> frozenset[int]:
    """Return the descriptions before which nothing but vectors is in their memory, where processors look."""
    out: set[int] = set()
    behind: set[str] = set()
    for section, spec in outline.inputs():
        if section.name != "/DISCARD/" and section.region not in behind:
            out.add(id(spec))
            if not all(_VECTORS.search(pattern.name) for pattern in spec.sections or ()):
                behind.add(section.region)
    return frozenset(out)


def _rooted(outline: Outline, section: ast.OutputSection) -> bool:
    """Tell whether EXTERN keeps the vectors by name, or ENTRY where execution starts at them."""
    if any(isinstance(command, ast.Command) and command.name == "EXTERN" for command in outline.statements()):
        return True
    first = next((placed.section for placed in outline.kept_sections), None)
    return section is first and _AT_VECTORS.search(outline.entry) is not None


@lru_cache(maxsize=2)
def _between_symbols(outline: Outline) -> frozenset[int]:
    """Return the input descriptions that two symbols bound and that take nothing but a table."""
    out: set[int] = set()
    for bounds in bounds_of(outline):
        specs = list(bounds.inputs)
        patterns = [pattern for _, spec in specs for pattern in spec.sections or ()]
        if len({section.name for section, _ in specs}) != 1 or not patterns or _is_copied(specs):
            continue
        if any(kind_of(pattern.name) not in {UNKNOWN, TABLE} for pattern in patterns):
            continue
        if any(pattern.name.startswith(_DESTRUCTORS) for pattern in patterns):
            continue
        if any("SORT_BY_ALIGNMENT" in pattern.sorts for pattern in patterns):
            continue  # the entries of a table are aligned alike
        words = (bounds.start.target, *(pattern.name for pattern in patterns))
        sorts = {sort for pattern in patterns for sort in pattern.sorts} - {"SORT_NONE"}
        if sorts or any(_TABLE_WORDS.search(word) for word in words):
            out.update(id(spec) for _, spec in specs)
    return frozenset(out)


def _is_copied(specs: list[tuple[ast.OutputSection, ast.InputSpec]]) -> bool:
    """Tell whether the symbols bound all of a section that is loaded elsewhere: a copy goes by them."""
    section = specs[0][0]
    return section.lma_region not in {"", section.region} and len(specs) == len(inputs_of(section))


def keep_edits(spec: ast.InputSpec) -> tuple[Edit, ...]:
    """Return the edits that put an input description into KEEP()."""
    start, end = spec.span
    return (
        Edit(ast.Span(start, start), "KEEP(", f"put {spec.file.name}(...) into KEEP()"),
        Edit(ast.Span(end, end), ")", ""),
    )


def table_dropped(context: Context) -> Iterator[Hit]:
    """The map says that --gc-sections has dropped vectors, constructors or a table."""
    wanted = (*_CONSTRUCTORS, *context.settings.keep)
    tables: set[str] = set()
    thrown: tuple[str, ...] = ()
    if context.outline is not None:
        thrown = tuple(
            pattern.name
            for section, spec in context.outline.inputs()
            if section.name == "/DISCARD/"
            for pattern in spec.sections or ()
        )
        between = _between_symbols(context.outline)
        tables = {
            pattern.name
            for _, spec in context.outline.inputs()
            if id(spec) in between
            for pattern in spec.sections or ()
        }
    for item in map_of(context).discarded:
        if any_match(thrown, item.name):
            continue
        if item.size and (any_match(wanted, item.name) or any_match(tuple(sorted(tables)), item.name)):
            yield Hit(
                f"'{item.name}' of {item.file} ({item.size} bytes) was dropped",
                map_place(item.line, item.name),
            )


_DROPPED = """Discarded input sections

 .isr_vector    0x0000000000000000      0x100 vectors.o

Memory Configuration

Name             Origin             Length             Attributes
*default*        0x0000000000000000 0xffffffffffffffff

Linker script and memory map

.text           0x0000000000100000        0x3
 *(.text)
 .text          0x0000000000100000        0x3 main.o
"""
_BAD = (
    "SECTIONS\n{\n  .text : { *(.text*) *(.init_array) }\n"
    "  .app : { tab_start = .; *(.app_table) tab_end = .; }\n}\n"
)

RULES = (
    Rule(
        "not-kept",
        WARNING,
        "a table that no code refers to must be in KEEP()",
        "--gc-sections drops what nothing refers to. Interrupt vectors and boot headers are read by "
        "hardware and "
        "loaders, constructors and tables between two symbols by a loop that knows only the symbols "
        "(cmsis-templates issue 2, croc issue 127).",
        "write KEEP(*(.vectors)).",
        ("S",),
        not_kept,
        Example(script=_BAD),
        Example(
            script=_BAD.replace("*(.init_array)", "KEEP(*(.init_array))").replace(
                "*(.app_table)", "KEEP(*(.app_table))"
            )
        ),
    ),
    Rule(
        "table-dropped",
        ERROR,
        "--gc-sections has dropped a table",
        "The link map lists what was left out. Vectors, constructors and tables between two symbols are "
        "there "
        "only when their pattern lacks KEEP.",
        "write KEEP() around the pattern that takes it.",
        ("M",),
        table_dropped,
        Example(map=_DROPPED),
        Example(map=_DROPPED.replace(".isr_vector ", ".text.unused")),
    ),
)
