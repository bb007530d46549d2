"""Write the tables of Linux's scripts/kallsyms.c, in every layout they have had."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tests.domainbuilder.elfwriter import ElfWriter

Row = tuple[int, str, str]  # address, nm's letter, name


@dataclass(frozen=True)
class Layout:
    """What a version of Linux writes.

    `addresses`: "absolute", "base", "percpu" (base, and counting down), "here" (from the
    offset's own address).
    """

    version: str
    addresses: str = "absolute"
    wide_counts: bool = False  # count and markers as wide as a pointer
    stems: bool = False
    long_names: bool = False
    order: str = ""  # of the names: "", "before tokens", "last"
    addresses_last: bool = False
    align: int = 0  # 0: a pointer


LAYOUTS = (
    Layout("2.6.0", stems=True, wide_counts=True),
    Layout("2.6.10", wide_counts=True),
    Layout("4.6", addresses="base", wide_counts=True),
    Layout("4.6 x86-64", addresses="percpu", wide_counts=True),
    Layout("4.20", addresses="base"),
    Layout("4.20 without base", addresses="absolute"),
    Layout("6.1", addresses="percpu", long_names=True),
    Layout("6.2", addresses="percpu", long_names=True, order="before tokens"),
    Layout("6.2 i386", addresses="base", long_names=True, order="before tokens"),
    Layout("6.4", addresses="percpu", long_names=True, order="last", addresses_last=True),
    Layout("6.4 without base", addresses="absolute", long_names=True, order="last", addresses_last=True),
    Layout("6.15", addresses="base", long_names=True, order="last", addresses_last=True),
    Layout("7.0", addresses="here", long_names=True, order="last", addresses_last=True, align=4),
)

TOKENS = ("_init", "irq_", "sched", "page", "table", "get_", "set_", "__", "xen_")


def _tokens(rows: Sequence[Row]) -> list[bytes]:
    """256 tokens: what occurs in names stands for itself, the other codes for pieces of names, or nothing."""
    used = {ord(char) for _, letter, name in rows for char in letter + name}
    spare = iter(TOKENS)
    return [bytes([code]) if code in used else next(spare, "").encode() for code in range(256)]


def _compressed(text: str, tokens: Sequence[bytes]) -> bytes:
    codes, at, raw = bytearray(), 0, text.encode()
    by_length = sorted(range(256), key=lambda code: -len(tokens[code]))
    while at < len(raw):
        code = next(code for code in by_length if tokens[code] and raw.startswith(tokens[code], at))
        codes.append(code)
        at += len(tokens[code])
    return bytes(codes)


class _Blob:
    def __init__(self, address: int, align: int) -> None:
        self.data, self._address, self._align = bytearray(), address, align

    def label(self) -> int:
        """Align, as .align or .balign does; the address."""
        self.data += bytes(-(self._address + len(self.data)) % self._align)
        return self._address + len(self.data)


def _addresses(blob: _Blob, rows: Sequence[Row], layout: Layout, word: int) -> None:
    here = blob.label()
    pointer = "<Q" if word == 8 else "<I"
    base = min(address for address, letter, _ in rows if letter != "A")
    for i, (address, letter, _) in enumerate(rows):
        if layout.addresses == "absolute":
            blob.data += struct.pack(pointer, address)
        elif layout.addresses == "here":
            blob.data += struct.pack("<i", address - here - 4 * i)
        elif layout.addresses == "percpu":
            blob.data += struct.pack("<i", address if letter == "A" else base - 1 - address)
        else:
            blob.data += struct.pack("<I", address - base)
    if layout.addresses in {"base", "percpu"}:
        blob.label()
        blob.data += struct.pack(pointer, base)


def _stems(blob: _Blob, rows: Sequence[Row]) -> None:
    before = ""
    for _, _, name in rows:
        shared = next((i for i, (a, b) in enumerate(zip(before, name, strict=False)) if a != b), 0)
        blob.data += bytes([shared]) + name[shared:].encode() + b"\0"
        before = name


def tables(rows: Sequence[Row], layout: Layout, word: int, address: int) -> bytes:
    """The tables at `address`, for symbols in the order of their addresses."""
    blob = _Blob(address, layout.align or word)
    wide = "<Q" if layout.wide_counts and word == 8 else "<I"
    if not layout.addresses_last:
        _addresses(blob, rows, layout, word)
    blob.label()
    blob.data += struct.pack(wide, len(rows))
    start = blob.label() - address
    if layout.stems:
        _stems(blob, rows)
        return bytes(blob.data)
    tokens, markers = _tokens(rows), []
    for i, (_, letter, name) in enumerate(rows):
        if i % 256 == 0:
            markers.append(len(blob.data) - start)
        codes = _compressed(letter + name, tokens)
        assert len(codes) < (1 << 14 if layout.long_names else 128)
        size = len(codes)
        blob.data += bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
        blob.data += codes
    order = b"".join(struct.pack(">I", i)[1:] for i in sorted(range(len(rows)), key=lambda i: rows[i][2]))
    blob.label()
    for marker in markers:
        blob.data += struct.pack(wide, marker)
    if layout.order == "before tokens":
        blob.label()
        blob.data += order
    blob.label()
    offsets, at = [], 0
    for token in tokens:
        offsets.append(at)
        blob.data += token + b"\0"
        at += len(token) + 1
    blob.label()
    blob.data += struct.pack("<256H", *offsets)
    if layout.addresses_last:
        _addresses(blob, rows, layout, word)
    if layout.order == "last":
        blob.label()
        blob.data += order
    return bytes(blob.data)


def kernel(
    rows: Sequence[Row], layout: Layout, word: int, *, before: bytes = b"", behind: bytes = b""
) -> ElfWriter:
    """A kernel with these tables among its data."""
    base = 0xFFFFFFFF81000000 if word == 8 else 0xC1000000
    writer = ElfWriter(64 if word == 8 else 32, 62 if word == 8 else 3, entry=base)
    head = b"Linux version %s (a test)\0" % layout.version.split()[0].encode() + bytes(1 << 12) + before
    head += bytes(-len(head) % 8)
    data = head + tables(rows, layout, word, base + len(head)) + behind
    return writer.load(data, paddr=0x1000000, vaddr=base, memsz=0x2000000, flags=7, align=4096)
