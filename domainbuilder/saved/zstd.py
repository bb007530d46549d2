"""zstd by Python's own library, or by its backport, with a limit on what comes out."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LEVEL = 1  # 2 times faster than 3 for guest memory, 6% larger


def compress(data: bytes | memoryview) -> bytes:
    """One frame."""
    return zstd.compress(data, LEVEL)


def decompress(data: bytes | memoryview, size: int) -> bytes:
    """What one frame holds, which is `size` bytes. Raises ValueError for anything else."""
    unpacker = zstd.ZstdDecompressor()
    try:
        unpacked = unpacker.decompress(data, size + 1)
    except zstd.ZstdError as error:
        raise ValueError(f"no zstd frame: {error}") from None
    if len(unpacked) != size or not unpacker.eof or unpacker.unused_data:
        found = f"more than {size}" if len(unpacked) > size else str(len(unpacked))
        raise ValueError(f"a zstd frame of {found} bytes")
    return unpacked
