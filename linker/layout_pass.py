"""One walk over a script's statements that places each section at the location counter, as ld does.

Follows lang_size_sections_1 and lang_do_assignments_1 of binutils 2.40 (ld/ldlang.c); `layout.py` repeats
the walk until nothing moves any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property

from . import ast
from .data_segment import DataSegment
from .evaluate import MASK, Known, SectionFacts, Unknown, Value, align_up, evaluate
from .layout_values import NOTHING, Contents, Piece, Section, Target, applies
from .orphan_places import is_plain
from .outline import Outline, walk

_DATA_SIZES = {"BYTE": 1, "SHORT": 2, "LONG": 4, "QUAD": 8, "SQUAD": 8}
_EMPTIED = "an overlay with members that stay empty is laid out in ways of its own"
_UNKNOWN_DOT = "the location counter is not known here"


class _Region:
    def __init__(self, origin: Value, length: Value) -> None:
        self.origin, self.length = origin, length
        self.current = origin
        self.last: Section | None = None

    @property
    def used(self) -> Value:
        """How far the region is filled, in bytes."""
        if isinstance(self.current, Unknown) or isinstance(self.origin, Unknown):
            return Unknown(_UNKNOWN_DOT)
        return Known(self.current.value - self.origin.value, number=True)


class Pass:
    """One walk over the statements; `facts` and `symbols` start with what the walk before found."""

    def __init__(
        self,
        outline: Outline,
        contents: Mapping[str, Contents],
        target: Target,
        before: Pass | None,
        segment: DataSegment,
        followed: frozenset[str],
    ) -> None:
        self.outline, self.contents, self.target = outline, contents, target
        self.symbols: dict[str, Value] = dict(before.symbols) if before else {}
        self.facts: dict[str, SectionFacts] = dict(before.facts) if before else {}
        self.dot: Value = Known(0)
        self.sections: list[Section] = []
        self.regions: dict[str, _Region] = {}
        self.lost: dict[str, str] = dict(before.lost) if before else {}
        self._inside: Value | None = None
        self.inside = ""
        self._segment = segment
        self._assigned: set[str] = set()
        self._followed = followed
        self._default = _Region(Known(0), Known(1 << 64))
        self._before: _Region | None = None
        self._before_lma: _Region | None = None

    # The scope of expressions

    def symbol(self, name: str) -> Value:
        if name == ".":
            dot = self.dot
            return dot if isinstance(dot, Unknown) or self._inside is None else dot._replace(home=self.inside)
        if name in {"SIZEOF_HEADERS", "sizeof_headers"}:
            headers = self.target.headers
            return (
                Unknown("the size of the headers is not known") if headers is None else Known(headers, True)
            )
        value = self.symbols.get(name, Unknown(f"'{name}' is defined in an object file"))
        if isinstance(value, Known) and self._inside is not None and not value.home:
            # Inside an output section what is absolute counts as a number (ld/ldexp.c, fold_name).
            return Known(value.value, number=True)
        return value

    def section(self, name: str) -> SectionFacts | Unknown:
        if name in self.lost:
            return Unknown(self.lost[name])
        facts = self.facts.get(name)
        if facts is not None:
            return facts
        nowhere = Unknown(f"section '{name}' has no address yet")
        # Before it is laid out a section of the script is empty: SIZEOF has a value, ADDR has none.
        return SectionFacts(nowhere, nowhere, 0, 1) if name in self.outline.names else nowhere

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

    def base(self, name: str) -> Value:
        if name == self.inside and self._inside is not None:
            return self._inside
        facts = self.section(name)
        return facts if isinstance(facts, Unknown) else facts.address

    def data_segment(self, function: str, first: int, second: int) -> Value:
        if self.target.relro is None or self._segment.doubtful:
            return Unknown("ld chooses where the data segment starts, by relro and page size")
        if isinstance(self.dot, Unknown):
            return self.dot
        if self.inside or (function == "DATA_SEGMENT_ALIGN" and not (first and second)):
            return Unknown(f"{function} has no meaning here")
        return Known(self._segment.value(function, first, second, self.dot.value) & MASK)

    def defined(self, name: str) -> bool | None:
        # A symbol of the script counts from where it is assigned, one that is PROVIDEd may not count at all.
        return True if name in self._assigned else None

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
                self._overlay(command)

    def _assign(self, node: ast.Assign) -> None:
        value = evaluate(node.value, self)
        if node.op != "=":
            value = evaluate(ast.Binary(node.op[:-1], ast.Symbol(node.target), node.value), self)
        if isinstance(value, Known) and value.number and self._inside is not None:
            # Inside an output section a plain number is an offset from its start, for symbols as for `.`.
            base = self._inside
            whole = (
                base
                if isinstance(base, Unknown)
                else Known((base.value + value.value) & MASK, home=self.inside)
            )
            value = whole
        if not node.wrapper:
            self._assigned.add(node.target)
        if node.target != ".":
            self.symbols[node.target] = (
                Known(value.value) if isinstance(value, Known) and value.number else value
            )
            return
        self.dot = value if isinstance(value, Unknown) else Known(value.value)
        if self._inside is None:
            self._default.current = self.dot

    def _overlay(self, overlay: ast.Overlay) -> None:
        """Place the members of an overlay: one address, load addresses one behind the other.

        lang_enter_overlay_section and lang_leave_overlay: every member defines __load_start_ and __load_stop_
        symbols, and `.` ends up behind the largest.
        """
        torn = {member.name for member in overlay.sections[:-1]} & self._followed
        if torn:
            for member in overlay.sections:
                self._unknown(
                    member.name, f"an orphan lies between the members of an overlay, after '{min(torn)}'"
                )
            return
        first: ast.Expr | None = overlay.address
        largest = 0
        emptied = False
        for number, member in enumerate(overlay.sections):
            node = ast.OutputSection(
                member.name, first, "", None, overlay.at if number == 0 else None, None, False,
                overlay.subalign, "", member.body, overlay.region, overlay.lma_region, member.phdrs,
                member.fill, member.span,
            )  # fmt: skip
            self._output(node, follows=number > 0, emptied=emptied)
            if number == 0:
                first = ast.Call("ADDR", (ast.Symbol(member.name),))
            if self.contents.get(member.name, NOTHING).dropped:
                emptied = True
            facts = self.section(member.name)
            stem = "".join(char for char in member.name if char.isalnum() or char == "_")
            load = facts if isinstance(facts, Unknown) else facts.load
            size = 0 if isinstance(facts, Unknown) else facts.size or 0
            largest = max(largest, size)
            self.symbols[f"__load_start_{stem}"] = load
            self.symbols[f"__load_stop_{stem}"] = (
                load if isinstance(load, Unknown) else Known(load.value + size)
            )
        if emptied:
            home = self.regions.get(overlay.region, self._default) if overlay.region else self._default
            self.dot = home.current = Unknown(_EMPTIED)
            return
        if overlay.sections:
            start = self.section(overlay.sections[0].name)
            at = start if isinstance(start, Unknown) else start.address
            self.dot = at if isinstance(at, Unknown) else Known(at.value + largest)
            if not overlay.region:
                self._default.current = self.dot

    def _home(self, node: ast.OutputSection) -> _Region:
        # As lang_get_regions does: with a load region alone the section runs there too.
        name = node.region or (node.lma_region if node.address is None else "")
        return self.regions.get(name, self._default) if name else self._default

    def _output(self, node: ast.OutputSection, *, follows: bool = False, emptied: bool = False) -> None:
        contents = self.contents.get(node.name, NOTHING)
        if not contents.dropped and not applies(node, contents):
            # Of two sections of one name the one that does not apply is as if it were not there.
            return
        if node.name in self._twice:
            # GNU ld keeps two statements for one section, whose contents meet in ways of their own.
            self._unknown(node.name, f"the script gives section '{node.name}' twice")
            return
        if contents.twice:
            self._unknown(node.name, f"the link has two sections '{node.name}'")
            return
        region = self._home(node)
        lma = self._load_region(node, region)
        before = self.dot
        explicit, alignment = self._alignments(node, contents)
        counter = self.dot if region is self._default else region.current
        start: Value = counter if node.address is None else evaluate(node.address, self)
        applied = alignment if node.address is None else explicit
        shift = 0
        if isinstance(start, Known):
            aligned = align_up(start.value, applied)
            shift, start = aligned - start.value, Known(aligned)
        self.dot = self._inside = start
        self.inside = node.name
        pieces = self._body(node, contents)
        self._inside, self.inside = None, ""
        end = self.dot
        size = end.value - start.value if isinstance(start, Known) and isinstance(end, Known) else None
        if lma is not None and lma is not region:
            applied = explicit
        section = Section(node.name, start, start, size, alignment, False, tuple(pieces))
        old = self.facts.get(node.name)
        if isinstance(start, Known) or old is None:
            # AT() may ask for the address of the section itself.
            self.facts[node.name] = SectionFacts(start, old.load if old else start, size, alignment)
        if follows and lma is None and node.at is None:
            load = Unknown(_EMPTIED) if emptied else self._behind_last(region)
        elif contents.dropped and not contents.allocated and lma is None and node.at is None:
            load = start
        else:
            load = self._load_address(
                node, region, lma, section, shift if node.align_with_input else None, applied
            )
        section = section._replace(load_address=load)
        if contents.dropped:
            self._drop(section, region, lma, node, contents, before)
            return
        self._finish(section, region, lma, node, contents, before)

    def _drop(
        self, section: Section, region: _Region, lma: _Region | None, node: ast.OutputSection,
        contents: Contents, before: Value,
    ) -> None:  # fmt: skip
        """Forget a section that ld drops; what it has moved until then it has moved."""
        if node.name in self.facts:
            self.facts[node.name] = self.facts[node.name]._replace(load=section.load_address)
        moved = self.dot != before if self._laid_out(node, contents) else node.address is not None
        if contents.allocated and self._laid_out(node, contents):
            self._track(section._replace(size=0), region, lma)
        self.dot = before
        assigns = any(is_plain(statement) for statement in node.body)
        if node.span != ast.NOWHERE and moved and (assigns or not contents.allocated):
            self.dot = region.current = Unknown(
                f"ld drops the empty section '{node.name}' after it moved '.'"
            )

    def _laid_out(self, node: ast.OutputSection, contents: Contents) -> bool:
        """Tell whether ld makes the section before it drops it, as init_os and exp_init_os decide."""
        assigns = any(isinstance(item, ast.Assign) and not item.wrapper for item in node.body)
        return contents.allocated or assigns or node.name in self._named

    @cached_property
    def _twice(self) -> frozenset[str]:
        """The names that the script gives to two output sections, of which no constraint chooses one."""
        counts = Counter(
            placed.section.name for placed in self.outline.sections if not placed.section.constraint
        )
        return frozenset(name for name, count in counts.items() if count > 1)

    @cached_property
    def _named(self) -> frozenset[str]:
        """The sections that assignments ask for by name, and all members of overlays."""
        names = {placed.section.name for placed in self.outline.sections if placed.overlay}
        for assign in self.outline.assignments:
            if assign.wrapper:
                continue
            for part in walk(assign.value):
                if isinstance(part, ast.Call) and part.function in {"ADDR", "LOADADDR", "SIZEOF"}:
                    first = part.arguments[0]
                    names.add(first.name if isinstance(first, ast.Symbol) else "")
        return frozenset(names)

    def _track(self, section: Section, region: _Region, lma: _Region | None) -> None:
        """Note the section by which the load addresses behind it go, as lang_size_sections_1 does."""
        start, load = section.address, section.load_address
        if not isinstance(start, Known) or lma is not None:
            return
        last = region.last.address if region.last is not None else None
        forwards = isinstance(last, Known) and start.value >= last.value
        if section.size or (region.last is None and start != load) or forwards:
            region.last = section

    def _unknown(self, name: str, reason: str) -> None:
        """Give up on a section, and on what depends on where it ends."""
        self.lost[name] = reason
        self.facts.pop(name, None)
        self.sections = [
            section._replace(address=Unknown(reason), load_address=Unknown(reason), size=None)
            if section.name == name
            else section
            for section in self.sections
        ]
        self.dot = Unknown(reason)
        for region in (self._default, *self.regions.values()):
            region.current = Unknown(reason)

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
        if isinstance(start, Known):
            self.facts[section.name] = SectionFacts(start, load, section.size, section.alignment)
            if contents.allocated:
                self._track(section, region, lma)
        if not contents.allocated:
            # Debugging information moves nothing; a section that the script has filled by '.' alone does.
            self.dot = before if section.pieces else self.dot
            return
        if contents.thread_zero:
            # It takes no room, but where it starts is where the next section starts.
            self.dot = start
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
        if isinstance(subalign, Known) and pieces:
            # SUBALIGN lowers what inputs are placed at, but not what the section starts at.
            inputs = max(inputs, subalign.value)
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
        if self.contents.get(last.name, NOTHING).thread_zero:
            return Unknown("ld loads what follows .tbss as if .tbss had room")
        at, low = start.value, last.address.value
        if at < low and section.size and at + section.size <= low:
            # Where `.` moves backwards, ld leaves the load address equal to the address.
            return start
        return Known(align_up(at + last.load_address.value - low, alignment))

    def _behind_last(self, region: _Region) -> Value:
        """Return the load address of a member of an overlay that is not the first."""
        last = region.last
        if last is None or last.size is None or isinstance(last.load_address, Unknown):
            return Unknown("the load address of the section before is not known")
        return Known(last.load_address.value + last.size)

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
