"""Rules about which pattern takes what: the first that matches, in the order of the script."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from linker import ast
from linker.bounds import Bounds, bounds_of
from linker.findings import ERROR, WARNING, Context, Edit, Example, Hit, Rule, script_place
from linker.match import is_glob, matches
from linker.outline import Outline, is_at_zero
from linker.section_kinds import UNLOADED, kind_of

from .given import outline_of, speaks_of_xen


def covers(wide: str, narrow: str) -> bool:
    """Tell whether everything that the pattern `narrow` matches is surely matched by `wide` too."""
    if wide in {"*", narrow}:
        return True
    if "[" in narrow or "\\" in narrow:
        return False
    # What stands for any text can only be matched by what stands for any text.
    return matches(wide, narrow.replace("*", "\1").replace("?", "\2"))


_WILD = re.compile(r"[*?\[\\]")


class _Taken(NamedTuple):
    """A pattern that takes sections of every file that `file` names, and where it stands."""

    name: str
    file: str
    section: ast.OutputSection
    number: int


_Same: TypeAlias = dict[tuple[str, str], tuple[int, _Taken]]


class _Catalogue:
    """The patterns before a place of the script: literal ones by name, others by how they begin and end."""

    def __init__(self) -> None:
        self._literal: dict[str, _Taken] = {}
        # What stands before the first wildcard -> behind the last -> (pattern, file) -> its turn, and where.
        self._globs: dict[str, dict[str, _Same]] = {}
        self._lengths: set[int] = set()
        self._turn = 0

    def add(self, taken: _Taken) -> None:
        if is_glob(taken.name):
            self._turn += 1
            parts = _WILD.split(taken.name)
            tail = parts[-1] if taken.name.endswith("*" + parts[-1]) else ""
            self._lengths.add(len(parts[0]))
            same = self._globs.setdefault(parts[0], {}).setdefault(tail, {})
            same.setdefault((taken.name, taken.file), (self._turn, taken))
        elif taken.file == "*":
            self._literal.setdefault(taken.name, taken)

    def find(self, name: str, file: str) -> _Taken | None:
        found = self._literal.get(name)
        if found is not None:
            return found
        wide = [
            one
            for length in self._lengths
            if name[:length] in self._globs
            for same in self._ending(self._globs[name[:length]], name)
            for one in same.values()
            if covers(one[1].name, name) and covers(one[1].file, file)
        ]
        return min(wide)[1] if wide else None

    @staticmethod
    def _ending(by_tail: dict[str, _Same], name: str) -> Iterable[_Same]:
        """Return what may end as the name does."""
        if len(by_tail) <= len(name):
            return by_tail.values()
        tails = (name[start:] for start in range(len(name) + 1))
        return (by_tail[tail] for tail in tails if tail in by_tail)


class Shadowed(NamedTuple):
    """A pattern that can take nothing, because an earlier one has taken everything."""

    pattern: ast.Pattern
    section: ast.OutputSection
    number: int
    by: _Taken


def shadowed(outline: Outline) -> Iterator[Shadowed]:
    """Yield every pattern that an earlier one covers."""
    catalogue = _Catalogue()
    number = 0
    for section, spec in outline.inputs():
        number += 1
        if section.constraint or spec.flags or spec.sections is None:
            continue
        for pattern in spec.sections:
            by = catalogue.find(pattern.name, spec.file.name)
            if by is not None and by.number != number:
                yield Shadowed(pattern, section, number, by)
        if not spec.file.excludes:
            for pattern in spec.sections:
                if not pattern.excludes:
                    catalogue.add(_Taken(pattern.name, spec.file.name, section, number))


def shadowed_pattern(context: Context) -> Iterator[Hit]:
    """An earlier wildcard takes all that a pattern is for, and that makes a difference."""
    outline = outline_of(context)
    found = list(shadowed(outline))
    if not found:
        return
    empty = {id(item.pattern) for item in found}
    ranges = _empty_ranges(outline, empty)
    for item in found:
        bounds = ranges.get(id(item.pattern))
        if bounds is not None:
            yield Hit(
                f"'{item.by.name}' in {item.by.section.name} has taken what '{item.pattern.name}' is for: "
                f"{bounds.start.target} and {bounds.stop.target} bound nothing",
                script_place(item.pattern.span, item.pattern.name),
            )
        elif _misplaced(item):
            yield Hit(
                f"'{item.by.name}' in {item.by.section.name} has taken what '{item.pattern.name}' in "
                f"{item.section.name} is for",
                script_place(item.pattern.span, item.pattern.name),
            )


def _misplaced(item: Shadowed) -> bool:
    """Tell whether a section lands in another output section than the one that asks for it by name."""
    if "/DISCARD/" in {item.section.name, item.by.section.name} or item.by.section.name == item.section.name:
        return False
    return item.by.name != item.pattern.name and kind_of(item.pattern.name) != UNLOADED


def _empty_ranges(outline: Outline, empty: set[int]) -> dict[int, Bounds]:
    """Return, by pattern, the stretches between two symbols all of whose patterns take nothing."""
    out: dict[int, Bounds] = {}
    for bounds in bounds_of(outline):
        patterns = [pattern for _, spec in bounds.inputs for pattern in spec.sections or ()]
        if patterns and all(id(pattern) in empty for pattern in patterns) and not any(bounds.others):
            out.update((id(pattern), bounds) for pattern in patterns)
    return out


def exclude_file_first(context: Context) -> Iterator[Hit]:
    """EXCLUDE_FILE in a list of patterns holds for the first of them only."""
    for section, spec in outline_of(context).inputs():
        patterns = spec.sections or ()
        if len(patterns) < 2 or not patterns[0].excludes or any(p.excludes for p in patterns[1:]):
            continue
        first = patterns[0]
        bare = [pattern for pattern in patterns[1:] if _same_family(pattern.name, first.name)]
        if bare:
            words = "EXCLUDE_FILE(" + " ".join(first.excludes) + ") "
            yield Hit(
                f"EXCLUDE_FILE holds for '{first.name}' alone: '{bare[0].name}' in {section.name} takes "
                "those "
                "files too",
                script_place(bare[0].span, bare[0].name),
                tuple(
                    Edit(ast.Span(p.span.start, p.span.start), words, f"exclude them from {p.name}")
                    for p in bare
                    if p.span.end
                ),
            )


def _same_family(name: str, first: str) -> bool:
    return kind_of(name) == kind_of(first)


_SORTED = {"SORT", "SORT_BY_NAME", "SORT_BY_INIT_PRIORITY"}
_FAMILIES = (".init_array", ".ctors")


def init_array_unsorted(context: Context) -> Iterator[Hit]:
    """Constructors with priorities are taken in the order of the files."""
    outline = outline_of(context)
    if not any(family in outline.words for family in _FAMILIES):
        return
    by_family: dict[str, list[tuple[ast.InputSpec, ast.Pattern]]] = {}
    for section, spec in outline.inputs():
        if section.name == "/DISCARD/" or is_at_zero(section):
            continue
        for pattern in spec.sections or ():
            family = next((name for name in _FAMILIES if pattern.name.startswith(name)), None)
            if family is not None and pattern.name != family:
                by_family.setdefault(family, []).append((spec, pattern))
    for family, taken in by_family.items():
        spec, first = taken[0]
        if not _SORTED & set(first.sorts) and "SORT_NONE" not in first.sorts and _alone(spec, family):
            yield Hit(
                f"'{first.name}' is taken as the files come: constructors with a priority run in any order",
                script_place(first.span, first.name),
                _sort(spec, first, family),
            )


def _alone(spec: ast.InputSpec, family: str) -> bool:
    # In one list with the plain name is how scripts without priorities are written: see init-array-order.
    return not any(pattern.name == family for pattern in spec.sections or ())


def _sort(spec: ast.InputSpec, pattern: ast.Pattern, family: str) -> tuple[Edit, ...]:
    if len(spec.sections or ()) != 1 or pattern.excludes or pattern.sorts or not spec.span.end:
        return ()
    inner = f"{spec.file.name}(SORT_BY_INIT_PRIORITY({family}.*))"
    plain = f"{spec.file.name}({family})"
    if pattern.name == f"{family}.*":
        parts = [inner]
    elif pattern.name == f"{family}*":
        parts = [inner, plain]
    else:
        return ()
    text = " ".join(f"KEEP({part})" if spec.keep else part for part in parts)
    return (Edit(spec.span, text, "sort by priority, those without one last"),)


# What no domain builder takes a kernel without.
_XEN = {".note.Xen": "Xen's notes", "__xen_guest": "Xen's description of the kernel"}
# What no program is without; a pattern for everything drops it unless a pattern before has taken it.
_VITAL = {".text": "code", ".rodata": "constants", ".data": "initialised data", ".bss": "zeroed data"}


def discard_needed(context: Context) -> Iterator[Hit]:
    """/DISCARD/ takes what the kernel cannot do without, or what a pattern behind it wants."""
    outline = outline_of(context)
    if "/DISCARD/" not in outline.names:
        return
    xen = context.settings.xen
    if xen is None:
        targets = (assign.target for assign in outline.assignments)
        xen = speaks_of_xen((*outline.patterns, *outline.names, *targets))
    before: list[str] = []
    thrown = _Catalogue()
    patterns = (
        (number, section, spec, pattern)
        for number, (section, spec) in enumerate(outline.inputs())
        for pattern in spec.sections or ()
    )
    for number, section, spec, pattern in patterns:
        place = script_place(pattern.span, pattern.name)
        if section.name != "/DISCARD/":
            before.append(pattern.name)
            taker = thrown.find(pattern.name, "*")
            if taker is not None and not section.constraint:
                yield Hit(
                    f"/DISCARD/ stands before it and drops what '{pattern.name}' in {section.name} is for "
                    f"('{taker.name}')",
                    place,
                )
        elif spec.file.name == "*" and not spec.file.excludes and not spec.flags:
            needed = {**(_XEN if xen else {}), **(_VITAL if pattern.name == "*" else {})}
            lost = [
                what
                for name, what in needed.items()
                if matches(pattern.name, name) and not any(matches(earlier, name) for earlier in before)
            ]
            if lost:
                yield Hit(f"'{pattern.name}' in /DISCARD/ drops {' and '.join(lost)}", place)
            if not pattern.excludes:
                thrown.add(_Taken(pattern.name, "*", section, number))


def _script(body: str) -> Example:
    return Example(script="SECTIONS\n{\n" + body + "\n}\n")


RULES = (
    Rule(
        "shadowed-pattern",
        WARNING,
        "an earlier wildcard has taken what a pattern is for",
        "A section goes to the first pattern that matches it. Behind *(.text*) a pattern *(.text.safe) takes "
        "nothing, and the two symbols around it are equal: no error, and a protected range of no bytes.",
        "put the special pattern before the general one.",
        ("S",),
        shadowed_pattern,
        _script("  .text : { *(.text*) s_safe = .; *(.text.safe) e_safe = .; }"),
        _script("  .text : { s_safe = .; *(.text.safe) e_safe = .; *(.text*) }"),
    ),
    Rule(
        "exclude-file-first",
        WARNING,
        "EXCLUDE_FILE in a list holds for the next pattern only",
        "In *(EXCLUDE_FILE(boot.o) .text .text.*) the second pattern takes boot.o's sections all the same: "
        "code "
        "that had to stay out comes in.",
        "repeat EXCLUDE_FILE before every pattern, or write EXCLUDE_FILE(boot.o) *(.text .text.*), which "
        "newer "
        "linkers take.",
        ("S",),
        exclude_file_first,
        _script("  .text : { *(EXCLUDE_FILE(boot.o) .text .text.*) }"),
        _script("  .text : { *(EXCLUDE_FILE(boot.o) .text EXCLUDE_FILE(boot.o) .text.*) }"),
    ),
    Rule(
        "init-array-unsorted",
        WARNING,
        "constructors with priorities must be sorted",
        "__attribute__((constructor(101))) makes a section .init_array.00101. Without SORT they run in the "
        "order "
        "in which the linker meets the files, which changes when a file is added.",
        "write KEEP(*(SORT_BY_INIT_PRIORITY(.init_array.*))) KEEP(*(.init_array)).",
        ("S",),
        init_array_unsorted,
        _script("  .init_array : { KEEP(*(.init_array*)) }"),
        _script("  .init_array : { KEEP(*(SORT_BY_INIT_PRIORITY(.init_array.*))) KEEP(*(.init_array)) }"),
    ),
    Rule(
        "discard-needed",
        ERROR,
        "/DISCARD/ takes something that is needed",
        "What /DISCARD/ matches is gone without a word, also when a pattern behind it names it. `*(.note*)` "
        "takes the notes by which Xen knows the kernel.",
        "discard by exact names (.note.GNU-stack, .note.gnu.property), after the patterns that need "
        "something.",
        ("S",),
        discard_needed,
        _script("  .text : { *(.text*) *(.hypercall*) }\n  /DISCARD/ : { *(.note*) }"),
        _script(
            "  .text : { *(.text*) *(.hypercall*) }\n  .notes : { *(.note.Xen) }\n  /DISCARD/ : { *(.note*) }"
        ),
    ),
)
