"""Xen's migration stream as it comes in: headers, records and pages, held to the format and handed on.

What a record says goes to a `Receiver`; this reader says where in the stream the specification was not met.
Sources: tools/libs/guest/xg_sr_restore.c, tools/xl/xl_vmcontrol.c and tools/libs/light/libxl_stream_read.c of
Xen 4.17.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from domainbuilder.errors import SavedError, Where
from domainbuilder.inputs import LIMITS, beginning
from domainbuilder.saved import stream_format as fmt
from hvcore.public.xen import PAGE_SIZE

_MOST_CONFIG = LIMITS["saved configuration"].size
_LIBXL_NAMES = {
    fmt.EMULATOR_XENSTORE_DATA: "EMULATOR_XENSTORE_DATA",
    fmt.EMULATOR_CONTEXT: "EMULATOR_CONTEXT",
}


class Source:
    """Where the stream comes from: `read(n)` gives at most n bytes, and none at its end."""

    def __init__(self, name: str, read: Callable[[int], bytes | memoryview]) -> None:
        self.name = name
        self.at = 0
        self._read = read

    def exact(self, size: int, what: str) -> bytes | memoryview:
        """The next `size` bytes. Raises SavedError where the stream ends before."""
        data = self._read(size)
        self.at += len(data)
        if len(data) == size:
            return data
        pieces, have = [bytes(data)], len(data)
        while have < size and (more := self._read(size - have)):
            pieces.append(bytes(more))
            have += len(more)
            self.at += len(more)
        if have < size:
            raise self.fail(f"the stream is cut short in {what}", found=have, expected=size)
        return b"".join(pieces)

    def fail(
        self, reason: str, *, found: object = None, expected: object = None, at: int | None = None
    ) -> SavedError:
        """An error that says where."""
        where = Where(self.name, self.at if at is None else at)
        return SavedError(reason, where=where, found=found, expected=expected)


@dataclass(frozen=True, slots=True)
class Record:
    """One record of libxc's: its type, where it begins, and what is in it."""

    kind: int
    at: int
    data: memoryview

    @property
    def name(self) -> str:
        """Xen's name of it."""
        return fmt.REC_NAMES.get(self.kind, f"record {self.kind:#x}")


class Receiver(Protocol):
    """Who is told what a stream says; each may raise SavedError."""

    def config(self, config: dict[str, Any]) -> None:
        """Xl's configuration; empty where there is none."""

    def pages(self, record: Record, words: memoryview, contents: memoryview) -> None:
        """A word for each page, and the contents of those that have some."""

    def record(self, record: Record) -> None:
        """Any other record but END."""


def is_stream(path: str) -> bool:
    """Whether the file starts like one that xl has saved, or like libxl's stream."""
    head = beginning(path, len(fmt.XL_MAGIC))
    return head == fmt.XL_MAGIC or head[:8] == fmt.RESTORE_STREAM_IDENT.to_bytes(8, "big")


def read_stream(source: Source, receiver: Receiver) -> None:
    """The whole stream. Raises SavedError, which names the offset; OSError."""
    head = _xl_header(source, receiver)
    ident, version, options = fmt.LIBXL_HEADER.unpack(head)
    if ident != fmt.RESTORE_STREAM_IDENT:
        raise source.fail(
            "no libxl stream", found=ident, expected=fmt.RESTORE_STREAM_IDENT, at=source.at - 16
        )
    if version != fmt.RESTORE_STREAM_VERSION or options:
        found, expected = f"version {version}, options {options:#x}", f"version {fmt.RESTORE_STREAM_VERSION}"
        raise source.fail("a libxl stream of another kind", found=found, expected=expected, at=source.at - 8)
    has_context = False
    while True:
        at = source.at
        kind, length = fmt.RHDR.unpack(source.exact(fmt.RHDR.size, "a libxl record"))
        if kind == fmt.LIBXL_END and has_context:
            return
        if kind == fmt.LIBXC_CONTEXT and not has_context and not length:
            _read_libxc(source, receiver)
            has_context = True
        elif kind in _LIBXL_NAMES:  # of device models, which no PV domain has
            raise source.fail(f"{_LIBXL_NAMES[kind]}: not a PV domain", at=at)
        else:
            expected = "END" if has_context else "LIBXC_CONTEXT"
            raise source.fail("another libxl record comes here", found=kind, expected=expected, at=at)


def _xl_header(source: Source, receiver: Receiver) -> bytes | memoryview:
    """Xl's header, if there is one, and what comes after it: libxl's."""
    head = source.exact(fmt.LIBXL_HEADER.size, "the header")
    if bytes(head) != fmt.XL_MAGIC[: len(head)]:
        receiver.config({})
        return head
    rest = source.exact(fmt.XL_HEADER.size - len(head), "xl's header")
    magic, order, mandatory, optional, size = fmt.XL_HEADER.unpack(bytes(head) + bytes(rest))
    if magic != fmt.XL_MAGIC:
        raise source.fail("no file of xl's", found=magic.hex(), at=0)
    if order != fmt.SAVEFILE_BYTEORDER_VALUE:
        raise source.fail("of another byte order", found=order, expected=fmt.SAVEFILE_BYTEORDER_VALUE, at=32)
    known = fmt.XL_MANDATORY_FLAG_JSON | fmt.XL_MANDATORY_FLAG_STREAMv2
    if mandatory & ~known or not mandatory & fmt.XL_MANDATORY_FLAG_STREAMv2:
        raise source.fail("Savefile has mandatory flag(s) which are not supported", found=mandatory, at=36)
    if optional or size > _MOST_CONFIG:
        raise source.fail(
            "xl's optional data is too large", found=size, expected=f"at most {_MOST_CONFIG}", at=44
        )
    at = source.at
    data = bytes(source.exact(size, "xl's configuration"))
    receiver.config(_config(source, data, at) if mandatory & fmt.XL_MANDATORY_FLAG_JSON else {})
    return source.exact(fmt.LIBXL_HEADER.size, "libxl's header")


def _config(source: Source, data: bytes, at: int) -> dict[str, Any]:
    size = int.from_bytes(data[:4], "little")
    if size > len(data) - 4:
        raise source.fail("xl's configuration is cut short", found=len(data) - 4, expected=size, at=at)
    try:
        config = json.loads(data[4 : 4 + size].rstrip(b"\0"))
    except (ValueError, RecursionError):
        raise source.fail("xl's configuration is no JSON", found=data[4:24], at=at + 4) from None
    if not isinstance(config, dict):
        raise source.fail("xl's configuration is no object", found=type(config).__name__, at=at + 4)
    return config


# --- libxc ------------------------------------------------------------------------------------------------


def _read_libxc(source: Source, receiver: Receiver) -> None:
    """Libxc's image, from its headers to its END."""
    at = source.at
    marker, ident, version, options, *reserved = fmt.IHDR.unpack(
        source.exact(fmt.IHDR.size, "the image header")
    )
    if (marker, ident) != (fmt.IHDR_MARKER, fmt.IHDR_ID):
        raise source.fail("Invalid marker or id of libxc's image", found=f"{marker:#x}, {ident:#x}", at=at)
    if version not in (2, fmt.IHDR_VERSION):
        raise source.fail("Invalid Version of libxc's image", found=version, expected="2 or 3", at=at + 12)
    if options or any(reserved):
        raise source.fail("an image of another byte order, or with options", found=options, at=at + 16)
    at = source.at
    kind, shift, _, _, _ = fmt.DHDR.unpack(source.exact(fmt.DHDR.size, "the domain header"))
    if kind != fmt.DHDR_TYPE_X86_PV:
        raise source.fail("not an x86 PV domain", found=kind, expected=fmt.DHDR_TYPE_X86_PV, at=at)
    if shift != 12:
        raise source.fail("Invalid page size", found=shift, expected=12, at=at + 4)
    while (record := _record(source)).kind != fmt.REC_TYPE_END:
        if record.kind == fmt.REC_TYPE_PAGE_DATA:
            _pages(source, record, receiver)
        else:
            receiver.record(record)
    if record.data:
        raise source.fail("END with contents", found=len(record.data), expected=0, at=record.at)


def _record(source: Source) -> Record:
    at = source.at
    kind, length = fmt.RHDR.unpack(source.exact(fmt.RHDR.size, "a record's header"))
    name = fmt.REC_NAMES.get(kind, f"record {kind:#x}")
    if length > fmt.REC_LENGTH_MAX:
        raise source.fail(
            f"{name} is too long", found=length, expected=f"at most {fmt.REC_LENGTH_MAX:#x}", at=at + 4
        )
    if kind not in fmt.REC_NAMES and not kind & fmt.REC_TYPE_OPTIONAL:
        raise source.fail("Unrecognised mandatory record type", found=kind, at=at)
    padded = -(-length // fmt.REC_ALIGN) * fmt.REC_ALIGN
    data = memoryview(source.exact(padded, name))
    if any(data[length:]):
        raise source.fail(f"{name}: padding that is not zero", at=at + fmt.RHDR.size + length)
    return Record(kind, at, data[:length])


def _pages(source: Source, record: Record, receiver: Receiver) -> None:
    at, data = record.at + fmt.RHDR.size, record.data
    if len(data) < fmt.PAGE_DATA.size:
        raise source.fail("PAGE_DATA record truncated", found=len(data), expected=fmt.PAGE_DATA.size, at=at)
    count, _ = fmt.PAGE_DATA.unpack_from(data)
    start = fmt.PAGE_DATA.size + 8 * count
    if not count or start > len(data):
        raise source.fail("PAGE_DATA has no room for its pages' words", found=count, at=at)
    words = data[fmt.PAGE_DATA.size : start].cast("Q")
    kinds = [word >> fmt.PAGE_DATA_TYPE_SHIFT for word in words]
    if not fmt.TYPES.issuperset(kinds):
        raise source.fail("a page of a type that there is not", found=max(set(kinds) - fmt.TYPES), at=at)
    size = sum(kind not in fmt.WITHOUT_CONTENTS for kind in kinds) * PAGE_SIZE
    if len(data) - start != size:
        raise source.fail("PAGE_DATA has another size", found=len(data) - start, expected=size, at=at)
    receiver.pages(record, words, data[start:])
