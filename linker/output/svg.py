"""A drawing of memory: a bar a section where it runs and where its image is loaded, symbols, what is free.

Heights grow with the logarithm of the size, so that a page and a megabyte fit on one sheet. Every bar, gap
and heading has a row of its own that is as high as a line of text, and texts are cut to the room they have
(titles have all of it): labels do not overlap. A symbol stands beside its address; where that lies inside of
a bar, the bar is cut. The text is selectable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple
from xml.sax.saxutils import escape

from linker.regions import CODE, CONSTANT, DATA, ZERO, Part

from .units import in_units

MAX_BARS = 400
_LINE = 16  # the least height of a row: a line of text and a little
_CHAR = 6.7  # the advance of a character at the size used, at most
_ADDRESS, _BAR, _LABEL = 260, 150, 330  # the widest that columns of addresses and of labels get
_SPACE = 12  # between a bar and its texts
_LEGEND = 84
_MARGIN = 20

_COLORS = {CODE: "#4878a8", DATA: "#c8883c", ZERO: "#b8b8b8", CONSTANT: "#5a9a68"}
_LABELS = {CODE: "code", CONSTANT: "read-only", DATA: "data", ZERO: "zeroed"}
_FREE, _FRAME, _BAD = "#eef2ee", "#888888", "#b03030"


class Extent(NamedTuple):
    """A memory region: name, origin and length in bytes."""

    name: str
    origin: int
    length: int


class Mark(NamedTuple):
    """A symbol at its address."""

    name: str
    address: int


class Column(NamedTuple):
    """What one column shows, under its heading; without regions, just what runs."""

    heading: str
    parts: Sequence[Part]
    regions: Sequence[Extent] = ()
    marks: Sequence[Mark] = ()


class Bar(NamedTuple):
    """What is drawn: addresses and size in bytes, kind one of code, data, zero, constant."""

    name: str
    address: int
    size: int
    kind: str


class _Row(NamedTuple):
    """One row of a column: `address` stands to the left of the bar, `label` to the right."""

    label: str
    address: str = ""
    title: str = ""
    fill: str = ""
    dashed: bool = False
    size: int = 0
    bad: bool = False

    @property
    def height(self) -> int:
        return _LINE + 3 * max(0, self.size.bit_length() - 6) if self.fill else _LINE

    @property
    def behind_bar(self) -> bool:
        return bool(self.fill) or self.dashed


def _clean(text: str) -> str:
    return escape("".join(char if char.isprintable() else "\ufffd" for char in text[:240]))


def _cut(text: str, room: float) -> str:
    most = max(1, int(room / _CHAR))
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _bars(parts: Iterable[Part], *, images: bool) -> list[Bar]:
    """Return what runs, or the images of what is loaded elsewhere than it runs."""
    if not images:
        return [Bar(part.name, part.address, part.size, part.kind) for part in parts]
    return [
        Bar(f"image of {part.name}", part.load_address, part.size, part.kind)
        for part in parts
        if part.loaded_elsewhere
    ]


def render(
    parts: Sequence[Part], title: str, regions: Sequence[Extent] = (), marks: Sequence[Mark] = ()
) -> str:
    """Return the drawing as SVG 1.1, lowest address at the top.

    With regions, each has what runs and what is loaded in it and what is free; without, load addresses have
    a column of their own.
    """
    images = _bars(parts, images=True)
    if regions or not images:
        return beside(title, [Column("", parts, regions, marks)])
    fixed = [part for part in parts if part.kind != ZERO and not part.loaded_elsewhere]
    loaded = list(_rows(_bars(fixed, images=False) + images, (), ()))
    runs = list(_rows(_bars(parts, images=False), (), marks))
    return _document(title, [("where it runs", runs), ("where it is loaded", loaded)])


def beside(title: str, columns: Iterable[Column]) -> str:
    """Return a drawing of several memories side by side, or of one image before and after a change."""
    out = []
    for column in columns:
        bars = _bars(column.parts, images=False)
        if column.regions:
            bars += _bars(column.parts, images=True)
        out.append((column.heading, list(_rows(bars, column.regions, column.marks))))
    return _document(title, out)


def _holds(region: Extent, address: int) -> bool:
    return region.origin <= address < region.origin + region.length


def _rows(bars: Iterable[Bar], regions: Sequence[Extent], marks: Iterable[Mark]) -> Iterator[_Row]:
    ordered = sorted(bars, key=lambda bar: (bar.address, bar.size))
    rest = list(ordered[:MAX_BARS])
    names: dict[int, list[str]] = {}
    for mark in sorted(marks, key=lambda mark: mark.address)[:MAX_BARS]:
        names.setdefault(mark.address, []).append(mark.name)
    marked = {address: ", ".join(several) for address, several in names.items()}
    for number, region in enumerate(sorted(regions, key=lambda region: (region.origin, region.length))):
        inside = [bar for bar in rest if _holds(region, bar.address)]
        rest = [bar for bar in rest if not _holds(region, bar.address)]
        if number:
            yield _Row("")
        yield _Row(f"{region.name}: {in_units(region.length)}")
        yield from _sequence(inside, region, marked)
    if rest:
        if regions:
            yield _Row("")
            yield _Row("in no region")
        yield from _sequence(rest, None, marked)
    if len(ordered) > MAX_BARS:
        yield _Row(f"and {len(ordered) - MAX_BARS} more")


def _sequence(bars: Sequence[Bar], region: Extent | None, marked: dict[int, str]) -> Iterator[_Row]:
    """Yield bars, the gaps between them and what is free; the marks that are shown leave `marked`."""
    at = None if region is None else region.origin
    for bar in bars:
        if at is not None and bar.address > at:
            yield from _cut_at(
                marked, at, bar.address, _gap(at, bar.address, "gap", in_region=region is not None)
            )
        over = at - bar.address if at is not None and bar.address < at else 0
        label = f"{bar.name}  {in_units(bar.size)}" + (f", overlaps by {in_units(over)}" if over else "")
        numbers = f"{bar.address:#x} to {bar.address + bar.size:#x}, {bar.size} bytes"
        row = _Row(label, "", f"{bar.name}: {numbers}", _COLORS[bar.kind], bad=bool(over))
        yield from _cut_at(marked, bar.address, bar.address + bar.size, row)
        at = max(at or 0, bar.address + bar.size)
    if at is None:
        return
    end = at if region is None else region.origin + region.length
    if at < end:
        yield from _cut_at(marked, at, end, _gap(at, end, "free", in_region=True))
    last = max(at, end)
    over_by = f"over the end by {in_units(at - end)}" if at > end else ""
    yield _Row(over_by, _beside(marked, last), bad=at > end)


def _gap(start: int, end: int, what: str, *, in_region: bool) -> _Row:
    size = in_units(end - start)
    label = f"{size} free" if what == "free" else f"gap of {size}"
    if not in_region:
        return _Row(label, dashed=True)
    return _Row(label, "", f"{what}: {start:#x} to {end:#x}, {end - start} bytes", _FREE, dashed=True)


def _cut_at(marked: dict[int, str], start: int, end: int, row: _Row) -> Iterator[_Row]:
    """Yield the row of what lies from `start` to `end`, cut at marks; its first part has the label."""
    for low, high in pairwise((start, *sorted(at for at in marked if start < at < end), end)):
        address = _beside(marked, low) if row.fill or low in marked else ""
        yield row._replace(label=row.label if low == start else "", address=address, size=high - low)


def _beside(marked: dict[int, str], address: int) -> str:
    """Return what stands left of a bar: the marks, which leave `marked`, and the address."""
    number = f"{address:#x}"
    names = marked.pop(address, "")
    return f"{_cut(names, _ADDRESS - _CHAR * (len(number) + 2))}  {number}" if names else number


def _draw(row: _Row, bar: int, y: int) -> Iterator[str]:
    """Draw one row; `bar` is the left edge of the bars of its column."""
    middle = y + row.height // 2
    if row.fill:
        dash = f' stroke-dasharray="4 4" stroke="{_FRAME}"' if row.dashed else ' stroke="#ffffff"'
        yield (
            f'<g><title>{_clean(row.title)}</title><rect x="{bar}" y="{y}" width="{_BAR}" '
            f'height="{row.height}" fill="{row.fill}"{dash}/></g>'
        )
    elif row.dashed:
        yield f'<path d="M{bar} {middle} H{bar + _BAR}" stroke="{_FRAME}" stroke-dasharray="4 4"/>'
    if row.address:
        yield f'<text x="{bar - 8}" y="{y + 12}" text-anchor="end">{_clean(row.address)}</text>'
    if row.label:
        color = f' fill="{_BAD}"' if row.bad else ""
        left = bar + (_BAR + _SPACE if row.behind_bar else 0)
        text = _clean(_cut(row.label, _LABEL if row.behind_bar else _BAR + _LABEL))
        yield f'<text x="{left}" y="{middle + 4}"{color}>{text}</text>'


def _widths(heading: str, rows: Sequence[_Row]) -> tuple[int, int]:
    """Return how wide a column is left of its bars, and from there on."""
    left = max((len(row.address) for row in rows), default=0) * _CHAR + _SPACE
    right = len(heading) * _CHAR
    for row in rows:
        needed = len(row.label) * _CHAR
        right = max(
            right, _BAR + _SPACE + min(needed, _LABEL) if row.behind_bar else min(needed, _BAR + _LABEL)
        )
    return int(left), int(max(right, _BAR)) + _SPACE


def _document(title: str, columns: Sequence[tuple[str, Sequence[_Row]]]) -> str:
    body: list[str] = []
    bottom, x, first = 0, _MARGIN, 0
    for heading, rows in columns:
        left, right = _widths(heading, rows)
        bar, y = x + left, 64
        first = first or bar
        if heading:
            body.append(f'<text x="{bar}" y="58" font-weight="bold">{_clean(heading)}</text>')
        for row in rows:
            body.extend(_draw(row, bar, y))
            y += row.height
        bottom = max(bottom, y)
        x = bar + right
    width = max(x, first + _LEGEND * len(_LABELS)) + _MARGIN
    height = bottom + _MARGIN
    legend = "".join(
        f'<rect x="{first + _LEGEND * index}" y="28" width="10" height="10" fill="{_COLORS[kind]}"/>'
        f'<text x="{first + _LEGEND * index + 14}" y="37">{label}</text>'
        for index, (kind, label) in enumerate(_LABELS.items())
    )
    return "\n".join(
        (
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
                f'viewBox="0 0 {width} {height}" font-family="monospace" font-size="11">'
            ),
            f"<title>{_clean(title)}</title>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            f'<text x="{first}" y="16">{_clean(_cut(title, width - first - _MARGIN))}</text>',
            legend,
            *body,
            "</svg>",
            "",
        )
    )
