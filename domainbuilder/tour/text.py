"""A tour as text, a step at a time: what happened, what Xen makes of it, where to read on."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from typing import IO

from domainbuilder.tour.steps import Step
from domainbuilder.visible import visible

WIDTH = 100
_XEN = "https://xenbits.xen.org/gitweb/?p=xen.git;a=blob;hb=refs/heads/stable-4.17;f="
XEN_FILE = re.compile(r"\b(?:xen|tools)/[\w./-]+\.[chS]\b")
Link = Callable[[str], str]


def plain(text: str) -> str:
    """Names of files as they are."""
    return text


def linked(text: str) -> str:
    """Files of Xen's as links that a terminal can follow (OSC 8)."""
    return XEN_FILE.sub(lambda m: f"\x1b]8;;{xen_url(m[0])}\x1b\\{m[0]}\x1b]8;;\x1b\\", text)


def xen_url(file: str) -> str:
    """Where to read a file of Xen's."""
    return _XEN + file


def render(number: int, step: Step, link: Link = plain) -> str:
    """A step, with an empty line before it."""
    return "\n".join(("", *_lines(number, step, link))) + "\n"


def _lines(number: int, step: Step, link: Link) -> Iterator[str]:
    if step.since:
        yield "   meanwhile: " + ", ".join(f"{count:,} x {visible(name)}" for name, count in step.since)
    yield from (f"   | {visible(line)}" for line in step.console)
    when = "before it runs" if step.ns is None else f"{step.ns / 1e9:.9f} s"
    yield f"{number:3}. {visible(step.title)}  ({when})"
    yield from (f"       {visible(line)}" for line in step.shown)
    if step.frames:
        changes = ", ".join(f"{name} {was:,} -> {now:,}" for name, was, now in step.frames)
        yield f"       frames by type: {changes}"
    lesson = step.lesson
    yield from _wrapped("   it wants  ", lesson.asks)
    yield from _wrapped("   checked   ", lesson.checks)
    yield f"   in Xen    {link(lesson.xen)}"
    yield f"   here      {lesson.here}"


def _wrapped(mark: str, text: str) -> Iterator[str]:
    yield from textwrap.wrap(text, WIDTH, initial_indent=mark, subsequent_indent=" " * len(mark))


def paged(steps: list[Step], out: IO[str], ask: Callable[[], bool], link: Link) -> None:
    """Write the steps, and ask before each but the first whether to go on."""
    for number, step in enumerate(steps, 1):
        out.write(render(number, step, link))
        out.flush()
        if number < len(steps) and not ask():
            return
