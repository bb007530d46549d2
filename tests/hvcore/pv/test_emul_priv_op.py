"""Xen's emulator of privileged instructions, provoked by code that the engine really runs."""

from __future__ import annotations

import struct

import pytest

from hvcore.cpu.processor import GS, RAX, RCX, RDI, RDX, RSI
from hvcore.guest_access import GuestAccess
from hvcore.pv.emul_priv_op import _OPS, pv_emulate_privileged_op
from tests.hvcore.pv_cpu import CODE, DATA, HOLE, INT3, PV32, PV64, PvCpu

GP = (13, 0, None)
UD = (6, None, None)
DB = (1, None, None)
IOPL1, IOPL3 = 0x1000, 0x3000


@pytest.fixture
def cpu() -> PvCpu:
    return PvCpu(PV32)


@pytest.fixture
def cpu64() -> PvCpu:
    return PvCpu(PV64)


@pytest.fixture(params=[PV32, PV64], ids=["pv32", "pv64"])
def any_cpu(request: pytest.FixtureRequest) -> PvCpu:
    return PvCpu(request.param)


# -- cli, sti


@pytest.mark.parametrize("code", ["fa", "fb"], ids=["cli", "sti"])
def test_cli_and_sti_need_iopl(any_cpu: PvCpu, code: str) -> None:
    assert any_cpu.run(code) == [GP]
    assert any_cpu.rip == 0


@pytest.mark.parametrize("code", ["fa", "fb"], ids=["cli", "sti"])
def test_cli_and_sti_change_nothing_even_with_iopl(any_cpu: PvCpu, code: str) -> None:
    any_cpu.v.iopl = IOPL1
    any_cpu.v.info[1] = 0x55
    assert any_cpu.run(code) == [INT3]
    assert any_cpu.v.info[1] == 0x55
    assert any_cpu.engine.read_eflags() & 0x3200 == 0x200


def test_architectural_iopl_opens_iopl_0_to_the_kernel(cpu: PvCpu) -> None:
    cpu.d.vm_assist = 1 << 4
    assert cpu.run("fa") == [INT3]


def test_iopl_1_is_not_for_user_mode(cpu: PvCpu) -> None:
    cpu.v.iopl = IOPL1
    assert cpu.run("fa", user=True) == [GP]
    cpu.v.iopl = IOPL3
    assert cpu.run("fa", user=True) == [INT3]


# -- what Xen does not emulate

REFUSED = {
    "hlt": "f4", "invd": "0f08", "invlpg": "0f013d00000100", "lmsw": "0f01f0", "lgdt": "0f011500000100",
    "lidt": "0f011d00000100", "lldt": "0f00d0", "ltr": "0f00d8",
}  # fmt: skip


@pytest.mark.parametrize("code", REFUSED.values(), ids=REFUSED.keys())
def test_the_rest_is_the_guests_fault(cpu: PvCpu, code: str) -> None:
    cpu.v.iopl = IOPL3
    assert cpu.run(code) == [GP]
    assert cpu.rip == 0
    assert cpu.d.trace.emulated == {}


def test_a_popf_does_not_reach_if(cpu: PvCpu) -> None:
    assert cpu.run("6a02 9d 9c 58") == [INT3]  # push 2; popf; pushf; pop eax
    assert cpu.eax() & 0x200


def test_every_emulated_opcode_faults_in_user_mode(cpu: PvCpu) -> None:
    for code in (
        "0f06",
        "0f09",
        "0f20c0",
        "0f22c0",
        "0f21c0",
        "0f23c0",
        "0f30",
        "0f32",
        "ec",
        "ee",
        "6c",
        "6e",
    ):
        assert cpu.run(code, user=True, di=DATA, si=DATA) == [GP], code


# -- control registers


def test_cr0_and_cr4_read_as_real_xen_shows_them(any_cpu: PvCpu) -> None:
    assert any_cpu.run("0f20c0") == [INT3]
    assert any_cpu.eax() == 0x80050033
    assert any_cpu.run("0f20e0") == [INT3]
    assert any_cpu.eax() == 0x660


def test_cr4_gives_the_guest_tsd_and_de_alone(cpu: PvCpu) -> None:
    assert cpu.run("0f22e0 0f20e0", ax=0xFFFFFFFF) == [INT3]
    assert cpu.eax() == 0x660 | 0xC


def test_cr3_is_folded_for_pae(cpu: PvCpu) -> None:
    assert cpu.run("0f20d8") == [INT3]
    assert cpu.eax() == cpu.base << 12 | cpu.base >> 20
    cpu.d.guest = GuestAccess(cpu.abi, cpu.mem, lambda va, write: cpu.d.mm.walk(cpu.base, va, write))
    cpu.v.cr3_mfn = 0x123456
    assert cpu.run("0f20d8") == [INT3]
    assert cpu.eax() == 0x23456001


def test_cr3_reads_plain_on_64_bit(cpu64: PvCpu) -> None:
    assert cpu64.run("410f20d9") == [INT3]  # mov %cr3, %r9
    assert cpu64.engine.q[9] == cpu64.base << 12


def test_writing_back_cr3_is_accepted(any_cpu: PvCpu) -> None:
    before = any_cpu.d.frames.count[any_cpu.base - any_cpu.mem.base_mfn]
    assert any_cpu.run("0f20d8 0f22d8") == [INT3]
    assert any_cpu.d.frames.count[any_cpu.base - any_cpu.mem.base_mfn] == before


@pytest.mark.parametrize("page", [16, 0x100000], ids=["writable page", "no page"])
def test_cr3_refuses_what_is_no_page_table(cpu: PvCpu, page: int) -> None:
    mfn = cpu.base + page
    assert cpu.run("0f22d8", ax=(mfn << 12 | mfn >> 20) & 0xFFFFFFFF) == [GP]
    assert cpu.v.cr3_mfn == cpu.base


def test_cr2_is_stored_in_the_shared_page_too(any_cpu: PvCpu) -> None:
    assert any_cpu.run("0f22d0 31c0 0f20d0", ax=0x12345678) == [INT3]
    assert any_cpu.eax() == 0x12345678
    word = any_cpu.abi.word
    assert int.from_bytes(any_cpu.v.info[2 * word : 3 * word], "little") == 0x12345678


def test_only_ts_of_cr0_can_be_changed(cpu: PvCpu) -> None:
    assert cpu.run("0f22c0", ax=0x8005003B) == [INT3]
    assert cpu.v.ts_set
    assert cpu.run("0f20c0") == [INT3]
    assert cpu.eax() == 0x8005003B
    assert cpu.run("0f22c0", ax=0x80040033) == [GP]  # WP
    assert cpu.v.ts_set


def test_ts_makes_the_fpu_fault_until_clts(cpu: PvCpu) -> None:
    assert cpu.run("0f22c0 d9ee", ax=0x8005003B) == [(7, None, None)]
    assert cpu.run("0f06 d9ee") == [INT3]
    assert not cpu.v.ts_set


def test_a_32_bit_move_from_cr_clears_the_upper_half(cpu64: PvCpu) -> None:
    assert cpu64.run("0f20c0", ax=0xFFFFFFFFFFFFFFFF) == [INT3]
    assert cpu64.eax() == 0x80050033


# -- debug registers


def test_debug_registers_start_as_real_xen_shows_them(any_cpu: PvCpu) -> None:
    assert any_cpu.run("0f21f0") == [INT3]
    assert any_cpu.eax() == 0xFFFF0FF0
    assert any_cpu.run("0f21f8") == [INT3]
    assert any_cpu.eax() == 0x400


def test_dr4_and_dr5_are_aliases_until_cr4_de(cpu: PvCpu) -> None:
    assert cpu.run("0f23e0 0f21f0", ax=0xF) == [INT3]
    assert cpu.eax() == 0xFFFF0FFF
    assert cpu.run("0f22e0 0f21e0", ax=8) == [UD]
    assert cpu.run("0f23e8") == [UD]


def test_general_detect_is_refused(cpu: PvCpu) -> None:
    assert cpu.run("0f23f8", ax=0x2000) == [GP]


def test_xens_addresses_cannot_be_watched(cpu64: PvCpu) -> None:
    assert cpu64.run("0f23c0", ax=0xFFFF800000000000) == [GP]
    assert cpu64.run("0f23c0", ax=0xFFFF880000000000) == [INT3]
    assert cpu64.v.debugreg[0] == 0xFFFF880000000000


# -- others


def test_wbinvd_is_ignored(any_cpu: PvCpu) -> None:
    assert any_cpu.run("0f09") == [INT3]


def test_rdmsr_and_wrmsr(any_cpu: PvCpu) -> None:
    assert any_cpu.run("0f32", cx=0x277) == [INT3]  # PAT
    q = any_cpu.engine.q
    assert (q[RDX], q[RAX]) == (0x0501, 0x00070406)
    assert any_cpu.run("0f30", cx=0x277, ax=0, dx=0) == [GP]
    assert any_cpu.run("0f30", cx=0xC0010015, ax=0x40, dx=0) == [INT3]  # HWCR


def test_fs_and_gs_bases_by_msr(cpu64: PvCpu) -> None:
    assert cpu64.run("0f30 0f32", cx=0xC0000101, ax=DATA, dx=0x7FFF) == [INT3]
    assert cpu64.engine.segment_base(GS) == 0x7FFF << 32 | DATA
    assert cpu64.run("0f30", cx=0xC0000101, ax=0, dx=0x8000) == [GP]  # not canonical


def test_a_single_step_over_an_emulated_instruction(cpu: PvCpu) -> None:
    assert cpu.run("0f06", flags=0x302) == [DB]
    assert cpu.rip == 2
    assert cpu.v.debugreg[6] == 0xFFFF4FF0


def test_16_bit_code_is_decoded_as_such(cpu: PvCpu) -> None:
    """In 16-bit code `66` makes the operand 32 bits wide."""
    cpu.set_gdt({0x19: 0x00009B000000FFFF | (CODE & 0xFFFF) << 16 | (CODE >> 16) << 32})
    cpu.v.iopl = IOPL1
    cpu.put(CODE + 0x100, bytes.fromhex("66ed edcc"))
    ljmp = bytes.fromhex("ea") + struct.pack("<IH", 0x100, 0x19)
    cpu.engine.q[RAX] = 0
    assert cpu.run(ljmp, dx=0x80, ax=0x12345678)[-1] == INT3
    assert cpu.eax() == 0xFFFFFFFF


# -- ports


def test_ports_need_iopl(any_cpu: PvCpu) -> None:
    assert any_cpu.run("e480") == [GP]
    any_cpu.v.iopl = IOPL1
    assert any_cpu.run("e480", ax=0x1100) == [INT3]
    assert any_cpu.eax() == 0x11FF


@pytest.mark.parametrize(
    ("code", "expected"), [("ec", 0x123456FF), ("66ed", 0x1234FFFF), ("ed", 0xFFFFFFFF), ("e560", 0xFFFFFFFF)]
)
def test_nothing_answers_a_read(cpu: PvCpu, code: str, expected: int) -> None:
    cpu.v.iopl = IOPL1
    assert cpu.run(code, ax=0x12345678, dx=0x3F8) == [INT3]
    assert cpu.eax() == expected


@pytest.mark.parametrize(
    "code", ["e461", "e561", "66e561", "e680", "e780", "66e780", "ec", "ed", "66ed", "ee", "66ef"]
)
def test_after_the_first_access_ports_are_the_engines(any_cpu: PvCpu, code: str) -> None:
    """Linux reads port 0x61 a hundred thousand times when it calibrates its clock."""
    any_cpu.v.iopl = IOPL1
    assert any_cpu.run(3 * code, dx=0x61) == [INT3]
    assert sum(any_cpu.d.trace.emulated.values()) == 1
    assert sum(any_cpu.engine.port_accesses) == 2


def test_not_while_a_breakpoint_is_set_on_a_port(cpu: PvCpu) -> None:
    cpu.v.iopl = IOPL1
    assert cpu.run("0f22e0", ax=8) == [INT3]  # CR4.DE
    assert cpu.run("0f23c0", ax=0x82) == [INT3]
    assert cpu.run("0f23f8", ax=0x60001) == [INT3]
    assert cpu.run("e461 e561 66e561", dx=0x61) == [INT3]
    assert sum(cpu.engine.port_accesses) == 0


def test_the_pci_address_register_is_kept_for_double_words_alone(cpu: PvCpu) -> None:
    cpu.v.iopl = IOPL1
    assert cpu.run("ef 31c0 ed", ax=0x80001068, dx=0xCF8) == [INT3]
    assert cpu.eax() == 0x80001068
    assert cpu.run("ec", ax=0, dx=0xCF8) == [INT3]
    assert cpu.eax() == 0xFF
    assert cpu.run("ed", ax=0, dx=0xCFC) == [INT3]
    assert cpu.eax() == 0xFFFFFFFF


def test_the_cmos_index_is_kept(cpu: PvCpu) -> None:
    cpu.v.iopl = IOPL1
    assert cpu.run("e670 b000 e470", ax=0x8F) == [INT3]
    assert cpu.eax() & 0xFF == 0x8F
    assert cpu.run("66e56f", ax=0) == [INT3]  # the word at 0x6f spans it
    assert cpu.eax() == 0x8FFF


def test_the_io_bitmap_opens_single_ports(cpu: PvCpu) -> None:
    cpu.v.iobmp, cpu.v.iobmp_limit = DATA, 0x400
    cpu.put(DATA, b"\xff" * 0x80)
    cpu.put(DATA + 0x3F9 // 8, b"\xfd")  # 0x3f9
    assert cpu.run("ec", dx=0x3F9, user=True) == [INT3]
    assert cpu.run("ec", dx=0x3F8, user=True) == [GP]
    assert cpu.run("66ed", dx=0x3F9, user=True) == [GP]  # 0x3fa is closed
    cpu.v.iobmp_limit = 0x3F9
    assert cpu.run("ec", dx=0x3F9, user=True) == [GP]


def test_an_unreadable_io_bitmap_closes_all_ports(cpu: PvCpu) -> None:
    cpu.v.iobmp, cpu.v.iobmp_limit = HOLE, 0x400
    assert cpu.run("ec", dx=0x10) == [GP]


def test_rep_insb_fills_memory(any_cpu: PvCpu) -> None:
    any_cpu.v.iopl = IOPL1
    any_cpu.put(DATA, bytes(16))
    assert any_cpu.run("f36c", dx=0x80, cx=5, di=DATA + 1) == [INT3]
    assert any_cpu.get(DATA, "8B") == (0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0)
    q = any_cpu.engine.q
    assert (q[RCX], q[RDI]) == (0, DATA + 6)


def test_rep_outsd_goes_backwards_with_df(cpu: PvCpu) -> None:
    cpu.v.iopl = IOPL1
    cpu.put(DATA, struct.pack("<3I", 1, 2, 3))
    assert cpu.run("f36f", dx=0xCF8, cx=3, si=DATA + 8, flags=0x602) == [INT3]
    assert cpu.engine.q[RSI] == DATA - 4
    assert cpu.d.pci_cf8 == 1


def test_rep_with_nothing_to_do(cpu: PvCpu) -> None:
    cpu.v.iopl = IOPL1
    assert cpu.run("f36c", dx=0x80, cx=0, di=HOLE) == [INT3]


def test_a_fault_within_rep_keeps_what_was_done(cpu: PvCpu) -> None:
    cpu.v.iopl = IOPL1
    assert cpu.run("f36d", dx=0x80, cx=4, di=HOLE - 6) == [(14, 2, HOLE)]
    q = cpu.engine.q
    assert (cpu.rip, q[RCX], q[RDI]) == (0, 3, HOLE - 2)


def test_ins_to_a_page_table_is_a_page_fault(cpu: PvCpu) -> None:
    cpu.v.iopl = IOPL1
    before = cpu.get(0x3000, "Q")
    ((vector, _, cr2),) = cpu.run("6c", dx=0x80, di=0x3000)
    assert (vector, cr2) == (14, 0x3000)
    assert cpu.get(0x3000, "Q") == before


def test_a_pending_event_interrupts_rep(cpu: PvCpu) -> None:
    cpu.v.iopl = IOPL1
    cpu.v.info[0], cpu.v.info[1] = 1, 0
    assert cpu.run("f36c", dx=0x80, cx=3, di=DATA, flags=0x302) == [DB]
    assert cpu.engine.q[RCX] == 2
    assert cpu.rip == 0


def test_16_bit_addresses_wrap_the_count_at_64_k(cpu: PvCpu) -> None:
    cpu.v.iopl = IOPL1
    ((vector, _, cr2),) = cpu.run("67f36c", dx=0x80, cx=0x50002, di=0xFFFFF)
    assert (vector, cr2) == (14, 0)  # the second element goes to a page table
    q = cpu.engine.q
    assert (q[RCX], q[RDI]) == (0x50001, 0xF0000)


def test_ins_needs_a_writable_segment(cpu: PvCpu) -> None:
    cpu.v.iopl = IOPL1
    cpu.set_gdt({0x21: 0x00CFB1000000FFFF})  # read-only data
    assert cpu.run("b821000000 8ec0 6c", dx=0x80, di=DATA) == [GP]


def test_outs_beyond_a_limit(cpu: PvCpu) -> None:
    cpu.v.iopl = IOPL1
    cpu.set_gdt({0x21: 0x0041B30000000FFF})
    move = "b821000000 8ee0 "
    assert cpu.run(move + "646f", dx=0x80, si=0x10FFC - 0x10000) == [INT3]
    assert cpu.run(move + "646f", dx=0x80, si=0x10FFD) == [GP]


def test_an_io_breakpoint_reports_after_the_access(cpu: PvCpu) -> None:
    cpu.v.iopl = IOPL1
    assert cpu.run("0f22e0", ax=8) == [INT3]  # CR4.DE
    assert cpu.run("0f23c0", ax=0x82) == [INT3]
    assert cpu.run("0f23f8 0f21f8", ax=0x60001) == [INT3]  # L0, I/O, two bytes
    assert cpu.eax() == 0x60401
    assert cpu.run("e483") == [DB]
    assert cpu.rip == 2
    assert cpu.v.debugreg[6] & 0xF == 1
    assert cpu.run("e484") == [INT3]


def test_io_breakpoints_need_cr4_de(cpu: PvCpu) -> None:
    assert cpu.run("0f23f8", ax=0x20001) == [GP]


# -- fetching


def test_code_that_has_gone_is_a_page_fault(cpu: PvCpu) -> None:
    cpu.run("90")
    cpu.engine.q[16] = HOLE
    from hvcore.errors import GuestFault

    with pytest.raises(GuestFault) as caught:
        pv_emulate_privileged_op(cpu.v)
    assert (caught.value.vector, caught.value.error_code, caught.value.cr2) == (14, 0, HOLE)


def test_a_code_segment_that_has_gone_is_not_emulated(cpu: PvCpu) -> None:
    cpu.run("90")
    cpu.engine.set_segment(1, 0x11, 0, 0xFFFFFFFF, 0xCFBB00)
    cpu.engine.q[16] = CODE
    cpu.put(CODE, bytes.fromhex("0f06"))
    assert pv_emulate_privileged_op(cpu.v) is False


def test_the_list_is_xens() -> None:
    """validate() in emul-priv-op.c."""
    one_byte = {*range(0x6C, 0x70), *range(0xE4, 0xE8), *range(0xEC, 0xF0), 0xFA, 0xFB}
    two_bytes = {0x01, 0x06, 0x09, 0x20, 0x21, 0x22, 0x23, 0x30, 0x31, 0x32, 0xA2}
    assert set(_OPS) == one_byte | {0x0F00 | second for second in two_bytes}
