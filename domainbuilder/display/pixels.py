"""The pixels of a framebuffer as planes: all reds, all greens, all blues, a byte each.

A plane is bytes, and what is done to all of its pixels is done by `translate`, by slices, and by `|` of whole
planes as numbers: a picture of 800 by 600 takes some milliseconds.
"""

from __future__ import annotations

from typing import NamedTuple


class Planes(NamedTuple):
    """A picture, its lines from top to bottom: three planes of `width` times `height` bytes."""

    width: int
    height: int
    red: bytes
    green: bytes
    blue: bytes

    def rgb(self) -> bytearray:
        """Three bytes a pixel, red first."""
        pixels = bytearray(3 * self.width * self.height)
        pixels[0::3], pixels[1::3], pixels[2::3] = self.red, self.green, self.blue
        return pixels


def _spread(bits: int, *, high: int, low: int = 0) -> bytes:
    """For each byte: `bits` of it from bit `low` on, moved up to bit `high`; spread over all bits for 7."""
    table = bytearray()
    for byte in range(256):
        value = byte >> low & (1 << bits) - 1
        table.append(value * 255 // ((1 << bits) - 1) if high == 7 else value << high + 1 - bits)
    return bytes(table)


_RED_332, _GREEN_332, _BLUE_332 = (_spread(bits, high=7, low=low) for bits, low in ((3, 5), (3, 2), (2, 0)))
_RED_565, _BLUE_565 = _spread(5, high=7, low=3), _spread(5, high=7)
# The six bits of green lie in two bytes.
_GREEN_HIGH, _GREEN_LOW = _spread(3, high=5), _spread(3, high=2, low=5)
_GREEN_565 = _spread(6, high=7)


def either(*planes: bytes) -> bytes:
    """The bitwise or of planes that are equally long."""
    if len(planes) == 1:
        return planes[0]
    number = 0
    for plane in planes:
        number |= int.from_bytes(plane, "little")
    return number.to_bytes(len(planes[0]), "little")


def planes(width: int, height: int, depth: int, rows: bytes) -> Planes:
    """The planes of `rows`: 8 bits a pixel (3 red, 3 green, 2 blue), 16 (5, 6, 5), 24 or 32 (blue first)."""
    if depth == 8:
        colours = (rows.translate(table) for table in (_RED_332, _GREEN_332, _BLUE_332))
        return Planes(width, height, *colours)
    if depth == 16:
        low, high = rows[0::2], rows[1::2]
        green = either(high.translate(_GREEN_HIGH), low.translate(_GREEN_LOW)).translate(_GREEN_565)
        return Planes(width, height, high.translate(_RED_565), green, low.translate(_BLUE_565))
    step = depth // 8
    return Planes(width, height, rows[2::step], rows[1::step], rows[0::step])
