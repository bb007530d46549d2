#!/usr/bin/env python3
"""The ratios of docs/64bit.md as a picture: a bar a row, ours to Xen's in QEMU, on a logarithmic scale.

    scripts/plot_bench.py [RESULT.json...]

The page's tables are what is drawn, so that the two cannot part. Results are what bench_services.py and
bench_xen.py write with `--json`: what the rows of the same work say is replaced by them first. Written are
the page and docs/bench-xen.svg, or what --page and --output name.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, PICTURE = DOCS / "64bit.md", DOCS / "bench-xen.svg"

# What the rows of the tables are called: the loops of samples/bench, and the figures of a boot.
LOOPS = {
    "hypercall": "empty hypercall",
    "update_va_mapping": "update_va_mapping",
    "multicall_entry": "entry of a multicall",
    "mmu_update_entry": "request of mmu_update",
    "context_switch": "context switch (stack_switch, new_baseptr)",
    "page_fault": "page fault, handler and return",
    "page_table_store": "trapped store to a page table",
    "alu": "loop of a few instructions, a round",
    "memory": "read-modify-write of memory",
}
BOOT = {"/init": "to /init", "CPU": "to poweroff, processor time", "peak RSS": "peak RSS"}
XEN, HERE, RATIO = "Xen in QEMU", "here", "ratio"

LEAST, MOST = 0.01, 2.0  # the ratios at the left and right end
ROW, LABEL, WIDTH, TOP = 20, 300, 420, 44
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)

Figures = dict[str, tuple[str, str, str]]  # of a row: Xen's, ours, the ratio


class Row(NamedTuple):
    """A row of a table with ratios: its line of the page, what it is, and the ratio."""

    line: int
    name: str
    ratio: float


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []


def tables(lines: list[str]) -> Iterator[tuple[list[str], list[int]]]:
    """The page's tables that have ratios: the head, and the lines of the rows."""
    for number, line in enumerate(lines):
        head = _cells(line)
        if RATIO in head and number + 1 < len(lines) and set(lines[number + 1]) <= set("|- "):
            end = number + 2
            while end < len(lines) and lines[end].startswith("|"):
                end += 1
            yield head, list(range(number + 2, end))


def rows(page: str) -> list[Row]:
    """What there is to draw. Raises ValueError for a ratio that is none."""
    lines = page.splitlines()
    found = []
    for head, numbers in tables(lines):
        for number in numbers:
            cells = _cells(lines[number])
            name = cells[0] if head[0] != "32 bits" else f"{cells[0]}, 32 bits"
            found.append(Row(number, re.sub(r" \(.*\)| \*", "", name), float(cells[head.index(RATIO)])))
    return found


def _microseconds(cost: float) -> str:
    return f"{cost:.3f}" if cost >= 0.01 else f"{cost:.5f}"


def figures(document: dict[str, dict[str, dict[str, float]]]) -> tuple[str, Figures]:
    """The table's first head cell that a result belongs to, and its rows."""
    xen, here = document["median"]["xen"], document["median"]["here"]
    found: Figures = {}
    release = document.get("release")
    for key, words in (BOOT if release else LOOPS).items():
        if key not in xen or key not in here:
            continue
        if not xen[key] or not here[key]:
            raise ValueError(f"{key} took no time at all: measure again")
        if not release:
            name, said = words, [_microseconds(cost) for cost in (xen[key], here[key])]
        elif key == "peak RSS":
            name, said = f"{release}, {words}", [f"{size:.0f} MB" for size in (xen[key], here[key])]
        else:
            name, said = f"{release} {words}", [f"{seconds:.1f} s" for seconds in (xen[key], here[key])]
        found[name] = (said[0], said[1], f"{here[key] / xen[key]:.2f}")
    table = "boot" if release else f"{document.get('width', 64)} bits"
    return table, found


def filled(page: str, table: str, found: Figures) -> str:
    """The page with these figures in the table's rows. Raises ValueError where a row is missing."""
    lines = page.splitlines()
    left = set(found)
    for head, numbers in tables(lines):
        if head[0] != table:
            continue
        columns = [
            next(i for i, cell in enumerate(head) if cell.startswith(word)) for word in (XEN, HERE, RATIO)
        ]
        for number in numbers:
            cells = _cells(lines[number])
            if cells[0] in found:
                left.discard(cells[0])
                for column, said in zip(columns, found[cells[0]], strict=True):
                    cells[column] = said
                lines[number] = f"| {' | '.join(cells)} |".replace("|  |", "| |")
    if left:
        raise ValueError(f"no row in the table of {table}: {', '.join(sorted(left))}")
    return "\n".join(lines) + "\n"


def place(ratio: float) -> float:
    """Where a ratio is, in pixels from the left of the picture."""
    share = math.log(min(max(ratio, LEAST), MOST) / LEAST) / math.log(MOST / LEAST)
    return round(LABEL + WIDTH * share, 1)


def svg(found: list[Row]) -> str:
    """The picture. A bar begins at 1, as fast as Xen in QEMU, and goes to the left where it is faster."""
    height, one = TOP + ROW * len(found) + 12, place(1)
    wide = LABEL + WIDTH + 20
    size = f'width="{wide}" height="{height}" viewBox="0 0 {wide} {height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        "<title>Time here, divided by the time under Xen in QEMU</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{LABEL}" y="14">time here / time under Xen in QEMU</text>',
    ]
    for tick in TICKS:
        at = place(tick)
        lines.append(f'<line x1="{at}" x2="{at}" y1="{TOP - 6}" y2="{height - 8}" stroke="#dddddd"/>')
        lines.append(f'<text x="{at}" y="{TOP - 10}" text-anchor="middle" fill="#666666">{tick:g}</text>')
    for number, row in enumerate(found):
        y, at = TOP + ROW * number, place(row.ratio)
        faster = row.ratio <= 1
        left, length = min(at, one), max(abs(at - one), 1)
        lines.append(f'<text x="{LABEL - 8}" y="{y + 12}" text-anchor="end">{escape(row.name)}</text>')
        colour = "#5a9a68" if faster else "#c8883c"
        lines.append(
            f'<rect x="{left}" y="{y + 2}" width="{length:.1f}" height="{ROW - 6}" fill="{colour}"/>'
        )
        anchor, text = ("end", left - 4) if faster else ("start", at + 4)
        lines.append(f'<text x="{text:.1f}" y="{y + 12}" text-anchor="{anchor}">{row.ratio:.2f}</text>')
    lines.append(f'<line x1="{one}" x2="{one}" y1="{TOP - 6}" y2="{height - 8}" stroke="#000000"/>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> None:
    """Fill the page from the results, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="*", metavar="RESULT.json")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="PAGE.md")
    parser.add_argument("-o", "--output", type=Path, default=PICTURE, metavar="FILE.svg")
    arguments = parser.parse_args()
    page = arguments.page.read_text()
    try:
        for path in arguments.results:
            page = filled(page, *figures(json.loads(path.read_text())))
        drawn = svg(rows(page))
    except ValueError as error:
        raise SystemExit(f"{arguments.page}: {error}") from None
    arguments.page.write_text(page)
    arguments.output.write_text(drawn)


if __name__ == "__main__":
    main()
