"""A run as one HTML page: what it came to, when what happened, its console, its hypercalls, how it ended.

The page stands alone: no script, no font, no image from elsewhere, and a policy that forbids them. Whatever a
guest or a kernel says is text: escaped, with control characters made visible.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import NamedTuple

from domainbuilder.trace.html_style import STYLE
from domainbuilder.trace.record import CLASSES, FRAME_TYPES, Record
from domainbuilder.trace.summary import Histogram, Summary, duration, ranked
from domainbuilder.trace.text import call, result
from domainbuilder.trace.timeline import Timeline
from domainbuilder.visible import visible

_LANE = 34  # height of a row of the timeline
_TOP = 40  # rows of a table
_POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    """content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">"""
)
_CLASS_NAMES = {"pagetables": "page tables", "events": "event channels"}


class Page(NamedTuple):
    """What a page is made of. `map_svg` is the picture of `plan`; `ending` a report on a crash or a stop."""

    summary: Summary
    timeline: Timeline
    outcome: str
    is_bad: bool
    map_svg: str
    ending: str


def render(page: Page) -> str:
    """The page."""
    s = page.summary
    title = f"{s.head.kernel.rpartition('/')[2] or 'a domain'}: {page.outcome}"
    sections = [section for section in _sections(page) if section[2]]
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{heading}</h2>{content}</section>' for name, heading, content in sections
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{_POLICY}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><header>{_head(page)}<nav>{links}</nav></header><main>{body}</main></body></html>\n"
    )


def _text(value: object) -> str:
    return escape(visible(str(value).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")))


def _seconds(ns: int) -> str:
    return f"{ns // 10**9}.{ns % 10**9 // 1000:06d}"


def _head(page: Page) -> str:
    s = page.summary
    head, tail = s.head, s.tail
    command = f'<p class="cmd">{_text(head.cmdline)}</p>' if head.cmdline else ""
    about = f"{head.bits}-bit, {head.vcpus} vCPU{'s' * (head.vcpus > 1)}, domain {head.domain_id}"
    tiles = {
        "guest time": f"{_seconds(tail.end_ns or s.last_ns)} s",
        "hypercalls": f"{s.calls.total():,}",
        "traps and faults": f"{s.traps.total():,}",
        "events delivered": f"{s.records['upcall']:,}",
        "console bytes": f"{s.console_bytes:,}",
    }
    shown = "".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in tiles.items())
    badge = "bad" if page.is_bad else "good"
    name = _text(head.kernel.rpartition("/")[2] or "a domain")
    return (
        f'<h1>{name} <span class="badge {badge}">{_text(page.outcome)}</span></h1>'
        f'<p class="dim">{about}</p>{command}<div class="tiles">{shown}</div>'
    )


def _sections(page: Page) -> Iterator[tuple[str, str, str]]:
    s, t = page.summary, page.timeline
    yield "ending", "How it ended", f"<pre>{_lines(page.ending)}</pre>" if page.ending else ""
    yield "timeline", "Timeline", _timeline(page)
    yield "console", "Console", _console(t)
    yield "map", "Address space", _map(page.map_svg)
    yield "hypercalls", "Hypercalls", _hypercalls(s)
    yield "firsts", "What came first", _firsts(t.firsts.values())
    yield "others", "Traps, emulation, events", _others(s)
    yield "latencies", "Latencies", "".join(_histogram(name, h) for name, h in s.latencies.items())
    yield "vcpus", "vCPUs", _vcpus(s)


def _lines(text: str) -> str:
    return "\n".join(_text(line) for line in text.splitlines())


# -- the timeline: a row of bars for each class, by the logarithm of how much there was


def _timeline(page: Page) -> str:
    buckets = page.timeline.buckets
    if not buckets.counts:
        return ""
    end = page.summary.tail.end_ns or page.summary.last_ns
    rows = [_lane(page, name) for name in CLASSES]
    rows += [_frames_lane(page, kind) for kind in range(1, len(FRAME_TYPES))]
    ticks = "".join(f"<span>{_seconds(end * i // 4)} s</span>" for i in range(5))
    note = f'<p class="dim">A bar is {duration(buckets.width_ns)}; heights are logarithmic.</p>'
    return f'<div class="lanes">{"".join(rows)}<div class="axis"><i></i><div>{ticks}</div></div></div>{note}'


def _span(page: Page) -> float:
    end = page.summary.tail.end_ns or page.summary.last_ns
    return max(end / page.timeline.buckets.width_ns, 1.0)


def _lane(page: Page, name: str) -> str:
    counts = [bucket[name] for bucket in page.timeline.buckets.counts]
    total = sum(counts)
    if not total:
        return ""
    scale = (_LANE - 2) / math.log1p(max(counts))
    path = "".join(
        f"M{i} {_LANE}V{_LANE - max(math.log1p(n) * scale, 1):.1f}H{i + 1}V{_LANE}"
        for i, n in enumerate(counts)
        if n
    )
    shown = _CLASS_NAMES.get(name, name)
    return _row(
        shown, f"{total:,}", _drawing(page, f'<path class="{name}" d="{path}"/>', f"{shown}: {total:,}")
    )


def _frames_lane(page: Page, kind: int) -> str:
    values = [(i, frames[kind]) for i, frames in enumerate(page.timeline.buckets.frames) if frames]
    most = max((value for _, value in values), default=0)
    if not most:
        return ""
    scale = (_LANE - 2) / most
    steps = "".join(f"H{i}V{_LANE - value * scale:.1f}" for i, value in values)
    path = f"M{values[0][0]} {_LANE}{steps}H{_span(page):.1f}V{_LANE}"
    name = f"frames: {FRAME_TYPES[kind]}"
    return _row(name, f"at most {most:,}", _drawing(page, f'<path class="frames" d="{path}"/>', name))


def _drawing(page: Page, inner: str, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {_span(page):.1f} {_LANE}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{inner}</svg>'
    )


def _row(name: str, total: str, drawing: str) -> str:
    return f'<div class="lane"><i>{escape(name)}<br><small>{total}</small></i>{drawing}</div>'


# -- text and tables


def _console(t: Timeline) -> str:
    def line(row: tuple[int, str]) -> str:
        return f'<span class="t">{_seconds(row[0])}</span>{_text(row[1])}'

    head = "\n".join(map(line, t.console.head))
    tail = "\n".join(map(line, t.console.tail))
    gap = (
        f'\n<span class="gap">{t.console.left_out:,} lines are left out</span>\n'
        if t.console.left_out
        else "\n"
    )
    return f'<pre class="console">{head}{gap if tail else ""}{tail}</pre>' if head else ""


def _map(svg: str) -> str:
    if not svg:
        return ""
    data = base64.b64encode(svg.encode("utf-8", "backslashreplace")).decode()
    image = f'<img alt="the address space that it started with" src="data:image/svg+xml;base64,{data}">'
    return f'<div class="wide">{image}</div>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already; the first column is text, the others are numbers."""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        if body
        else ""
    )


def _bar(count: int, most: int) -> str:
    return f'<span class="bar"><span style="width:{100 * count / most:.1f}%"></span></span>'


def _counts(title: str, counts: Counter[str]) -> str:
    rows = ranked(counts)
    most = rows[0][1] if rows else 1
    shown = [(_text(name), f"{count:,}", _bar(count, most)) for name, count in rows[:_TOP]]
    if len(rows) > _TOP:
        shown.append((f"{len(rows) - _TOP} others", f"{sum(n for _, n in rows[_TOP:]):,}", ""))
    return _table((title, "count", ""), shown)


def _hypercalls(s: Summary) -> str:
    failed = Counter[str]()
    for (name, _), count in s.errors.items():
        failed[name] += count
    rows = ranked(s.calls)
    most = rows[0][1] if rows else 1
    shown = (
        (
            _text(name), f"{count:,}", _bar(count, most), f"{failed[name]:,}" if failed[name] else "",
            duration(s.call_ns[name]) if s.call_ns[name] else "",
        )
        for name, count in rows
    )  # fmt: skip
    return _table(("hypercall", "count", "", "failed", "took"), shown) + _counts("what failed", s.failed)


def _firsts(records: Iterable[Record]) -> str:
    rows = (
        (f"<code>{_text(call(r))}</code>", f"{_seconds(r.ns)} s", _text(result(r.result)), _text(r.symbol))
        for r in records
    )
    return _table(("the first of each hypercall", "at", "result", "by"), rows)


def _others(s: Summary) -> str:
    tables = (
        ("traps and faults", s.traps), ("emulated instructions", s.emulated),
        ("event channels raised", s.ports), ("backends notified", s.devices),
    )  # fmt: skip
    return (
        f'<div class="columns">{"".join(_counts(title, counts) for title, counts in tables if counts)}</div>'
    )


def _histogram(name: str, h: Histogram) -> str:
    most = max(h.buckets.values())
    rows = (
        (f"&lt; {duration(1 << bucket)}", f"{count:,}", _bar(count, most))
        for bucket, count in sorted(h.buckets.items())
    )
    about = f"{h.count:,} times, {duration(h.total // h.count)} on average, {duration(h.most)} at most"
    return f'<h3>{_text(name)}</h3><p class="dim">{about}</p>{_table(("took", "count", ""), rows)}'


def _vcpus(s: Summary) -> str:
    rows = []
    for vcpu, states in sorted(s.states.items()):
        total = states.total() or 1
        rows += [
            (f"vcpu{vcpu} {name}", f"{_seconds(ns)} s", _bar(ns, total))
            for name, ns in (+states).most_common()
        ]
    return _table(("vCPU and state", "time", ""), rows)
