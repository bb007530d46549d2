"""Whether all that the engine caches of page tables is what they say now: core/tlb.c, read from outside.

The structures are QEMU 5.0.1's (include/exec/cpu-defs.h), written down once more; the walk is the
processor's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import NamedTuple

from hvcore.cpu import state_window as sw
from hvcore.cpu.engine import Engine

_PAGE = 0xFFF
_ALL = (1 << 64) - 1
_L4 = 4
_ACCESSES = ("read", "write", "code")
_CR3 = sw.CR // 8 + 3
_INVALID = 1 << 11  # TLB_INVALID_MASK: asked for anew at each access
_PRESENT, _RW, _USER, _ACCESSED, _DIRTY, _PSE, _NX = 1, 2, 4, 0x20, 0x40, 0x80, 1 << 63
USER_MODE = 1  # MMU_USER_IDX
_CF_INVALID = 0x40000
_WORD = ctypes.c_uint64
_NR_SPACES, _USES, _MOST_NOTED = 6, 2048, 16
_NR_LIBRARY_JUMPS, _NR_JUMPS, _JUMPS_A_PAGE = 4096, 4096, 128
_CODE_UNIT = 64


class _Entry(ctypes.Structure):
    _fields_ = (("addr", _WORD * 3), ("paddr", _WORD), ("addend", _WORD), ("padding", _WORD * 3))


class _Desc(ctypes.Structure):
    _fields_ = (("head", _WORD * 6), ("victims", _Entry * 8), ("victim_iotlb", _WORD * 16), ("iotlb", _WORD))


class _Fast(ctypes.Structure):
    _fields_ = (("mask", _WORD), ("table", _WORD))


class _Tlb(ctypes.Structure):
    _fields_ = (("common", _WORD * 4), ("desc", _Desc * 3), ("padding", _WORD), ("fast", _Fast * 3))


class _Jump(ctypes.Structure):
    _fields_ = (("pc", _WORD), ("block", ctypes.c_uint32), ("flags", ctypes.c_uint32))


class Jumps(ctypes.Structure):
    """struct hv_jumps."""

    _fields_ = (
        ("at", _Jump * _NR_JUMPS), ("nr_invalid", _WORD), ("nr_seen", _WORD), ("patience", _WORD),
        ("has_any", ctypes.c_bool * (_NR_JUMPS // _JUMPS_A_PAGE)),
    )  # fmt: skip


class _Space(ctypes.Structure):
    _fields_ = (
        ("root", _WORD), ("drops", _WORD), ("used", _WORD),
        ("tlb", _Tlb), ("jumps", Jumps), ("directory", _WORD * 2 * _USES),
    )  # fmt: skip


class Spaces(ctypes.Structure):
    """struct hv_spaces."""

    _fields_ = (
        ("tlb", _WORD), ("library_jumps", _WORD), ("nr_noted", _WORD), ("noted", _WORD * _MOST_NOTED),
        ("drops", _WORD), ("page_drops", _WORD), ("clock", _WORD), ("current", _WORD),
        ("holders", ctypes.c_uint8 * 512), ("at", _Space * _NR_SPACES),
    )  # fmt: skip


class _Block(ctypes.Structure):
    _fields_ = (
        ("pc", _WORD), ("cs_base", _WORD), ("flags", ctypes.c_uint32), ("sizes", ctypes.c_uint32),
        ("cflags", ctypes.c_uint32), ("dstate", ctypes.c_uint32), ("code", _WORD * 5),
        ("page_addr", _WORD * 2),
    )  # fmt: skip


class Mapping(NamedTuple):
    """What a walk ends with: the page's machine address, and what all entries on the way allow."""

    page: int
    allows: int
    no_execute: bool
    dirty: bool


class Audit:
    """`errors` are sentences; `entries`, `jumps`, `spaces` count what was looked at."""

    def __init__(self, engine: Engine, *, levels: int) -> None:
        words = engine.words
        assert words.spaces, "translations are not kept"
        self.engine, self.levels = engine, levels
        self.errors: list[str] = []
        self.entries = self.jumps = self.spaces = 0
        self._nr_invalid = _WORD.from_address(words.nr_invalid).value if words.nr_invalid else 0
        self._ram = (_WORD * (words.ram_pages * 512)).from_address(words.ram)
        spaces = Spaces.from_address(words.spaces)
        first = ctypes.addressof(spaces) + Spaces.at.offset
        for number, space in enumerate(spaces.at):
            is_current = spaces.current == first + number * ctypes.sizeof(_Space)
            if is_current:
                self._look_at_root(space)
                self._look(number, engine.q[_CR3], _L4, space, _Tlb.from_address(spaces.tlb))
                self._look_at_library(number, spaces)
                if words.jumps != ctypes.addressof(space.jumps):
                    self.errors.append("the blocks in use are not this address space's")
            elif space.root and space.drops == spaces.drops:
                self._look(number, space.root << 12, levels, space, space.tlb)

    def _look_at_root(self, space: _Space) -> None:
        """What is in use is of the table in CR3, or of the L3 that Xen's L4 there shows to a PAE guest."""
        cr3 = self.engine.q[_CR3]
        root = (cr3 if self.levels == _L4 else self._entry(cr3)) >> 12
        if space.root and space.root != root:
            self.errors.append(f"the address space in use is {space.root:#x}, the page table {root:#x}")

    def _entry(self, address: int) -> int:
        return self._ram[(address - self.engine.words.ram_base) >> 3]

    def walk(self, root: int, levels: int, va: int) -> tuple[Mapping | None, int]:
        """The mapping of `va`, and the machine address of its L1 entry (0: a superpage)."""
        table, allows, no_execute = root, _RW | _USER, False
        for level in range(levels, 0, -1):
            at = (table & ((1 << 52) - 1) & ~_PAGE) + 8 * (
                va >> 3 + 9 * level & (3 if levels == level == 3 else 511)
            )
            entry = self._entry(at)
            if not entry & _PRESENT:
                return None, at
            if (
                levels == level == 3
            ):  # a PAE guest's L3, as Xen's L4 shows it to the processor: all is allowed
                entry |= _RW | _USER
            allows &= entry
            no_execute |= bool(entry & _NX)
            if level == 1 or (level < 4 and entry & _PSE):
                size = 1 << 3 + 9 * level
                page = (entry & ((1 << 52) - 1) & ~(size - 1)) | (va & (size - 1) & ~_PAGE)
                return Mapping(page, allows, no_execute, bool(entry & _DIRTY)), at if level == 1 else 0
            table = entry
        raise AssertionError

    def _look(self, number: int, root: int, levels: int, space: _Space, tlb: _Tlb) -> None:
        self.spaces += 1
        uses = {(use[0], use[1]) for use in space.directory if use[0]}
        for mode, entry in self._all(tlb):
            for access, address in enumerate(entry.addr):
                if address == _ALL or address & _INVALID:
                    continue
                self.entries += 1
                va = address & ~_PAGE
                wrong = self._wrong(root, levels, va, entry, mode, access, uses)
                if wrong:
                    self.errors.append(f"space {number}: {_ACCESSES[access]} of {va:#x}: {wrong}")
        for at, jump in enumerate(space.jumps.at):
            if not jump.block:
                continue
            if not space.jumps.has_any[at // _JUMPS_A_PAGE]:
                self.errors.append(f"space {number}: block {at} is of a page that has none")
            pointer = self.engine.words.code_base + jump.block * _CODE_UNIT
            block = self._look_at_block(number, root, levels, pointer)
            if (block.pc, block.flags, block.cs_base) != (jump.pc, jump.flags, 0):
                self.errors.append(f"space {number}: block at {block.pc:#x} stands for {jump.pc:#x}")
            if block.cflags & _CF_INVALID and space.jumps.nr_invalid == self._nr_invalid:
                self.errors.append(f"space {number}: block at {block.pc:#x} is invalid")

    def _look_at_library(self, number: int, spaces: Spaces) -> None:
        """Its own table: no more blocks than were noted, and they of the address space in use."""
        noted = set(spaces.noted[: spaces.nr_noted])
        for at, pointer in enumerate((_WORD * _NR_LIBRARY_JUMPS).from_address(spaces.library_jumps)):
            if pointer:
                if at not in noted:
                    self.errors.append(f"the library's block {at} was not noted")
                self._look_at_block(number, self.engine.q[_CR3], _L4, pointer)

    def _look_at_block(self, number: int, root: int, levels: int, pointer: int) -> _Block:
        self.jumps += 1
        block = _Block.from_address(pointer)
        for i, page in enumerate(block.page_addr):
            va = (block.pc & ~_PAGE) + 4096 * i & _ALL
            found, _ = self.walk(root, levels, va)
            if block.cflags & _CF_INVALID or page == _ALL:
                continue
            if found is None or found.page - self.engine.words.ram_base != page:
                self.errors.append(f"space {number}: block at {block.pc:#x} is of {page:#x}, not {found}")
        return block

    def _all(self, tlb: _Tlb) -> Iterator[tuple[int, _Entry]]:
        for mode in range(3):
            if not tlb.common[0] >> mode & 1:
                continue
            fast = tlb.fast[mode]
            count = (fast.mask >> 6) + 1
            for entry in (*(_Entry * count).from_address(fast.table), *tlb.desc[mode].victims):
                if entry.addr[0] & entry.addr[1] & entry.addr[2] != _ALL:
                    yield mode, entry

    def _wrong(
        self,
        root: int,
        levels: int,
        va: int,
        entry: _Entry,
        mode: int,
        access: int,
        uses: set[tuple[int, int]],
    ) -> str:
        found, at = self.walk(root, levels, va)
        if found is None:
            return "not mapped any more"
        if entry.paddr != found.page:
            return f"{entry.paddr:#x}, but mapped is {found.page:#x}"
        words = self.engine.words
        if (va + entry.addend & _ALL) - words.ram + words.ram_base != found.page:
            return "the addend is wrong"
        if mode == USER_MODE and not found.allows & _USER:
            return "not the user's"
        if access == 1 and not (found.allows & _RW and found.dirty):
            return "not writable, or not dirty"
        if access == 2 and found.no_execute:
            return "not executable"
        if at and (at, va) not in uses:
            return "the directory does not have it"
        return ""


def errors_of(engine: Engine, *, levels: int) -> list[str]:
    """An Audit's, where translations are kept: under a sanitizer not all is found that keeping them takes."""
    return Audit(engine, levels=levels).errors if engine.words.spaces else []
