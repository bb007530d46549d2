"""What the payload of a request to xenstored says, read as xenstored_core.c reads it (tools/xenstore)."""

from __future__ import annotations

from hvcore.backends.xenstore_nodes import XenstoreError
from hvcore.public.errno import EINVAL

_WORD = 0xFFFFFFFF


def strings(payload: bytes) -> list[str]:
    """get_strings(): the NUL-terminated strings; what is behind the last NUL is ignored."""
    return [part.decode("latin-1") for part in payload.split(b"\0")[:-1]]


def onearg(payload: bytes) -> str:
    """The one string that is all of the payload. Raises XenstoreError(EINVAL)."""
    if payload.find(b"\0") != len(payload) - 1 or not payload:
        raise XenstoreError(EINVAL)
    return payload[:-1].decode("latin-1")


def pair(payload: bytes) -> tuple[str, str]:
    """The two strings that are the payload. Raises XenstoreError(EINVAL)."""
    found = strings(payload)
    if len(found) != 2:
        raise XenstoreError(EINVAL)
    return found[0], found[1]


def atoi(text: str) -> int:
    """The number that a text begins with, as an unsigned int.

    As C's atoi() reads it.
    """
    text = text.lstrip(" \t\n\v\f\r")
    sign, digits = (text[:1], text[1:]) if text[:1] in ("-", "+") else ("", text)
    digits = digits[: len(digits) - len(digits.lstrip("0123456789"))]
    value = min(int(digits[:20] or "0"), (1 << 63) - 1)
    return (-value if sign == "-" else value) & _WORD
