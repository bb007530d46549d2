"""Write bzImages and their payloads, for tests to read."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import sys
import zlib
from collections.abc import Callable

import lz4.block
import lzallright

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def bzimage(payload: bytes, *, version: int = 0x20F, setup_sects: int = 3, offset: int = 0x40) -> bytes:
    """A bzImage around `payload`: boot sector, setup sectors, payload `offset` bytes into the kernel."""
    out = bytearray((setup_sects + 1) * 512 + offset)
    out[0x1F1] = setup_sects
    out[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", out, 0x206, version)
    struct.pack_into("<II", out, 0x248, offset, len(payload))
    return bytes(out) + payload


def lz4_legacy(data: bytes, chunk: int = 8 << 20) -> bytes:
    """The legacy LZ4 frame that `lz4 -l` writes."""
    out = struct.pack("<I", 0x184C2102)
    for start in range(0, len(data), chunk):
        block = lz4.block.compress(data[start : start + chunk], store_size=False)
        out += struct.pack("<I", len(block)) + block
    return out


def lzop(data: bytes, block: int = 256 << 10, *, version: int = 0x1040, flags: int = 0x03000001) -> bytes:
    """What `lzop` writes of a pipe: header, blocks behind both lengths and an Adler-32, a zero."""
    out = b"\x89LZO\0\r\n\x1a\n" + struct.pack(">HHHB", version, 0x20A0, 0x0940, 3)
    out += b"\5" * (version >= 0x0940) + struct.pack(">I", flags) + bytes(4 if flags & 0x800 else 0)
    out += struct.pack(">II", 0o644, 0) + bytes(4 * (version >= 0x0940)) + b"\0"
    out += struct.pack(">I", zlib.adler32(out[9:]))
    for start in range(0, len(data), block):
        chunk = data[start : start + block]
        packed = bytes(lzallright.LZOCompressor().compress(chunk))
        stored = packed if len(packed) < len(chunk) else chunk
        out += struct.pack(">III", len(chunk), len(stored), zlib.adler32(chunk)) + stored
    return out + bytes(4)


def _sized(compress: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """With the size appended, as Linux's build does."""
    return lambda data: compress(data) + struct.pack("<I", len(data))


X86_BCJ = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 1}]

PAYLOADS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": _sized(bz2.compress),
    "xz": _sized(lambda data: lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=X86_BCJ)),
    "lzma": _sized(lambda data: lzma.compress(data, lzma.FORMAT_ALONE)),
    "lz4": _sized(lz4_legacy),
    "lzo": _sized(lzop),
    "zstd": _sized(zstd.compress),
}
"""How each compression makes a payload."""
