"""What a guest can do wrong with grants: entries that say anything, mappings and unmappings of anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hvcore.public.xen import Hypercall
from tests.hvcore.hostile.world import words

if TYPE_CHECKING:
    from tests.hvcore.hostile.fuzz import Fuzzer

H = Hypercall
COUNTS = (0, 1, 1, 1, 2, 3, 4, 8, 16, 0x80000000, 0x80000001, 0x7FFFFFFF, 0xFFFFFFFF, 0x10000000)


def grant_frames(f: Fuzzer) -> None:
    """Let pages of the guest show the grant table, and write entries there."""
    at = f.args + 1024
    f.w.store(at, words(0x7FF0, 1, 0) + bytes(f.word_size - 4) + f.longs(at + 64))
    f.call(H.grant_table_op, 2, at, 1)
    frame = int.from_bytes(f.w.d.guest.copy_from(at + 64, 4), "little") if _readable(f, at) else 0
    m = f.hot[1]
    f.map(m.va, frame << 12 | 0x67)
    for ref in range(8, 12):
        flags = f.pick((1, 5, 1, 5, 0, 2, 3, 9, 25))
        f.w.store(m.va + 8 * ref, words(flags | 1 << 16, f.frame()))


def _readable(f: Fuzzer, va: int) -> bool:
    return f.w.mm.walk(f.w.v.cr3_mfn, va, False) >= 0


def grant_map(f: Fuzzer) -> None:
    address = f.va() & ~0xFFF if f.random() < 0.7 else f.entry_address()
    flags = f.pick((2, 6, 1, 3, 2, 6, 18, 7, 0, 0xFFFF, 10))
    block = words(address, 0, flags, 8 + int(f.random() * 4), 1 | 0 << 16, 0, 0, 0)
    f.call(H.grant_table_op, 0, f.pass_args(block), 1)


def grant_unmap(f: Fuzzer) -> None:
    address = f.va() & ~0xFFF
    bus = f.frame() << 12 if f.random() < 0.4 else 0
    handle = int(f.random() * 6)
    known = f.w.d.grant_table.maptrack.get(handle)
    if known is not None and f.random() < 0.6:
        bus = known.mfn << 12
    block = words(address, 0, bus, bus >> 32, handle, 0)
    f.call(H.grant_table_op, f.pick((1, 1, 1, 7)), f.pass_args(block), 1)


def grant_table_op(f: Fuzzer) -> None:
    count = f.pick((0, 1, 1, 2)) if f.random() < 0.97 else f.pick(COUNTS)
    f.call(H.grant_table_op, int(f.random() * 14), f.some_words(16), count)


GRANT_ACTS: dict[str, Callable[[Fuzzer], None]] = {
    "grant_frames": grant_frames,
    "grant_map": grant_map,
    "grant_unmap": grant_unmap,
    "grant_table_op": grant_table_op,
}
