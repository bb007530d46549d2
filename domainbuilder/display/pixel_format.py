"""Pixels as a viewer of VNC wants them: PIXEL_FORMAT of RFC 6143, section 7.4."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

from domainbuilder.display.pixels import Planes, either

_LAYOUT = struct.Struct(">BBBBHHHBBB3x")
SIZE = _LAYOUT.size


class PixelFormat(NamedTuple):
    """Bits of a pixel, and for each colour the largest value and how far it is shifted."""

    bits: int
    depth: int
    big_endian: bool
    true_colour: bool
    maxima: tuple[int, int, int]
    shifts: tuple[int, int, int]

    @classmethod
    def from_bytes(cls, data: bytes) -> PixelFormat:
        """As it is told. Raises ValueError for one that is not served."""
        bits, depth, big, true, *rest = _LAYOUT.unpack(data)
        made = cls(
            bits, depth, bool(big), bool(true), (rest[0], rest[1], rest[2]), (rest[3], rest[4], rest[5])
        )
        if bits not in (8, 16, 32) or not true or not all(made.maxima) or max(made.shifts) >= bits:
            raise ValueError("no pixel format of true colours")
        return made

    def to_bytes(self) -> bytes:
        """As it is told."""
        head = self.bits, self.depth, self.big_endian, self.true_colour
        return _LAYOUT.pack(*head, *self.maxima, *self.shifts)

    @property
    def places(self) -> list[int]:
        """Which byte of the pixel as a number stands where, 0 for the lowest."""
        order = list(range(self.bits // 8))
        return order[::-1] if self.big_endian else order

    @property
    def short_places(self) -> list[int]:
        """The same of a CPIXEL of ZRLE, which has three bytes where those hold all colours."""
        ends = [shift + most.bit_length() for shift, most in zip(self.shifts, self.maxima, strict=True)]
        if self.bits == 32 and self.depth <= 24:
            if max(ends) <= 24:
                return [place for place in self.places if place != 3]
            if min(self.shifts) >= 8:
                return [place for place in self.places if place != 0]
        return self.places


OURS = PixelFormat(32, 24, big_endian=False, true_colour=True, maxima=(255, 255, 255), shifts=(16, 8, 0))


@lru_cache(maxsize=64)  # a viewer may ask for anything
def _table(most: int, shift: int, place: int) -> bytes | None:
    """What a byte of a colour adds to the byte `place` of the pixel; None where that is always nothing."""
    values = bytes((value * most // 255 << shift) >> 8 * place & 0xFF for value in range(256))
    return values if any(values) else None


def formatted(picture: Planes, form: PixelFormat, places: list[int]) -> bytes:
    """The pixels, of each the bytes `places`."""
    step, count = len(places), picture.width * picture.height
    pixels = bytearray(step * count)
    for at, place in enumerate(places):
        parts = []
        colours = picture.red, picture.green, picture.blue
        for plane, most, shift in zip(colours, form.maxima, form.shifts, strict=True):
            table = _table(most, shift, place)
            if table is not None:
                parts.append(plane.translate(table))
        if parts:
            pixels[at::step] = either(*parts)
    return bytes(pixels)
