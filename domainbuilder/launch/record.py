"""A run's input from outside, each piece with the guest's time at which it came: what a replay needs.

A run is a function of its domain and of this record. As a file it is JSON, a line each: what was run, one
`[nanoseconds since the guest's start, base64]` for each piece of input, with the interface's number behind it
for a frame from outside, `[nanoseconds, "key", keycode, 1 or 0]` and `[nanoseconds, "pointer", x, y, wheel]`
for what was done at its framebuffer, and how it ended.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Any, NamedTuple

from domainbuilder.errors import BuildError, Where
from domainbuilder.output import write_whole
from hvcore.given import Given, Key, OutsideFrame, Pointer

FORMAT = "domainbuilder input record 1"
MOST_BYTES = 256 << 20  # of a file
MOST_TYPED = 128 << 20
_MOST_NS = (1 << 63) - 1
_KEY, _POINTER = "key", "pointer"
_HEAD, _TAIL = {"format", "domain"}, {"end_ns", "reason"}


class InputRecord(NamedTuple):
    """`typed` are (ns since the guest's start, what it was given), in order; `domain` is tape.subject().

    The run ended at `end_ns`, for `reason`, which is that of its Outcome.
    """

    domain: dict[str, Any]
    typed: tuple[tuple[int, Given], ...]
    end_ns: int
    reason: str


def save_record(record: InputRecord, path: str | os.PathLike[str]) -> None:
    """Write the file, whole or not at all. Raises OSError."""
    import json  # a launch without a record does not pay for it

    lines = [json.dumps({"format": FORMAT, "domain": record.domain})]
    lines += [json.dumps([at, *_shown(given)]) for at, given in record.typed]
    lines.append(json.dumps({"end_ns": record.end_ns, "reason": record.reason}))
    write_whole(path, ("\n".join(lines) + "\n").encode("ascii"))


def _shown(given: Given) -> list[str | int]:
    if isinstance(given, OutsideFrame):
        return [base64.b64encode(given.data).decode(), given.devid]
    if isinstance(given, Key):
        return [_KEY, given.keycode, int(given.pressed)]
    if isinstance(given, Pointer):
        return [_POINTER, *given]
    return [base64.b64encode(given).decode()]


def load_record(path: str | os.PathLike[str]) -> InputRecord:
    """Read the file. Raises BuildError where it is no record, or a damaged one; OSError."""
    name = os.fspath(path)
    with Path(path).open("rb") as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise BuildError("an input record of more than 256 MiB", where=Where(name))
    offset = 0
    lines = []
    for line in raw.splitlines(keepends=True):
        lines.append((offset, line))
        offset += len(line)
    head = _object(name, *(lines[0] if lines else (0, b"")), _HEAD)
    if head["format"] != FORMAT or not isinstance(head["domain"], dict):
        raise BuildError("not an input record", where=Where(name, 0), found=head["format"], expected=FORMAT)
    if len(lines) < 2 or not raw.endswith(b"\n"):
        raise BuildError("the input record has no end", where=Where(name, offset))
    typed: list[tuple[int, Given]] = []
    for at, line in lines[1:-1]:
        typed.append(_typed(name, at, line, typed[-1][0] if typed else 0))
    at, line = lines[-1]
    tail = _object(name, at, line, _TAIL)
    end, reason = tail["end_ns"], tail["reason"]
    if not _is_time(end, typed[-1][0] if typed else 0) or not isinstance(reason, str):
        raise BuildError("a line of the input record cannot be", where=Where(name, at), found=line[:80])
    return InputRecord(head["domain"], tuple(typed), end, reason)


def _parse(name: str, at: int, line: bytes) -> object:
    import json  # as above

    try:
        parsed: object = json.loads(line)
    except (ValueError, RecursionError):
        raise BuildError("not a line of an input record", where=Where(name, at), found=line[:80]) from None
    return parsed


def _object(name: str, at: int, line: bytes, keys: set[str]) -> dict[str, Any]:
    parsed = _parse(name, at, line)
    if not isinstance(parsed, dict) or set(parsed) != keys:
        expected = ", ".join(sorted(keys))
        raise BuildError(
            "not a line of an input record", where=Where(name, at), found=line[:80], expected=expected
        )
    return parsed


def _is_time(value: object, first: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and first <= value <= _MOST_NS


def _used(kind: object, *numbers: object) -> Given | None:
    """What was done with keyboard or pointer; None where that cannot be."""
    if not all(type(number) is int and abs(number) < 1 << 31 for number in numbers):
        return None
    if kind == _KEY and len(numbers) == 2 and numbers[1] in (0, 1):
        return Key(numbers[0], bool(numbers[1]))  # type: ignore[arg-type]
    if kind == _POINTER and len(numbers) == 3:
        return Pointer(*numbers)  # type: ignore[arg-type]
    return None


def _typed(name: str, at: int, line: bytes, first: int) -> tuple[int, Given]:
    parsed = _parse(name, at, line)
    if isinstance(parsed, list) and len(parsed) > 3 and _is_time(parsed[0], first):
        used = _used(*parsed[1:])
        if used is not None:
            return parsed[0], used
    elif isinstance(parsed, list) and 2 <= len(parsed) <= 3 and _is_time(parsed[0], first):
        try:
            data = base64.b64decode(parsed[1], validate=True)
        except (binascii.Error, ValueError, TypeError):
            data = None
        if data is not None and len(parsed) == 2:
            return parsed[0], data
        if data is not None and _is_time(parsed[2], 0):
            return parsed[0], OutsideFrame(parsed[2], data)
    raise BuildError(
        "not a line of an input record",
        where=Where(name, at),
        found=line[:80],
        expected=f"[ns from {first} on, base64], or with the number of an interface; a key; the pointer",
    )
