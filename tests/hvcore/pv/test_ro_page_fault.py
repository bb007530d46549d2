"""Trapped stores to page tables: which are taken up, and how the table is left when one ends early."""

from __future__ import annotations

import capstone
import pytest

from hvcore.cpu.processor import RIP
from hvcore.pv.ro_page_fault import RoPageFault, store_form
from tests.hvcore.pv_cpu import CODE, HOLE, PV32, PV64, PvCpu

COMPARES = 0x100
WRITABLE_PAGETABLES = 1 << 2
# Stores to (edi/rdi), the same bytes in both modes unless they begin with REX.
_STORES = """
    880f 66890f 890f c60701 66c7070100 c70701000000 860f 870f 66870f 000f 010f 080f 090f 200f 210f
    300f 310f 800f01 810f01000000 830f01 66830f01 f617 f717 fe07 ff07 ff0f 0fb00f 0fb10f 660fb10f
    f0010f f0080f f0830f01 0fc00f 0fc10f f00fc10f 0fab0f f00fab0f 0fb30f 0fbb0f f00fba2f01 0f9407
    0fc70f f00fc70f aa ab 66ab f3ab c02701 c12701 d027 d127 d327 3e890f 8f07
"""
STORES = _STORES.split()
WIDE = [
    "48890f",
    "48870f",
    "480fb10f",
    "f0480fb10f",
    "48c70701000000",
    "f0480fab0f",
    "44880f",
    "4c890f",
    "48ab",
]


def capstones(code: bytes, mode: int) -> int:
    """Width and kind of the one store in `code`, as the disassembler has it."""
    decoder = capstone.Cs(capstone.CS_ARCH_X86, mode)
    decoder.detail = True
    (insn,) = decoder.disasm(code, 0)
    (memory,) = [op for op in insn.operands if op.type == capstone.x86.X86_OP_MEM]
    compares = insn.prefix[0] == 0xF0 or insn.mnemonic.split()[-1] in ("xchg", "cmpxchg", "cmpxchg8b")
    return int(memory.size) | (COMPARES if compares else 0)


@pytest.mark.parametrize("code", STORES)
def test_forms_of_stores(code: str) -> None:
    raw = bytes.fromhex(code)
    assert store_form(raw.ljust(15, b"\x90"), long_mode=False) == capstones(raw, capstone.CS_MODE_32)
    if raw != b"\x8f\x07":  # pop has eight bytes there
        assert store_form(raw.ljust(15, b"\x90"), long_mode=True) == capstones(raw, capstone.CS_MODE_64)


@pytest.mark.parametrize("code", WIDE)
def test_forms_of_wide_stores(code: str) -> None:
    raw = bytes.fromhex(code)
    assert store_form(raw, long_mode=True) == capstones(raw, capstone.CS_MODE_64)


@pytest.mark.parametrize("code", [b"", b"\xf0", b"\x0f", b"\x66\xf0\x0f", b"\xf0" * 15])
def test_an_instruction_that_is_cut_short_has_some_form(code: bytes) -> None:
    assert store_form(code, long_mode=True) & 0xFF in (1, 2, 4, 8)


@pytest.fixture(params=[PV32, PV64], ids=["pv32", "pv64"])
def cpu(request: pytest.FixtureRequest) -> PvCpu:
    return PvCpu(request.param)


def at(cpu: PvCpu, code: str) -> RoPageFault:
    """The vCPU before a store."""
    cpu.run("")
    cpu.put(CODE, bytes.fromhex(code))
    cpu.engine.q[RIP] = CODE
    cpu.d.vm_assist = WRITABLE_PAGETABLES
    return RoPageFault(cpu.d)


@pytest.mark.parametrize(
    "address",
    [
        HOLE,  # nothing there
        0x14000,  # plain memory
        0x4000_0000,  # no leaf table
        0x1000,  # a table above the leaf
        0x0000,  # the base
    ],
)
def test_what_is_no_store_to_a_leaf_table(cpu: PvCpu, address: int) -> None:
    ro = at(cpu, "890f")
    before = bytes(cpu.mem.frame(cpu.base + 3))
    assert not ro.try_start(address)
    assert not ro.pending
    assert bytes(cpu.mem.frame(cpu.base + 3)) == before


@pytest.mark.parametrize(
    ("code", "offset", "taken"),
    [
        ("890f", 0, True),
        ("890f", 4, True),
        ("890f", 2, False),
        ("890f", 1, False),
        ("66890f", 2, True),
        ("66890f", 3, False),
        ("880f", 3, True),
        ("880f", 7, True),
        ("870f", 6, False),
        ("f00fc70f", 4, False),
        ("f00fc70f", 8, True),
    ],
)
def test_alignment(cpu: PvCpu, code: str, offset: int, taken: bool) -> None:
    ro = at(cpu, code)
    assert ro.try_start(0x3000 + 8 * 40 + offset) is taken
    assert ro.pending is taken


def test_only_for_guests_that_asked_for_it(cpu: PvCpu) -> None:
    ro = at(cpu, "890f")
    cpu.d.vm_assist = 0
    assert not ro.try_start(0x3000 + 8 * 40)


def test_a_store_that_faults_itself_leaves_the_table_as_it_was(cpu: PvCpu) -> None:
    ro = at(cpu, "890f")
    live = bytes(cpu.mem.frame(cpu.base + 3))
    assert ro.try_start(0x3000 + 8 * 40)
    assert bytes(cpu.mem.frame(cpu.base + 3)) != live  # the page is backed by a copy for the while
    assert bytes(ro.scratch) == live
    assert not ro.step_done(14)
    assert bytes(cpu.mem.frame(cpu.base + 3)) == live
    assert (ro.pending, ro.stores) == (False, 0)
    assert not cpu.engine.read_eflags() & 0x100


def test_a_store_that_faults_where_it_was_to_go_is_not_begun_again(
    cpu: PvCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would be for ever: nothing that is tried again would make the processor do it."""
    ro, address, refused = at(cpu, "890f"), 0x3000 + 8 * 40, []
    ro.reject = lambda *fault: refused.append(fault)
    monkeypatch.setattr(type(cpu.engine), "cr2", address)
    assert ro.try_start(address)
    assert ro.step_done(14)
    assert refused == [(14, 3, address)]
    assert (ro.pending, ro.stores) == (False, 0)


def test_a_store_through_upper_entries_that_are_read_only_leaves_them_so(cpu: PvCpu) -> None:
    ro, table = at(cpu, "890f"), cpu.abi.pt_levels - 2  # the page of the L2
    entry = cpu.mem.q[(cpu.base + table - cpu.mem.base_mfn) << 9]
    cpu.set_entry(table, 0, entry & ~2)
    before = [bytes(cpu.mem.frame(cpu.base + page)) for page in range(4)]
    assert ro.try_start(0x3000 + 8 * 40)
    assert bytes(cpu.mem.frame(cpu.base + table)) != before[table]
    assert not ro.step_done(14)
    assert [bytes(cpu.mem.frame(cpu.base + page)) for page in range(4)] == before
