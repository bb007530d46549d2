"""struct vcpu_guest_context: every offset against Xen's headers, and contexts that are refused."""

from __future__ import annotations

import struct

import pytest

from hvcore.public.errno import EINVAL
from hvcore.public.vcpu_guest_context import VCPU_GUEST_CONTEXT, VCPU_GUEST_CONTEXT_SIZE, VGCF_i387_valid
from hvcore.pv.vcpu_context import arch_set_info_guest
from tests.hvcore.pv_cpu import DATA, PV32, PV64, PvCpu


def context(cpu: PvCpu, **fields: int) -> bytes:
    word = cpu.abi.word
    raw = bytearray(VCPU_GUEST_CONTEXT_SIZE[word])
    values = {
        "vgcf": 4,
        "ip": 0x10000,
        "cs": cpu.abi.flat_kernel_cs,
        "ss": cpu.abi.flat_kernel_ss,
        "sp": 0x12000,
        "flags": 0x3202,
        "kernel_ss": cpu.abi.flat_kernel_ss,
        "kernel_sp": 0x13000,
    } | fields
    values.setdefault("cr3", cpu.base << 12)
    for name, value in values.items():
        offset, code = VCPU_GUEST_CONTEXT[word][name]
        struct.pack_into("<" + code, raw, offset, value)
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
    raw = bytearray(context(cpu, vgcf=flags))
    raw[:512] = image
    assert arch_set_info_guest(cpu.v, bytes(raw)) == 0
    assert cpu.v.saved_state
    cpu.engine.load_state(cpu.v.saved_state)
    cpu.run("0f ae 03", bx=DATA)  # fxsave [rbx]
    return bytes(cpu.get(DATA, "512s")[0])


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


ADDRESSES = ("ip", "sp", "kernel_sp", "fs_base", "gs_base_kernel", "gs_base_user", "ldt_base")


@pytest.mark.parametrize("name", ADDRESSES)
def test_addresses_are_canonical(name: str) -> None:
    assert arch_set_info_guest(PvCpu(PV64).v, context(PvCpu(PV64), **{name: 1 << 63})) == -EINVAL


@pytest.mark.parametrize("callback", range(3))
def test_callbacks_are_canonical(callback: int) -> None:
    cpu = PvCpu(PV64)
    raw = bytearray(context(cpu))
    struct.pack_into("<Q", raw, VCPU_GUEST_CONTEXT[8]["callbacks"][0] + 8 * callback, 1 << 63)
    assert arch_set_info_guest(cpu.v, bytes(raw)) == -EINVAL


def test_the_ldt_is_none_of_xens_memory() -> None:
    assert arch_set_info_guest(PvCpu(PV64).v, context(PvCpu(PV64), ldt_base=0xFFFF820000000000)) == -EINVAL
