"""Translations stay while another page table is loaded, and are never out of date: hvcore/cpu/core/tlb.c.

A kernel and its process have page tables of their own, in which the page DATA is another. What changes an
entry, in the table in use or in the one put away, is seen by the next access, by lanes and without.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable

import pytest

from hvcore.abi import PV32_PAE, PV64, Abi
from hvcore.cpu.compiled import core
from hvcore.cpu.processor import DS, ES, FS, GS, RAX, RBX, RDI, RDX, RIP, RSI, RSP
from hvcore.cpu.state_window import HFLAGS
from hvcore.errors import DomainCrash
from hvcore.page_info import PGT_l3_page_table, PGT_l4_page_table
from hvcore.public.grant_table import GNTMAP_host_map
from hvcore.public.xen import DOMID_SELF, Hypercall
from hvcore.pv.frames64 import Frames64
from hvcore.pv.segments import load_cs_ss, load_data
from tests.hvcore.lane_cpu import LaneCpu
from tests.hvcore.test_lane_guards import ARGUMENTS, Bench
from tests.hvcore.tlb_audit import USER_MODE, Audit
from tests.hvcore.tlb_audit import Spaces as Kept

CODE, DATA, WRITTEN = 16, 20, 21  # pages
STACK = 18 << 12
L1, L2 = 3, 2
USER_L4, USER_L2, USER_L1 = 40, 42, 43
SPARE_L1, KERNEL_COPY = 44, 45
USERS, NEW, SPARE = 24, 25, 26  # pages that DATA is for the process, and comes to be
TABLES = {0, 1, 2, 3, 40, 41, 42, 43, 44, 45, *range(30, 36)}
R10 = 10
READ, WRITE, CALL, HYPERCALL = (CODE << 12 | at for at in (0, 0x10, 0x20, 0x30))
SNIPPETS = {READ: "488b03cc", WRITE: "488903cc", CALL: "ffd3cc", HYPERCALL: "0f05cc"}
SNIPPETS32 = {READ: "8b03cc", WRITE: "8903cc", HYPERCALL: "cd82cc"}
FUNCTION, EXIT = 0x10, 0x20  # in those pages: code that gives the page's number, at once or behind an exit
FAULT = -1


class Spaces(LaneCpu):
    """A kernel that runs on page 0's tables and a process on page 40's."""

    def __init__(self, *, lanes: bool, abi: Abi = PV64) -> None:
        super().__init__(abi, lanes=lanes)
        for table in TABLES:
            self.set_leaf(table << 12, table, 0x25)
        if abi is PV64:
            for level in range(3):
                self.set_entry(USER_L4 + level, 0, (self.base + USER_L4 + level + 1) << 12 | 0x67)
        else:
            self.set_entry(USER_L4, 0, (self.base + USER_L2) << 12 | 1)
            self.set_entry(USER_L4, 3, (self.base + 41) << 12 | 1)
            self.set_entry(USER_L2, 0, (self.base + USER_L1) << 12 | 0x67)
        for page in range(48):
            self.set_entry(USER_L1, page, self.leaf(page, USERS if page == DATA else page))
            self.set_entry(SPARE_L1, page, self.leaf(page, NEW if page == DATA else page))
            self.set_entry(KERNEL_COPY, page, self.leaf(page, NEW if page == DATA else page))
        root = PGT_l4_page_table if abi is PV64 else PGT_l3_page_table
        assert self.d.mm.get_page_and_type(self.base + USER_L4, root) == 0
        self.v.user_cr3_mfn = self.base + USER_L4 if abi is PV64 else 0
        for at, code in (SNIPPETS if abi is PV64 else SNIPPETS32).items():
            self.put(at, bytes.fromhex(code))
        for page in (DATA, USERS, NEW, SPARE, WRITTEN):
            self.put(page << 12, struct.pack("<Q", page))
            self.put(page << 12 | FUNCTION, b"\xb8" + struct.pack("<I", page) + b"\xc3")
            self.put(page << 12 | EXIT, b"\x0f\x05\xb8" + struct.pack("<I", page) + b"\xcc")

    def leaf(self, page: int, target: int) -> int:
        return (self.base + target) << 12 | (0x65 if page in TABLES else 0x67)

    def address(self, table: int, slot: int) -> int:
        """Machine address of an entry."""
        return self.base + table << 12 | slot << 3

    def at(self, rip: int, *, user: bool = False, **registers: int) -> int:
        """Run what lies there, in the kernel's mode or the process's; RAX, or FAULT for a fault."""
        engine, v, abi = self.engine, self.v, self.abi
        if isinstance(self.frames, Frames64) and v.kernel_mode == user:
            self.frames.toggle_guest_mode(v)
        ss = abi.flat_kernel_ss
        load_cs_ss(v, abi.flat_kernel_cs, ss)
        for register in (DS, ES, FS, GS):
            assert load_data(v, register, ss)
        engine.words.horizon = engine.words.turn_end = self.d.clock.now() + (1 << 20)
        engine.cell[0], engine.cell[1] = 1 << 20, 0
        engine.q[RIP], engine.q[RSP] = rip, STACK
        engine.write_eflags(0x202)
        names = {"ax": RAX, "bx": RBX, "di": RDI, "si": RSI, "dx": RDX, "r10": R10, "cx": 1, "bp": 5}
        for name, value in registers.items():
            engine.q[names[name]] = value
        try:
            engine.run()
        except DomainCrash:
            return FAULT
        return engine.q[RAX]

    def read(self, *, user: bool, page: int = DATA) -> int:
        return self.at(READ, user=user, bx=page << 12)

    def call(self, *, user: bool) -> int:
        return self.at(CALL, user=user, bx=DATA << 12 | FUNCTION)

    def hypercall(self, number: int, *args: int) -> None:
        a, b, c, d = args + (0,) * (4 - len(args))
        if self.abi is PV64:
            result = self.at(HYPERCALL, ax=number, di=a, si=b, dx=c, r10=d)
        else:
            result = self.at(HYPERCALL, ax=number, bx=a, cx=b, dx=c, si=d)
        assert result == 0

    def update(self, table: int, slot: int, value: int) -> None:
        """mmu_update of one entry."""
        self.put(WRITTEN << 12, struct.pack("<QQ", self.address(table, slot), value))
        self.hypercall(Hypercall.mmu_update, WRITTEN << 12, 1, 0, DOMID_SELF)

    def operation(self, cmd: int, page: int | None) -> None:
        """mmuext_op on a page of the guest's, or on none."""
        mfn = 0 if page is None else self.base + page
        self.put(WRITTEN << 12, struct.pack("<I4xQQ" if self.abi is PV64 else "<III", cmd, mfn, 0))
        self.hypercall(Hypercall.mmuext_op, WRITTEN << 12, 1, 0, DOMID_SELF)

    def audit(self) -> Audit:
        audit = Audit(self.engine, levels=self.abi.pt_levels)
        assert audit.errors == []
        return audit


@pytest.fixture(params=[True, False], ids=["lanes", "python"])
def cpu(request: pytest.FixtureRequest) -> Spaces:
    cpu = Spaces(lanes=request.param)
    assert [cpu.read(user=user) for user in (False, True, False)] == [DATA, USERS, DATA]
    assert cpu.audit().spaces == 2
    return cpu


def multicall(c: Spaces) -> None:
    c.put(STACK + 256, struct.pack("<QQ", c.address(USER_L1, DATA), c.leaf(DATA, NEW)))
    c.put(
        WRITTEN << 12,
        struct.pack("<8Q", Hypercall.mmu_update, 0, STACK + 256, 1, 0, DOMID_SELF, 0, 0),
    )
    c.hypercall(Hypercall.multicall, WRITTEN << 12, 1)


def made_anew(c: Spaces) -> None:
    """The process's root is no table for a while, and comes back with another entry below it."""
    c.operation(15, None)
    c.set_entry(USER_L1, DATA, c.leaf(DATA, NEW))
    c.operation(15, USER_L4)


def granted(c: Spaces) -> None:
    assert c.d.mm.create_grant_host_mapping(DATA << 12, c.base + NEW, GNTMAP_host_map, 0) == 0


ACTS: dict[str, tuple[Callable[[Spaces], object], bool]] = {  # what it does, and to whose DATA
    "mmu_update of the process's": (lambda c: c.update(USER_L1, DATA, c.leaf(DATA, NEW)), True),
    "mmu_update of the kernel's": (lambda c: c.update(L1, DATA, c.leaf(DATA, NEW)), False),
    "update_va_mapping": (
        lambda c: c.hypercall(Hypercall.update_va_mapping, DATA << 12, c.leaf(DATA, NEW), 0),
        False,
    ),
    "multicall": (multicall, True),
    "a store to the process's table": (
        lambda c: c.at(WRITE, ax=c.leaf(DATA, NEW), bx=USER_L1 << 12 | DATA << 3),
        True,
    ),
    "a store to the kernel's table": (
        lambda c: c.at(WRITE, ax=c.leaf(DATA, NEW), bx=L1 << 12 | DATA << 3),
        False,
    ),
    "another L1 of the process's": (
        lambda c: c.update(USER_L2, 0, c.base + SPARE_L1 << 12 | 0x67),
        True,
    ),
    "another L1 of the kernel's": (lambda c: c.update(L2, 0, c.base + KERNEL_COPY << 12 | 0x67), False),
    "the process's tables made anew": (made_anew, True),
    "a grant": (granted, False),
}


@pytest.mark.parametrize("act", ACTS)
def test_a_change_is_seen_at_once(cpu: Spaces, act: str) -> None:
    do, of_user = ACTS[act]
    do(cpu)
    cpu.audit()
    expected = (DATA, NEW) if of_user else (NEW, USERS)
    assert (cpu.read(user=False), cpu.read(user=True)) == expected
    assert (cpu.read(user=False), cpu.read(user=True)) == expected


@pytest.mark.parametrize("act", [act for act in ACTS if act != "a grant"])  # whose page is no code
def test_a_change_is_seen_by_the_next_jump(cpu: Spaces, act: str) -> None:
    do, of_user = ACTS[act]
    assert [cpu.call(user=user) for user in (False, True, False)] == [DATA, USERS, DATA]
    do(cpu)
    cpu.audit()
    expected = [DATA, NEW] if of_user else [NEW, USERS]
    assert [cpu.call(user=user) for user in (False, True) * 2] == expected * 2


def test_a_change_is_seen_behind_an_exit(cpu: Spaces) -> None:
    """That code is found by the library."""
    exit_of, number = DATA << 12 | EXIT, Hypercall.xen_version
    assert [cpu.at(exit_of, ax=number, di=0) for _ in range(2)] == [DATA] * 2
    cpu.update(L1, DATA, cpu.leaf(DATA, NEW))
    cpu.audit()
    assert cpu.at(exit_of, ax=number, di=0) == NEW


def test_code_at_the_same_address_of_both(cpu: Spaces) -> None:
    own = [cpu.at(DATA << 12 | FUNCTION, user=user, bx=0) for user in (False, True) * 2]
    assert own == [FAULT] * 4  # the `ret` has nowhere to go
    assert [cpu.at((DATA << 12 | EXIT) + 2, user=user) for user in (False, True) * 2] == [DATA, USERS] * 2


def test_the_librarys_own_table_holds_a_few_blocks(cpu: Spaces) -> None:
    for i in range(40):
        cpu.put((CODE << 12) + 0x200 + 8 * i, b"\xcc")
        cpu.at((CODE << 12) + 0x200 + 8 * i)
        cpu.audit()


def test_code_that_is_stored_over_after_many_calls(cpu: Spaces) -> None:
    """The blocks that it jumps to are not asked whether they are valid."""
    loop = CODE << 12 | 0x100
    cpu.put(loop, bytes.fromhex("ffd3ffc975facc"))  # call rbx; dec ecx; jnz
    for value in (1, 2, 3):
        code = b"\xb8" + struct.pack("<I", value) + b"\xc3\0\0"
        cpu.at(WRITE, user=value == 2, ax=int.from_bytes(code, "little"), bx=WRITTEN << 12)
        assert cpu.at(loop, bx=WRITTEN << 12, cx=5000) == value
        cpu.audit()


def test_a_grant_is_moved_over_and_its_own_place_is_empty(cpu: Spaces) -> None:
    mm, mfn = cpu.d.mm, cpu.base + NEW
    granted(cpu)
    assert [cpu.read(user=False, page=page) for page in (DATA, SPARE)] == [NEW, SPARE]
    assert mm.replace_grant_host_mapping(DATA << 12, mfn, SPARE << 12, GNTMAP_host_map) == 0
    cpu.audit()
    assert cpu.read(user=False) == SPARE
    assert cpu.read(user=False, page=SPARE) == FAULT


@pytest.mark.parametrize("user", [False, True])
def test_what_is_mapped_no_more_faults(cpu: Spaces, user: bool) -> None:
    cpu.update(USER_L1 if user else L1, DATA, 0)
    assert cpu.read(user=not user) == (DATA if user else USERS)
    assert cpu.read(user=user) == FAULT


@pytest.mark.parametrize("user", [False, True])
def test_what_may_not_be_written_any_more_faults(cpu: Spaces, user: bool) -> None:
    for mode in (user, not user):
        assert cpu.at(WRITE, user=mode, ax=7, bx=DATA << 12) == 7
    cpu.update(USER_L1 if user else L1, DATA, cpu.leaf(DATA, USERS if user else DATA) & ~2)
    assert cpu.at(WRITE, user=not user, ax=8, bx=DATA << 12) == 8
    assert cpu.read(user=user) == 7
    assert cpu.at(WRITE, user=user, ax=8, bx=DATA << 12) == FAULT


def test_what_may_not_be_executed_any_more_by_an_upper_entry(cpu: Spaces) -> None:
    cpu.update(USER_L2, 0, cpu.base + USER_L1 << 12 | 0x67 | 1 << 63)
    assert (cpu.read(user=False), cpu.read(user=True)) == (DATA, FAULT)


def test_code_that_only_the_kernel_has(cpu: Spaces) -> None:
    cpu.put(NEW << 12, bytes.fromhex("b801000000c3"))
    cpu.update(USER_L1, NEW, 0)
    assert cpu.at(CALL, bx=NEW << 12) == 1
    cpu.read(user=True)
    cpu.audit()
    assert cpu.at(CALL, user=True, bx=NEW << 12) == FAULT


@pytest.mark.parametrize("offset", [0, -1], ids=["in the page", "from the page before"])
@pytest.mark.parametrize("user", [False, True])
def test_code_of_a_page_that_is_mapped_elsewhere(cpu: Spaces, user: bool, offset: int) -> None:
    """A block that was found by its address, and may begin in the page before."""
    for page, value in ((DATA, 1), (USERS, 1), (NEW, 2)):
        cpu.put(page << 12, bytes((0, 0, 0, value)) if offset else b"\xb8\0\0\0" + bytes((value,)))
        cpu.put((page << 12) + (4 if offset else 5), b"\xc3")
    cpu.put((DATA << 12) - 1, b"\xb8")  # mov eax, 0x?000000; ret
    where, old, new = (DATA << 12) + offset, 0x01000000, 0x02000000
    for _ in range(2):
        assert [cpu.at(CALL, user=mode, bx=where) for mode in (user, not user)] == [old, old]
    cpu.update(USER_L1 if user else L1, DATA, cpu.leaf(DATA, NEW))
    cpu.audit()
    assert [cpu.at(CALL, user=mode, bx=where) for mode in (user, not user)] == [new, old]


def test_a_store_of_the_process_to_what_the_kernel_came_to_execute(cpu: Spaces) -> None:
    """It was no code when the process had it in its TLB."""
    cpu.put(NEW << 12, bytes.fromhex("b801000000c3"))
    code = int.from_bytes(bytes.fromhex("b802000000c30000"), "little")
    assert cpu.at(
        WRITE, user=True, ax=struct.unpack("<Q", bytes.fromhex("b801000000c30000"))[0], bx=NEW << 12
    )
    assert cpu.at(CALL, bx=NEW << 12) == 1
    cpu.at(WRITE, user=True, ax=code, bx=NEW << 12)
    assert cpu.at(CALL, bx=NEW << 12) == 2


def test_blocks_that_are_dropped_are_kept_by_nobody(cpu: Spaces) -> None:
    cpu.engine.flush_code()
    assert cpu.audit().spaces == 1
    assert cpu.read(user=True) == USERS


def test_a_data_breakpoint_of_whoever_is_put_away(cpu: Spaces) -> None:
    assert cpu.at(WRITE, user=True, ax=7, bx=DATA << 12) == 7
    cpu.at(READ, bx=DATA << 12)
    cpu.engine.set_debug(0, DATA << 12)
    cpu.engine.set_debug(7, 0x400 | 1 | 1 << 16)
    assert cpu.audit().spaces == 1


def test_the_library_drops_a_page_for_a_reason_of_its_own() -> None:
    cpu, library = Spaces(lanes=True), core()
    assert library is not None
    for user in (False, True, False):
        cpu.read(user=user)
    assert cpu.audit().spaces == 2
    library.hv_tlb_flush_page(ctypes.c_void_p(cpu.engine.words.cpu), ctypes.c_uint64(DATA << 12))
    assert cpu.audit().spaces == 1


def test_tables_of_two_levels_have_no_directory() -> None:
    cpu, library = Spaces(lanes=True), core()
    assert library is not None
    words, hf_lma = ctypes.byref(cpu.engine.words), 1 << 14
    for number in (ctypes.c_uint64(cpu.address(USER_L1, 0)), ctypes.c_uint64(cpu.base)):
        for user in (False, True, False):
            cpu.read(user=user)
        assert cpu.audit().spaces == 2
        cpu.engine.d[HFLAGS // 4] &= ~hf_lma
        (library.hv_load_space if number.value == cpu.base else library.hv_drop_entry)(words, number)
        cpu.engine.d[HFLAGS // 4] |= hf_lma
        assert cpu.audit().spaces == 1


def test_a_page_table_that_nobody_named(cpu: Spaces) -> None:
    """Whatever was in use is not what it was taken for any more."""
    cpu.engine.set_control(3, cpu.base + USER_L4 << 12)
    cpu.audit()
    cpu.engine.set_control(3, cpu.base << 12)
    assert cpu.read(user=False) == DATA


def test_an_entry_that_another_has_displaced(cpu: Spaces) -> None:
    """It is in QEMU's small table of victims then: two pages with the same place in the TLB."""
    rival = 1 << 21 | DATA << 12
    cpu.set_entry(30, DATA, cpu.leaf(DATA, WRITTEN))
    cpu.update(L2, 1, cpu.base + 30 << 12 | 0x67)
    assert [cpu.read(user=False), cpu.at(READ, bx=rival) & 0xFF] == [DATA, cpu.address(L2, 1) & 0xFF]
    cpu.update(L1, DATA, cpu.leaf(DATA, NEW))
    cpu.audit()
    assert cpu.read(user=False) == NEW


def map_many(cpu: Spaces) -> None:
    """Three thousand pages from 2 MiB on, all DATA."""
    for table in range(30, 36):
        for slot in range(512):
            cpu.set_entry(table, slot, cpu.leaf(0, DATA) & ~2)
        cpu.update(L2, table - 29, cpu.base + table << 12 | 0x67)


def test_what_the_directory_has_no_room_for_is_not_kept() -> None:
    """One page read over and over, between three thousand others whose entries need the same places."""
    cpu = Spaces(lanes=True)
    map_many(cpu)
    loop = CODE << 12 | 0x100
    cpu.put(loop, bytes.fromhex("488b07488b034881c300100000f7c300f00f0075074881c300100000ffc975e0cc"))
    for _ in range(50):  # the library takes a larger table when it flushes one that is full
        cpu.at(loop, di=1 << 21, bx=1 << 21 | 0x1000, cx=2900)
        if cpu.audit().entries > 1000:
            break
        cpu.engine.drop_translations()
    audits = []
    for count in range(2000, 2900, 100):
        cpu.at(loop, di=1 << 21, bx=1 << 21 | 0x1000, cx=count)
        audits.append(cpu.audit().entries)
    assert min(audits) > 250


def test_a_table_grows_before_pages_keep_each_other_out() -> None:
    """Where two thirds of a thousand places were in use the library would not see to it."""
    cpu = Spaces(lanes=True)
    map_many(cpu)
    loop = CODE << 12 | 0x100
    cpu.put(loop, bytes.fromhex("488b074881c700100000ffc975f2cc"))
    for _ in range(8):
        cpu.at(loop, di=1 << 21, cx=450)
        cpu.read(user=True)
    kept = Kept.from_address(cpu.engine.words.spaces)
    sizes = {space.root: (space.tlb.fast[USER_MODE].mask >> 6) + 1 for space in kept.at}
    assert sizes[cpu.base] == 2048


def page_drops(cpu: Spaces) -> int:
    return int(Kept.from_address(cpu.engine.words.spaces).page_drops)


def test_most_is_still_there_after_a_change() -> None:
    cpu = Spaces(lanes=True)
    for user in (False, True, False):
        cpu.read(user=user)
    before, drops = cpu.audit().entries, page_drops(cpu)
    cpu.update(USER_L1, DATA, cpu.leaf(DATA, NEW))
    after = cpu.audit()
    assert page_drops(cpu) == drops + 1
    assert after.spaces == 2
    assert after.entries >= before - 3  # an entry counts for reads, for writes and for code


def test_a_base_pointer_whose_lane_is_undone() -> None:
    """Python will decide: until then all is as it was, and what is cached is the old table's."""
    b = Bench()
    b.cpu.map(USER_L4, 0x25)
    b.cpu.set_entry(USER_L4, 0, b.mfn(1) << 12 | 0x67)
    b.cpu.d.mm.xen.write_ptbase(b.cpu.v)
    no_such_operation = 63
    requests = struct.pack("<I4xQQI4xQQ", 5, b.mfn(USER_L4), 0, no_such_operation, 0, 0)
    b.cpu.put(ARGUMENTS << 12, requests)
    assert not b.call(Hypercall.mmuext_op, ARGUMENTS << 12, 2, 0, DOMID_SELF)
    assert b.cpu.v.cr3_mfn == b.mfn(0)
    assert Audit(b.cpu.engine, levels=4).errors == []


def test_a_32_bit_kernel_with_two_base_pointers() -> None:
    cpu = Spaces(lanes=True, abi=PV32_PAE)
    for _ in range(2):
        assert cpu.read(user=False) == DATA
        cpu.operation(5, USER_L4)
        assert cpu.read(user=False) == USERS
        cpu.operation(5, 0)
    assert cpu.audit().spaces == 2
    cpu.update(USER_L1, DATA, cpu.leaf(DATA, NEW))
    cpu.update(L1, DATA, cpu.leaf(DATA, USERS))
    assert cpu.read(user=False) == USERS
    cpu.operation(5, USER_L4)
    assert cpu.read(user=False) == NEW
    cpu.audit()  # the other root was held by the base pointer alone, and is no table any more
