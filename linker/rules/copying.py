"""Rules about load addresses, told from the script: what is copied, from where, and what gets lost."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache

from linker import ast
from linker.bounds import Bounds, bounds_of, marks_dot, steps_of
from linker.evaluate import Known
from linker.findings import ERROR, WARNING, Context, Edit, Example, Hit, Rule, script_place
from linker.layout_values import Section
from linker.outline import Outline, is_at_zero, patterns_of, walk
from linker.section_kinds import CODE, CONSTANT, DATA, RESERVED, TABLE, THREAD_ZERO, UNKNOWN, UNLOADED, ZERO
from linker.trial import has_data, kinds_in, section_of, trial, value_of, word_of

from .given import outline_of

_WORD = 4
_CONTENTS = {CODE, CONSTANT, DATA, TABLE}
_EMPTY = {ZERO, RESERVED, THREAD_ZERO, UNLOADED}


def _loads_elsewhere(section: ast.OutputSection) -> bool:
    return section.at is not None or section.lma_region not in {"", section.region}


def _calls(outline: Outline, function: str) -> set[str]:
    """Return the sections that the script asks `function` about in values of symbols."""
    out: set[str] = set()
    for statement, part in outline.nodes(ast.Call):
        if isinstance(statement, ast.Assign) and part.function == function:
            argument = part.arguments[0]
            out.add(argument.name if isinstance(argument, ast.Symbol) else "")
    return out


@lru_cache(maxsize=2)
def _inside(outline: Outline) -> dict[str, Bounds]:
    """Return, for each output section whose start-up code has symbols for both ends of it, those symbols."""
    out: dict[str, Bounds] = {}
    for bounds in bounds_of(outline):
        first = next(bounds.inputs, None)
        if first is not None:
            out.setdefault(first[0].name, bounds)
    return out


@lru_cache(maxsize=2)
def _marks(outline: Outline) -> dict[int, tuple[ast.Assign, ...]]:
    """Return, by the output section behind them, the symbols that are given `.` between two of them."""
    out: dict[int, tuple[ast.Assign, ...]] = {}
    waiting: list[ast.Assign] = []
    for step in steps_of(outline):
        if step.what is step.section and step.section is not None:
            out[id(step.section)] = tuple(waiting)
        if step.section is not None:
            waiting = []
        elif marks_dot(step.what):
            assert isinstance(step.what, ast.Assign)
            waiting.append(step.what)
    return out


def _marks_before(outline: Outline, section: ast.OutputSection) -> tuple[ast.Assign, ...]:
    return _marks(outline).get(id(section), ())


def _has_bytes(section: ast.OutputSection) -> bool:
    """Tell whether the image has bytes for the section: it takes up room where it is loaded."""
    return section.type != "NOLOAD" and (has_data(section) or bool(kinds_in(section) - _EMPTY))


@lru_cache(maxsize=2)
def _load_ends(outline: Outline) -> tuple[tuple[int, ast.OutputSection], ...]:
    """Return where the images of the sections end in the trial, in the order of these addresses."""
    out: list[tuple[int, ast.OutputSection]] = []
    for placed in outline.kept_sections:
        there = section_of(outline, placed.section.name)
        if placed.overlay or there is None or not there.size or not _has_bytes(placed.section):
            continue
        if isinstance(there.load_address, Known):
            out.append((there.load_address.value + there.size, placed.section))
    return tuple(sorted(out, key=lambda item: item[0]))


def _loaded_before(outline: Outline, load: int) -> ast.OutputSection | None:
    """Return the section whose image is the last one before the load address."""
    ends = _load_ends(outline)
    at = bisect_right(ends, load, key=lambda item: item[0])
    return ends[at - 1][1] if at else None


def copy_source(context: Context) -> Iterator[Hit]:
    """The symbol to copy from is the end of what comes before in the ROM, and the section loads elsewhere."""
    outline = outline_of(context)
    asked: set[str] | None = None
    for placed in outline.kept_sections:
        section = placed.section
        if placed.overlay or section.at is not None or not _loads_elsewhere(section):
            continue
        asked = _calls(outline, "LOADADDR") if asked is None else asked
        if section.name in asked or section.name not in _inside(outline):
            continue
        load = _load_of(outline, section.name)
        for source in _marks_before(outline, section):
            value = value_of(outline, source.target)
            if load is not None and value is not None and 0 < load - value < 1 << 12:
                yield Hit(
                    f"{source.target} is where the section before ends, {section.name} loads from the next "
                    f"multiple of its alignment: with code of an odd size the copy starts {load - value} "
                    "bytes too early",
                    script_place(source.span, source.target),
                    (Edit(source.value.span, f"LOADADDR({section.name})", "take the load address itself"),),
                )


def _load_of(outline: Outline, name: str) -> int | None:
    placed = section_of(outline, name)
    return placed.load_address.value if placed and isinstance(placed.load_address, Known) else None


def load_address_odd(context: Context) -> Iterator[Hit]:
    """A section that start-up code copies by words can load from an odd address."""
    outline = outline_of(context)
    if word_of(outline) < _WORD:
        return
    asked: set[str] | None = None
    for placed in outline.kept_sections:
        section = placed.section
        if placed.overlay or not _loads_elsewhere(section) or not _has_bytes(section):
            continue
        asked = _calls(outline, "LOADADDR") if asked is None else asked
        load, run = _load_of(outline, section.name), _run_of(outline, section.name)
        if load is None or run is None or load == run or not load % _WORD:
            continue
        marked = any(value_of(outline, mark.target) == load for mark in _marks_before(outline, section))
        if section.name in asked or (section.name in _inside(outline) and (marked or section.at is not None)):
            yield Hit(
                f"{section.name} loads wherever the section before ends in the ROM: a copy by words starts "
                "at an odd address",
                script_place(section.at.span if section.at is not None else section.name_span, section.name),
                _align_before(outline, section, load),
            )


def _run_of(outline: Outline, name: str) -> int | None:
    placed = section_of(outline, name)
    return placed.address.value if placed and isinstance(placed.address, Known) else None


def _align_before(outline: Outline, section: ast.OutputSection, load: int) -> tuple[Edit, ...]:
    """Return the edit that aligns the load address, or the end of what comes before it in the image."""
    if section.at is not None:
        if not section.at.span.end:
            return ()
        return (
            Edit(ast.Span(section.at.span.start, section.at.span.start), "ALIGN(", "align the load address"),
            Edit(ast.Span(section.at.span.end, section.at.span.end), ", 4)", "to a word"),
        )
    before = _loaded_before(outline, load)
    last = next((item for item in reversed(before.body) if _moves(item)), None) if before else None
    if last is None or not last.span.end:
        return ()
    # Behind an assignment stands the semicolon that ends it.
    text = "; . = ALIGN(4)" if isinstance(last, ast.Assign) else " . = ALIGN(4);"
    return (Edit(ast.Span(last.span.end, last.span.end), text, "end on a word"),)


def _moves(statement: ast.Statement) -> bool:
    """Tell whether the statement takes the location counter further."""
    if isinstance(statement, ast.Assign):
        return statement.target == "."
    return isinstance(statement, ast.InputSpec | ast.Data | ast.StringData)


_ROM = re.compile(r"rom|flash|nor|xip|prog|code", re.IGNORECASE)
_RAM = re.compile(r"ram|tcm|ccm|data|mem", re.IGNORECASE)


def _is_rom(region: ast.Region) -> bool:
    attributes = region.attributes.lower().partition("!")[0]
    if "ram" in region.name.lower():
        return False
    return _ROM.search(region.name) is not None or ("w" not in attributes and "x" in attributes)


def _is_ram(region: ast.Region) -> bool:
    return not _is_rom(region) and ("w" in region.attributes.lower() or _RAM.search(region.name) is not None)


def _regions(outline: Outline) -> dict[str, ast.Region]:
    out = {
        region.name: region
        for command in outline.script.commands
        if isinstance(command, ast.Memory)
        for region in command.regions
        if isinstance(region, ast.Region)
    }
    for command in outline.script.commands:
        if isinstance(command, ast.Command) and command.name == "REGION_ALIAS":
            alias, target = command.arguments
            if target in out:
                out[alias] = out[target]
    return out


def data_without_load_address(context: Context) -> Iterator[Hit]:
    """Initialised data goes to RAM with code in ROM, and nothing says where it is loaded from."""
    outline = outline_of(context)
    regions = _regions(outline)
    if not any(_is_ram(region) for region in regions.values()):
        return
    roms = {name for name, region in regions.items() if _is_rom(region)}
    roms = {
        placed.section.region
        for placed in outline.kept_sections
        if placed.section.region in roms
        and not _loads_elsewhere(placed.section)
        and CODE in kinds_in(placed.section)
    }
    if not roms or _starts_in_ram(outline, regions):
        return
    asked = _calls(outline, "LOADADDR")
    for placed in outline.kept_sections:
        section = placed.section
        region = regions.get(section.region)
        if region is None or not _is_ram(region) or DATA not in kinds_in(section) or section.type == "NOLOAD":
            continue
        wanted = section.name in asked or section.name in _inside(outline)
        if _loads_elsewhere(section) or section.lma_region or section.phdrs or not wanted:
            continue
        if _load_of(outline, section.name) != _run_of(outline, section.name):
            continue  # it inherits the load region of the section before it
        rom = sorted(roms)[0]
        end = ast.Span(section.span.end, section.span.end)
        yield Hit(
            f"{section.name} loads into >{section.region} itself, while the code is in {rom}: after a reset "
            "nothing has put the values there",
            script_place(section.name_span, section.name),
            (Edit(end, f" AT>{rom}", f"load it from {rom}"),) if section.fill is None else (),
        )


def _starts_in_ram(outline: Outline, regions: dict[str, ast.Region]) -> bool:
    """Tell whether what comes first runs and loads in RAM: then a loader has put the image where it runs."""
    first = next((placed.section for placed in outline.kept_sections), None)
    region = regions.get(first.region) if first is not None else None
    if first is None or region is None or _loads_elsewhere(first) or first.type == "NOLOAD":
        return False
    return _is_ram(region) and not kinds_in(first) & {DATA, ZERO, RESERVED}


def noload_contents(context: Context) -> Iterator[Hit]:
    """A NOLOAD section takes inputs that have contents, or a place in the ROM."""
    outline = outline_of(context)
    regions = _regions(outline)
    for placed in outline.kept_sections:
        section = placed.section
        if section.type != "NOLOAD":
            continue
        kinds = kinds_in(section)
        reason = ""
        if kinds & _CONTENTS and not _asserted_empty(outline, section.name):
            reason = "what it takes has contents"
        elif kinds == {UNKNOWN} and section.lma_region not in {"", section.region}:
            # What has an address of its own is shared with a ROM or a loader, which has filled it.
            rom = regions.get(section.lma_region)
            if rom is not None and _is_rom(rom) and section.address is None:
                reason = f"AT>{section.lma_region} gives it a place there"
        if reason:
            yield Hit(
                f"{section.name} is NOLOAD and {reason}: the values are not in the file",
                script_place(section.name_span, section.name),
            )


def _asserted_empty(outline: Outline, name: str) -> bool:
    """Tell whether an ASSERT holds the section to a size: then it is NOLOAD because it must stay empty."""
    return any(
        isinstance(part, ast.Call)
        and part.function == "SIZEOF"
        and part.arguments[:1] == (_named(part, name),)
        for statement in outline.statements()
        if isinstance(statement, ast.Assert)
        for part in walk(statement.condition)
    )


def _named(part: ast.Call, name: str) -> ast.Expr | None:
    first = part.arguments[0]
    return first if isinstance(first, ast.Symbol) and first.name == name else None


def bss_before_data(context: Context) -> Iterator[Hit]:
    """Zeroed data comes before initialised data in one segment."""
    outline = outline_of(context)
    empty: tuple[ast.OutputSection, Section] | None = None
    for placed in outline.kept_sections:
        section, kinds = placed.section, kinds_in(placed.section)
        if not kinds or placed.overlay or kinds <= {UNLOADED}:
            continue
        if is_at_zero(section):
            continue  # a relocatable link
        if _is_small(section):
            continue  # it stands beside .sdata, in reach of one register
        zeros = kinds <= {ZERO} and not has_data(section) and section.type != "NOLOAD"
        if not zeros and (empty is None or not kinds & _CONTENTS):
            continue
        there = section_of(outline, section.name)
        if there is None or not isinstance(there.load_address, Known):
            empty = None
        elif zeros:
            empty = (section, there)
        elif empty is not None:
            if section.address is None and _one_segment(empty, (section, there)):
                yield Hit(
                    f"{section.name} has contents and follows {empty[0].name}: the file holds all the zeros "
                    "in between",
                    script_place(empty[0].name_span, empty[0].name),
                )
            empty = None


def _is_small(section: ast.OutputSection) -> bool:
    """Tell whether the section takes the zeroed small data of PowerPC, MIPS and RISC-V alone."""
    small = (".sbss", ".scommon", ".dynsbss", ".gnu.linkonce.sb")
    return all(pattern.name.startswith(small) for pattern in patterns_of(section))


def _one_segment(zeros: tuple[ast.OutputSection, Section], after: tuple[ast.OutputSection, Section]) -> bool:
    (one, first), (two, second) = zeros, after
    parts = (first.address, first.load_address, second.address, second.load_address)
    if not all(isinstance(part, Known) for part in parts) or one.phdrs != two.phdrs:
        return False
    run, load, run2, load2 = (part.value for part in parts if isinstance(part, Known))
    return run - load == run2 - load2 and 0 <= run2 - run < 1 << 16


def load_overlap(context: Context) -> Iterator[Hit]:
    """Two sections have the same load addresses whatever their size."""
    outline = outline_of(context)
    if not any(placed.section.at is not None for placed in outline.kept_sections):
        return
    nodes = {placed.section.name: placed for placed in outline.kept_sections}
    spans: list[tuple[int, int, str]] = []
    for section in trial(outline).sections:
        placed = nodes.get(section.name)
        if (
            placed is None
            or placed.overlay
            or not section.size
            or not isinstance(section.load_address, Known)
        ):
            continue
        kinds = kinds_in(placed.section)
        if kinds & _CONTENTS and placed.section.type not in {"NOLOAD", "INFO", "OVERLAY", "COPY", "DSECT"}:
            spans.append(
                (section.load_address.value, section.load_address.value + section.size, section.name)
            )
    furthest: tuple[int, int, str] | None = None
    for start, end, name in sorted(spans):
        if furthest is not None and start < furthest[1]:
            given = [nodes[one].section for one in (name, furthest[2]) if nodes[one].section.at is not None]
            for node in given[:1]:
                yield Hit(
                    f"{name} loads from {start:#x}, inside of {furthest[2]} ({furthest[0]:#x} to "
                    f"{furthest[1]:#x})",
                    script_place(node.at.span if node.at is not None else node.name_span, name),
                )
        if furthest is None or end > furthest[1]:
            furthest = (start, end, name)


_HEAD = (
    "MEMORY { ROM (rx) : ORIGIN = 0x8000000, LENGTH = 64K RAM (rw) : ORIGIN = 0x20000000, LENGTH = 8K }\n"
    "SECTIONS\n{\n"
)
_CODE = "  .text : { *(.text*) } >ROM\n"
_WHOLE = "  .text : { *(.text*) . = ALIGN(4); } >ROM\n"
_DATA = "{ _sdata = .; *(.data*) _edata = .; }"

RULES = (
    Rule(
        "copy-source",
        ERROR,
        "data must be copied from where it is loaded",
        "A symbol behind the code is where the code ends; the data is loaded from the next multiple of its "
        "alignment, and behind every orphan that ld puts in between. The copy is shifted by some bytes, or "
        "copies something else, in builds whose code has an unlucky size (NuttX: _eronly).",
        "take LOADADDR(.data), or assign the symbol where nothing can come in between.",
        ("S",),
        copy_source,
        Example(script=_HEAD + _CODE + f"  _etext = .;\n  .data : ALIGN(8) {_DATA} >RAM AT>ROM\n}}\n"),
        Example(
            script=_HEAD
            + _CODE
            + f"  .data : ALIGN(8) {_DATA} >RAM AT>ROM\n  _etext = LOADADDR(.data);\n}}\n"
        ),
    ),
    Rule(
        "load-address-odd",
        WARNING,
        "what is copied by words must be loaded from a word",
        "The load address of a section is where the one before ends in the ROM, unless the section itself "
        "says "
        "ALIGN: the alignment of its inputs counts for its run address only. Start-up code copies words: on "
        "some processors the first read faults, on the others it is slow.",
        "end the section before with `. = ALIGN(4);`, or write ALIGN(4) on the section.",
        ("S",),
        load_address_odd,
        Example(script=_HEAD + _CODE + f"  .data : {_DATA} >RAM AT>ROM\n  _from = LOADADDR(.data);\n}}\n"),
        Example(script=_HEAD + _WHOLE + f"  .data : {_DATA} >RAM AT>ROM\n  _from = LOADADDR(.data);\n}}\n"),
    ),
    Rule(
        "data-without-load-address",
        ERROR,
        "initialised data in RAM needs a place in the ROM",
        "Without AT>ROM the load address is the address in RAM. The debugger writes it there, so everything "
        "works on the bench; after a power cycle the variables hold noise.",
        "write `} >RAM AT>ROM` and copy the section at start-up.",
        ("S",),
        data_without_load_address,
        Example(script=_HEAD + _WHOLE + f"  .data : {_DATA} >RAM\n  _from = LOADADDR(.data);\n}}\n"),
        Example(script=_HEAD + _WHOLE + f"  .data : {_DATA} >RAM AT>ROM\n  _from = LOADADDR(.data);\n}}\n"),
    ),
    Rule(
        "noload-contents",
        ERROR,
        "a NOLOAD section loses its contents",
        "NOLOAD makes the section one without bytes in the file, whatever its inputs hold: initialised "
        "objects "
        "come up with what the memory held.",
        "remove (NOLOAD), or keep initialised sections out of it.",
        ("S",),
        noload_contents,
        Example(script=_HEAD + _WHOLE + "  .cfg (NOLOAD) : { *(.data.cfg) } >RAM AT>ROM\n}\n"),
        Example(script=_HEAD + _WHOLE + "  .cfg : { *(.data.cfg) } >RAM AT>ROM\n}\n"),
    ),
    Rule(
        "bss-before-data",
        WARNING,
        "zeroed data before initialised data fills the file with zeros",
        "A segment's bytes in the file go up to its last section with contents. With .bss in between, all "
        "of its "
        "zeros are in the file, and have to be loaded.",
        "place .bss behind everything that has contents.",
        ("S",),
        bss_before_data,
        Example(script="SECTIONS\n{\n  . = 0x100000;\n  .bss : { *(.bss*) }\n  .data : { *(.data*) }\n}\n"),
        Example(script="SECTIONS\n{\n  . = 0x100000;\n  .data : { *(.data*) }\n  .bss : { *(.bss*) }\n}\n"),
    ),
    Rule(
        "load-overlap",
        ERROR,
        "two sections are loaded from the same place",
        "AT(address) is taken as it is written. An address made of the sizes of some of the sections before "
        "misses the others, and the gaps between them: one section overwrites the end of another in the "
        "image.",
        "use AT>REGION, which counts, or LOADADDR(x) + SIZEOF(x) of the section that really comes before.",
        ("S",),
        load_overlap,
        Example(
            script=_HEAD + _WHOLE + "  .rodata : { *(.rodata*) } >ROM\n"
            "  .data : AT(LOADADDR(.text) + SIZEOF(.text)) { *(.data*) } >RAM\n}\n"
        ),
        Example(
            script=_HEAD + _WHOLE + "  .rodata : { *(.rodata*) . = ALIGN(4); } >ROM\n"
            "  .data : AT(LOADADDR(.rodata) + SIZEOF(.rodata)) { *(.data*) } >RAM\n}\n"
        ),
    ),
)
