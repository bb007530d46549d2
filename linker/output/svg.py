"""A drawing of the sections in memory: one bar a section, to scale where scale can be seen.

Heights grow with the logarithm of the size, so that a page and a megabyte fit on one sheet; gaps are drawn as
breaks with their size. The text is selectable and each bar has a title with the exact numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from linker.elffile import SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHT_NOBITS, Elf
from linker.mapfile import LinkMap

MAX_BARS = 400
_WIDTH, _LEFT, _BAR, _TOP = 760, 190, 300, 44


class Bar(NamedTuple):
    """What is drawn: addresses and size in bytes, kind one of code, data, zero, constant."""

    name: str
    address: int
    size: int
    kind: str


_COLORS = {"code": "#4878a8", "data": "#c8883c", "zero": "#b8b8b8", "constant": "#5a9a68"}
_LABELS = {"code": "code", "constant": "read-only", "data": "data", "zero": "zeroed"}


def bars_of_elf(elf: Elf) -> list[Bar]:
    """Return the bars of an ELF's allocated sections."""
    out = []
    for section in elf.sections:
        if not section.flags & SHF_ALLOC or not section.size:
            continue
        if section.flags & SHF_EXECINSTR:
            kind = "code"
        elif section.type == SHT_NOBITS:
            kind = "zero"
        else:
            kind = "data" if section.flags & SHF_WRITE else "constant"
        out.append(Bar(section.name, section.address, section.size, kind))
    return out


def _kind_by_name(name: str) -> str:
    table = (
        (".text", "code"),
        (".init", "code"),
        (".bss", "zero"),
        (".ro", "constant"),
        (".note", "constant"),
    )
    return next((kind for prefix, kind in table if name.startswith(prefix)), "data")


def bars_of_map(link_map: LinkMap) -> list[Bar]:
    """Return the bars of a map's output sections that have an address."""
    return [
        Bar(output.name, output.address, output.size, _kind_by_name(output.name))
        for output in link_map.outputs
        if output.size and output.address
    ]


def _bytes(size: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << shift:
            return f"{size / (1 << shift):.1f} {unit}"
    return f"{size} B"


def _clean(text: str) -> str:
    return escape("".join(char if char.isprintable() else "\ufffd" for char in text[:120]))


def render(bars: Iterable[Bar], title: str) -> str:
    """Return the drawing as SVG 1.1, lowest address at the top."""
    ordered = sorted(bars, key=lambda bar: (bar.address, bar.size))
    shown = ordered[:MAX_BARS]
    body: list[str] = []
    y = _TOP
    end: int | None = None
    for bar in shown:
        if end is not None and bar.address > end:
            body.append(_gap(y, bar.address - end))
            y += 18
        elif end is not None and bar.address < end:
            body.append(
                f'<text x="{_LEFT + _BAR + 12}" y="{y + 4}" fill="#b03030">overlaps by '
                f"{_bytes(end - bar.address)}</text>"
            )
        height = 14 + 3 * max(0, bar.size.bit_length() - 6)
        body.extend(_draw(bar, y, height))
        y += height
        end = max(end or 0, bar.address + bar.size)
    if end is not None:
        body.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{end:#x}</text>')
    if len(ordered) > len(shown):
        y += 18
        body.append(f'<text x="{_LEFT}" y="{y}">and {len(ordered) - len(shown)} more</text>')
    return _document(title, body, y + 30)


def _draw(bar: Bar, y: int, height: int) -> Sequence[str]:
    numbers = f"{bar.address:#x} to {bar.address + bar.size:#x}, {bar.size} bytes"
    label = f"{_clean(bar.name)}  {_bytes(bar.size)}"
    return (
        (
            f'<g><title>{_clean(bar.name)}: {numbers}</title><rect x="{_LEFT}" y="{y}" width="{_BAR}" '
            f'height="{height}" fill="{_COLORS[bar.kind]}" stroke="#ffffff"/></g>'
        ),
        f'<text x="{_LEFT - 8}" y="{y + 10}" text-anchor="end">{bar.address:#x}</text>',
        f'<text x="{_LEFT + _BAR + 12}" y="{y + height // 2 + 4}">{label}</text>',
    )


def _gap(y: int, size: int) -> str:
    x, right = _LEFT, _LEFT + _BAR
    return (
        f'<path d="M{x} {y + 9} H{right}" stroke="#888888" stroke-dasharray="4 4"/>'
        f'<text x="{right + 12}" y="{y + 13}" fill="#888888">gap of {_bytes(size)}</text>'
    )


def _document(title: str, body: Sequence[str], height: int) -> str:
    legend = "".join(
        f'<rect x="{_LEFT + 80 * index}" y="24" width="10" height="10" fill="{_COLORS[kind]}"/>'
        f'<text x="{_LEFT + 80 * index + 14}" y="33">{label}</text>'
        for index, (kind, label) in enumerate(_LABELS.items())
    )
    return "\n".join(
        (
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
                f'viewBox="0 0 {_WIDTH} {height}" font-family="monospace" font-size="11">'
            ),
            f"<title>{_clean(title)}</title>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            f'<text x="{_LEFT}" y="16" font-size="13">{_clean(title)}</text>',
            legend,
            *body,
            "</svg>",
            "",
        )
    )
