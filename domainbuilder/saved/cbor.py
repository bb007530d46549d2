"""Plain values as bytes and back: as much of CBOR (RFC 8949) as they need, and a reader that takes no more.

None, bool, int of 64 bits and a sign, bytes, str, list, dict with str keys. Lengths are definite and numbers
as short as they can be, so a value has one form. There are no tags: nothing that is read becomes anything
else.
"""

from __future__ import annotations

import struct
from typing import Any

_UINT, _NINT, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_KINDS = ("a number", "a negative number", "bytes", "text", "an array", "a map", "a tag", "a simple value")
_FALSE, _TRUE, _NULL = 0xF4, 0xF5, 0xF6
_SIMPLE_VALUES = {_FALSE: False, _TRUE: True, _NULL: None}
_DEEPEST = 24
_WIDTHS = {24: struct.Struct(">B"), 25: struct.Struct(">H"), 26: struct.Struct(">I"), 27: struct.Struct(">Q")}
_LEAST = {24: 24, 25: 1 << 8, 26: 1 << 16, 27: 1 << 32}


class CborError(ValueError):
    """Bytes that are no value as `encode()` writes them: where, what was found, what was expected."""

    def __init__(self, offset: int, reason: str, found: object, expected: object) -> None:
        super().__init__(f"{reason} at {offset:#x}: found {found}, expected {expected}")
        self.offset = offset
        self.reason = reason
        self.found = found
        self.expected = expected


def encode(value: object) -> bytes:
    """The value as bytes. Raises TypeError for what is not plain, ValueError for a number beyond 64 bits."""
    out = bytearray()
    _put(out, value)
    return bytes(out)


def _put(out: bytearray, value: object) -> None:
    if value is None or isinstance(value, bool):
        out.append(_NULL if value is None else _TRUE if value else _FALSE)
    elif isinstance(value, int):
        _put_head(out, _NINT if value < 0 else _UINT, ~value if value < 0 else value)
    elif isinstance(value, bytes):
        _put_head(out, _BYTES, len(value))
        out += value
    elif isinstance(value, str):
        text = value.encode("utf-8", "surrogateescape")
        _put_head(out, _TEXT, len(text))
        out += text
    elif isinstance(value, list | tuple):
        _put_head(out, _ARRAY, len(value))
        for item in value:
            _put(out, item)
    elif isinstance(value, dict):
        _put_head(out, _MAP, len(value))
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a key that is no str: {key!r}")
            _put(out, key)
            _put(out, item)
    else:
        raise TypeError(f"a {type(value).__name__} is no plain value")


def _put_head(out: bytearray, kind: int, argument: int) -> None:
    if argument < 24:
        out.append(kind << 5 | argument)
        return
    if argument >> 64:
        raise ValueError(f"a number beyond 64 bits: {argument:#x}")
    code = next(code for code in (27, 26, 25, 24) if argument >= _LEAST[code])
    out.append(kind << 5 | code)
    out += _WIDTHS[code].pack(argument)


def decode(data: bytes) -> Any:
    """The one value that `data` is; bounded by its size. Raises CborError for what encode() never writes."""
    reader = _Reader(data)
    value = reader.value(0)
    if reader.at != len(data):
        raise CborError(reader.at, "something follows the value", f"{len(data) - reader.at} bytes", "the end")
    return value


class _Reader:
    """Where in `data` it is."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        start, end = self.at, self.at + size
        if end > len(self.data):
            raise CborError(start, "a value is cut short", f"{len(self.data) - start} bytes", f"{size} bytes")
        self.at = end
        return self.data[start:end]

    def head(self) -> tuple[int, int]:
        start = self.at
        first = self.take(1)[0]
        kind, code = first >> 5, first & 31
        if code < 24:
            return kind, code
        if code not in _WIDTHS:
            raise CborError(start, "not a value of this format", f"{first:#x}", "a definite length")
        width = _WIDTHS[code]
        (argument,) = width.unpack(self.take(width.size))
        if argument < _LEAST[code] and kind != _SIMPLE:
            raise CborError(start, "not as short as it can be", f"{argument} in {width.size} bytes", "fewer")
        return kind, argument

    def value(self, depth: int) -> Any:
        start = self.at
        if start < len(self.data) and self.data[start] in _SIMPLE_VALUES:
            self.at += 1
            return _SIMPLE_VALUES[self.data[start]]
        if depth > _DEEPEST:
            raise CborError(
                start, "values within values", f"more than {_DEEPEST} deep", f"at most {_DEEPEST}"
            )
        kind, argument = self.head()
        if kind == _UINT:
            return argument
        if kind == _NINT:
            return ~argument
        if kind == _BYTES:
            return self.take(argument)
        if kind == _TEXT:
            return self.text(argument)
        if kind in (_ARRAY, _MAP):
            self.check_room(start, argument << (kind == _MAP))
            if kind == _ARRAY:
                return [self.value(depth + 1) for _ in range(argument)]
            return dict(self.pair(depth + 1) for _ in range(argument))
        raise CborError(start, "not a value of this format", _KINDS[kind], "plain values alone")

    def check_room(self, start: int, items: int) -> None:
        """Every item takes a byte: a count beyond the end is told before anything is made."""
        if items > len(self.data) - self.at:
            raise CborError(start, "more items than can follow", items, f"at most {len(self.data) - self.at}")

    def text(self, size: int) -> str:
        start = self.at
        try:
            return self.take(size).decode("utf-8", "surrogateescape")
        except UnicodeDecodeError as error:
            raise CborError(
                start, "text that is no UTF-8", f"{error.object[error.start]:#x}", "UTF-8"
            ) from None

    def pair(self, depth: int) -> tuple[str, Any]:
        start = self.at
        key = self.value(depth)
        if not isinstance(key, str):
            raise CborError(start, "a key that is no text", type(key).__name__, "text")
        return key, self.value(depth)
