"""Bounce frames, byte for byte as compat_create_bounce_frame and create_bounce_frame push them; and iret."""

from __future__ import annotations

import struct

import pytest

from hvcore.cpu.processor import CS, R11, RAX, RCX, RIP, RSP, SS
from hvcore.errors import DomainCrash, GuestFault
from hvcore.pv.frames import Frames
from hvcore.pv.frames32 import Frames32
from hvcore.pv.frames64 import Frames64
from hvcore.pv.segments import load_cs_ss
from tests.hvcore.pv_cpu import CODE, HOLE, PV32, PV64, STACK, PvCpu

KERNEL_STACK = 0x24000
HANDLER = 0x11000
CF, TF, DF, NT, RF, VM, AC = 1, 0x100, 0x400, 0x4000, 0x10000, 0x20000, 0x40000
IN_SYSCALL = 1 << 8


def bench(abi: object, *, user: bool = False, flags: int = 0x203, mask: int = 0, sp: int = STACK) -> PvCpu:
    """A vCPU that stands behind an int3, with the event mask as given."""
    cpu = PvCpu(abi)  # type: ignore[arg-type]
    cpu.v.kernel_ss, cpu.v.kernel_sp = cpu.abi.flat_kernel_ss, KERNEL_STACK
    cpu.v.user_cr3_mfn = cpu.base
    cpu.v.kernel_mode = not user or cpu.abi.is_32bit
    cpu.run("", user=user, sp=sp)
    cpu.engine.q[RCX], cpu.engine.q[R11] = 0xC0C0, 0x1111
    cpu.engine.write_eflags(flags)
    cpu.v.info[1] = mask
    return cpu


def frames_of(cpu: PvCpu) -> Frames:
    return (Frames32 if cpu.abi.is_32bit else Frames64)(cpu.d.vcpus)


@pytest.mark.parametrize("mask", [0, 1])
@pytest.mark.parametrize("error_code", [None, 0, 0x1234])
@pytest.mark.parametrize("user", [False, True], ids=["kernel", "user"])
def test_32_bit_frames(user: bool, error_code: int | None, mask: int) -> None:
    cpu = bench(PV32, user=user, mask=mask)
    rip = cpu.engine.q[RIP]
    frames_of(cpu).create_bounce_frame(cpu.v, 0xE019, HANDLER, False, error_code)
    cs, ss = cpu.user_selectors() if user else (0xE019, 0xE021)
    words = [] if error_code is None else [error_code]
    words += [rip, cs | mask << 16, 0x003 | (0 if mask else 0x200)]
    words += [STACK, ss] if user else []
    top = KERNEL_STACK if user else STACK
    assert cpu.engine.q[RSP] == top - 4 * len(words)
    assert cpu.get(top - 4 * len(words), f"{4 * len(words)}s") == (struct.pack(f"<{len(words)}I", *words),)
    assert (cpu.engine.q[RIP], cpu.engine.selector(CS), cpu.engine.selector(SS)) == (HANDLER, 0xE019, 0xE021)
    assert cpu.v.info[1] == mask


@pytest.mark.parametrize("mask", [0, 1])
@pytest.mark.parametrize("error_code", [None, 0, 0x1234])
@pytest.mark.parametrize(("user", "sp"), [(False, STACK), (False, STACK - 8), (True, STACK)])
def test_64_bit_frames(user: bool, sp: int, error_code: int | None, mask: int) -> None:
    cpu = bench(PV64, user=user, mask=mask, sp=sp)
    rip = cpu.engine.q[RIP]
    frames_of(cpu).create_bounce_frame(cpu.v, 0xE033, HANDLER, False, error_code)
    cs = 0xE033 if user else 0xE030  # the RPL tells kernel from user
    words = [0xC0C0, 0x1111] + ([] if error_code is None else [error_code])
    words += [rip, cs | mask << 32, 0x003 | (0 if mask else 0x200), sp, 0xE02B]
    top = KERNEL_STACK if user else sp & ~15
    assert cpu.engine.q[RSP] == top - 8 * len(words)
    assert cpu.get(top - 8 * len(words), f"{8 * len(words)}s") == (struct.pack(f"<{len(words)}Q", *words),)
    assert cpu.engine.q[RIP] == HANDLER
    assert cpu.v.kernel_mode


@pytest.mark.parametrize("abi", [PV32, PV64], ids=["pv32", "pv64"])
def test_entering_a_handler(abi: object) -> None:
    cpu = bench(abi, flags=0x202 | TF | NT | CF)
    frames_of(cpu).create_bounce_frame(cpu.v, cpu.abi.flat_kernel_cs, HANDLER, True, None)
    assert cpu.v.info[1] == 1  # it asked for events to be masked
    assert cpu.engine.read_eflags() & (TF | NT | CF | 0x200) == CF | 0x200


@pytest.mark.parametrize("abi", [PV32, PV64], ids=["pv32", "pv64"])
def test_a_frame_that_cannot_be_pushed_or_a_handler_that_is_none(abi: object) -> None:
    cpu = bench(abi)
    cpu.engine.q[RSP] = HOLE + 0x800
    with pytest.raises(DomainCrash, match="stack cannot be written"):
        frames_of(cpu).create_bounce_frame(cpu.v, cpu.abi.flat_kernel_cs, HANDLER, False, None)
    cpu = bench(abi)
    with pytest.raises(DomainCrash, match="handler"):
        frames_of(cpu).create_bounce_frame(cpu.v, 0, 0, False, None)


@pytest.mark.parametrize("user", [False, True], ids=["kernel", "user"])
@pytest.mark.parametrize("flags", [0x202, 0x002, 0x3202, 0x203])
def test_iret_of_32_bits(user: bool, flags: int) -> None:
    cpu = bench(PV32)
    cs, ss = cpu.user_selectors() if user else (0xE019, 0xE021)
    cpu.put(STACK - 64, struct.pack("<6I", 0x77, CODE + 9, cs, flags, 0x23000, ss))
    cpu.engine.q[RSP] = STACK - 64
    cpu.v.async_exception_mask = True
    frames_of(cpu).do_iret(cpu.v)
    assert (cpu.engine.q[RAX], cpu.engine.q[RIP]) == (0x77, CODE + 9)
    assert cpu.engine.q[RSP] == (0x23000 if user else STACK - 48)
    assert (cpu.engine.selector(CS), cpu.engine.cpl) == (cs, 3 if user else 1)
    assert cpu.v.info[1] == (not flags & 0x200)
    assert cpu.engine.read_eflags() & 0x3201 == 0x200 | flags & 1  # IF is always set, IOPL never
    assert not cpu.v.async_exception_mask


@pytest.mark.parametrize("user", [False, True], ids=["kernel", "user"])
def test_iret_of_64_bits(user: bool) -> None:
    cpu = bench(PV64)
    iret64(cpu, cs=0xE033 if user else 0xE030, flags=0)
    q = cpu.engine.q
    assert (q[RAX], q[RIP], q[RSP]) == (0x77, CODE + 9, 0x23000)
    assert (q[R11], q[RCX]) == (0x1234, 0x5678)
    assert cpu.v.kernel_mode is not user
    assert (cpu.engine.cpl, cpu.v.info[1]) == (3, 0)


def iret64(
    cpu: PvCpu, rip: int = CODE + 9, cs: int = 0xE030, rflags: int = 0x202, ss: int = 0xE02B, **more: int
) -> None:
    """The iret hypercall: `syscall` has been executed, and RIP is behind it."""
    frame = (0x77, 0x1234, 0x5678, more.get("flags", IN_SYSCALL), rip, cs, rflags, 0x23000, ss)
    cpu.put(STACK - 128, struct.pack("<9Q", *frame))
    q = cpu.engine.q
    q[RSP], q[RCX], q[R11] = STACK - 128, q[RIP], cpu.engine.read_eflags()
    frames_of(cpu).do_iret(cpu.v)


@pytest.mark.parametrize(
    ("cs", "shown"), [(0xE030, 0xE033), (0x1234, 0xE033), (0xE020, 0xE023), (0xE023, 0xE023)]
)
def test_iret_in_a_syscall_goes_back_by_sysret(cs: int, shown: int) -> None:
    cpu = bench(PV64)
    iret64(cpu, rip=0x7FFF_0001_0009, cs=cs, rflags=0x600 | RF | VM | 0x3000 | 1 << 40, ss=0xBEEF)
    engine, q = cpu.engine, cpu.engine.q
    assert (q[RAX], q[RCX], q[R11], q[RSP]) == (0x77, 0x7FFF_0001_0009, 0x600 | RF | 1 << 40, 0x23000)
    assert q[RIP] == (0x7FFF_0001_0009 if shown == 0xE033 else CODE + 9)  # sysretl takes ECX
    assert (engine.selector(CS), engine.selector(SS)) == (shown, 0xE02B)
    assert engine.code_is_64bit is (shown == 0xE033)
    assert engine.read_eflags() & (RF | VM | DF | 0x3200) == DF | 0x200
    assert cpu.v.kernel_mode is (cs & 3 != 3)


def test_no_sysret_to_where_no_address_is() -> None:
    cpu = bench(PV64)
    with pytest.raises(GuestFault) as fault:
        iret64(cpu, rip=1 << 47, cs=0x7008)
    assert (fault.value.vector, fault.value.error_code) == (13, 0x7008)  # iretq loads the frame's
    assert (cpu.engine.q[RCX], cpu.engine.q[R11]) == (1 << 47, 0x202)


@pytest.mark.parametrize("what", ["event", "nmi"])
def test_what_comes_before_sysret_sees_the_context_unfinished(what: str) -> None:
    cpu = bench(PV64, flags=0x203)
    cpu.v.info[0] = what == "event"
    cpu.v.nmi_pending = what == "nmi"
    cpu.v.trap_ctxt[2] = (4, 0xE033, HANDLER)
    behind = cpu.engine.q[RIP]
    iret64(cpu, cs=0x1234, ss=0x4568)
    frames_of(cpu).create_bounce_frame(cpu.v, 0xE033, HANDLER, True, None)
    words = (behind, 0x203, CODE + 9, 0x1234, 0x202, 0x23000, 0x456B)
    assert cpu.get(cpu.engine.q[RSP], "7Q") == words
    assert (cpu.engine.selector(CS), cpu.engine.selector(SS)) == (0xE033, 0xE02B)


def test_a_64_bit_handler_is_entered_by_sysret() -> None:
    cpu = bench(PV64, flags=0x202 | DF | AC | CF)
    frames_of(cpu).create_bounce_frame(cpu.v, 0xE033, HANDLER, False, None)
    q = cpu.engine.q
    assert (q[RCX], q[R11]) == (HANDLER, 0x202 | DF | CF)
    assert cpu.engine.read_eflags() == q[R11]


SYSCALL, SYSCALL32 = 2, 7


@pytest.mark.parametrize(("kind", "cs"), [(SYSCALL, 0xE033), (SYSCALL32, 0xE023)])
@pytest.mark.parametrize("masks", [0, 1])
def test_a_system_call_of_a_process(kind: int, cs: int, masks: int) -> None:
    """switch_to_kernel: DF is cleared, and the 64-bit callback's flag says whether events are masked."""
    cpu = bench(PV64, user=True, flags=0x203 | DF)
    cpu.engine.q[RIP], cpu.engine.q[RCX], cpu.engine.q[R11] = CODE, CODE + 2, 0x203 | DF
    cpu.v.callbacks.update({SYSCALL: (0xE033, HANDLER, masks), SYSCALL32: (0xE033, HANDLER, 1 - masks)})
    if kind == SYSCALL32:
        load_cs_ss(cpu.v, 0xE023, 0xE02B)
    assert frames_of(cpu).syscall_entry(cpu.v) is False
    assert cpu.get(cpu.engine.q[RSP], "7Q") == (CODE + 2, 0x203 | DF, CODE + 2, cs, 0x203 | DF, STACK, 0xE02B)
    assert (cpu.engine.q[RIP], cpu.v.info[1], cpu.v.kernel_mode) == (HANDLER, masks, True)
    assert cpu.engine.read_eflags() & DF == 0


@pytest.mark.parametrize(("cs", "ss"), [(0xE033, 0xE02B), (0x0B, 0x13), (0xE033, 0x13), (0x0B, 0xE02B)])
def test_a_hypercall_goes_on_with_the_flat_segments(cs: int, ss: int) -> None:
    cpu = bench(PV64)
    cpu.set_gdt({0x08: 0x00AFFB000000FFFF, 0x10: 0x00CFF3000000FFFF})
    load_cs_ss(cpu.v, cs, ss)
    assert frames_of(cpu).syscall_entry(cpu.v) is True
    assert (cpu.engine.selector(CS), cpu.engine.selector(SS)) == (0xE033, 0xE02B)
    assert cpu.engine.code_is_64bit


@pytest.mark.parametrize("cs", [0xE033, 0xE023])
def test_a_system_call_without_a_callback_is_no_instruction(cs: int) -> None:
    cpu = bench(PV64, user=True, flags=0x203 | DF)
    cpu.engine.q[RIP], cpu.engine.q[RCX], cpu.engine.q[R11] = CODE, CODE + 2, 0x203 | DF
    cpu.v.trap_ctxt[6] = (4, 0xE033, HANDLER)
    load_cs_ss(cpu.v, cs, 0xE02B)
    assert frames_of(cpu).syscall_entry(cpu.v) is False
    assert cpu.get(cpu.engine.q[RSP], "7Q") == (CODE + 2, 0x203 | DF, CODE, cs, 0x203 | DF, STACK, 0xE02B)
    assert (cpu.engine.q[RIP], cpu.v.info[1]) == (HANDLER, 1)
    assert cpu.engine.read_eflags() & DF


@pytest.mark.parametrize("abi", [PV32, PV64], ids=["pv32", "pv64"])
def test_iret_frames_that_are_the_end(abi: object) -> None:
    cpu = bench(abi)
    cpu.engine.q[RSP] = HOLE
    with pytest.raises(DomainCrash, match="iret frame"):
        frames_of(cpu).do_iret(cpu.v)
    cpu = bench(abi)
    if cpu.abi.is_32bit:
        cpu.put(STACK - 64, struct.pack("<6I", 0, CODE, 0xE008, 0x202, 0, 0))  # ring 0
    else:
        cpu.v.user_cr3_mfn = 0
        cpu.put(STACK - 64, struct.pack("<9Q", 0, 0, 0, 0, CODE, 0xE033, 0x202, STACK, 0xE02B))
    cpu.engine.q[RSP] = STACK - 64
    with pytest.raises(DomainCrash, match=r"ring 0|user page tables"):
        frames_of(cpu).do_iret(cpu.v)
