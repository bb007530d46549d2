from __future__ import annotations

from collections.abc import Iterator

import pytest

from hvcore.cpu import state_window as sw
from hvcore.cpu.processor import CS, R11, RAX, RBX, RCX, RDX, RIP, RSP, SS
from hvcore.errors import EngineError
from tests.hvcore.rig import RING1_CS, RING1_DS, RING3_CS, RING3_DS, Rig

INT_82_LOOP = "cd82 49 75fb f4"  # int 0x82; dec ecx; jne; hlt


@pytest.fixture(params=[True, False], ids=["live", "context"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(live_window=request.param)
    yield rig
    rig.engine.close()


def test_the_state_window_is_live_where_this_build_of_the_library_allows_it() -> None:
    rig = Rig()
    assert rig.engine.window.live
    assert rig.engine.native_pacing
    rig.engine.close()


def test_a_software_interrupt_is_handled_in_place(rig: Rig) -> None:
    seen = []

    def count(vector: int) -> None:
        q = rig.engine.q
        if vector == 0x82:
            seen.append(q[RIP])
            q[RAX] += q[RCX]
        else:
            rig.engine.stop()

    rig.on_interrupt = count
    rig.code(0, INT_82_LOOP)
    rig.engine.q[RCX] = 10
    rig.engine.run()
    assert seen == [2] * 10
    assert rig.engine.q[RAX] == sum(range(1, 11))


def test_rip_can_be_redirected_from_an_interrupt(rig: Rig) -> None:
    def jump(vector: int) -> None:
        if vector == 0x82:
            rig.engine.q[RIP] = 0x100
        else:
            rig.exits.append((vector, rig.engine.q[RIP], 0, 0))
            rig.engine.stop()

    rig.on_interrupt = jump
    rig.code(0, "cd82")
    rig.code(0x100, "90 0f0b")
    assert rig.run(0)[:2] == (6, 0x101)


@pytest.mark.parametrize(
    ("code", "vector", "error_code"),
    [
        ("fa", 13, 0),  # cli
        ("f4", 13, 0),  # hlt
        ("0f20c0", 13, 0),  # mov eax, cr0
        ("e460", 13, 0),  # in al, 0x60
        ("0f32", 13, 0),  # rdmsr
        ("0f0b", 6, None),  # ud2
        ("31d2 f7f2", 0, None),  # div by zero
        ("a100001000", 14, 0),  # read of an unmapped page
        ("c7050000100000000000", 14, 2),  # write to an unmapped page
        ("66b83412 8ed8", 13, 0x1234),  # mov ds, 0x1234: no such descriptor
    ],
)
def test_faults_carry_vector_and_error_code(rig: Rig, code: str, vector: int, error_code: int | None) -> None:
    rig.code(0, code)
    for _ in range(3):  # the engine must not see the second as a double fault
        found, _, code_found, cpl = rig.run(0)
        assert (found, cpl) == (vector, 1)
        if error_code is not None:
            assert code_found == error_code


def test_a_read_only_page_faults_in_ring_1(rig: Rig) -> None:
    rig.pte(rig.l1, 5, (rig.mem.first_mfn + 21) << 12 | 0x21)
    rig.engine.flush_tlb()
    rig.code(0, "c7050050000001000000")
    vector, rip, error_code, _ = rig.run(0)
    assert (vector, rip, error_code, rig.engine.cr2) == (14, 0, 3, 0x5000)


def test_a_pte_write_takes_effect_after_a_tlb_flush(rig: Rig) -> None:
    rig.code(0, "a100400000 0f0b")
    rig.run(0)
    rig.pte(rig.l1, 4, 0)
    rig.engine.flush_tlb()
    assert rig.run(0)[0] == 14


def test_iret_to_ring_3_runs_natively_and_int_comes_back(rig: Rig) -> None:
    # push ss; push esp; push eflags; push cs; push eip; iret
    rig.code(0, f"6a{RING3_DS:02x} 6800280000 6802020000 6a{RING3_CS:02x} 6800200000 cf")
    rig.code(0x2000, "cd80")
    vector, rip, _, cpl = rig.run(0)
    assert (vector, rip, cpl) == (0x80, 0x2002, 3)
    assert rig.engine.selector(CS) == RING3_CS
    assert rig.engine.selector(SS) == RING3_DS
    assert rig.engine.is_software_interrupt


def test_ring_3_cannot_touch_supervisor_pages(rig: Rig) -> None:
    rig.enter(RING3_CS, RING3_DS)
    rig.code(0x2000, "a100100000")
    vector, _, error_code, cpl = rig.run(0x2000)
    assert (vector, error_code, cpl) == (14, 5, 3)


def test_entering_ring_1_by_the_window(rig: Rig) -> None:
    rig.enter(RING3_CS, RING3_DS)
    rig.enter(RING1_CS, RING1_DS)
    assert rig.engine.cpl == 1
    rig.code(0, "a100100000 0f0b")
    assert rig.run(0)[0] == 6


def test_cpuid_and_rdtsc_are_answered(rig: Rig) -> None:
    rig.code(0, "0fa2 89c3 0f31 0f0b")
    rig.run(0)
    q = rig.engine.q
    assert (q[RBX], q[RAX], q[RDX]) == (0xC0DE, 2, 1)


def test_eflags_are_worked_out_and_can_be_set(rig: Rig) -> None:
    rig.code(0, "31c0 0f0b")  # xor eax, eax: ZF and PF
    rig.run(0)
    assert rig.engine.read_eflags() == 0x246
    rig.engine.write_eflags(0x602 | 0x8D5)
    assert rig.engine.read_eflags() == 0x602 | 0x8D5
    rig.code(0x40, "7202 0f0b 9c 58 0f0b")  # jc over ud2; pushf; pop eax
    assert rig.run(0x40)[1] == 0x46
    assert rig.engine.q[RAX] & 0xCD5 == 0x400 | 0x8D5


def test_eflags_set_in_a_handler_are_what_the_guest_goes_on_with(rig: Rig) -> None:
    def set_flags(vector: int) -> None:
        if vector == 0x82:
            rig.engine.write_eflags(0x602 | 0x8D5)
        else:
            rig.exits.append((vector, rig.engine.q[RIP], 0, 0))
            rig.engine.stop()

    rig.on_interrupt = set_flags
    rig.code(0, "31c0 cd82 9c 58 0f0b")
    rig.run(0)
    assert rig.engine.q[RAX] & 0xCD5 == 0x400 | 0x8D5


def test_single_step_by_tf(rig: Rig) -> None:
    rig.code(0, "40 40 40")
    rig.engine.q[RAX] = 0
    rig.engine.write_eflags(0x302)
    vector, rip, _, _ = rig.run(0)
    assert (vector, rip, rig.engine.q[RAX]) == (1, 1, 1)
    assert rig.engine.take_debug_status() == 1 << 14
    assert rig.engine.take_debug_status() == 0


@pytest.mark.parametrize("deferred", [False, True])
def test_tf_behind_syscall_traps_at_once_unless_it_is_deferred(rig: Rig, deferred: bool) -> None:
    def on_syscall() -> None:
        rig.engine.q[RIP] += 2
        if deferred:
            rig.engine.defer_step()

    rig.on_syscall = on_syscall
    rig.code(0, "0f05 40 40")  # syscall; inc eax; inc eax
    rig.engine.q[RAX] = 0
    rig.engine.write_eflags(0x302)
    assert rig.run(0)[:2] == (1, 3 if deferred else 2)
    assert rig.engine.q[RAX] == deferred
    assert rig.engine.take_debug_status() == 1 << 14


@pytest.mark.parametrize("flags", [0x202, 0x202 | 0x8D5, 0x202 | 0x400, 0x202 | 0x40000 | 0x200000])
@pytest.mark.parametrize(("live", "finds_compute"), [(True, True), (True, False), (False, True)])
def test_syscall_leaves_rip_and_flags_in_registers(flags: int, live: bool, finds_compute: bool) -> None:
    """SDM and APM: RCX = RIP of the next instruction, R11 = RFLAGS with RF clear."""
    rig = Rig(live_window=live)
    rig.engine.words.cc_compute_all *= finds_compute
    seen = []

    def on_syscall() -> None:
        seen.append((rig.engine.q[RCX], rig.engine.q[R11], rig.engine.q[RIP]))
        rig.engine.q[RIP] += 2

    rig.on_syscall = on_syscall
    rig.code(0, "90 0f05")
    rig.engine.q[RCX], rig.engine.q[R11] = 1 << 63 | 5, 1 << 63 | 7
    rig.engine.write_eflags(flags)
    rig.run(0)
    assert seen == [(3, flags, 1)]
    rig.code(0, "31c0 0f05")  # flags that are worked out late: those of xor
    seen.clear()
    rig.engine.flush_code()
    rig.engine.write_eflags(0x8D7)
    rig.run(0)
    assert seen == [(4, 0x46, 2)]


def test_there_is_no_sysenter(rig: Rig) -> None:
    rig.exits.clear()
    seen = []

    def on_interrupt(vector: int) -> None:
        seen.append((vector, rig.engine.q[RIP], rig.engine.is_software_interrupt))
        if vector != 0x82:
            rig.engine.stop()

    rig.on_interrupt = on_interrupt
    rig.code(0, "cd82 0f34")  # int 0x82; sysenter
    rig.engine.q[RIP] = 0
    rig.engine.run()
    assert seen == [(0x82, 2, True), (6, 2, False)]


def test_the_fpu_is_loaded(rig: Rig) -> None:
    st = [bytes([0x10 * i + 1] * 10) for i in range(8)]
    xmm = [bytes([0xA0 + i] * 16) for i in range(16)]
    rig.engine.load_fpu((0x27F, 5 << 11, 0x81, 0x3F80), st, xmm)
    rig.code(0, "0fae0500100000 0f0b")  # fxsave [0x1000]; ud2
    rig.run(0)
    stored = bytes(rig.mem.frame(rig.mem.first_mfn + 17)[:512])
    assert stored[:5] == bytes.fromhex("7f02 0028 81")
    assert stored[24:28] == bytes.fromhex("803f0000")
    assert [stored[at : at + 10] for at in range(32, 160, 16)] == st
    assert [stored[at : at + 16] for at in range(160, 288, 16)] == xmm[:8]


def test_pacing_stops_exactly_and_repeats(rig: Rig) -> None:
    def once() -> list[tuple[int, int, int]]:
        rig.engine.q[RAX] = 0
        rig.engine.q[RCX] = 1000
        rig.engine.q[RIP] = 0
        rig.exits.clear()
        stops = []
        while not rig.exits:
            rig.engine.cell[0] = 100
            rig.engine.run()
            stops.append((rig.engine.q[RIP], rig.engine.q[RAX], rig.engine.cell[0]))
        return stops

    rig.code(0, "40 ff0500100000 49 75f6 0f0b")  # inc eax; inc [0x1000]; dec ecx; jne; ud2
    first = once()
    counter = rig.mem.frame(rig.mem.first_mfn + 17)
    assert rig.engine.q[RAX] == 1000
    assert int.from_bytes(counter[:4], "little") == 1000  # no increment is lost or doubled by a stop
    assert len(first) > 50
    assert once() == first


def test_a_loop_of_many_turns_is_left_where_each_of_them_ends(rig: Rig) -> None:
    turn, turns = 9_000_000, 6  # long enough for the host's branch predictor to be dealt with in between
    words = rig.engine.words
    rig.code(0, "40 49 75fc 0f0b")  # inc eax; dec ecx; jne; ud2
    rig.engine.q[RAX], rig.engine.q[RCX], rig.engine.q[RIP] = 0, turn * turns, 0
    rig.engine.cell[0] = 0
    for number in range(1, turns + 1):
        words.horizon += turn
        rig.engine.cell[0] += turn
        rig.engine.run()
        assert (rig.engine.q[RIP], rig.engine.q[RAX]) == (0, turn * number // 4)
        assert not rig.engine.cell[0]
    assert not rig.exits


def test_an_exception_in_a_handler_reaches_the_caller(rig: Rig) -> None:
    def fail(_vector: int) -> None:
        raise ZeroDivisionError("in a handler")

    rig.on_interrupt = fail
    rig.code(0, "cd82")
    with pytest.raises(ZeroDivisionError, match="in a handler"):
        rig.run(0)


def test_a_mapping_of_no_memory_is_an_engine_error(rig: Rig) -> None:
    rig.pte(rig.l1, 6, 0x1_0000_0023)
    rig.engine.flush_tlb()
    rig.code(0, "a100600000")
    with pytest.raises(EngineError, match="unmapped memory"):
        rig.run(0)


def test_translated_code_is_dropped_on_request(rig: Rig) -> None:
    rig.code(0, "b801000000 0f0b")
    rig.run(0)
    rig.code(0, "b802000000")
    rig.engine.flush_code()
    rig.run(0)
    assert rig.engine.q[RAX] == 2


def test_a_state_is_saved_and_put_back_whole(rig: Rig) -> None:
    rig.engine.init_fpu()
    rig.code(0, "d9eb 0f0b")  # fldpi
    rig.run(0)
    rig.engine.q[RBX] = 7
    state = rig.engine.save_state()
    rig.enter(RING3_CS, RING3_DS)
    rig.engine.init_fpu()
    rig.engine.q[RBX] = rig.engine.q[RSP] = 0
    rig.engine.load_state(state)
    assert (rig.engine.q[RBX], rig.engine.cpl) == (7, 1)
    rig.code(0x40, "dd1d00100000 0f0b")  # fstp qword [0x1000]
    rig.run(0x40)
    pi = rig.mem.frame(rig.mem.first_mfn + 17)[:8].cast("d")[0]
    assert pi == pytest.approx(3.141592653589793)


def test_lazy_fpu_by_ts(rig: Rig) -> None:
    rig.engine.init_fpu()
    rig.code(0, "d9e8 0f0b")  # fld1
    rig.engine.set_cr0_ts(True)
    assert rig.run(0)[0] == 7
    rig.engine.set_cr0_ts(False)
    assert rig.run(0)[0] == 6


def test_instruction_breakpoints_by_debug_registers() -> None:
    rig = Rig()
    rig.code(0, "40 40 40 40 0f0b")
    rig.engine.set_debug(7, 0x402)
    rig.engine.set_debug(0, 2)
    assert rig.run(0)[:2] == (1, 2)
    assert rig.engine.take_debug_status() == 1
    rig.engine.set_debug(0, 3)
    assert rig.run(0)[:2] == (1, 3)
    rig.engine.set_debug(7, 0x400)
    assert rig.run(0)[0] == 6
    rig.engine.close()


@pytest.mark.parametrize("code", ["0fc7f0", "0fc7f8"], ids=["rdrand", "rdseed"])
def test_no_instruction_gives_what_nobody_can_repeat(rig: Rig, code: str) -> None:
    rig.code(0, code)
    assert rig.engine.has_no_random
    assert rig.run(0)[0] == 6


def test_rdtsc_faults_with_tsd(rig: Rig) -> None:
    rig.code(0, "0f31 0f0b")
    rig.engine.set_cr4_tsd(True)
    assert rig.run(0)[0] == 13
    rig.engine.set_cr4_tsd(False)
    assert rig.run(0)[0] == 6


def test_a_saved_state_has_nothing_of_the_librarys_own_stack(rig: Rig) -> None:
    """pshufb of two registers leaves there what lay behind a local variable."""
    xmm = [bytes((16 * i + j) & 0xFF for j in range(16)) for i in range(16)]
    rig.engine.load_fpu((0x37F, 0, 0, 0x1F80), [bytes(10)] * 8, xmm)
    rig.code(0, "660f3800c1 660f3800ca cc")  # pshufb xmm0, xmm1; pshufb xmm1, xmm2
    rig.engine.set_control(4, 0x660)
    rig.run(0)
    state = rig.engine.save_state()
    registers = [state[at : at + 64] for at in range(sw.XMM, sw.XMM + 64 * 32, 64)]
    assert [register[:16] for register in registers[2:16]] == xmm[2:]
    assert registers[0][:16] == bytes(xmm[0][i & 15] if not i & 0x80 else 0 for i in xmm[1])
    assert all(register[16:] == bytes(48) for register in registers)
