"""Which blocks the core finds by itself, and when it asks the library: hvcore/cpu/core/blocks.c."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest

from hvcore.cpu import compiled
from hvcore.cpu.words import EngineWords

NO_PAGE = (1 << 64) - 1
CPU, OTHER_CPU, ENV = 0x7000, 0x9000, 0xA000
PC, CS_BASE, FLAGS, CFLAGS = 0xFFFF_FFFF_8100_0123, 0, 0x80F3, 0xFF000000
CF_NOCACHE, CF_INVALID = 0x10000, 0x40000
FRAME = 0x5000

Lookup = ctypes.CFUNCTYPE(
    ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32
)
PageOf = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64)
Flush = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Block(ctypes.Structure):
    """struct TranslationBlock, as far as it is compared."""

    _fields_ = (
        ("pc", ctypes.c_uint64), ("cs_base", ctypes.c_uint64), ("flags", ctypes.c_uint32),
        ("size_and_icount", ctypes.c_uint32), ("cflags", ctypes.c_uint32), ("dstate", ctypes.c_uint32),
        ("code", ctypes.c_uint64 * 5), ("page_addr", ctypes.c_uint64 * 2),
    )  # fmt: skip


class Finder:
    """A core of its own, with a library behind it that finds one block and counts how often it is asked."""

    def __init__(self, path: Path) -> None:
        self.core = ctypes.CDLL(str(path))
        self.core.hv_find_block.restype = ctypes.c_void_p
        self.block = Block(pc=PC, cs_base=CS_BASE, flags=FLAGS, cflags=CFLAGS, page_addr=(FRAME, NO_PAGE))
        self.is_there = True
        self.page = FRAME + PC % 4096
        self.asked = self.flushed = 0
        self._functions = PageOf(lambda _env, _pc: self.page), Lookup(self._lookup), Flush(self._flush)
        self.core.hv_set_block_functions(*self._functions)
        self.words = compiled.engine_words(self.core, 0)
        self.words.uc, self.words.cpu, self.words.env = 0x6000, CPU, ENV
        assert self.core.hv_register(ctypes.byref(self.words))

    @classmethod
    @contextmanager
    def made(cls, folder: Path) -> Iterator[Self]:
        """One, as long as it is of use."""
        finder = cls(Path(shutil.copy(compiled.LIBRARY, folder / "core.so")))
        yield finder
        finder.core.hv_unregister(ctypes.byref(finder.words))

    def _lookup(self, _cpu: int, _pc: int, _cs_base: int, _flags: int, _cflags: int) -> int | None:
        self.asked += 1
        return ctypes.addressof(self.block) if self.is_there else None

    def _flush(self, _cpu: int) -> None:
        self.flushed += 1

    def find(self, *, cpu: int = CPU, pc: int = PC, cs_base: int = CS_BASE, flags: int = FLAGS) -> bool:
        """Whether the block is found without the library."""
        before = self.asked
        found = self.core.hv_find_block(
            ctypes.c_void_p(cpu), ctypes.c_uint64(pc), ctypes.c_uint64(cs_base),
            ctypes.c_uint32(flags), ctypes.c_uint32(CFLAGS),
        )  # fmt: skip
        assert found == (ctypes.addressof(self.block) if self.is_there else None)
        return self.asked == before


@pytest.fixture
def finder(tmp_path: Path) -> Iterator[Finder]:
    with Finder.made(tmp_path) as finder:
        yield finder


def test_a_block_that_was_found_is_found_again(finder: Finder) -> None:
    assert [finder.find() for _ in range(3)] == [False, True, True]
    finder.block.cflags |= CF_NOCACHE  # which is not compared
    assert finder.find()


def test_what_is_not_there_is_asked_for_each_time(finder: Finder) -> None:
    finder.is_there = False
    assert [finder.find() for _ in range(2)] == [False, False]


def test_a_block_for_something_else_is_none(finder: Finder) -> None:
    finder.find()
    assert not finder.find(cs_base=0x10)
    assert not finder.find(flags=FLAGS ^ 3)
    assert not finder.find(cpu=OTHER_CPU)
    assert finder.find()


@pytest.mark.parametrize("change", [{"pc": PC + 1}, {"cflags": CFLAGS | CF_INVALID}, {"cflags": CFLAGS | 1}])
def test_a_block_that_is_another_now_is_asked_for(finder: Finder, change: dict[str, int]) -> None:
    finder.find()
    for name, value in change.items():
        setattr(finder.block, name, value)
    assert [finder.find(), finder.find()] == [False, False]


def test_an_address_that_leads_elsewhere_is_asked_for(finder: Finder) -> None:
    finder.find()
    for page in (FRAME + 0x1000 + PC % 4096, NO_PAGE):
        finder.page = page
        assert not finder.find()


def test_a_block_of_two_pages_is_asked_for(finder: Finder) -> None:
    finder.block.page_addr[1] = FRAME + 0x1000  # which may be mapped elsewhere by now
    assert [finder.find(), finder.find()] == [False, False]


def test_a_flush_takes_all(finder: Finder) -> None:
    finder.find()
    finder.core.hv_flush_blocks(ctypes.c_void_p(CPU))
    assert finder.flushed == 1
    assert [finder.find(), finder.find()] == [False, True]
    finder.core.hv_flush_blocks(ctypes.c_void_p(OTHER_CPU))
    assert finder.flushed == 2
    assert finder.find()


def test_each_engine_has_its_own(finder: Finder) -> None:
    finder.find()
    other = compiled.engine_words(finder.core, 0)
    other.uc, other.cpu, other.env = 0x8000, OTHER_CPU, ENV
    assert isinstance(other, EngineWords)
    assert finder.core.hv_register(ctypes.byref(other))
    assert [finder.find(cpu=OTHER_CPU), finder.find(cpu=OTHER_CPU)] == [False, True]
    finder.core.hv_unregister(ctypes.byref(other))
    assert not finder.find(cpu=OTHER_CPU)


TCG, ADDRESS = 0xB000, 0x7F00_1234
Start = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_uint64] * 5)
ByCode = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
Remove = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64)


class Codes:
    """Blocks by an address in their code; the tree behind knows `blocks`, and counts what it is asked."""

    def __init__(self, finder: Finder) -> None:
        self.core, self.words = finder.core, finder.words
        self.core.hv_find_code.restype = ctypes.c_uint64
        self.blocks = {ADDRESS: 0x1000, ADDRESS + 1: 0x2000}
        self.asked, self.removed = 0, 0
        self._functions = ByCode(self._lookup), Remove(self._remove)
        self.core.hv_set_code_functions(*self._functions)
        self.words.translator = TCG

    def _lookup(self, _tcg: int, address: int) -> int:
        self.asked += 1
        return self.blocks.get(address, 0)

    def _remove(self, _tcg: int, block: int) -> None:
        self.removed = block

    def find(self, address: int = ADDRESS, *, tcg: int = TCG, runs: bool = True) -> bool:
        """Whether the block is found without the tree, while the engine runs or not."""
        before, found = self.asked, -1

        def look(*_: int) -> int:
            nonlocal found
            found = self.core.hv_find_code(ctypes.c_uint64(tcg), ctypes.c_uint64(address))
            return 0

        if runs:
            start = Start(look)
            self.core.hv_run(ctypes.byref(self.words), start, ctypes.c_uint64(0))
        else:
            look()
        assert found == self.blocks.get(address, 0)
        return self.asked == before


def test_a_block_is_found_again_by_an_address_in_its_code(finder: Finder) -> None:
    codes = Codes(finder)
    assert [codes.find(), codes.find(), codes.find(ADDRESS + 1), codes.find()] == [False, True, False, True]


def test_addresses_that_share_a_place_are_told_apart(finder: Finder) -> None:
    codes = Codes(finder)
    codes.blocks = {ADDRESS + i: 0x1000 * i for i in range(1, 600)}  # more than there are places
    for address in [*codes.blocks] * 2:
        codes.find(address)


def test_of_an_engine_that_does_not_run_or_is_another_the_tree_is_asked(finder: Finder) -> None:
    codes = Codes(finder)
    codes.find()
    assert not codes.find(runs=False)
    assert not codes.find(tcg=TCG + 8)


def test_code_of_no_block_is_asked_for_each_time(finder: Finder) -> None:
    codes = Codes(finder)
    assert [codes.find(ADDRESS + 2), codes.find(ADDRESS + 2)] == [False, False]


@pytest.mark.parametrize("flush", [False, True])
def test_memory_of_a_block_that_is_gone_may_be_anothers(finder: Finder, flush: bool) -> None:
    codes = Codes(finder)
    codes.find()
    codes.blocks[ADDRESS] = 0x3000
    if flush:
        finder.core.hv_flush_blocks(ctypes.c_void_p(CPU))
    else:
        finder.core.hv_remove_block(ctypes.c_uint64(TCG), ctypes.c_uint64(0x1000))
        assert codes.removed == 0x1000
    assert [codes.find(), codes.find()] == [False, True]
