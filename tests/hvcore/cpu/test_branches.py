"""What a block of translated code ends in, before it has a target and behind; and where the words lie."""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Iterator

import pytest

from hvcore.cpu import compiled
from hvcore.cpu.processor import RCX, RIP
from hvcore.cpu.state_window import CR, LDT, NR_XMM, XMM, XMM_STRIDE
from hvcore.cpu.words import EngineWords
from tests.hvcore.rig import Rig

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="jumps of x86-64 hosts")

NOP = bytes.fromhex("0f1f440000")
JUMP_AT, TARGET = 16, 0x40  # bytes from the block's begin
CODE_FIELD, OFFSETS_FIELD = 32, 96  # struct TranslationBlock: tc.ptr, jmp_target_arg


class Block:
    """A block whose one jump has no target yet, and what the library was told to make of it."""

    def __init__(self) -> None:
        self.code = ctypes.create_string_buffer(bytes(JUMP_AT) + b"\xe9" + bytes(TARGET), TARGET + 64)
        self.words = ctypes.create_string_buffer(OFFSETS_FIELD + 16)
        self.base = ctypes.addressof(self.code)
        ctypes.c_uint64.from_buffer(self.words, CODE_FIELD).value = self.base
        ctypes.c_uint64.from_buffer(self.words, OFFSETS_FIELD).value = JUMP_AT + 1

    def link(self, offset: int) -> bytes:
        """Set the jump's target; the bytes that there are then."""
        core = compiled.core()
        assert core is not None
        core.hv_set_jmp_target(self.words, ctypes.c_int(0), ctypes.c_uint64(self.base + offset))
        return self.code.raw[JUMP_AT : JUMP_AT + 5]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    rig.code(0, "e2fe cd82")  # 1: loop 1b; int 0x82
    rig.engine.q[RCX], rig.engine.q[RIP] = 5, 0
    rig.engine.cell[0] = 1000
    rig.engine.run()
    yield rig
    rig.engine.close()


def jump(offset: int) -> bytes:
    return b"\xe9" + (offset - (JUMP_AT + 5)).to_bytes(4, "little", signed=True)


def test_a_block_of_ours_ends_in_no_jump_until_there_is_a_target(rig: Rig) -> None:
    assert rig.engine.q[RCX] == 0
    block = Block()
    assert block.link(JUMP_AT + 5) == NOP
    assert block.link(0) == jump(0)
    assert block.link(JUMP_AT + 5) == NOP
    assert block.link(TARGET) == jump(TARGET)


def test_blocks_of_another_engine_stay_as_the_library_makes_them(rig: Rig) -> None:
    assert rig.engine.q[RCX] == 0
    found: list[bytes] = []
    block = Block()
    stranger = threading.Thread(  # who has translated nothing of ours
        target=lambda: found.extend(block.link(offset) for offset in (JUMP_AT + 5, TARGET, JUMP_AT + 5))
    )
    stranger.start()
    stranger.join()
    assert found == [jump(JUMP_AT + 5), jump(TARGET), jump(JUMP_AT + 5)]


def test_the_count_is_not_taken_for_what_else_is_addressed_by_the_state() -> None:
    """By the lower ten bits of displacements, wherever the heap has the state: registers, TLB, SSE."""
    used = {offset % 1024 for offset in (*range(-0x30, LDT, 8), *range(CR, CR + 40, 8))}
    for number in range(NR_XMM):
        used |= {(XMM + number * XMM_STRIDE + half) % 1024 for half in (0, 8)}
    rigs, filling = [], []
    for number in range(6):
        rigs.append(Rig())
        filling.append(ctypes.create_string_buffer(528 + 48 * number))  # moves what the heap gives next
    for rig in rigs:
        words = rig.engine.words
        distance = ctypes.addressof(words) - words.env
        assert words.env
        hot = (getattr(EngineWords, word).offset for word in ("left", "limit"))
        assert not used & {(distance + offset) % 1024 for offset in hot}
        rig.engine.close()
