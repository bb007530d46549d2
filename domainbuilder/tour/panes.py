"""What the tour's application shows of a step, as styled text: the step, its address space, frames, console.

Everything of the guest's goes through visible(), and none of it is read as markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text

from domainbuilder.plan.regions import human
from domainbuilder.tour.steps import Named, Step
from domainbuilder.tour.text import XEN_FILE, xen_url
from domainbuilder.trace.record import FRAME_TYPES
from domainbuilder.trace.summary import duration
from domainbuilder.visible import visible

_BAR = 16  # cells
_OURS = re.compile(r"\b(?:domainbuilder|hvcore)/[\w./-]+\.py\b")
_MOST_LINES = 400  # of the console
_SHORT = {
    "It asks: ": "",
    "It is refused: ": "refused: ",
    "An instruction is emulated: ": "emulated: ",
    "An event channel is raised: ": "event: ",
    "An exception of its own: ": "exception: ",
}


def row(number: int, step: Step) -> Text:
    """A step in the list: when it was, and its title as short as it can be."""
    style = "red" if step.is_refused else "bold" if step.frames else ""
    when = "" if step.ns is None else duration(step.ns)
    return Text.assemble((f"{number:3} {when:>8} ", "dim"), (visible(_short(step.title)), style))


def _short(title: str) -> str:
    """A title without what the others begin with, too; a command without its hypercall."""
    for long, short in _SHORT.items():
        if title.startswith(long):
            rest = title.removeprefix(long)
            return short + (rest.partition(": ")[2] or rest)
    return title


def matches(step: Step, words: str) -> bool:
    """Whether all of the words are said in a step, its lesson or what was printed before it."""
    lesson = step.lesson
    said = (step.title, *step.shown, lesson.asks, lesson.checks, lesson.xen, lesson.here, *step.console)
    text = "\n".join(said).lower()
    return all(word in text for word in words.lower().split())


def detail(number: int, count: int, step: Step) -> Group:
    """The step itself: what happened, what the guest wants, what Xen checks, where to read on."""
    at = "before the guest runs" if step.ns is None else f"{step.ns / 1e9:.9f} s"
    lesson = step.lesson
    return Group(
        Text(visible(step.title), "bold red" if step.is_refused else "bold"),
        Text(f"step {number} of {count}, {at}", "dim"),
        _indented(Text("\n".join(map(visible, step.shown)), "cyan")),
        *_section("What it wants", Text(lesson.asks)),
        *_section("What Xen checks", Text(lesson.checks)),
        *_section(
            "Read on",
            _in_xen(lesson.xen).append("   x opens it", "dim"),
            Text(lesson.here).append("   o shows it", "dim"),
        ),
        *(_section("The act itself", _facts(step)) if step.facts else ()),
    )


def _indented(what: RenderableType) -> Padding:
    return Padding(what, (0, 0, 0, 2))


def _section(title: str, *paragraphs: RenderableType) -> list[RenderableType]:
    return [Text(f"\n{title}", "bold green"), *map(_indented, paragraphs)]


def _facts(step: Step) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in step.facts:
        table.add_row(Text(name, "dim"), Text(visible(value)))
    return table


def _in_xen(places: str) -> Text:
    """Files of Xen's as links."""
    text = Text(places)
    for match in XEN_FILE.finditer(places):
        text.stylize(Style(link=xen_url(match[0]), underline=True), match.start(), match.end())
    return text


def our_files(step: Step) -> list[str]:
    """The files of ours that a lesson names."""
    return _OURS.findall(step.lesson.here)


class Change(NamedTuple):
    """A part of the address space: where, how much of it was there at the step before, the names in it."""

    start: int
    end: int
    tables: int
    pages: int | None
    was: int
    had: int | None  # of `pages`
    is_xens: bool
    names: tuple[str, ...]


def changes(step: Step, before: Step | None, named: Sequence[Named]) -> list[Change]:
    """The parts of a step's address space, compared with the step before."""
    old = before.spans if before is not None else step.spans
    found = []
    for span in step.spans:
        within = [o for o in old if o.start < span.end and span.start < o.end]
        was = sum(min(span.end, o.end) - max(span.start, o.start) for o in within)
        pages = [o.pages for o in within]
        had = None if None in pages else sum(n for n in pages if n is not None)
        names = tuple(n.name for n in named if n.start < span.end and span.start < n.end)
        found.append(Change(span.start, span.end, span.tables, span.pages, was, had, span.is_xens, names))
    return found


def address_space(step: Step, before: Step | None, named: Sequence[Named]) -> Table | Text:
    """The parts that have page tables, with bars; what is new since the step before stands out."""
    if not step.spans:
        return Text("nothing is mapped", "dim")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("from", no_wrap=True)
    for title in ("size", "tables", "pages"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("what is there")
    most = max((span.end - span.start for span in step.spans if not span.is_xens), default=1)
    for change in changes(step, before, named):
        size = change.end - change.start
        cells = max(1, round(_BAR * min(size / most, 1.0) ** 0.5))
        fresh = round(cells * (size - change.was) / size)
        bar = Text("█" * (cells - fresh), "blue").append("█" * fresh, "green")
        words = Text(", ".join(map(visible, change.names)))
        if change.is_xens:
            bar, words = Text("░" * cells, "dim"), Text("Xen's own", "dim")
        numbers = ("", "") if change.is_xens else (_number(change.tables), _number(change.pages))
        more = (change.pages or 0) - (change.had or 0)
        if more and not change.is_xens and None not in (change.pages, change.had):
            words = Text(f"{more:+,} pages  ", "bold green" if more > 0 else "bold red").append_text(words)
        table.add_row(f"{change.start:#x}", human(size), *numbers, bar, words)
    return table


def _number(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def frames(step: Step) -> Table | Text:
    """How many of the domain's frames Xen holds to each type."""
    if not step.totals:
        return Text("no frame has a type yet: the domain is being built", "dim")
    was = {name: then for name, then, _ in step.frames}
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("type")
    table.add_column("frames", justify="right")
    table.add_column("change", justify="right")
    table.add_column("")
    most = max(*step.totals, 1)
    for name, count in zip(FRAME_TYPES, step.totals, strict=True):
        change = count - was.get(name, count)
        bar = Text("█" * max(round(_BAR * (count / most) ** 0.5), count > 0), "blue")
        table.add_row(name, f"{count:,}", Text(f"{change:+,}" if change else "", "green"), bar)
    return table


def console(steps: Sequence[Step]) -> Text:
    """What was printed up to the last of these steps; since the step before it in bold."""
    text = Text(no_wrap=False)
    lines = [(line, step is steps[-1]) for step in steps for line in step.console]
    for line, is_new in lines[-_MOST_LINES:]:
        text.append(f"{visible(line)}\n", "bold" if is_new else "dim")
    return text if lines else Text("it has printed nothing yet", "dim")


def meanwhile(step: Step) -> Table | Text:
    """What happened again since the step before, how often."""
    if not step.since:
        return Text("nothing that was told before happened since the last step", "dim")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("times", justify="right")
    table.add_column("what happened again since the step before")
    for name, count in step.since:
        table.add_row(f"{count:,}", Text(visible(name)))
    return table
