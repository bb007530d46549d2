"""A picture as PNG (Portable Network Graphics, third edition, W3C): the few chunks that one needs."""

from __future__ import annotations

import struct
import zlib

from domainbuilder.display.pixels import Planes

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IHDR = struct.Struct(">IIBBBBB")  # width, height, bits a sample, colour type, compression, filter, interlace
_TRUECOLOUR = 2


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(picture: Planes) -> bytes:
    """The file: 8 bits a sample, red, green, blue. The picture has a width and a height."""
    pixels, line = picture.rgb(), 3 * picture.width
    compressor = zlib.compressobj(6)
    packed = [
        compressor.compress(b"\0" + pixels[at : at + line]) for at in range(0, len(pixels), line)
    ]  # filter type 0: most of what is on a screen repeats as it is
    head = _IHDR.pack(picture.width, picture.height, 8, _TRUECOLOUR, 0, 0, 0)
    data = b"".join([*packed, compressor.flush()])
    return _SIGNATURE + _chunk(b"IHDR", head) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
