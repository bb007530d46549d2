"""The block that a guest jumps to is found by its address, if it is that one: hvcore/cpu/core/blocks.c."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvcore.cpu.state_window import HFLAGS
from tests.hvcore.cpu.test_blocks import CF_INVALID, CFLAGS, CPU, FLAGS, PC, Block, Finder
from tests.hvcore.tlb_audit import Jumps, Spaces

UNIT, CODE_OFFSET, PAGE = 64, 192, 4096
RIP, EFLAGS, CS_BASE = 16, 17, 27  # words of the processor's state
AC, TF = 1 << 18, 1 << 8
PATIENCE = 4096
Lookup = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)
Count = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)
NR_FUNCTIONS, LOOKUP_TB_PTR, COUNT_INVALID = 15, 12, 13  # struct tcg_functions
LIBRARYS = 0xBAD  # the code that the library found


class Jumper(Finder):
    """A core whose engine keeps blocks by address, at code that begins at PC."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.core.hv_next_code.restype = ctypes.c_uint64
        self._memory = ctypes.create_string_buffer(16 * UNIT * 8)
        self._first = -(-ctypes.addressof(self._memory) // UNIT) * UNIT
        self.state = (ctypes.c_uint64 * 1024)()
        self.jumps, self.count, self.was_asked = Jumps(), ctypes.c_uint64(5), False
        self.words.env = ctypes.addressof(self.state)
        self.words.jumps, self.words.nr_invalid = ctypes.addressof(self.jumps), ctypes.addressof(self.count)
        self.spaces = Spaces()  # not in use until a test wants them
        self.library_jumps = (ctypes.c_uint64 * 4096)()
        self.spaces.library_jumps = ctypes.addressof(self.library_jumps)
        self.on_lookup: Callable[[], object] = lambda: None
        self._helpers = Lookup(self._ask), Count(lambda _context: 0)
        functions = (ctypes.c_uint64 * NR_FUNCTIONS)()
        for at, helper in zip((LOOKUP_TB_PTR, COUNT_INVALID), self._helpers, strict=True):
            functions[at] = ctypes.cast(helper, ctypes.c_void_p).value or 0
        self.core.hv_set_tcg_functions(functions)

    def _lookup(self, *args: int) -> int | None:
        self.on_lookup()
        return super()._lookup(*args)

    def _ask(self, _env: int) -> int:
        self.was_asked = True
        return LIBRARYS

    def translate(self, number: int = 0, *, pc: int = PC, flags: int = FLAGS, cflags: int = CFLAGS) -> Block:
        """A new block, which the library finds from now on."""
        address = self._first + 8 * UNIT * number
        block = Block.from_address(address)
        block.pc, block.flags, block.cs_base = pc, flags, 0
        block.cflags = cflags
        block.code[0] = address + CODE_OFFSET
        block.page_addr[0], block.page_addr[1] = self.block.page_addr
        self.block, self.page = block, self.block.page_addr[0] + pc % PAGE
        return block

    def enter(self, number: int = 0, *, pc: int = PC, flags: int = FLAGS) -> Block:
        """Such a block, found once."""
        block = self.translate(number, pc=pc, flags=flags)
        self.find(pc=pc, flags=flags)
        return block

    def jump(self, pc: int = PC, *, flags: int = FLAGS, cs_base: int = 0, eflags: int = 0) -> int | None:
        """The code that comes next; None where the library is asked for it."""
        self.state[RIP], self.state[CS_BASE], self.state[EFLAGS] = pc - cs_base, cs_base, eflags
        ctypes.c_uint32.from_address(self.words.env + HFLAGS).value = flags
        self.was_asked = False
        code = int(self.core.hv_next_code(ctypes.byref(self.words)))
        assert (code == LIBRARYS) == self.was_asked
        return None if self.was_asked else code


@pytest.fixture
def jumper(tmp_path: Path) -> Iterator[Jumper]:
    with Jumper.made(tmp_path) as jumper:
        yield jumper


def code_of(block: Block) -> int:
    return ctypes.addressof(block) + CODE_OFFSET


def test_a_block_that_was_found_is_jumped_to(jumper: Jumper) -> None:
    assert jumper.jump() is None
    block = jumper.enter()
    assert [jumper.jump() for _ in range(3)] == [code_of(block)] * 3


@pytest.mark.parametrize(
    "other",
    [
        {"pc": PC + 1}, {"pc": PC + (1 << 24)}, {"pc": PC ^ 1 << 47}, {"flags": FLAGS ^ 1}, {"eflags": AC},
        {"eflags": TF}, {"cs_base": 0x1000},
    ],
    ids=str,
)  # fmt: skip
def test_another_address_or_mode_is_asked_for(jumper: Jumper, other: dict[str, int]) -> None:
    block = jumper.enter()
    assert jumper.jump(**{"pc": PC} | other) is None
    assert jumper.jump(eflags=0x8D5) == code_of(block)  # these are no part of a block


def test_code_with_a_base_is_not_what_stands_behind(jumper: Jumper) -> None:
    jumper.enter(0)
    jumper.enter(1, pc=PC + (1 << 24))
    assert jumper.jump(cs_base=0x1000) is None


def test_what_is_asked_for_is_not_in_the_librarys_own_table(jumper: Jumper) -> None:
    """Or it would never come into this one."""
    jumper.words.spaces = ctypes.addressof(jumper.spaces)
    block = jumper.enter()
    assert jumper.spaces.nr_noted == 1
    at = jumper.spaces.noted[0]
    jumper.library_jumps[at] = ctypes.addressof(block)
    assert jumper.jump() == code_of(block)
    assert jumper.library_jumps[at]
    assert jumper.jump(flags=FLAGS ^ 1) is None
    assert not jumper.library_jumps[at]
    jumper.words.spaces = 0


def test_a_block_whose_page_may_have_been_dropped_meanwhile_does_not_enter(jumper: Jumper) -> None:
    """What it ends in was looked up last, and took the place of what it begins in."""
    jumper.words.spaces = ctypes.addressof(jumper.spaces)
    jumper.translate()
    jumper.on_lookup = lambda: setattr(jumper.spaces, "page_drops", jumper.spaces.page_drops + 1)
    jumper.find()
    assert jumper.jump() is None
    jumper.find()
    assert jumper.jump() is not None
    jumper.words.spaces = 0


def test_a_block_for_other_flags_has_a_place_of_its_own(jumper: Jumper) -> None:
    first, second = jumper.enter(0), jumper.enter(1, flags=FLAGS ^ AC)
    for _ in range(2):
        assert (jumper.jump(), jumper.jump(eflags=AC)) == (code_of(first), code_of(second))


def test_what_is_not_like_other_blocks_does_not_enter(jumper: Jumper) -> None:
    jumper.translate().cs_base = 0x1000
    jumper.find(cs_base=0x1000)
    assert jumper.jump(cs_base=0x1000) is None
    jumper.translate(1).code[0] += UNIT
    jumper.find()
    assert jumper.jump() is None
    jumper.translate(2, cflags=CFLAGS | 1)  # one instruction, for a store into its own block
    found = jumper.core.hv_find_block(
        ctypes.c_void_p(CPU), ctypes.c_uint64(PC), ctypes.c_uint64(0), ctypes.c_uint32(FLAGS),
        ctypes.c_uint32(jumper.block.cflags),
    )  # fmt: skip
    assert found == ctypes.addressof(jumper.block)
    assert jumper.jump() is None


def test_two_blocks_share_a_row_and_the_one_used_longest_ago_goes(jumper: Jumper) -> None:
    places = [PC + (i << 24) for i in range(3)]  # which are alike in what the row hangs on
    blocks = [jumper.enter(i, pc=places[i]) for i in range(2)]
    for i in (1, 0):
        assert jumper.jump(places[i]) == code_of(blocks[i])
    third = jumper.enter(2, pc=places[2])
    assert [jumper.jump(pc) for pc in places] == [code_of(blocks[0]), None, code_of(third)]


@pytest.mark.parametrize("calls", [0, PATIENCE + 2])
@pytest.mark.parametrize("behind", [False, True])
def test_a_block_that_was_stored_over_is_not_jumped_to(jumper: Jumper, calls: int, behind: bool) -> None:
    block, other = jumper.enter(0), jumper.enter(1, pc=PC + (1 << 24))
    if not behind:
        jumper.jump()
    for _ in range(calls):
        jumper.jump(other.pc)
    jumper.count.value += 1
    block.cflags |= CF_INVALID
    assert jumper.jump() is None
    assert jumper.jump(other.pc) == code_of(other)


def test_while_blocks_are_stored_over_each_is_asked_and_then_all_once(jumper: Jumper) -> None:
    block, other = jumper.enter(0), jumper.enter(1, pc=PC + 1)
    block.cflags |= CF_INVALID
    for _ in range(PATIENCE // 2):
        jumper.jump(other.pc)
    jumper.count.value += 1  # which begins the count anew
    for _ in range(PATIENCE):
        assert jumper.jump(other.pc) == code_of(other)
        assert jumper.jumps.nr_invalid != jumper.count.value
    assert jumper.jump(other.pc) == code_of(other)
    assert jumper.jumps.nr_invalid == jumper.count.value
    assert [jump.pc for jump in jumper.jumps.at if jump.block] == [other.pc]
