"""Linux's own symbol tables: every layout, written by our own hand and by Debian's kernels; and garbage."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbuilder.kernel.elf import parse_elf
from domainbuilder.kernel.kernel_file import load_kernel
from domainbuilder.symbols.kallsyms import kallsyms_symbols
from domainbuilder.symbols.table import Symbols
from tests.domainbuilder.elfwriter import ElfWriter

from .kallsyms_tables import LAYOUTS, Layout, Row, kernel

WORDS = (
    *("init", "exit", "sched", "page", "table", "get", "set", "irq", "xen_start", "free_area", "ext4"),
    *("tcp_v4", "0x", *"123456789"),
)


def rows(count: int, word: int, *, percpu: bool, long_names: bool, seed: int = 1) -> list[Row]:
    """Symbols in the order of their addresses, many at the same one; each digit is in some name."""
    chance = random.Random(seed)
    address = 0xFFFFFFFF81000000 if word == 8 else 0xC1000000
    found: list[Row] = [(0x40 * i, "A", f"percpu_{i}") for i in range(20)] if percpu else []
    for i in range(count):
        name = "_".join(chance.choice(WORDS) for _ in range(chance.randint(1, 5))) + f"_{i:x}"
        if long_names and chance.random() < 0.02:
            name += "".join(chance.choice("abcdefghij") for _ in range(chance.randint(130, 300)))
        found.append((address, chance.choice("tTTtdDbBr"), name))
        address += chance.choice((0, 4, 16, 64, 900))
    return [*found, (address, "T", "digits_0123456789")]


def decoded(image: bytes) -> Symbols | None:
    return kallsyms_symbols(parse_elf(image, "kernel"))


KINDS = {"t": "function", "T": "function", "A": "absolute"}


# x86-64 alone counts down from the base; fewer than 256 are not looked for among stems.
EVERY = [
    (layout, word, count)
    for layout in LAYOUTS
    for word in (4, 8)
    for count in (20, 255, 256, 257, 3000)
    if not (word == 4 and layout.addresses == "percpu") and not (layout.stems and count < 256)
]


@pytest.mark.parametrize(
    ("layout", "word", "count"), EVERY, ids=[f"{one[0].version}-{one[1:]}" for one in EVERY]
)
def test_every_layout(layout: Layout, word: int, count: int) -> None:
    given_rows = rows(count, word, percpu=layout.addresses == "percpu", long_names=layout.long_names)
    symbols = decoded(kernel(given_rows, layout, word, behind=b"\x5a" * 5000).build())
    assert symbols is not None
    assert [(s.value, s.name) for s in symbols] == [(address, name) for address, _, name in given_rows]
    if not layout.stems:
        assert [s.kind for s in symbols] == [KINDS.get(letter, "object") for _, letter, _ in given_rows]
    assert not any(symbol.size for symbol in symbols)


@pytest.mark.parametrize("shift", range(9))
def test_wherever_they_stand(shift: int) -> None:
    """Behind any number of bytes, also such that look like a piece of the tables."""
    given_rows = rows(300, 8, percpu=False, long_names=False)
    digits = b"".join(b"%d\0" % digit for digit in range(10))
    image = kernel(given_rows, LAYOUTS[-1], 8, before=digits + b"\1" * shift, behind=digits).build()
    symbols = decoded(image)
    assert symbols is not None
    assert len(symbols) == len(given_rows)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(LAYOUTS),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_what_is_broken_is_none_or_hardly_so(layout: Layout, edits: list[tuple[int, int]]) -> None:
    """A byte changed here and there: all the symbols, or none; the names and addresses may be touched."""
    given_rows = rows(400, 8, percpu=layout.addresses == "percpu", long_names=False)
    image = bytearray(kernel(given_rows, layout, 8).build())
    for at, value in edits:
        image[0x1100 + at % (len(image) - 0x1100)] = value
    symbols = decoded(bytes(image))
    assert symbols is None or len(symbols) == len(given_rows)


def test_cut_short_anywhere() -> None:
    for layout in LAYOUTS:
        image = kernel(rows(300, 8, percpu=False, long_names=False), layout, 8).build()
        elf = parse_elf(image, "kernel")
        start, end = elf.phdrs[0].offset, len(image)
        for size in range(0x1100, end - start, 4001):
            cut = bytearray(image)
            cut[start + size :] = bytes(end - start - size)
            symbols = decoded(bytes(cut))
            assert symbols is None or len(symbols) == 301


def test_a_kernel_without_them() -> None:
    for version in (b"2.6.9-1 ", b"6.1.0 "):
        data = b"Linux version " + version + random.Random(7).randbytes(1 << 16) + bytes(range(256)) * 99
        writer = ElfWriter(64, 62).load(data, paddr=0x1000000, vaddr=0xFFFFFFFF81000000, flags=7)
        assert decoded(writer.build()) is None


# Debian's kernels: what their System.map says (linux-image-*-dbg), for whichever version `make guests` has.
FACTS = {
    "6.1.176": (94101, {"start_kernel": 0xFFFFFFFF83077E46, "init_top_pgt": 0xFFFFFFFF82A10000}),
}


@pytest.mark.guest
@pytest.mark.parametrize("name", ["vmlinuz-bookworm-amd64", "vmlinuz-trixie-amd64"])
def test_debians_kernels_have_names(name: str, guest_kernel: Callable[[str], Path]) -> None:
    elf = parse_elf(load_kernel(guest_kernel(name)).image, name)
    symbols = kallsyms_symbols(elf)
    assert symbols is not None
    assert len(symbols) > 90_000
    values = [symbol.value for symbol in symbols]
    assert values == sorted(values)
    text, start, banner = (symbols.lookup(name) for name in ("_text", "start_kernel", "linux_banner"))
    assert text is not None
    assert start is not None
    assert banner is not None
    assert text.value == 0xFFFFFFFF81000000
    assert symbols.name(start.value + 0x12) == "start_kernel+0x12"
    # the banner is where its name says
    load = next(p for p in elf.load_segments if p.vaddr <= banner.value < p.vaddr + p.filesz)
    said = elf.strval(load.offset + banner.value - load.vaddr)
    assert said is not None
    assert said.startswith(b"Linux version ")
    for version, (count, places) in FACTS.items():
        if version.encode() in said:
            assert len(symbols) == count
            assert {name: found.value for name in places if (found := symbols.lookup(name))} == places
