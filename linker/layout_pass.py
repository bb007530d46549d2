"""A pass over a script's statements that places each section at the location counter, as ld does.

Follows lang_size_sections_1 and lang_do_assignments_1 of binutils 2.40 (ld/ldlang.c); `layout.py` says which
passes there are.
"""

from __future__ import annotations

from collections.abc import Iterable

from . import ast
from .data_segment import DataSegment
from .evaluate import MASK, Known, SectionFacts, Unknown, Value, align_up, evaluate
from .layout_outputs import FIRST_OVERLAY, NO_REGION, OVERLAY, Output, Program, largest
from .layout_values import Piece, Target, extent

NO_DOT = Unknown("the location counter is not known here")
_BY_VERSION = Unknown("versions of ld differ in what SUBALIGN makes of the section's own alignment")
_NO_LOAD = Unknown("the load address of the section before is not known")


class Region:
    """A memory region: where it is filled up to, and the section that load addresses go on from."""

    def __init__(self, origin: Value, length: Value) -> None:
        self.origin, self.length = origin, length
        self.current = origin
        self.last: Output | None = None

    @property
    def used(self) -> Value:
        """How far the region is filled, in bytes."""
        if isinstance(self.current, Unknown) or isinstance(self.origin, Unknown):
            return NO_DOT
        return Known(self.current.value - self.origin.value, number=True)


def _plus(start: Value, size: int | None) -> Value:
    return NO_DOT if isinstance(start, Unknown) or size is None else Known(start.value + size)


class Sizing:
    """The passes over one script; symbols and sections keep what the pass before found.

    `ahead` tells that something was asked for that no statement before had settled: then ld's next round may
    find something else. `final` is the phase in which sections stay, and assignments alone are made again.
    """

    def __init__(self, program: Program, target: Target, segment: DataSegment) -> None:
        self.program, self.target, self.segment = program, target, segment
        self.symbols: dict[str, Value] = {}
        self.regions: dict[str, Region] = {}
        self.dot: Value = Known(0)
        self.inside = ""
        self.ahead = False
        self._start: Value | None = None
        self._final = False
        self._number = 0
        self._at = 0
        self._assigned: set[str] = set()
        self._default = Region(Known(0), Known(1 << 64))
        self._attributed = any(region.attributes for region in program.memories.regions)

    # The scope of expressions

    def symbol(self, name: str) -> Value:
        if name == ".":
            dot = self.dot
            if isinstance(dot, Unknown) or self._start is None:
                return dot
            return Known(dot.value, home=self.inside)
        if name in {"SIZEOF_HEADERS", "sizeof_headers"}:
            headers = self.target.headers
            return (
                Unknown("the size of the headers is not known") if headers is None else Known(headers, True)
            )
        if name not in self._assigned and name in self.program.assigned:
            self.ahead = True
        value = self.symbols.get(name)
        if value is None:
            return Unknown(f"'{name}' is defined in an object file")
        if isinstance(value, Known) and self._start is not None and not value.home:
            # Inside an output section what is absolute counts as a number (ld/ldexp.c, fold_name).
            return Known(value.value, number=True)
        return value

    def counter(self) -> Value:
        return self.symbol(".")

    def section(self, name: str) -> SectionFacts | Unknown:
        output = self.program.outputs.get(name)
        if output is None and name == "NEXT_SECTION":
            output = self._next()
        if output is None:
            return Unknown(f"section '{name}' has no address yet")
        if output.doubt:
            return Unknown(output.doubt)
        if output.pass_number != self._number and not self._final:
            self.ahead = True
        alignment = output.alignment if output.lowered == output.alignment else None
        return SectionFacts(output.address, output.load, output.size, alignment)

    def _next(self) -> Output | None:
        """Return the output section behind the last one: NEXT_SECTION of binutils 2.44."""
        for step in self.program.steps[self._at + 1 :]:
            if isinstance(step, Output) and step.exists:
                if step.orphan and step.contents.dropped:
                    return None  # ld has made it, and nobody says how it is aligned
                self._align(step)
                return step
        return None

    def region(self, name: str) -> tuple[Value, Value]:
        return extent(self.regions.get(self.program.memories.names.get(name, "")), name)

    def constant(self, name: str) -> Value:
        return self.target.constant(name)

    def base(self, name: str) -> Value:
        if name == self.inside and self._start is not None:
            return self._start
        facts = self.section(name)
        return facts if isinstance(facts, Unknown) else facts.address

    def data_segment(self, function: str, first: int, second: int) -> Value:
        if self.target.relro is None or self.segment.doubtful:
            return Unknown("ld chooses where the data segment starts, by relro and page size")
        if isinstance(self.dot, Unknown):
            return self.dot
        value = None
        if not self.inside and ((first and second) or function != "DATA_SEGMENT_ALIGN"):
            value = self.segment.value(function, first, second, self.dot.value)
        return Unknown(f"{function} has no meaning here") if value is None else Known(value & MASK)

    def defined(self, name: str) -> bool | None:
        # A symbol of the script counts from where it is assigned, one that is PROVIDEd may not count at all.
        return True if name in self._assigned else None

    # Passes

    def size(self) -> None:
        """Place every section: one_lang_size_sections_pass, with lang_reset_memory_regions before it."""
        self._begin(final=False)
        self._default = Region(Known(0), Known(1 << 64))
        self.regions = {}
        for region in self.program.memories.regions:
            self.regions[region.name] = Region(evaluate(region.origin, self), evaluate(region.length, self))
        for at, step in enumerate(self.program.steps):
            self._at = at
            if isinstance(step, Output):
                self._place(step)
            elif isinstance(step, ast.Assign):
                self._assign(step)
            else:
                self._after_statement()

    def assign(self) -> None:
        """Make all assignments again, with the sections where they are: lang_do_assignments."""
        self._begin(final=True)
        for at, step in enumerate(self.program.steps):
            self._at = at
            if isinstance(step, Output):
                self._pass_by(step)
            elif isinstance(step, ast.Assign):
                self._assign(step)

    def _begin(self, *, final: bool) -> None:
        self._final = final
        self._number += not final
        self._assigned = set()
        self.dot = Known(0)

    def _assign(self, node: ast.Assign) -> None:
        value = evaluate(node.value, self)
        if node.op != "=":
            value = evaluate(ast.Binary(node.op[:-1], ast.Symbol(node.target), node.value), self)
        base = self._start
        if base is not None and isinstance(value, Known) and value.number:
            # Inside an output section a plain number is an offset from its start, for symbols as for `.`.
            value = (
                base
                if isinstance(base, Unknown)
                else Known((base.value + value.value) & MASK, home=self.inside)
            )
        if not node.wrapper.startswith("PROVIDE"):
            self._assigned.add(node.target)
        if node.target != ".":
            self.symbols[node.target] = (
                Known(value.value) if isinstance(value, Known) and value.number else value
            )
        else:
            self.dot = value if isinstance(value, Unknown) else Known(value.value)
        self._after_statement()

    def _after_statement(self) -> None:
        """Take `.` into the default region, as every assignment does that stands outside of sections."""
        if self._start is None and not self._final:
            self._default.current = self.dot

    def _place(self, output: Output) -> None:
        node = output.node
        region = self._home(output)
        if region is None and output.ignored:
            # It takes no room, but load addresses may go on from it, whichever region it is in.
            for other in (self._default, *self.regions.values()):
                if other.last is not None or node.at is not None:
                    other.last = output
            return
        if region is None:
            output.doubt = "which memory region has the attributes for it is not known"
        if output.doubt or region is None:
            self._give_up(output)
            return
        before = self.dot
        if node.address is not None:
            at = evaluate(node.address, self)
            self.dot = at if isinstance(at, Unknown) else Known(at.value)
        if not output.exists or output.ignored:
            # `.` has moved until the assignments are made again.
            self.ahead = self.ahead or self.dot != before
        if not output.exists:
            return
        self._align(output)
        power = output.alignment if node.address is None else output.explicit
        start, shift = self._start_of(output, region, power)
        outer = self.dot
        end = self._body(output, start)
        output.address, output.pass_number = start, self._number
        output.size = end.value - start.value if isinstance(start, Known) and isinstance(end, Known) else None
        if output.ignored:
            output.size = 0
        self.dot = outer if output.ignored else start
        output.load = self._load_address(output, region, power, shift)
        self._track(output, region)
        if not output.ignored:
            self._go_on(output, region, end)

    def _start_of(self, output: Output, region: Region, power: int) -> tuple[Value, int]:
        """Where the section starts, and how many bytes `power`, its alignment, leaves out before it."""
        is_free = output.node.address is None
        start = region.current if is_free else self.dot
        if not isinstance(start, Known):
            return start, 0
        aligned = align_up(start.value, power)
        if is_free and align_up(start.value, output.lowered) != aligned:
            return _BY_VERSION, 0
        return Known(aligned), aligned - start.value

    def _go_on(self, output: Output, region: Region, end: Value) -> None:
        """Move the counters behind a section that was placed."""
        contents = output.contents
        self.dot = output.address if contents.thread_zero else end
        self._close_overlay(output)
        if not output.allocated:
            return
        region.current = self.dot
        load_region = self.regions.get(output.load_region)
        if load_region is None or load_region is region:
            return
        if output.loaded or output.node.align_with_input:
            load_region.current = _plus(output.load, 0 if contents.thread_zero else output.size)

    def _close_overlay(self, output: Output) -> None:
        """Move `.` behind the largest member when the overlay ends here (update_dot_tree)."""
        if not output.members:
            return
        self.dot = _plus(output.members[0].address, largest(output.members))

    def _pass_by(self, output: Output) -> None:
        """Make the assignments of a section that stays where it is."""
        if not output.exists:
            return
        if output.doubt:
            self.dot = Unknown(output.doubt)
            return
        outer = self.dot
        end = self._body(output, output.address)
        if output.ignored:
            self.dot = outer
            return
        self.dot = output.address if output.contents.thread_zero else end
        self._close_overlay(output)

    # Parts of a placement

    def _home(self, output: Output) -> Region | None:
        """Return the region in which a section runs, None when that is not known."""
        name = output.region
        if self._attributed and (name == NO_REGION or (not name and output.allocated)):
            return self._by_attributes(output)
        return self.regions.get(name, self._default)

    def _by_attributes(self, output: Output) -> Region | None:
        """Return the first region whose attributes fit: lang_memory_default."""
        contents = output.contents
        holds = any(contents.by_spec) or bool(contents.orphans)
        # Beside code there may be constants, which count as data, or none.
        data = None if contents.code else (holds and output.loaded) or contents.writable
        known = contents.code is not None
        flags: dict[str, bool | None] = dict.fromkeys("lirxw")
        if known:
            flags = {
                "l": output.loaded, "i": output.loaded, "r": not contents.writable, "x": contents.code,
                "w": data,
            }  # fmt: skip
        flags["a"] = output.allocated
        for region in self.program.memories.regions:
            wanted, _, unwanted = region.attributes.lower().partition("!")
            takes = [flags.get(letter, False) for letter in wanted]
            shuns = [flags.get(letter, False) for letter in unwanted if letter != "!"]
            if True in shuns or not any(take is not False for take in takes):
                continue
            return self.regions[region.name] if True in takes and None not in shuns else None
        return self._default

    def _align(self, output: Output) -> None:
        """Find the alignment the script gives the section, and raise what it has with its inputs."""
        node = output.node
        if node.align is not None:
            value = evaluate(node.align, self)
            if isinstance(value, Known):
                output.explicit = max(value.value, 1)
        if node.subalign is not None:
            value = evaluate(node.subalign, self)
            output.forced = value.value if isinstance(value, Known) else None
        raised = lowered = max(output.alignment, output.explicit)
        if output.forced is not None and (any(output.contents.by_spec) or output.contents.orphans):
            # SUBALIGN lowers what inputs are placed at. ld 2.40 leaves the section's own alignment alone,
            # 2.44 lowers that, too, below what ALIGN() says.
            raised, lowered = max(raised, output.forced), output.forced
        output.alignment, output.lowered = raised, lowered

    def _body(self, output: Output, start: Value) -> Value:
        """Walk what is inside of a section that starts here; return where it ends."""
        self.dot = self._start = start
        self.inside = output.name
        contents = output.contents
        output.pieces = []
        spec = 0
        for statement in output.node.body:
            if isinstance(statement, ast.InputSpec):
                if spec < len(contents.by_spec) and not output.ignored:
                    self._pieces(contents.by_spec[spec], output)
                spec += 1
            elif isinstance(statement, ast.Assign):
                if not output.ignored or statement.target != ".":
                    before = self.dot
                    self._assign(statement)
                    self._moved(output, before)
            elif isinstance(statement, ast.Data):
                self._advance(ast.DATA_SIZES.get(statement.kind, 0))
            elif isinstance(statement, ast.StringData):
                self._advance(len(statement.value.encode()) + 1)
        if not output.ignored:
            self._pieces(contents.orphans, output)
        self._start, self.inside = None, ""
        return self.dot

    def _moved(self, output: Output, before: Value) -> None:
        if self.dot != before and not output.allocated:
            output.allocated = True
            self.ahead = self.ahead or self._attributed

    def _pieces(self, pieces: Iterable[Piece], output: Output) -> None:
        if isinstance(self.dot, Unknown):
            return
        end = self.dot.value
        for piece in pieces:
            at = align_up(end, output.forced if output.forced is not None else piece.alignment)
            output.pieces.append((piece, at))
            end = at + piece.size
        self.dot = Known(end)

    def _advance(self, size: int) -> None:
        if isinstance(self.dot, Known):
            self.dot = Known(self.dot.value + size)

    def _load_address(self, output: Output, region: Region, power: int, shift: int) -> Value:
        start = output.address
        node = output.node
        if node.at is not None:
            dot, self.dot = self.dot, Known(0)
            value = evaluate(node.at, self)
            self.dot = dot
            return value if isinstance(value, Unknown) else Known(value.value)
        if isinstance(start, Unknown):
            return start
        if output.load_region:
            load_region = self.regions[output.load_region]
            if isinstance(load_region.current, Unknown):
                return Unknown("the counter of the load region is not known")
            if node.align_with_input:
                return Known(load_region.current.value + shift)
            if load_region is not region:
                power = output.explicit
            return Known(align_up(load_region.current.value, power))
        if region.last is None or not output.allocated:
            return start
        return self._after_last(output, region.last, start.value, power)

    def _after_last(self, output: Output, last: Output, at: int, power: int) -> Value:
        """Return the load address that goes on from the section before in the same region."""
        if not isinstance(last.address, Known) or not isinstance(last.load, Known) or output.size is None:
            return _NO_LOAD
        low, load, size = last.address.value, last.load.value, output.size
        if isinstance(self.dot, Known) and self.dot.value < low and size and self.dot.value + size <= low:
            # Where `.` moves backwards, ld leaves the load address equal to the address.
            return Known(at)
        if output.kind == OVERLAY:
            return _NO_LOAD if last.size is None else Known(align_up(load + last.size, power))
        return Known(align_up((at + load - low) & MASK, power))

    def _track(self, output: Output, region: Region) -> None:
        """Note the section by which the load addresses behind it go, as lang_size_sections_1 does."""
        start, last = output.address, region.last
        if output.load_region:
            return
        if not isinstance(start, Known):
            self._track_unknown(output, region)
            return
        low = last.address if last is not None else None
        counts = output.allocated and not output.contents.thread_zero
        follows = isinstance(low, Known) and isinstance(self.dot, Known) and self.dot.value >= low.value
        apart = last is None and start != output.load
        if (counts and (output.size or apart or follows)) or output.kind == FIRST_OVERLAY:
            region.last = output

    def _give_up(self, output: Output) -> None:
        """Leave a section unknown, and what depends on where it ends."""
        unknown = Unknown(output.doubt)
        output.address = output.load = self.dot = unknown
        output.size = None
        for region in (self._default, *self.regions.values()):
            region.current = unknown
            self._track_unknown(output, region)

    @staticmethod
    def _track_unknown(output: Output, region: Region) -> None:
        """Where load addresses are not the addresses, they may go on from a section that is somewhere."""
        last = region.last
        if output.node.at is not None or (last is not None and last.load != last.address):
            region.last = output
