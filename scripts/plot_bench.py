#!/usr/bin/env python3
"""What `make bench-xen` found as a picture: a bar for each ratio, ours to Xen's, on a logarithmic scale.

    scripts/plot_bench.py RESULT.json... -o docs/bench-xen.svg

The results are what bench_services.py and bench_xen.py write with `--json`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from html import escape
from pathlib import Path

LEAST, MOST = 0.02, 5.0  # the ratios at the left and right end
ROW, LABEL, WIDTH, TOP = 22, 230, 420, 50
TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
# Rows of a boot that are times or sizes of the whole.
BOOT = {"/init": "to /init", "CPU": "to poweroff, processor time", "peak RSS": "peak memory"}


def ratios(document: dict[str, dict[str, dict[str, float]]]) -> Iterator[tuple[str, float]]:
    """Name and ratio of each figure that both sides have."""
    median = document["median"]
    xen, here = median.get("xen", {}), median["here"]
    if "release" not in document:
        yield from ((name.replace("_", " "), here[name] / xen[name]) for name in here if name in xen)
        return
    yield from ((f"{document['release']} {words}", here[name] / xen[name]) for name, words in BOOT.items())


def place(ratio: float) -> float:
    """Where a ratio is, in pixels from the left of the bars."""
    share = math.log(min(max(ratio, LEAST), MOST) / LEAST) / math.log(MOST / LEAST)
    return round(LABEL + WIDTH * share, 1)


def svg(rows: list[tuple[str, float]]) -> str:
    """The picture. A bar begins at 1, as fast as Xen in QEMU, and goes to the left where it is faster."""
    height, one = TOP + ROW * len(rows) + 16, place(1)
    size = f'viewBox="0 0 {LABEL + WIDTH + 70} {height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{one}" y="16" text-anchor="middle">time here / time under Xen in QEMU</text>',
    ]
    for tick in TICKS:
        at = place(tick)
        lines.append(f'<line x1="{at}" x2="{at}" y1="{TOP - 8}" y2="{height - 10}" stroke="#ddd"/>')
        lines.append(f'<text x="{at}" y="{TOP - 14}" text-anchor="middle" fill="#666">{tick:g}</text>')
    for number, (name, ratio) in enumerate(rows):
        y, at = TOP + ROW * number, place(ratio)
        colour = "#3a7" if ratio <= 1 else "#c63"
        left, wide = min(at, one), max(abs(at - one), 1)
        lines.append(f'<text x="{LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        lines.append(f'<rect x="{left}" y="{y + 2}" width="{wide:.1f}" height="{ROW - 7}" fill="{colour}"/>')
        anchor, text = ("end", left - 4) if ratio <= 1 else ("start", at + 4)
        lines.append(f'<text x="{text:.1f}" y="{y + 13}" text-anchor="{anchor}">{ratio:.2f}</text>')
    lines.append(f'<line x1="{one}" x2="{one}" y1="{TOP - 8}" y2="{height - 10}" stroke="black"/>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> None:
    """Read the results, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.svg")
    arguments = parser.parse_args()
    rows = [row for path in arguments.results for row in ratios(json.loads(path.read_text()))]
    arguments.output.write_text(svg(rows))


if __name__ == "__main__":
    main()
