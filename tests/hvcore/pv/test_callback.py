"""set_trap_table, callback_op and set_callbacks: rows taken, selectors raised, addresses refused."""

from __future__ import annotations

import struct

import pytest

from hvcore.public.errno import EFAULT, EINVAL, ENOSYS
from hvcore.pv.callback import do_callback_op, do_set_callbacks, do_set_trap_table
from tests.hvcore.pv_cpu import DATA, HOLE, PV32, PV64, PvCpu, call

TRAP_INFO = {4: "<BBHI", 8: "<BBH4xQ"}
REGISTER = {4: "<HHII", 8: "<HH4xQ"}
BAD = 0x8000_0000_0000_0000


@pytest.fixture(params=[PV32, PV64], ids=["pv32", "pv64"])
def cpu(request: pytest.FixtureRequest) -> PvCpu:
    return PvCpu(request.param)


def traps(cpu: PvCpu, *rows: tuple[int, int, int, int]) -> int:
    layout = TRAP_INFO[cpu.abi.word]
    cpu.put(DATA, b"".join(struct.pack(layout, *row) for row in (*rows, (0, 0, 0, 0))))
    return call(do_set_trap_table, cpu.v, DATA)


def register(cpu: PvCpu, kind: int, address: int, flags: int = 0, cs: int = 0x18) -> int:
    fields = (kind, flags, cs, address) if cpu.abi.word == 4 else (kind, flags, address)
    cpu.put(DATA, struct.pack(REGISTER[cpu.abi.word], *fields))
    return call(do_callback_op, cpu.v, 0, DATA)


def unregister(cpu: PvCpu, kind: int) -> int:
    cpu.put(DATA, struct.pack("<HH", kind, 0))
    return call(do_callback_op, cpu.v, 1, DATA)


def test_rows_up_to_the_first_without_an_address(cpu: PvCpu) -> None:
    assert traps(cpu, (3, 3, 0x19, 0x1000), (14, 4, 0x1B, 0x2000)) == 0
    ring = cpu.abi.kernel_cpl
    assert cpu.v.trap_ctxt[3] == (3, 0x18 | max(1, ring), 0x1000)
    assert cpu.v.trap_ctxt[14] == (4, 0x1B, 0x2000)
    assert traps(cpu, (5, 0, 0x18, 0), (6, 0, 0x18, 0x3000)) == 0
    assert cpu.v.trap_ctxt[6] == (0, 0, 0)
    assert cpu.v.trap_ctxt[3][2] == 0x1000  # the others stay
    assert call(do_set_trap_table, cpu.v, 0) == 0
    assert set(cpu.v.trap_ctxt) == {(0, 0, 0)}


@pytest.mark.parametrize("selector", [0x18, 0x19, 0x1A, 0x1B, 0, 3, 0xE019])
def test_selectors_are_raised_to_the_kernels_ring(cpu: PvCpu, selector: int) -> None:
    assert traps(cpu, (6, 0, selector, 0x1000)) == 0
    assert cpu.v.trap_ctxt[6][1] == selector & ~3 | max(selector & 3, cpu.abi.kernel_cpl)


def test_tables_that_cannot_be_taken(cpu: PvCpu) -> None:
    assert call(do_set_trap_table, cpu.v, HOLE) == -EFAULT
    assert (
        call(do_set_trap_table, cpu.v, 0xFFF00000 if cpu.abi.is_32bit else cpu.abi.hypervisor_virt_start)
        == -EFAULT
    )
    if not cpu.abi.is_32bit:
        assert traps(cpu, (6, 0, 0x33, 0x1000), (7, 0, 0x33, BAD)) == -EINVAL
        assert cpu.v.trap_ctxt[6][2] == 0x1000
        assert cpu.v.trap_ctxt[7] == (0, 0, 0)


@pytest.mark.parametrize(
    ("kind", "pv32", "pv64"),
    [(0, 0, 0), (1, 0, 0), (2, ENOSYS, 0), (3, ENOSYS, ENOSYS), (4, 0, 0), (5, 0, 0), (6, ENOSYS, ENOSYS),
     (7, 0, 0), (8, ENOSYS, ENOSYS), (0xFFFF, ENOSYS, ENOSYS)],
)  # fmt: skip
def test_kinds_of_callbacks(cpu: PvCpu, kind: int, pv32: int, pv64: int) -> None:
    assert register(cpu, kind, 0x4000, flags=1) == -(pv32 if cpu.abi.is_32bit else pv64)
    if kind in (0, 1):
        cs = 0x19 if cpu.abi.is_32bit else cpu.abi.flat_kernel_cs
        assert cpu.v.callbacks[kind] == (cs, 0x4000, 1)
    if kind == 4:  # an NMI masks events
        assert cpu.v.trap_ctxt[2] == (4, cpu.abi.flat_kernel_cs, 0x4000)


def test_only_the_nmi_callback_is_given_up(cpu: PvCpu) -> None:
    assert register(cpu, 4, 0x4000) == 0
    assert unregister(cpu, 4) == 0
    assert cpu.v.trap_ctxt[2] == (0, 0, 0)
    for kind in (0, 1, 5, 7):
        assert unregister(cpu, kind) == -EINVAL
    assert unregister(cpu, 99) == -ENOSYS


def test_what_callback_op_refuses(cpu: PvCpu) -> None:
    assert call(do_callback_op, cpu.v, 2, DATA) == -(EINVAL if cpu.abi.is_32bit else ENOSYS)
    assert call(do_callback_op, cpu.v, 0, HOLE) == -EFAULT
    assert call(do_callback_op, cpu.v, 1, HOLE) == -EFAULT
    if not cpu.abi.is_32bit:
        for kind in (0, 1, 2, 4):
            before = dict(cpu.v.callbacks)
            assert register(cpu, kind, BAD) == -EINVAL
            assert cpu.v.callbacks == before


def test_set_callbacks(cpu: PvCpu) -> None:
    arguments = (0x18, 0x1000, 0x1B, 0x2000) if cpu.abi.is_32bit else (0x1000, 0x2000, 0x3000)
    assert call(do_set_callbacks, cpu.v, *arguments) == 0
    assert [cpu.v.callbacks[kind][1] for kind in (0, 1)] == [0x1000, 0x2000]
    if cpu.abi.is_32bit:
        assert [cpu.v.callbacks[kind][0] for kind in (0, 1)] == [0x19, 0x1B]
    else:
        assert cpu.v.callbacks[2][1] == 0x3000
