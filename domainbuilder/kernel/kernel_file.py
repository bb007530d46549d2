"""Open a kernel file: raw ELF, gzip, or bzImage; out comes the ELF image.

Follows tools/libs/guest/xg_dom_core.c (`xc_dom_kernel_file`, `xc_dom_try_gunzip`) and
xg_dom_bzimageloader.c (`xc_dom_probe_bzimage_kernel`) of Xen 4.17. Whatever is decompressed is
bounded, both by `limit` and by the size the file itself states.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from domainbuilder.errors import KernelFormatError, Where
from domainbuilder.inputs import LIMITS, open_input

if TYPE_CHECKING:
    from domainbuilder.kernel.unpacked import UnpackedKernels

Image = bytes | mmap.mmap

DEFAULT_LIMIT = LIMITS["kernel"].size
"""Most bytes a kernel may decompress to. Xen's own bound, XC_DOM_DECOMPRESS_MAX, is 1 GiB."""

_LZMA_MEMLIMIT = 256 << 20  # LZMA_BLOCK_SIZE, xg_dom_bzimageloader.c
_LZ4_MAGIC = 0x184C2102  # ARCHIVE_MAGICNUMBER, xg_dom_decompress_lz4.c
_PIECE = 4 << 20  # bytes decompressed at a time
_LZO_BLOCK = 256 << 10  # LZO_BLOCK_SIZE, xen/common/unlzo.c, and lzop's own
_LZ4_CHUNK = 8 << 20  # what one chunk of the legacy frame may hold, LZ4_MAX_BLOCKSIZE of lz4's CLI

# struct setup_header, the Linux boot protocol
_SETUP_SECTS = 0x1F1
_HDR_MAGIC = 0x202
_VERSION = 0x206
_PAYLOAD = 0x248  # payload_offset, payload_length
_SETUP_HEADER_SIZE = 0x250


@dataclass(frozen=True, slots=True)
class KernelFile:
    """A kernel file, opened: how its ELF image was packed, and the image.

    `image` is a read-only map of the file where it is a raw ELF (resident memory stays small),
    bytes otherwise. `payload_offset` is where the image, or its compressed form, starts in the
    file (in the unzipped file, where a bzImage was gzipped once more: `gzipped`).
    """

    path: str
    container: str  # "elf", "gzip" or "bzimage"
    compression: str  # "", "gzip", "xz", "lzma", "bzip2", "lz4" or "zstd"
    payload_offset: int
    image: Image
    trailing: int = 0  # bytes after the compressed stream, which nobody reads
    gzipped: bool = False

    @property
    def packing(self) -> str:
        """How the image was packed, in words: "ELF", "gzip", "bzImage (xz)"."""
        words = {"elf": "ELF", "gzip": "gzip", "bzimage": f"bzImage ({self.compression})"}[self.container]
        return f"gzip of {words}" if self.gzipped else words


class _Packed(NamedTuple):
    """A compressed stream: where it is, and how many bytes may come out of it."""

    data: memoryview
    where: Where
    limit: int

    def fail(self, reason: str, *, found: object = None, expected: object = None) -> KernelFormatError:
        return KernelFormatError(reason, where=self.where, found=found, expected=expected)


def load_kernel(
    path: str | os.PathLike[str], *, limit: int = DEFAULT_LIMIT, kept: UnpackedKernels | None = None
) -> KernelFile:
    """Open the kernel at `path`, or at standard input where that is "-".

    What a bzImage unpacks to is looked for in `kept` first, and kept there. Raises KernelFormatError: not
    readable, neither a regular file nor a pipe, empty, truncated, or more than `limit` bytes when
    decompressed.
    """
    name = os.fspath(path)
    try:
        image = open_input(name)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise KernelFormatError(reason, where=Where(name)) from error
    return load_kernel_bytes(image, name, limit=limit, kept=kept)


def load_kernel_bytes(
    data: Image, name: str, *, limit: int = DEFAULT_LIMIT, kept: UnpackedKernels | None = None
) -> KernelFile:
    """The same for a kernel already in memory; `name` is what messages call it."""
    if not len(data):
        raise KernelFormatError("zero length file", where=Where(name))
    if data[:2] != b"\x1f\x8b":
        return _unwrapped(data, name, limit, kept)
    image, trailing = _gunzip(_Packed(memoryview(data), Where(name, 0), limit))
    inner = _unwrapped(image, name, limit, kept)
    if inner.container == "elf":
        return KernelFile(name, "gzip", "gzip", 0, image, trailing)
    return KernelFile(name, "bzimage", inner.compression, inner.payload_offset, inner.image, trailing, True)


def _unwrapped(data: Image, name: str, limit: int, kept: UnpackedKernels | None) -> KernelFile:
    if data[_HDR_MAGIC : _HDR_MAGIC + 4] == b"HdrS" and len(data) >= _SETUP_HEADER_SIZE:
        return _bzimage(data, name, limit, kept)
    if data[:4] == b"\x7fELF":
        _refuse_dump_core(data, name)
    else:
        raise KernelFormatError(
            "no ELF, gzip or bzImage: xc_dom_find_loader: no loader found: Invalid kernel",
            where=Where(name, 0),
            found=_hex(data[:4]),
            expected="7f 45 4c 46",
        )
    return KernelFile(name, "elf", "", 0, data)


def _refuse_dump_core(data: Image, name: str) -> None:
    """A domain that `build` or `xl dump-core` wrote (docs/misc/dump-core-format.txt of Xen) is no kernel."""
    if data[16:18] != b"\4\0":  # ET_CORE
        return
    from domainbuilder.kernel.elf import parse_elf

    elf = parse_elf(data, name)
    if elf.load_segments or elf.section_by_name(".xen_pages") is None:
        return
    ours = elf.section_by_name(".note.domainbuilder") is not None
    hint = "`domainbuilder launch` runs it, `plan` shows it" if ours else "look at the kernel that ran in it"
    raise KernelFormatError(f"a dump-core file of a domain, not a kernel: {hint}", where=Where(name))


def _hex(data: bytes) -> str:
    return data.hex(" ") or "nothing"


# bzImage


def _bzimage(data: Image, name: str, limit: int, kept: UnpackedKernels | None) -> KernelFile:
    probe = "xc_dom_probe_bzimage_kernel"
    (version,) = struct.unpack_from("<H", data, _VERSION)
    if version < 0x208:
        raise KernelFormatError(
            f"{probe}: boot protocol too old ({version:04x})", where=Where(name, _VERSION), expected="0208"
        )
    offset, length = struct.unpack_from("<II", data, _PAYLOAD)
    offset += (data[_SETUP_SECTS] + 1) * 512
    if offset >= len(data):
        raise KernelFormatError(
            f"{probe}: payload offset overflow",
            where=Where(name, _PAYLOAD),
            found=offset,
            expected=f"below {len(data):#x}",
        )
    if offset + length > len(data):
        raise KernelFormatError(
            f"{probe}: payload length overflow",
            where=Where(name, _PAYLOAD + 4),
            found=length,
            expected=f"at most {len(data) - offset:#x}; is the file cut short?",
        )
    packed = _Packed(memoryview(data)[offset : offset + length], Where(name, offset), limit)
    head = bytes(packed.data[:6])
    known = next((entry for entry in _PAYLOADS if head.startswith(entry[0])), None)
    if known is None:
        raise packed.fail(f"{probe}: unknown compression format", found=_hex(head))
    _, compression, unpack = known
    found = kept.find(packed.data, int.from_bytes(packed.data[-4:], "little")) if kept is not None else None
    image, trailing = (found, 0) if found is not None else unpack(packed)
    if image[:4] != b"\x7fELF":
        raise packed.fail("the payload is no ELF image", found=_hex(image[:4]), expected="7f 45 4c 46")
    if kept is not None and found is None and not trailing:
        kept.keep(packed.data, image)
    return KernelFile(name, "bzimage", compression, offset, image, trailing)


# decompressors: each takes a _Packed and gives the image and the number of bytes it left over


def _too_large(packed: _Packed) -> KernelFormatError:
    return packed.fail(
        "kernel image too large",
        found=f"more than {packed.limit:#x} bytes",
        expected=f"at most {packed.limit:#x}",
    )


def _gunzip(packed: _Packed) -> tuple[Image, int]:
    """xc_dom_do_gunzip: one member; the last four bytes state its size, 16 more are forgiven.

    No more than that is unpacked, nothing behind a head that is no kernel's; pages of zeros take no memory.
    """
    import zlib

    from domainbuilder.kernel.gunzip import Gunzip

    stated = int.from_bytes(packed.data[-4:], "little")
    room = min(stated + 16, packed.limit) + 1
    image, at = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), 0
    member = Gunzip(packed.data, room, _PIECE)
    try:
        for piece in member:
            if not at and piece and not _looks_like_a_kernel(piece):
                return piece, 0
            if piece.count(0) != len(piece):
                image[at : at + len(piece)] = piece
            at += len(piece)
    except zlib.error as error:
        raise packed.fail(f"xc_dom_do_gunzip: inflate failed: {error}") from error
    if at > packed.limit:
        raise _too_large(packed)
    if at > stated + 16:
        raise packed.fail(
            "xc_dom_do_gunzip: inflate failed: the size at the end of the file is too small",
            found=stated,
            expected=f"{at:#x} or more",
        )
    if not member.is_whole:
        raise packed.fail(
            "xc_dom_do_gunzip: inflate failed: the stream is cut short",
            found=f"{len(packed.data):#x} bytes, which hold {at:#x}",
        )
    if not at:
        return b"", 0
    image.resize(at)
    return image, member.trailing


def _looks_like_a_kernel(start: bytes) -> bool:
    return start[:4] == b"\x7fELF" or start[_HDR_MAGIC : _HDR_MAGIC + 4] == b"HdrS" or len(start) < 4


def _stated_size(packed: _Packed) -> int:
    """The size of the image, which Linux's build appends to a payload as a little-endian word."""
    if len(packed.data) <= 8:
        raise packed.fail("insufficient input data", found=len(packed.data), expected="more than 8 bytes")
    (size,) = struct.unpack("<I", packed.data[-4:])
    if size > packed.limit:
        raise packed.fail("kernel image too large", found=size, expected=f"at most {packed.limit:#x}")
    return int(size)


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes | memoryview, max_length: int = -1) -> bytes: ...


def _drain(
    packed: _Packed, what: str, stream: _Decompressor, errors: tuple[type[Exception], ...]
) -> tuple[Image, int]:
    """What comes out of `stream`, exactly as many bytes as the payload states.

    They go piece by piece into pages that take memory only once they are written: a payload that
    states more than it holds costs nothing.
    """
    size = _stated_size(packed)
    if not size:
        raise _wrong_size(packed, what, 0, "more than 0")
    image, at = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), 0
    data: bytes | memoryview = packed.data[:-4]
    failures: tuple[type[Exception], ...] = (*errors, EOFError, MemoryError)
    try:
        while at < size and not stream.eof:
            piece = stream.decompress(data, min(_PIECE, size - at))
            data = b""
            if not piece and not stream.eof:
                break
            image[at : at + len(piece)] = piece
            at += len(piece)
        if not stream.eof and stream.decompress(data, 1):
            raise _wrong_size(packed, what, f"more than {size:#x}", size)
    except failures as error:
        raise packed.fail(f"unable to {what} decompress kernel: {error}") from error
    if at != size:
        raise _wrong_size(packed, what, at, size)
    return image, len(stream.unused_data) if stream.eof else 0


def _wrong_size(packed: _Packed, what: str, found: object, expected: object) -> KernelFormatError:
    return packed.fail(f"unable to {what} decompress kernel: wrong size", found=found, expected=expected)


def _unxz(packed: _Packed) -> tuple[Image, int]:
    import lzma

    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMLIMIT)
    return _drain(packed, "XZ", stream, (lzma.LZMAError,))


def _unlzma(packed: _Packed) -> tuple[Image, int]:
    import lzma

    stream = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMLIMIT)
    return _drain(packed, "LZMA", stream, (lzma.LZMAError,))


def _bunzip2(packed: _Packed) -> tuple[Image, int]:
    import bz2

    return _drain(packed, "BZIP2", bz2.BZ2Decompressor(), (OSError, ValueError))


def _unzstd(packed: _Packed) -> tuple[Image, int]:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        from backports import zstd

    return _drain(packed, "ZSTD", zstd.ZstdDecompressor(), (zstd.ZstdError,))


def _unlz4(packed: _Packed) -> tuple[Image, int]:
    """xc_try_lz4_decode: the legacy frame, chunks of at most 8 MiB each behind its length."""
    import lz4.block

    size = _stated_size(packed)
    data, at, end = packed.data, 0, len(packed.data) - 4
    chunks: list[bytes] = []
    total = 0
    while at < end:
        if end - at < 4:
            raise packed.fail(
                "unable to LZ4 decompress kernel: missing data", found=end - at, expected="4 bytes"
            )
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        if length == _LZ4_MAGIC:
            continue
        if length > end - at:
            raise packed.fail(
                "unable to LZ4 decompress kernel: insufficient input data",
                found=length,
                expected=f"at most {end - at:#x}",
            )
        try:
            chunk = lz4.block.decompress(
                data[at : at + length], uncompressed_size=min(_LZ4_CHUNK, size - total)
            )
        except (lz4.block.LZ4BlockError, ValueError, OverflowError, MemoryError) as error:
            raise packed.fail(f"unable to LZ4 decompress kernel: {error}") from error
        chunks.append(chunk)
        total += len(chunk)
        at += length
    if total != size:
        raise _wrong_size(packed, "LZ4", total, size)
    return b"".join(chunks), 0


def _unlzo(packed: _Packed) -> tuple[Image, int]:
    """xc_try_lzo1x_decode: a file of lzop's, blocks behind their two lengths and a checksum."""
    import lzallright

    size = _stated_size(packed)
    data, end = packed.data, len(packed.data) - 4
    at, chunks, total = _lzop_header(packed, end), list[bytes](), 0
    while True:
        if end - at < 4:
            raise _lzo_error(packed, "Short input")
        (length,) = struct.unpack_from(">I", data, at)
        if not length:
            break
        if length > _LZO_BLOCK:
            raise _lzo_error(packed, "Block size too large", length, f"at most {_LZO_BLOCK:#x}")
        if end - at < 12:
            raise _lzo_error(packed, "Short input")
        (taken,) = struct.unpack_from(">I", data, at + 4)
        at += 12
        if not 0 < taken <= length or taken > end - at:
            raise _lzo_error(packed, "Bad source length", taken, f"1 to {min(length, end - at):#x}")
        chunk = bytes(data[at : at + taken])
        if taken < length:
            try:
                chunk = bytes(lzallright.LZOCompressor.decompress(chunk, length))
            except (lzallright.LZOError, ValueError, MemoryError) as error:
                raise _lzo_error(packed, str(error) or type(error).__name__) from error
        total += length
        if len(chunk) != length or total > size:
            raise _wrong_size(packed, "LZO", total if len(chunk) == length else len(chunk), size)
        chunks.append(chunk)
        at += taken
    if total != size:
        raise _wrong_size(packed, "LZO", total, size)
    return b"".join(chunks), end - at - 4


def _lzop_header(packed: _Packed, end: int) -> int:
    """Where the first block starts: parse_header() of xen/common/unlzo.c."""
    data = packed.data
    if bytes(data[:9]) != b"\x89LZO\0\r\n\x1a\n" or end < 38:
        raise _lzo_error(packed, "invalid header", _hex(bytes(data[:9])), "89 4c 5a 4f 00 0d 0a 1a 0a")
    modern = struct.unpack_from(">H", data, 9)[0] >= 0x0940
    at = 16 + modern  # version, library version, version needed, method; level
    filtered = struct.unpack_from(">I", data, at)[0] & 0x800
    at += 8 if filtered else 4
    at += 12 if modern else 8  # mode and time
    if at >= end or at + 1 + data[at] + 4 > end:
        raise _lzo_error(packed, "Incomplete header")
    return int(at + 1 + data[at] + 4)  # the file's name and a checksum


def _lzo_error(
    packed: _Packed, what: str, found: object = None, expected: object = None
) -> KernelFormatError:
    return packed.fail(f"unable to LZO decompress kernel: {what}", found=found, expected=expected)


_PAYLOADS: tuple[tuple[bytes, str, Callable[[_Packed], tuple[Image, int]]], ...] = (
    (b"\x1f\x8b", "gzip", _gunzip),
    (b"BZh", "bzip2", _bunzip2),
    (b"\xfd7zXZ\0", "xz", _unxz),
    (b"\x28\xb5\x2f\xfd", "zstd", _unzstd),
    (b"\x5d\0", "lzma", _unlzma),
    (b"\x89LZO", "lzo", _unlzo),
    (b"\x02\x21", "lz4", _unlz4),
)
