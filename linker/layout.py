"""The layout a script gives to known contents: addresses, load addresses, symbols, computed as ld does.

`simulate` follows lang_size_sections_1 and lang_do_assignments_1 of binutils 2.40 (ld/ldlang.c): the same
passes over the statements until nothing moves any more. What cannot be computed is `Unknown` and says why.
`contents.py` finds the contents in a link map and joins the computed layout with map and ELF.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from . import ast
from .evaluate import Known, SectionFacts, Unknown, Value, align_up, evaluate
from .outline import Outline

_PASSES = 8
_DATA_SIZES = {"BYTE": 1, "SHORT": 2, "LONG": 4, "QUAD": 8, "SQUAD": 8}


class Piece(NamedTuple):
    """An input section: size and alignment in bytes, and the file it is from."""

    name: str
    file: str
    size: int
    alignment: int


class Contents(NamedTuple):
    """What an output section holds: pieces for each of its input descriptions, in order, and orphans.

    `dropped` tells that the linker made no such section; `thread_zero` that it takes no addresses (.tbss),
    `loaded` that the file has bytes for it. `alignment` is what the section has at least,
    `writable` what ONLY_IF_RO and ONLY_IF_RW ask for.
    """

    by_spec: tuple[tuple[Piece, ...], ...]
    orphans: tuple[Piece, ...] = ()
    dropped: bool = False
    thread_zero: bool = False
    allocated: bool = True
    loaded: bool = True
    alignment: int = 1
    writable: bool = False


class Target(NamedTuple):
    """What depends on the target and the link: bytes, None when not known."""

    headers: int | None = None
    max_page: int | None = None
    common_page: int | None = None


class Section(NamedTuple):
    """An output section of the computed layout; `size` is None when it is not known."""

    name: str
    address: Value
    load_address: Value
    size: int | None
    alignment: int
    orphan: bool
    pieces: tuple[tuple[Piece, int], ...]


class Layout(NamedTuple):
    """The computed layout: sections in order, and every symbol the script assigns."""

    sections: tuple[Section, ...]
    symbols: Mapping[str, Value]


class _Region:
    def __init__(self, origin: Value, length: Value) -> None:
        self.origin, self.length = origin, length
        self.current = origin
        self.last: Section | None = None


_UNKNOWN_DOT = "the location counter is not known here"


class _Pass:
    """One walk over the statements; `facts` and `symbols` start with what the walk before found."""

    def __init__(
        self, outline: Outline, contents: Mapping[str, Contents], target: Target, before: _Pass | None
    ) -> None:
        self.outline, self.contents, self.target = outline, contents, target
        self.symbols: dict[str, Value] = dict(before.symbols) if before else {}
        self.facts: dict[str, SectionFacts] = dict(before.facts) if before else {}
        self.dot: Value = Known(0)
        self.sections: list[Section] = []
        self.regions: dict[str, _Region] = {}
        self._inside: Value | None = None
        self._default = _Region(Known(0), Known(1 << 64))
        self._before: _Region | None = None
        self._before_lma: _Region | None = None

    # The scope of expressions

    def symbol(self, name: str) -> Value:
        if name == ".":
            return self.dot
        if name in {"SIZEOF_HEADERS", "sizeof_headers"}:
            headers = self.target.headers
            return (
                Unknown("the size of the headers is not known") if headers is None else Known(headers, True)
            )
        return self.symbols.get(name, Unknown(f"'{name}' is defined in an object file"))

    def section(self, name: str) -> SectionFacts | Unknown:
        return self.facts.get(name, Unknown(f"section '{name}' has no address yet"))

    def region(self, name: str) -> tuple[Value, Value]:
        region = self.regions.get(name)
        if region is None:
            unknown = Unknown(f"there is no memory region '{name}'")
            return unknown, unknown
        return region.origin, region.length

    def constant(self, name: str) -> Value:
        values = {"MAXPAGESIZE": self.target.max_page, "COMMONPAGESIZE": self.target.common_page}
        value = values.get(name)
        return Unknown(f"{name} depends on the target") if value is None else Known(value, True)

    def defined(self, name: str) -> bool | None:
        return True if name in self.symbols else None

    # Statements

    def run(self) -> None:
        for command in self.outline.script.commands:
            match command:
                case ast.Memory():
                    self._memory(command)
                case ast.Command() if command.name == "REGION_ALIAS":
                    alias, name = command.arguments
                    if name in self.regions:
                        self.regions[alias] = self.regions[name]
                case ast.Assign():
                    self._assign(command)
                case ast.Sections():
                    for item in command.commands:
                        self._section_command(item)

    def _memory(self, memory: ast.Memory) -> None:
        for region in memory.regions:
            if isinstance(region, ast.Region):
                self.regions[region.name] = _Region(
                    evaluate(region.origin, self), evaluate(region.length, self)
                )

    def _section_command(self, command: ast.SectionCommand) -> None:
        match command:
            case ast.Assign():
                self._assign(command)
            case ast.OutputSection():
                if command.name != "/DISCARD/":
                    self._output(command)
            case ast.Group():
                for inner in command.body:
                    self._section_command(inner)
            case ast.Overlay():
                self.dot = Unknown("overlays are not computed")

    def _assign(self, node: ast.Assign) -> None:
        value = evaluate(node.value, self)
        if node.op != "=":
            value = evaluate(ast.Binary(node.op[:-1], ast.Symbol(node.target), node.value), self)
        if isinstance(value, Known) and value.number and self._inside is not None:
            # Inside an output section a plain number is an offset from its start, for symbols as for `.`.
            base = self._inside
            value = base if isinstance(base, Unknown) else Known(base.value + value.value)
        if node.target != ".":
            self.symbols[node.target] = value
            return
        self.dot = value if isinstance(value, Unknown) else Known(value.value)
        if self._inside is None:
            self._default.current = self.dot

    def _home(self, node: ast.OutputSection) -> _Region:
        return self.regions.get(node.region, self._default) if node.region else self._default

    def _output(self, node: ast.OutputSection) -> None:
        contents = self.contents.get(node.name, Contents((), dropped=True))
        asked = {"ONLY_IF_RO": False, "ONLY_IF_RW": True}.get(node.constraint)
        if asked is not None and not contents.dropped and contents.writable is not asked:
            # Of two sections of one name the one that does not apply is as if it were not there.
            return
        region = self._home(node)
        lma = self._load_region(node, region)
        if contents.dropped:
            self._body(node, contents)
            return
        before = self.dot
        explicit, alignment = self._alignments(node, contents)
        start: Value = region.current if node.address is None else evaluate(node.address, self)
        applied = alignment if node.address is None else explicit
        shift = 0
        if isinstance(start, Known):
            aligned = align_up(start.value, applied)
            shift, start = aligned - start.value, Known(aligned)
        self.dot = self._inside = start
        pieces = self._body(node, contents)
        self._inside = None
        end = self.dot
        size = end.value - start.value if isinstance(start, Known) and isinstance(end, Known) else None
        if lma is not None and lma is not region:
            applied = explicit
        section = Section(node.name, start, start, size, alignment, False, tuple(pieces))
        load = self._load_address(
            node, region, lma, section, shift if node.align_with_input else None, applied
        )
        self._finish(section._replace(load_address=load), region, lma, node, contents, before)

    def _load_region(self, node: ast.OutputSection, region: _Region) -> _Region | None:
        """Return the load region: its own, or the one of the section before it in the same region."""
        if node.lma_region:
            lma = self.regions.get(node.lma_region)
        elif node.at is None and node.address is None and self._before == region:
            lma = self._before_lma
        else:
            lma = None
        self._before, self._before_lma = region, lma
        return lma

    def _finish(
        self, section: Section, region: _Region, lma: _Region | None, node: ast.OutputSection,
        contents: Contents, before: Value,
    ) -> None:  # fmt: skip
        self.sections.append(section)
        start, load = section.address, section.load_address
        if isinstance(start, Known) and isinstance(load, Known):
            self.facts[section.name] = SectionFacts(
                start.value, load.value, section.size or 0, section.alignment
            )
            last = region.last.address if region.last is not None else None
            forwards = isinstance(last, Known) and start.value >= last.value
            if lma is None and (section.size or (last is None and start != load) or forwards):
                region.last = section
        if contents.thread_zero or not contents.allocated:
            self.dot = before
            return
        region.current = self.dot
        if lma is not None and lma is not region and (contents.loaded or node.align_with_input):
            lma.current = (
                Known(load.value + (section.size or 0)) if isinstance(load, Known) else Unknown(_UNKNOWN_DOT)
            )

    def _alignments(self, node: ast.OutputSection, contents: Contents) -> tuple[int, int]:
        """Return the alignment the script gives the section, and the one it has with its inputs."""
        explicit = evaluate(node.align, self) if node.align is not None else None
        wanted = max(explicit.value, 1) if isinstance(explicit, Known) else 1
        subalign = evaluate(node.subalign, self) if node.subalign is not None else None
        pieces = [piece for group in (*contents.by_spec, contents.orphans) for piece in group]
        inputs = max((piece.alignment for piece in pieces), default=1)
        if isinstance(subalign, Known):
            inputs = max(subalign.value, 1) if pieces else 1
        return wanted, max(wanted, inputs, contents.alignment)

    def _load_address(
        self, node: ast.OutputSection, region: _Region, lma: _Region | None, section: Section,
        shift: int | None, alignment: int,
    ) -> Value:  # fmt: skip
        start = section.address
        if node.at is not None:
            value = evaluate(node.at, self)
            return value if isinstance(value, Unknown) else Known(value.value)
        if isinstance(start, Unknown):
            return start
        if lma is not None:
            if isinstance(lma.current, Unknown):
                return Unknown("the counter of the load region is not known")
            if shift is not None:
                return Known(lma.current.value + shift)
            return Known(align_up(lma.current.value, alignment))
        last = region.last
        if last is None or last.size is None:
            return start
        if not isinstance(last.address, Known) or not isinstance(last.load_address, Known):
            return Unknown("the load address of the section before is not known")
        at, low = start.value, last.address.value
        if at < low and section.size and at + section.size <= low:
            # Where `.` moves backwards, ld leaves the load address equal to the address.
            return start
        return Known(align_up(at + last.load_address.value - low, alignment))

    def _body(self, node: ast.OutputSection, contents: Contents) -> list[tuple[Piece, int]]:
        pieces: list[tuple[Piece, int]] = []
        subalign = evaluate(node.subalign, self) if node.subalign is not None else None
        forced = subalign.value if isinstance(subalign, Known) else None
        spec = 0
        for statement in node.body:
            match statement:
                case ast.Assign():
                    self._assign(statement)
                case ast.Data():
                    self._advance(_DATA_SIZES.get(statement.kind, 0))
                case ast.StringData():
                    self._advance(len(statement.value.encode()) + 1)
                case ast.InputSpec():
                    if spec < len(contents.by_spec):
                        self._pieces(contents.by_spec[spec], forced, pieces)
                    spec += 1
        self._pieces(contents.orphans, forced, pieces)
        return pieces

    def _pieces(self, pieces: Iterable[Piece], forced: int | None, placed: list[tuple[Piece, int]]) -> None:
        for piece in pieces:
            if isinstance(self.dot, Known):
                at = align_up(self.dot.value, forced if forced is not None else piece.alignment)
                placed.append((piece, at))
                self.dot = Known(at + piece.size)

    def _advance(self, size: int) -> None:
        if isinstance(self.dot, Known):
            self.dot = Known(self.dot.value + size)


def _facts_of(walk: _Pass) -> tuple[object, ...]:
    return tuple(walk.facts.items()), tuple(walk.symbols.items())


def simulate(
    outline: Outline,
    contents: Mapping[str, Contents],
    target: Target = Target(),  # noqa: B008 (immutable)
    orphans: Sequence[tuple[str, str]] = (),
) -> Layout:
    """Return the layout of `contents` (by output section).

    `orphans` are (name, name of the section before it) of output sections that the script does not name.
    """
    with_orphans = _with_orphans(outline, orphans)
    before: _Pass | None = None
    for _ in range(_PASSES):
        walk = _Pass(with_orphans, contents, target, before)
        walk.run()
        if before is not None and _facts_of(walk) == _facts_of(before):
            break
        before = walk
    names = {name for name, _ in orphans}
    sections = tuple(section._replace(orphan=section.name in names) for section in walk.sections)
    return Layout(sections, walk.symbols)


def _before_every_section(commands: Sequence[ast.SectionCommand]) -> int:
    """Return the index at which insert_os_after puts orphans that come first: behind what is assigned before
    the first section, but before the second assignment of `.`.
    """
    sections = (i for i, command in enumerate(commands) if not isinstance(command, ast.Assign))
    first = next(sections, len(commands))
    moves = [i for i, command in enumerate(commands[:first]) if getattr(command, "target", "") == "."]
    return moves[1] if len(moves) > 1 and first < len(commands) else first


def _with_orphans(outline: Outline, orphans: Sequence[tuple[str, str]]) -> Outline:
    """Return the script with an output section for each orphan, where the linker put it."""
    if not orphans:
        return outline
    following: dict[str, list[str]] = {}
    waiting: list[str] = []
    for name, after in orphans:
        following.setdefault(after, []).append(name)

    def expand(commands: Sequence[ast.SectionCommand]) -> Iterable[ast.SectionCommand]:
        # As insert_os_after does: behind the assignments that follow the section, but before the first
        # one of `.` when another output section comes after them.
        nonlocal waiting
        first = _before_every_section(commands)
        for index, command in enumerate(commands):
            if index == first:
                yield from chain("")
            if isinstance(command, ast.OutputSection):
                waiting = [command.name]
            yield command
            if not isinstance(command, ast.OutputSection | ast.Assign):
                continue
            rest = commands[index + 1 :]
            follower = next((item for item in rest if not isinstance(item, ast.Assign)), None)
            upcoming = rest[0] if rest else None
            moves = isinstance(upcoming, ast.Assign) and upcoming.target == "."
            if upcoming is follower or (moves and follower is not None):
                for name in waiting:
                    yield from chain(name)
                waiting = []
        if first == len(commands):
            yield from chain("")

    def chain(name: str) -> Iterable[ast.SectionCommand]:
        for orphan in following.pop(name, []):
            everything = ast.InputSpec(ast.Pattern("*"), (ast.Pattern(orphan),), False, ())
            yield ast.OutputSection(
                orphan, None, "", None, None, None, False, None, "", (everything,), "", "", (), None
            )
            yield from chain(orphan)

    commands = tuple(
        command._replace(commands=tuple(expand(command.commands)))
        if isinstance(command, ast.Sections)
        else command
        for command in outline.script.commands
    )
    return Outline(outline.script._replace(commands=commands))
