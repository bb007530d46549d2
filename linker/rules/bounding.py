"""Rules about the symbols that bound a stretch of memory: for clearing it, copying it, walking it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from linker import ast
from linker.bounds import Bounds, bounds_of
from linker.evaluate import Known
from linker.findings import ERROR, WARNING, Context, Edit, Example, Hit, Rule, script_place
from linker.outline import Outline, is_dot, walk
from linker.section_kinds import CODE, CONSTANT, DATA, THREAD_DATA, THREAD_ZERO, ZERO, kind_of
from linker.trial import kinds_in, section_of, value_of, word_of

from .given import outline_of

_WORD = 4
_PAGE = 4096


def _kinds(bounds: Bounds) -> set[str]:
    return {kind_of(pattern.name) for _, spec in bounds.inputs for pattern in spec.sections or ()}


def range_end_unaligned(context: Context) -> Iterator[Hit]:
    """The symbol that ends zeroed data can have an odd address, in a script for a microcontroller."""
    outline = outline_of(context)
    if not outline.regions or word_of(outline) < _WORD:
        return
    ends: dict[int, Bounds] = {}
    for bounds in bounds_of(outline):
        if not any(_plain_bss(spec) for _, spec in bounds.inputs) or _kinds(bounds) != {ZERO}:
            continue
        end = value_of(outline, bounds.stop.target)
        if end is None or end % _WORD == 0 or _counted(outline, bounds):
            continue
        if end not in ends or bounds.last < ends[end].last:
            ends[end] = bounds  # of several names for one end the first, which aligns the others
    for bounds in ends.values():
        yield Hit(
            f"{bounds.stop.target} is wherever the last object ends: a loop that clears words from "
            f"{bounds.start.target} on never meets an odd address, or clears past it",
            script_place(bounds.stop.span, bounds.stop.target),
            (
                Edit(
                    ast.Span(bounds.stop.span.start, bounds.stop.span.start),
                    ". = ALIGN(4); ",
                    "align the end",
                ),
            ),
        )


def _plain_bss(spec: ast.InputSpec) -> bool:
    return any(pattern.name in {".bss", ".bss*", ".sbss", ".sbss*"} for pattern in spec.sections or ())


def _counted(outline: Outline, bounds: Bounds) -> bool:
    """Tell whether the script stores the size of the section in bytes, for code that goes by it."""
    names = {section.name for section, _ in bounds.inputs}
    for statement, call in outline.nodes(ast.Call):
        if isinstance(statement, ast.Data) and statement.value is call and call.function == "SIZEOF":
            section = call.arguments[0]
            if isinstance(section, ast.Symbol) and section.name in names:
                return True
    return False


def start_symbol_outside(context: Context) -> Iterator[Hit]:
    """The symbol that starts a section is assigned before it, and ld aligns the section afterwards."""
    outline = outline_of(context)
    for bounds in bounds_of(outline):
        first = next(bounds.inputs, None)
        if first is None or bounds.steps[bounds.first - 1].section is not None:
            continue
        section = first[0]
        if any(step.what is not section for step in bounds.steps[bounds.first : _position(bounds, section)]):
            continue
        start, placed = value_of(outline, bounds.start.target), section_of(outline, section.name)
        if start is None or placed is None or not isinstance(placed.address, Known):
            continue
        gap = placed.address.value - start
        end = value_of(outline, bounds.stop.target)
        # Clearing some bytes before .bss harms no one, as long as what is cleared ends on a word.
        if not gap or (0 < gap < _PAGE and _kinds(bounds) == {ZERO} and end is not None and end % _WORD == 0):
            continue
        if 0 < gap < _PAGE:
            what = (
                f"ld then aligns it: what starts at the symbol starts in the padding, up to {gap} bytes early"
            )
        else:
            what = f"it starts in >{section.region or 'another place'} and not where '.' is"
        yield Hit(
            f"{bounds.start.target} is assigned before {section.name}; {what}",
            script_place(bounds.start.span, bounds.start.target),
            (Edit(bounds.start.value.span, f"ADDR({section.name})", "take the address itself"),),
        )


_STACK_TOP = re.compile(r"estack|stack_?top|initial_?sp", re.IGNORECASE)


def stack_top_unaligned(context: Context) -> Iterator[Hit]:
    """The symbol where a stack starts is no multiple of a word."""
    outline = outline_of(context)
    names = "\n".join([assign.target for assign in outline.assignments]).lower()
    if "stack" not in names and "initial" not in names:
        return  # an expression without regard to case is slow on many names
    if word_of(outline) < _WORD:
        return
    for assign in outline.assignments:
        if assign.op != "=" or not _STACK_TOP.search(assign.target):
            continue
        top = value_of(outline, assign.target)
        if top is None or top % _WORD == 0:
            continue
        placed = any(map(is_dot, walk(assign.value)))
        where = "wherever the section before it ends" if placed else f"{top:#x}"
        yield Hit(
            f"{assign.target} is {where}: the first push goes to an odd address",
            script_place(assign.span, assign.target),
        )


def _position(bounds: Bounds, section: ast.OutputSection) -> int:
    return next(at for at in range(bounds.first, len(bounds.steps)) if bounds.steps[at].what is section)


def _terms(node: ast.Expr) -> Iterator[ast.Expr]:
    if isinstance(node, ast.Binary) and node.op == "+":
        yield from _terms(node.left)
        yield from _terms(node.right)
    else:
        yield node


def tls_size(context: Context) -> Iterator[Hit]:
    """The size of thread-local storage is given as the sum of the sizes of .tdata and .tbss."""
    for _, part in outline_of(context).nodes(ast.Binary):
        hit = _tls_sum(part)
        if hit is not None:
            yield hit


def _tls_sum(part: ast.Binary) -> Hit | None:
    if part.op != "+":
        return None
    names: dict[str, str] = {}
    terms = list(_terms(part))
    for term in terms:
        if isinstance(term, ast.Call) and term.function == "SIZEOF":
            argument = term.arguments[0]
            name = argument.name if isinstance(argument, ast.Symbol) else ""
            names[kind_of(name)] = name
    data, zero = names.get(THREAD_DATA), names.get(THREAD_ZERO)
    if data is None or zero is None:
        return None
    whole = f"ADDR({zero}) + SIZEOF({zero}) - ADDR({data})"
    fix = (Edit(part.span, whole, "from the first address to the last"),) if len(terms) == 2 else ()
    return Hit(
        f"SIZEOF({data}) + SIZEOF({zero}) leaves out the gap that the alignment of {zero} makes between them",
        script_place(part.span, zero),
        fix,
    )


_PLAIN = {CODE, CONSTANT, DATA, ZERO, THREAD_DATA, THREAD_ZERO}


def subalign_lowers(context: Context) -> Iterator[Hit]:
    """SUBALIGN gives compiled code or data less alignment than a word."""
    outline = outline_of(context)
    least = max(word_of(outline), _WORD)
    for placed in outline.kept_sections:
        node = placed.section.subalign
        value = outline.fold(node)
        if node is None or value is None or value >= least:
            continue
        if kinds_in(placed.section) & _PLAIN:
            yield Hit(
                f"SUBALIGN({value}) of {placed.section.name} replaces every alignment that its inputs ask "
                "for, larger ones too",
                script_place(node.span, placed.section.name),
            )


_MCU = "MEMORY { ROM (rx) : ORIGIN = 0, LENGTH = 64K RAM (rw) : ORIGIN = 0x20000000, LENGTH = 8K }\n"
_CLEAR = (
    "SECTIONS\n{{\n  .text : {{ *(.text*) }} >ROM\n  .bss : {{ _sbss = .; *(.bss*) *(COMMON) {} }} >RAM\n}}\n"
)
_OUTSIDE = "SECTIONS\n{{\n  . = 0x100000;\n  .text : {{ *(.text*) }}\n  {}\n  tab_end = .;\n}}\n"
_TLS = "SECTIONS\n{{\n  .tdata : {{ *(.tdata*) }}\n  .tbss : {{ *(.tbss*) }}\n  tls_size = {};\n}}\n"

RULES = (
    Rule(
        "stack-top-unaligned",
        WARNING,
        "a stack must start on a word",
        "A processor takes the symbol for its stack pointer as it is. The last byte of a memory, 0x20001fff, "
        "or the end of a section that may end anywhere, is no multiple of a word: the first push faults or "
        "is slow, and every procedure call standard asks for 8 or 16 bytes.",
        "put . = ALIGN(16) before the reservation, or use ORIGIN + LENGTH of the memory.",
        ("S",),
        stack_top_unaligned,
        Example(
            script="SECTIONS\n{\n  .text : { *(.text*) }\n  .bss : { *(.bss*) }\n"
            "  .stack : { . += 0x1000; stack_top = .; }\n}\n"
        ),
        Example(
            script="SECTIONS\n{\n  .text : { *(.text*) }\n  .bss : { *(.bss*) }\n"
            "  .stack : ALIGN(16) { . += 0x1000; stack_top = .; }\n}\n"
        ),
    ),
    Rule(
        "range-end-unaligned",
        WARNING,
        "the end of what is cleared must be a whole word away from its start",
        "Start-up code of microcontrollers clears .bss by words, up to the end symbol. After the last "
        "object the "
        "location counter is anywhere: the loop compares for equality and runs through all memory, or writes "
        "over the first bytes behind.",
        "write `. = ALIGN(4);` before the end symbol.",
        ("S",),
        range_end_unaligned,
        Example(script=_MCU + _CLEAR.format("_ebss = .;")),
        Example(script=_MCU + _CLEAR.format(". = ALIGN(4); _ebss = .;")),
    ),
    Rule(
        "start-symbol-outside",
        WARNING,
        "a start symbol is assigned before the section that it starts",
        "`start = .;` between two output sections is the end of the one before. ld then aligns the next "
        "one, or "
        "goes to the counter of its memory region: what reads or clears from the start symbol meets padding, "
        "or another memory.",
        "assign the symbol inside of the output section as its first statement, or take ADDR(.section).",
        ("S",),
        start_symbol_outside,
        Example(script=_OUTSIDE.format("tab_start = .;\n  .tab : { KEEP(*(.tab)) }")),
        Example(script=_OUTSIDE.format(".tab : { tab_start = .; KEEP(*(.tab)) }")),
    ),
    Rule(
        "tls-size",
        ERROR,
        "the size of thread-local storage is not the sum of two sizes",
        ".tbss is aligned on its own, so that there may be a gap behind .tdata. Whoever allocates a "
        "thread's block "
        "by SIZEOF(.tdata) + SIZEOF(.tbss) allocates too little, and the last variables lie in someone "
        "else's "
        "memory.",
        "take the distance: ADDR(.tbss) + SIZEOF(.tbss) - ADDR(.tdata).",
        ("S",),
        tls_size,
        Example(script=_TLS.format("SIZEOF(.tdata) + SIZEOF(.tbss)")),
        Example(script=_TLS.format("ADDR(.tbss) + SIZEOF(.tbss) - ADDR(.tdata)")),
    ),
    Rule(
        "subalign-lowers",
        WARNING,
        "SUBALIGN takes alignment away",
        "SUBALIGN is not the least alignment of the inputs but the alignment of all of them: SUBALIGN(1) "
        "packs words to odd addresses, which faults on some processors and tears atomics on others. GNU ld "
        "2.44 begins the section itself at no more than that, whatever its ALIGN says; 2.40 does not.",
        "use the largest alignment that the inputs need, or none.",
        ("S",),
        subalign_lowers,
        Example(script="SECTIONS\n{\n  .data : SUBALIGN(1) { *(.data*) }\n}\n"),
        Example(script="SECTIONS\n{\n  .data : SUBALIGN(16) { *(.data*) }\n}\n"),
    ),
)
