"""Machine frames, and memory addressed by pseudo-physical frame."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbuilder.build.guest_memory import (
    GuestMemory,
    allocate_ram,
    linear_frames,
    machine_frames,
    xen_frames,
)
from domainbuilder.errors import LayoutError


@given(nr_pages=st.integers(1, 5000), first_mfn=st.integers(0, 1 << 40))
@settings(max_examples=60, deadline=None)
def test_xen_frames_use_every_frame_once_in_descending_extents(nr_pages: int, first_mfn: int) -> None:
    p2m = xen_frames(nr_pages, first_mfn)
    assert sorted(p2m) == list(range(first_mfn, first_mfn + nr_pages))
    for pfn in {0, 1, 511, 512, 513, nr_pages // 2, nr_pages - 1} & set(range(nr_pages)):
        assert p2m[pfn] == first_mfn + max(nr_pages - ((pfn >> 9) + 1) * 512, 0) + (pfn & 511)
    extents = [p2m[pfn] for pfn in range(0, nr_pages, 512)]
    assert extents == sorted(extents, reverse=True)


def test_linear_frames() -> None:
    assert list(linear_frames(4, 0x10000)) == [0x10000, 0x10001, 0x10002, 0x10003]
    assert machine_frames("linear", 3, 7) == array("Q", [7, 8, 9])


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_what_is_written_by_frame_lands_in_machine_order(data: st.DataObject) -> None:
    pages = data.draw(st.integers(1, 12))
    p2m = array("Q", data.draw(st.permutations([0x50 + n for n in range(pages)])))
    memory = GuestMemory(allocate_ram(pages), p2m, 0x50)
    size = data.draw(st.integers(0, pages * 4096))
    offset = data.draw(st.integers(0, pages * 4096 - size))
    blob = bytes(1 + n % 251 for n in range(size))
    memory.write(0, blob, offset)
    assert memory.read(0, size, offset) == blob
    flat = b"".join(bytes(memory.ram[(mfn - 0x50) << 12 :][:4096]) for mfn in p2m)
    assert flat == bytes(offset) + blob + bytes(pages * 4096 - offset - size)
    memory.clear(0, offset, size)
    assert not any(bytes(memory.ram))


@given(nr_pages=st.integers(1, 3000), data=st.data())
@settings(max_examples=40, deadline=None)
def test_runs_cover_a_range_in_order_and_are_contiguous(nr_pages: int, data: st.DataObject) -> None:
    p2m = xen_frames(nr_pages, 0x1000)
    pfn = data.draw(st.integers(0, nr_pages - 1))
    count = data.draw(st.integers(0, nr_pages - pfn))
    memory = GuestMemory(memoryview(bytearray(1)), p2m, 0x1000)
    at = pfn
    for start, offset, pages in memory.runs(pfn, count):
        assert start == at
        assert [offset + (n << 12) for n in range(pages)] == [
            (p2m[at + n] - 0x1000) << 12 for n in range(pages)
        ]
        at += pages
    assert at == pfn + count


def test_more_memory_than_there_is_is_an_error_not_a_traceback() -> None:
    with pytest.raises(LayoutError, match="meminit_pv: failed to allocate 0x10000000000000 pages"):
        allocate_ram(1 << 52)
