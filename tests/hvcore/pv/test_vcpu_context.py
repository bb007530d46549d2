"""struct vcpu_guest_context: every offset against Xen's headers, and contexts that are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from hvcore.public.errno import EINVAL
from hvcore.pv import vcpu_context
from hvcore.pv.vcpu_context import VGCF_i387_valid, arch_set_info_guest, compat_cr3_to_pfn
from tests.domainbuilder.c_headers import assert_c_agrees
from tests.hvcore.pv_cpu import DATA, PV32, PV64, PvCpu

USER_REGS = ("eip", "cs", "eflags", "esp", "ss", "es", "ds", "fs", "gs")
GPRS32 = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
GPRS64 = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
WIDE = {"eip": "rip", "eflags": "rflags", "esp": "rsp"}


@pytest.mark.parametrize("word", [4, 8])
def test_offsets_are_those_of_the_headers(word: int, tmp_path: Path) -> None:
    context = "struct vcpu_guest_context"
    facts = {f"sizeof({context})": vcpu_context.CONTEXT_SIZE[word]}
    for name, (offset, _format) in vcpu_context._FIELDS[word].items():
        field = f"user_regs.{WIDE.get(name, name) if word == 8 else name}" if name in USER_REGS else name
        facts[f"offsetof({context}, {field})"] = offset
    for name, offset in zip(GPRS32 if word == 4 else GPRS64, vcpu_context._GPRS[word], strict=True):
        facts[f"offsetof({context}, user_regs.{name})"] = offset
    callback = "event_callback_cs" if word == 4 else "event_callback_eip"
    names = ("trap_ctxt", "gdt_frames", "ctrlreg", "debugreg", callback)
    for name, offset in zip(names, vcpu_context._ARRAYS[word], strict=True):
        facts[f"offsetof({context}, {name})"] = offset
    facts["sizeof(struct trap_info)"] = vcpu_context._TRAP_INFO[word].size
    assert len(facts) > 28
    assert_c_agrees(facts, word, tmp_path)


def context(cpu: PvCpu, **fields: int) -> bytes:
    word = cpu.abi.word
    raw = bytearray(vcpu_context.CONTEXT_SIZE[word])
    values = {
        "flags": 4,
        "eip": 0x10000,
        "cs": cpu.abi.flat_kernel_cs,
        "ss": cpu.abi.flat_kernel_ss,
        "esp": 0x12000,
        "eflags": 0x3202,
        "kernel_ss": cpu.abi.flat_kernel_ss,
        "kernel_sp": 0x13000,
    } | fields
    ctrlreg = vcpu_context._ARRAYS[word][2]
    cr3 = values.pop("cr3", cpu.base << 12)
    raw[ctrlreg + 3 * word : ctrlreg + 4 * word] = cr3.to_bytes(word, "little")
    for name, value in values.items():
        offset, code = vcpu_context._FIELDS[word][name]
        size = {"H": 2, "I": 4, "Q": 8}[code]
        raw[offset : offset + size] = value.to_bytes(size, "little")
    return bytes(raw)


@pytest.fixture(params=[PV32, PV64], ids=["pv32", "pv64"])
def cpu(request: pytest.FixtureRequest) -> PvCpu:
    bench = PvCpu(request.param)
    bench.d.mm.xen.initial_state = bench.engine.save_state()
    return bench


def test_a_context_is_taken(cpu: PvCpu) -> None:
    assert arch_set_info_guest(cpu.v, context(cpu)) == 0
    assert cpu.v.is_initialised
    assert (cpu.v.cr3_mfn, cpu.v.kernel_sp, cpu.v.iopl) == (cpu.base, 0x13000, 0x3000)
    assert cpu.v.saved_state


def fxsave(mxcsr: int) -> bytes:
    """An image as the manuals have it: FCW FSW FTW at 0, MXCSR at 24, ST from 32 and XMM from 160."""
    image = bytearray(512)
    struct.pack_into("<HHB", image, 0, 0x27F, 3 << 11 | 0x4100, 0x09)
    struct.pack_into("<I", image, 24, mxcsr)
    for i in range(8):
        image[32 + 16 * i : 42 + 16 * i] = bytes(range(0x10 * i, 0x10 * i + 10))
    for i in range(16):
        image[160 + 16 * i : 176 + 16 * i] = bytes([0xA0 + i]) * 16
    return bytes(image)


def fpu_of(cpu: PvCpu, image: bytes, flags: int) -> bytes:
    """What `fxsave` stores as the first instruction of a vCPU with this image in its context."""
    cpu.engine.load_fpu((0x37F, 0, 0xFF, 0x1F80), [b"\x77" * 10] * 8, [b"\x77" * 16] * 16)  # another's
    raw = bytearray(context(cpu, flags=flags))
    raw[:512] = image
    assert arch_set_info_guest(cpu.v, bytes(raw)) == 0
    assert cpu.v.saved_state
    cpu.engine.load_state(cpu.v.saved_state)
    cpu.run("0f ae 03", bx=DATA)  # fxsave [rbx]
    return bytes(cpu.get(DATA, "512s")[0])  # type: ignore[call-overload]


def test_the_fpu_image_is_loaded(cpu: PvCpu) -> None:
    image = fxsave(0x3F80)
    stored = fpu_of(cpu, image, VGCF_i387_valid | 4)
    registers = 16 if cpu.abi.word == 8 else 8  # as many as the width can name
    assert stored[:5] == image[:5]
    assert stored[24:28] == image[24:28]
    assert [stored[at : at + 10] for at in range(32, 160, 16)] == [
        image[at : at + 10] for at in range(32, 160, 16)
    ]
    assert stored[160 : 160 + 16 * registers] == image[160 : 160 + 16 * registers]


@pytest.mark.parametrize("image", [fxsave(0x3F80), bytes(512)])
def test_an_fpu_image_that_is_not_valid_is_not_looked_at(cpu: PvCpu, image: bytes) -> None:
    stored = fpu_of(cpu, image, 4)
    assert struct.unpack_from("<HHB19xI", stored) == (0x37F, 0, 0, 0x1F80)
    assert not any(stored[160:288])


def test_an_image_that_fxrstor_faults_on_counts_as_zeroes(cpu: PvCpu) -> None:
    stored = fpu_of(cpu, fxsave(0x3F80 | 1 << 16), VGCF_i387_valid | 4)
    assert struct.unpack_from("<HHB19xI", stored) == (0x40, 0, 0, 0)  # bit 6 of FCW is always one
    assert not any(stored[160:288])


@pytest.mark.parametrize(
    "fields",
    [
        {"ldt_base": 0x10, "ldt_ents": 1},
        {"ldt_ents": 8193},
        {"gdt_ents": 16 * 512 + 1},
        {"cr3": 0xFFFFF000},
        {"gdt_ents": 1},  # of frame 0
    ],
)
def test_contexts_that_are_refused(cpu: PvCpu, fields: dict[str, int]) -> None:
    before = cpu.d.frames.count.tolist()
    assert arch_set_info_guest(cpu.v, context(cpu, **fields)) == -EINVAL
    assert not cpu.v.is_initialised
    assert cpu.d.frames.count.tolist() == before


ADDRESSES = ("eip", "esp", "kernel_sp", "fs_base", "gs_base_kernel", "gs_base_user", "ldt_base")


@pytest.mark.parametrize("name", ADDRESSES)
def test_addresses_are_canonical(name: str) -> None:
    assert arch_set_info_guest(PvCpu(PV64).v, context(PvCpu(PV64), **{name: 1 << 63})) == -EINVAL


@pytest.mark.parametrize("callback", range(3))
def test_callbacks_are_canonical(callback: int) -> None:
    cpu = PvCpu(PV64)
    raw = bytearray(context(cpu))
    struct.pack_into("<Q", raw, vcpu_context._ARRAYS[8][4] + 8 * callback, 1 << 63)
    assert arch_set_info_guest(cpu.v, bytes(raw)) == -EINVAL


def test_the_ldt_is_none_of_xens_memory() -> None:
    assert arch_set_info_guest(PvCpu(PV64).v, context(PvCpu(PV64), ldt_base=0xFFFF820000000000)) == -EINVAL


def test_compat_cr3(tmp_path: Path) -> None:
    for pfn in (0, 1, 0x12345, 0xFFFFF, 0x100000, 0xABCDEF01):
        cr3 = (pfn << 12 | pfn >> 20) & 0xFFFFFFFF  # xen_pfn_to_cr3() of xen-x86_32.h
        assert compat_cr3_to_pfn(cr3) == pfn
    assert_c_agrees(
        {"xen_pfn_to_cr3(0x12345678u)": 0x45678123, "xen_cr3_to_pfn(0x45678123u)": 0x12345678}, 4, tmp_path
    )
