"""The hypercall page against what guests read of it under real Xen, and dispatch by number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hvcore.public.errno import EFAULT, ENOSYS
from hvcore.public.xen import NR_HYPERCALLS, Hypercall
from hvcore.pv.frames32 import Frames32
from hvcore.pv.frames64 import Frames64
from hvcore.pv.hypercall import HypercallTable, init_hypercall_page
from tests.hvcore.pv_cpu import HOLE, PV32, PV64, PvCpu

REFERENCE = Path(__file__).resolve().parents[2] / "data" / "initial-state"
# Arguments of each hypercall as xen/include/hypercall-defs.c of Xen 4.17 declares them for 64-bit PV guests.
ARGUMENTS = {
    "set_trap_table": 1, "mmu_update": 4, "set_gdt": 2, "stack_switch": 2, "set_callbacks": 3,
    "fpu_taskswitch": 1, "sched_op_compat": 2, "platform_op": 1, "set_debugreg": 2, "get_debugreg": 1,
    "update_descriptor": 2, "memory_op": 2, "multicall": 2, "update_va_mapping": 3, "set_timer_op": 1,
    "event_channel_op_compat": 1, "xen_version": 2, "console_io": 3, "physdev_op_compat": 1,
    "grant_table_op": 3, "vm_assist": 2, "update_va_mapping_otherdomain": 4, "vcpu_op": 3,
    "set_segment_base": 2, "mmuext_op": 4, "xsm_op": 1, "nmi_op": 2, "sched_op": 2, "callback_op": 2,
    "xenoprof_op": 2, "event_channel_op": 2, "physdev_op": 2, "hvm_op": 2, "sysctl": 1, "domctl": 1,
    "kexec_op": 2, "argo_op": 5, "xenpmu_op": 2, "dm_op": 3, "hypfs_op": 5, "mca": 1,
    "paging_domctl_cont": 1,
}  # fmt: skip
# Where a 64-bit value takes two arguments of a 32-bit guest.
ARGUMENTS32 = ARGUMENTS | {
    "set_callbacks": 4, "update_descriptor": 4, "update_va_mapping": 4, "set_timer_op": 2,
    "update_va_mapping_otherdomain": 5,
}  # fmt: skip


@pytest.mark.parametrize(("width", "ring1"), [("32", True), ("64", False)])
def test_the_page_is_xens(width: str, ring1: bool) -> None:
    page = bytearray(4096)
    init_hypercall_page(memoryview(page), ring1=ring1)
    seen = 0
    for line in (REFERENCE / f"domU-{width}.txt").read_text().splitlines():
        found = re.match(r"HYPERCALL_PAGE\[(\d+)[^\]]*\]: ([0-9a-f_ ]+)$", line)
        if found:
            data = bytes.fromhex(found[2].replace("_", " "))
            at = 32 * int(found[1])
            assert page[at : at + len(data)] == data, line
            seen += 1
    assert seen >= 5
    assert all(page[32 * n + 28 : 32 * n + 32] == b"\xcc" * 4 for n in range(128))


@pytest.fixture(params=[PV32, PV64], ids=["pv32", "pv64"])
def cpu(request: pytest.FixtureRequest) -> PvCpu:
    return PvCpu(request.param)


@pytest.fixture
def table(cpu: PvCpu) -> HypercallTable:
    return HypercallTable(cpu.d, (Frames32 if cpu.abi.is_32bit else Frames64)(cpu.d.vcpus))


def test_arguments_are_as_many_as_xens(cpu: PvCpu, table: HypercallTable) -> None:
    wanted = ARGUMENTS32 if cpu.abi.is_32bit else ARGUMENTS
    have = {Hypercall(n).name: table.arity[n] for n, handler in enumerate(table.handlers) if handler}
    assert have == wanted


def test_numbers_that_are_none(cpu: PvCpu, table: HypercallTable) -> None:
    known = {int(Hypercall[name]) for name in ARGUMENTS} | {int(Hypercall.iret)}
    unknown = [
        n for n in (*range(NR_HYPERCALLS), NR_HYPERCALLS, 127, 1 << 31, (1 << 64) - 1) if n not in known
    ]
    assert len(unknown) > 20
    for number in unknown:
        assert table.dispatch(cpu.v, number, (0,) * 6) == -ENOSYS
    assert sum(cpu.d.trace.unknown_hypercalls.values()) == len(unknown)
    assert not any(cpu.d.trace.hypercalls)


def test_errors_are_results(cpu: PvCpu, table: HypercallTable) -> None:
    number = int(Hypercall.set_trap_table)
    assert table.dispatch(cpu.v, number, (HOLE, 1, 2, 3, 4, 5)) == -EFAULT
    assert cpu.d.trace.hypercalls[number] == 1
