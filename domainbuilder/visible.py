"""A guest's text made safe to show: control characters become visible escapes."""

from __future__ import annotations

from collections.abc import Iterator


def visible(text: str) -> str:
    r"""`text` with what is not printable as an escape: `\x1b` and the like; tabs stay."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\t" else char.encode("unicode_escape").decode()
        for char in text
    )


def console_lines(tail: str) -> Iterator[str]:
    """The last lines of a console, for a report to quote."""
    yield "the console's last lines:"
    lines = tail.splitlines()
    yield from (f"  | {visible(line)}" for line in lines)
    if not lines:
        yield "  (no output at all)"
