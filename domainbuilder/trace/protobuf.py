"""As much of protobuf's wire format as Perfetto's traces and pprof's profiles need.

Source: protobuf.dev/programming-guides/encoding. A message is bytes here: fields put one behind the other.
"""

from __future__ import annotations

from collections.abc import Iterator

_M64 = (1 << 64) - 1
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MOST_VARINT = 10


_SHORT = [bytes((value,)) for value in range(0x80)]
_SHORT += [bytes((value & 0x7F | 0x80, value >> 7)) for value in range(0x80, 0x4000)]
LOW_14 = [bytes((value & 0x7F | 0x80, value >> 7 | 0x80)) for value in range(0x4000)]
"""The two bytes that the varint of a number of more than 14 bits begins with, by the low 14."""


def varint(value: int) -> bytes:
    """An unsigned number of up to 64 bits; negative ones as two's complement."""
    if 0 <= value < 0x4000:
        return _SHORT[value]
    value &= _M64
    return LOW_14[value & 0x3FFF] + varint(value >> 14)


def number(field: int, value: int) -> bytes:
    """A field that is a number."""
    return varint(field << 3 | VARINT) + varint(value)


def fixed64(field: int, value: int) -> bytes:
    """A field that is a number of eight bytes."""
    return varint(field << 3 | FIXED64) + (value & _M64).to_bytes(8, "little")


def message(field: int, value: bytes) -> bytes:
    """A field that is a message, or bytes."""
    return varint(field << 3 | BYTES) + varint(len(value)) + value


def text(field: int, value: str) -> bytes:
    """A field that is a string."""
    return message(field, value.encode("utf-8", "backslashreplace"))


def packed(field: int, values: Iterator[int] | list[int]) -> bytes:
    """A field that is numbers."""
    return message(field, b"".join(map(varint, values)))


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: (number, what it holds). Raises ValueError for what is none."""
    at, end = 0, len(data)
    while at < end:
        key, at = read_varint(data, at)
        field, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = read_varint(data, at)
            yield field, value
        elif kind == BYTES:
            size, at = read_varint(data, at)
            if size > end - at:
                raise ValueError("a field reaches beyond its message")
            yield field, data[at : at + size]
            at += size
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
            if size > end - at:
                raise ValueError("a field reaches beyond its message")
            yield field, int.from_bytes(data[at : at + size], "little")
            at += size
        else:
            raise ValueError(f"no kind of field is {kind}")


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends. Raises ValueError where it does not."""
    value = shift = 0
    for i in range(at, min(at + _MOST_VARINT, len(data))):
        byte = data[i]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _M64, i + 1
        shift += 7
    raise ValueError("a number has no end")
