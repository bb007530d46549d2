"""The layout lld gives to known contents: its passes over the statements, which are not GNU ld's.

Follows LLVM 14 to 22, lld/ELF/LinkerScript.cpp (assignAddresses, assignOffsets, findMemoryRegion) and
Writer.cpp (createPhdrs). All arithmetic is on whole addresses; a load address belongs to a segment, not to a
section.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from . import ast
from .evaluate import MASK, Known, SectionFacts, Unknown, Value, align_up, evaluate
from .layout_outputs import Output, Program, largest
from .layout_pass import NO_DOT
from .layout_values import Piece, Target, extent

_PASSES = 7  # assignAddresses runs once, and until symbols converge, at most five times more
_AETHER = "*aether*"  # the section of what stands before the first one
_RELRO_PADDING = ".relro_padding"  # from LLVM 18 on: up to the end of the page, and '.' stays where it was
_BY_PHDRS = "*PHDRS*"  # no section of a script is called so
_PHDRS = "with PHDRS, the load address goes by lld's segments"


class Region:
    """A memory region: where it is filled up to."""

    def __init__(self, origin: Value, length: Value) -> None:
        self.origin, self.length, self.current = origin, length, origin

    @property
    def used(self) -> Value:
        """How far the region is filled, in bytes."""
        return self.current if isinstance(self.current, Unknown) else _minus(self.current, self.origin)


class Home(NamedTuple):
    """The names of the memory regions that a section runs in and is loaded to, "" for none."""

    region: str
    load_region: str


class Segment:
    """A PT_LOAD: its first section, and the difference of load address and address that this one has."""

    def __init__(self, first: Output) -> None:
        self.first = first
        self.difference: Value = Known(0)


class LldSizing:
    """The passes over one script; symbols and sections keep what the pass before found."""

    inside = "*"  # numbers are numbers wherever they stand, and addresses are whole

    def __init__(self, program: Program, target: Target) -> None:
        self.program, self.target = program, target
        self.symbols: dict[str, Value] = {}
        self.regions: dict[str, Region] = {}
        self.dot: Value = Known(0)
        self._homes = dict(_homes(program))
        self._segments = _segments(program, self._homes, target)
        for output in program.outputs.values():
            output.address = output.load = Known(0)
        self._home = Home("", "")
        self._difference: Value = Known(0)
        self._thread_end = 0
        self._current: Output | None = None  # whose size is growing
        self._last: Output | None = None  # that `.` is relative to

    # The scope of expressions

    def symbol(self, name: str) -> Value:
        if name == ".":
            dot = self.dot
            if isinstance(dot, Unknown):
                return dot
            return self._read(dot._replace(home=self._last.name if self._last is not None else _AETHER))
        if name == "SIZEOF_HEADERS":
            headers = self.target.headers
            unknown = Unknown("the size of the headers is not known")
            return unknown if headers is None else Known(headers, number=True)
        value = self.symbols.get(name)
        if value is None and name in self.program.assigned:
            return Known(0, number=True)  # declareSymbols has made it
        return Unknown(f"'{name}' is defined in an object file") if value is None else value

    def counter(self) -> Value:
        return self.dot

    def section(self, name: str) -> SectionFacts | Unknown:
        output = self.program.outputs.get(name)
        if output is None or output.ignored:
            return SectionFacts(Known(0), Known(0), 0, 1)
        if output.doubt:
            return Unknown(output.doubt)
        return SectionFacts(output.address, self._load_of(output), self._size_of(output), output.alignment)

    def region(self, name: str) -> tuple[Value, Value]:
        return extent(self.regions.get(self.program.memories.names.get(name, "")), name)

    def constant(self, name: str) -> Value:
        return self.target.constant(name)

    def base(self, name: str) -> Value:
        del name
        return Known(0)

    def data_segment(self, function: str, first: int, second: int) -> Value:
        del second
        if isinstance(self.dot, Unknown) or function == "DATA_SEGMENT_END":
            return self.dot
        page = max(first, 1) if function == "DATA_SEGMENT_ALIGN" else self.target.common_page
        if page is None:
            return Unknown("COMMONPAGESIZE depends on the target")
        return Known(align_up(self.dot.value, page))

    def defined(self, name: str) -> bool | None:
        # What the script assigns is defined from the start; what it PROVIDEs may not count at all.
        return True if name in self.program.plain else None

    def _size_of(self, output: Output) -> int | None:
        return _size(output.address, self.dot) if output is self._current else output.size

    def _read(self, value: Value) -> Value:
        """Return the value as lld reads it: an offset of -1 is the end of the section (getOffset)."""
        if isinstance(value, Unknown) or not value.home:
            return value
        if value.home == _AETHER:
            return value._replace(value=0) if value.value & MASK == MASK else value
        output = self.program.outputs.get(value.home)
        if output is None or _plus(value, 1) != output.address:
            return value
        end = _plus(output.address, self._size_of(output))
        return end if isinstance(end, Unknown) else end._replace(home=value.home)

    def _value(self, node: ast.Expr) -> Value:
        return self._read(evaluate(node, self))

    # Passes

    def run(self) -> None:
        """Place everything until no symbol changes any more: finalizeAddressDependentContent."""
        self._assign_addresses()
        for _ in range(_PASSES):
            before = dict(self.symbols)
            self._assign_addresses()
            if self.symbols == before:
                break

    def _assign_addresses(self) -> None:
        self.dot = self._difference = Known(0)
        self._home = Home("", "")
        self._thread_end = 0
        self._last = None
        self.regions = {}
        for region in self.program.memories.regions:
            self.regions[region.name] = Region(evaluate(region.origin, self), evaluate(region.length, self))
        for step in self.program.steps:
            if isinstance(step, ast.Assign):
                self._assign(step)
            elif isinstance(step, Output):
                if not step.ignored:
                    self._assign_offsets(step)
                self._close_overlay(step)

    def _assign(self, node: ast.Assign) -> None:
        sum_ = ast.Binary(node.op[:-1], ast.Symbol(node.target), node.value)
        value = self._value(node.value if node.op == "=" else sum_)
        if isinstance(value, Known):
            whole = value.value & MASK
            value = Known(whole) if node.target == "." else Known(whole, not value.home, value.home)
        if node.target == ".":
            self.dot = value
        else:
            self.symbols[node.target] = value

    def _assign_offsets(self, output: Output) -> None:
        """Place one section: assignOffsets."""
        if output.doubt:
            self._give_up(output)
            return
        before, saved = self._home, self.dot
        self._home = self._homes[output.name]
        self._enter(output)
        self._align(output)
        if output.node.address is None and isinstance(self.dot, Known):
            at = Known(align_up(self.dot.value, output.alignment))
            self._move_to(at)
        output.address = self.dot
        self._find_difference(output, before)
        segment = self._segments.get(output.name)
        if segment is not None and segment.first is output:
            segment.difference = self._difference
        self._current = self._last = output
        self._body(output)
        behind = self.dot
        if output.name == _RELRO_PADDING and isinstance(behind, Known):
            self._move_to(Known(align_up(behind.value, self.target.common_page or 1)))
        self._current = None
        output.size = _size(output.address, self.dot)
        self.dot = behind
        if not output.contents.allocated:
            self.dot = saved
        elif output.contents.thread_zero:
            self._thread_end = self.dot.value if isinstance(self.dot, Known) else 0
            self.dot = saved

    def _close_overlay(self, output: Output) -> None:
        """Move `.` behind the largest member when the overlay ends here: readOverlay."""
        if output.members:
            start = NO_DOT if output.overlay is None else self._value(output.overlay)
            self.dot = _plus(start, largest(output.members))

    def _enter(self, output: Output) -> None:
        """Go to where the section starts, before it is aligned."""
        region = self.regions.get(self._home.region)
        if not output.contents.allocated:
            self.dot = Known(0)
        elif output.contents.thread_zero:
            self.dot = Known(self._thread_end) if self._thread_end else self.dot
        else:
            self.dot = region.current if region is not None else self.dot
            address = output.overlay or output.node.address
            if address is not None:
                at = self._value(address)
                self.dot = at if isinstance(at, Unknown) else Known(at.value)
            if region is not None and not _before(self.dot, region.current):
                region.current = self.dot

    def _align(self, output: Output) -> None:
        node = output.node
        if node.align is not None:
            value = self._value(node.align)
            output.alignment = max(output.alignment, value.value if isinstance(value, Known) else 1)

    def _find_difference(self, output: Output, before: Home) -> None:
        """Find load address minus address, for this section and those behind it."""
        region = self.regions.get(self._home.load_region)
        if output.node.at is not None:
            self._difference = _minus(self._value(output.node.at), self.dot)
        elif output.previous is not None:
            self._difference = _minus(self._behind(output.previous), self.dot)
        elif region is not None:
            if isinstance(region.current, Known):
                region.current = Known(align_up(region.current.value, output.alignment))
            self._difference = _minus(region.current, self.dot)
        elif self._home.region != before.region or before.load_region:
            self._difference = Known(0)

    def _behind(self, last: Output) -> Value:
        """Return where a member of an overlay ends in the image; one that lld dropped ends at 0."""
        return Known(0) if last.ignored else _plus(self._load_of(last), last.size)

    def _load_of(self, output: Output) -> Value:
        if _BY_PHDRS in self._segments:
            return Unknown(_PHDRS)
        segment = self._segments.get(output.name)
        if segment is None or not isinstance(output.address, Known):
            return output.address
        difference = segment.difference
        if isinstance(difference, Unknown):
            return difference
        return Known((output.address.value + difference.value) & MASK)

    def finish(self) -> None:
        """Give every section the load address of its segment."""
        for output in self.program.outputs.values():
            output.load = output.load if output.doubt else self._load_of(output)

    def _body(self, output: Output) -> None:
        contents = output.contents
        output.pieces = []
        spec = 0
        for statement in output.node.body:
            match statement:
                case ast.Assign():
                    before = self.dot
                    self._assign(statement)
                    self._expand(before)
                case ast.Data():
                    self._move_to(_plus(self.dot, ast.DATA_SIZES.get(statement.kind, 0)))
                case ast.InputSpec():
                    if spec < len(contents.by_spec):
                        self._pieces(contents.by_spec[spec], output)
                    spec += 1
        self._pieces(contents.orphans, output)

    def _pieces(self, pieces: Iterable[Piece], output: Output) -> None:
        for piece in pieces:
            if isinstance(self.dot, Known):
                # What SUBALIGN makes of it is in the map.
                at = align_up(self.dot.value, piece.alignment)
                output.pieces.append((piece, at))
                self._move_to(Known(at + piece.size))

    def _move_to(self, dot: Value) -> None:
        before, self.dot = self.dot, dot
        self._expand(before)

    def _expand(self, before: Value) -> None:
        """Fill the regions of the section by what `.` has moved: expandMemoryRegions."""
        for name in dict.fromkeys(self._home):
            region = self.regions.get(name)
            if region is not None:
                moved = _minus(self.dot, before)
                region.current = _plus(region.current, moved.value if isinstance(moved, Known) else None)

    def _give_up(self, output: Output) -> None:
        """Leave a section unknown, and what depends on where it ends."""
        unknown = Unknown(output.doubt)
        output.address = output.load = self.dot = self._difference = unknown
        output.size = None
        for region in self.regions.values():
            region.current = unknown
        for statement in output.node.body:
            if isinstance(statement, ast.Assign) and statement.target != ".":
                self.symbols[statement.target] = unknown


def _plus(start: Value, size: int | None) -> Value:
    return NO_DOT if isinstance(start, Unknown) or size is None else Known((start.value + size) & MASK)


def _size(start: Value, end: Value) -> int | None:
    return end.value - start.value if isinstance(start, Known) and isinstance(end, Known) else None


def _minus(one: Value, other: Value) -> Value:
    if isinstance(one, Unknown) or isinstance(other, Unknown):
        return one if isinstance(one, Unknown) else other
    return Known((one.value - other.value) & MASK)


def _before(one: Value, other: Value) -> bool:
    return isinstance(one, Known) and isinstance(other, Known) and one.value <= other.value


def _homes(program: Program) -> Iterator[tuple[str, Home]]:
    """Yield the regions of each section: adjustSectionsAfterSorting and findMemoryRegion."""
    names = program.memories.names
    hint = ""
    for output in program.outputs.values():
        if output.ignored:
            continue
        load = "" if output.orphan else names.get(output.node.lma_region, "")
        region, hint = ("", "") if not output.contents.allocated else _home_of(output, program, hint)
        yield output.name, Home(region, load)


def _home_of(output: Output, program: Program, hint: str) -> tuple[str, str]:
    named = program.memories.names.get(output.node.region, "")
    if output.orphan:
        named = hint
    if named or not program.memories.regions:
        return named, named
    contents = output.contents
    for region in program.memories.regions:
        if _compatible(region.attributes.lower(), writable=contents.writable, code=bool(contents.code)):
            return region.name, ""
    return "", ""


def _compatible(attributes: str, *, writable: bool, code: bool) -> bool:
    """Tell whether a region's attributes fit an allocated section: MemoryRegion::compatibleWith."""
    flags = {"w": writable, "x": code, "a": True, "r": not writable}
    negated = False
    takes = False
    for letter in attributes:
        if letter == "!":
            negated = not negated
        elif negated and flags.get(letter):
            return False
        else:
            takes = takes or (not negated and flags.get(letter, False))
    return takes


def _segments(program: Program, homes: dict[str, Home], target: Target) -> dict[str, Segment]:
    """Cut the sections into PT_LOADs: createPhdrs. A key _BY_PHDRS tells that PHDRS does it."""
    if program.phdrs:
        first = next(iter(program.outputs.values()), None)
        return {_BY_PHDRS: Segment(first)} if first is not None else {}
    out: dict[str, Segment] = {}
    current: Segment | None = None
    last = (False, False)
    relro = False
    for output in program.outputs.values():
        contents = output.contents
        if output.ignored or output.doubt or not contents.allocated or contents.thread_zero:
            continue
        flags = (contents.writable, bool(contents.code))
        protected = bool(target.relro) and contents.writable and (contents.thread or output.name in _RELRO)
        home = homes[output.name]
        alike = False
        if current is not None:
            there = homes[current.first.name]
            same = output.node.at is None and output.previous is None and home == there
            alike = flags == last and not (relro and not protected) and same
        if current is None or not alike:
            current = Segment(output)
        last, relro = flags, protected
        out[output.name] = current
    return out


_RELRO = frozenset(
    {
        ".toc", ".dynamic", ".got", ".data.rel.ro", ".bss.rel.ro", ".ctors", ".dtors", ".jcr", ".eh_frame",
        ".fini_array", ".init_array", ".openbsd.randomdata", ".preinit_array",
    }
)  # fmt: skip
