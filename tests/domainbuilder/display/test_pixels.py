"""Pixels and PNG files, against Pillow's reading of both."""

from __future__ import annotations

import io
import struct

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from PIL import Image

from domainbuilder.display.pixels import planes
from domainbuilder.display.png import png

# What Pillow calls pixels that lie so in memory.
RAW_MODES = {16: "BGR;16", 24: "BGR", 32: "BGRX"}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from(sorted(RAW_MODES)), st.randoms())
def test_a_png_has_the_pixels(width: int, height: int, depth: int, chance: object) -> None:
    rows = chance.randbytes(width * height * depth // 8)  # type: ignore[attr-defined]
    oracle = Image.frombytes("RGB", (width, height), rows, "raw", RAW_MODES[depth])
    with Image.open(io.BytesIO(png(planes(width, height, depth, rows)))) as read:
        read.load()  # which checks every checksum
        assert (read.format, read.mode, read.size) == ("PNG", "RGB", (width, height))
        assert read.tobytes() == oracle.tobytes()


def test_pixels_of_eight_bits_have_three_two_and_three() -> None:
    every = planes(256, 1, 8, bytes(range(256)))
    for pixel, (red, green, blue) in enumerate(zip(every.red, every.green, every.blue, strict=True)):
        assert (red * 7 + 127) // 255 == pixel >> 5
        assert (green * 7 + 127) // 255 == pixel >> 2 & 7
        assert (blue * 3 + 127) // 255 == pixel & 3
    assert bytes(every.rgb()[-3:]) == b"\xff\xff\xff"


@pytest.mark.parametrize("value", [0, 1, 0x07E0, 0x07FF, 0xF800, 0xFFFF, 0x8410])
def test_pixels_of_sixteen_bits(value: int) -> None:
    """Each colour spread to a byte: nearest of 31 or 63 steps."""
    found = planes(1, 1, 16, struct.pack("<H", value))
    wanted = [(value >> 11) * 255 / 31, (value >> 5 & 63) * 255 / 63, (value & 31) * 255 / 31]
    assert all(
        abs(plane[0] - want) < 1
        for plane, want in zip((found.red, found.green, found.blue), wanted, strict=True)
    )
