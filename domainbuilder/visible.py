"""Text of guests, files and files' names made safe to show: control characters become visible escapes."""

from __future__ import annotations

from collections.abc import Iterator


def visible(text: str) -> str:
    r"""`text` with what is not printable as an escape: `\x1b` and the like; tabs stay.

    A byte of a file's name that is no UTF-8, which Python has as a surrogate, is `\xff`.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\t" else _escape(char) for char in text)


def _escape(char: str) -> str:
    byte = ord(char) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte < 0x100 else char.encode("unicode_escape").decode()


def console_lines(tail: str) -> Iterator[str]:
    """The last lines of a console, for a report to quote."""
    yield "the console's last lines:"
    lines = tail.splitlines()
    yield from (f"  | {visible(line)}" for line in lines)
    if not lines:
        yield "  (no output at all)"
