"""A drawing of memory: a bar a section where it runs and where its image is loaded, and what is free.

Heights grow with the logarithm of the size, so that a page and a megabyte fit on one sheet. Every bar, gap
and heading has a row of its own that is as high as a line of text, and texts are cut to the room they have
(titles have all of it): labels do not overlap. The text is selectable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from linker.regions import CODE, CONSTANT, DATA, ZERO, Part

from .units import in_units

MAX_BARS = 400
_LINE = 16  # the least height of a row: a line of text and a little
_CHAR = 6.7  # the advance of a character at the size used, at most
_ADDRESS, _BAR, _LABEL = 132, 150, 330
_COLUMN = _ADDRESS + _BAR + _LABEL
_MARGIN = 20

_COLORS = {CODE: "#4878a8", DATA: "#c8883c", ZERO: "#b8b8b8", CONSTANT: "#5a9a68"}
_LABELS = {CODE: "code", CONSTANT: "read-only", DATA: "data", ZERO: "zeroed"}
_FREE, _FRAME, _BAD = "#eef2ee", "#888888", "#b03030"


class Extent(NamedTuple):
    """A memory region: name, origin and length in bytes."""

    name: str
    origin: int
    length: int


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


def render(parts: Sequence[Part], title: str, regions: Sequence[Extent] = ()) -> str:
    """Return the drawing as SVG 1.1, lowest address at the top.

    With regions, each has what runs and what is loaded in it and what is free; without, load addresses have
    a column of their own.
    """
    runs, images = _bars(parts, images=False), _bars(parts, images=True)
    if regions:
        return _document(title, [("", list(_rows(runs + images, regions)))])
    columns = [("where it runs", list(_rows(runs, ())))]
    if images:
        fixed = [part for part in parts if part.kind != ZERO and not part.loaded_elsewhere]
        columns.append(("where it is loaded", list(_rows(_bars(fixed, images=False) + images, ()))))
    return _document(title, columns)


def _holds(region: Extent, address: int) -> bool:
    return region.origin <= address < region.origin + region.length


def _rows(bars: Iterable[Bar], regions: Sequence[Extent]) -> Iterator[_Row]:
    ordered = sorted(bars, key=lambda bar: (bar.address, bar.size))
    rest = list(ordered[:MAX_BARS])
    for region in sorted(regions, key=lambda region: (region.origin, region.length)):
        inside = [bar for bar in rest if _holds(region, bar.address)]
        rest = [bar for bar in rest if not _holds(region, bar.address)]
        end = region.origin + region.length
        yield _Row("", title="")
        yield _Row(f"{region.name}: {in_units(region.length)}", f"{region.origin:#x}")
        yield from _sequence(inside, region.origin, end)
    if rest:
        if regions:
            yield _Row("")
            yield _Row("in no region")
        yield from _sequence(rest, None, None)
    if len(ordered) > MAX_BARS:
        yield _Row(f"and {len(ordered) - MAX_BARS} more")


def _sequence(bars: Sequence[Bar], start: int | None, end: int | None) -> Iterator[_Row]:
    """Yield bars with what is free between them; `start` and `end` are those of a region, if there is one."""
    at = start
    for bar in bars:
        if at is not None and bar.address > at:
            yield _gap(at, bar.address - at, free=start is not None)
        over = at - bar.address if at is not None and bar.address < at else 0
        label = f"{bar.name}  {in_units(bar.size)}" + (f", overlaps by {in_units(over)}" if over else "")
        numbers = f"{bar.address:#x} to {bar.address + bar.size:#x}, {bar.size} bytes"
        yield _Row(
            label,
            f"{bar.address:#x}",
            f"{bar.name}: {numbers}",
            _COLORS[bar.kind],
            size=bar.size,
            bad=bool(over),
        )
        at = max(at or 0, bar.address + bar.size)
    if end is not None and at is not None and at < end:
        yield _gap(at, end - at, free=True)
    if end is not None and at is not None and at > end:
        yield _Row(f"over the end by {in_units(at - end)}", f"{at:#x}", bad=True)
    elif at is not None:
        yield _Row("", f"{at:#x}")


def _gap(at: int, size: int, *, free: bool) -> _Row:
    if free:
        return _Row(
            f"{in_units(size)} free",
            f"{at:#x}",
            f"free: {at:#x} to {at + size:#x}, {size} bytes",
            _FREE,
            True,
            size,
        )
    return _Row(f"gap of {in_units(size)}", dashed=True)


def _draw(row: _Row, x: int, y: int) -> Iterator[str]:
    bar = x + _ADDRESS
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
        text = _clean(_cut(row.address, _ADDRESS - 8))
        yield f'<text x="{bar - 8}" y="{y + 12}" text-anchor="end">{text}</text>'
    if row.label:
        color = f' fill="{_BAD}"' if row.bad else ""
        left = bar + _BAR + 12 if row.fill or row.dashed else bar
        room = x + _COLUMN - left
        yield f'<text x="{left}" y="{middle + 4}"{color}>{_clean(_cut(row.label, room))}</text>'


def _document(title: str, columns: Sequence[tuple[str, Sequence[_Row]]]) -> str:
    width = 2 * _MARGIN + _COLUMN * len(columns)
    body: list[str] = []
    bottom = 0
    for index, (heading, rows) in enumerate(columns):
        x, y = _MARGIN + index * _COLUMN, 64
        if len(columns) > 1:
            body.append(f'<text x="{x + _ADDRESS}" y="58" font-weight="bold">{heading}</text>')
        for row in rows:
            body.extend(_draw(row, x, y))
            y += row.height
        bottom = max(bottom, y)
    height = bottom + _MARGIN
    left = _MARGIN + _ADDRESS
    legend = "".join(
        f'<rect x="{left + 84 * index}" y="28" width="10" height="10" fill="{_COLORS[kind]}"/>'
        f'<text x="{left + 84 * index + 14}" y="37">{label}</text>'
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
            f'<text x="{left}" y="16">{_clean(_cut(title, _BAR + _LABEL))}</text>',
            legend,
            *body,
            "</svg>",
            "",
        )
    )
