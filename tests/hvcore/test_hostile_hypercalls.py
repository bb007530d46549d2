"""Random hypercalls of every family that needs no processor: an answer each, and nothing breaks."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from hvcore import abi as abi_module
from hvcore.common import refused
from hvcore.common.console import do_console_io
from hvcore.common.domctl import do_domctl
from hvcore.common.event_channel import do_event_channel_op, do_event_channel_op_compat
from hvcore.common.grant_table import do_grant_table_op
from hvcore.common.kernel import do_nmi_op, do_vm_assist, do_xen_version
from hvcore.common.memory import do_memory_op
from hvcore.common.multicall import do_multicall
from hvcore.common.physdev import do_physdev_op, do_physdev_op_compat
from hvcore.common.schedule import do_sched_op, do_sched_op_compat, do_set_timer_op
from hvcore.common.vcpu_op import do_vcpu_op
from hvcore.errors import GuestError
from hvcore.public.errno import NAMES
from tests.hvcore.conftest import NR_PAGES, Guest

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.vcpu import Vcpu

FIRST_MFN = 0x10000
ARG = 0x1000

WORDS = st.one_of(
    st.integers(0, 12),
    st.sampled_from([0x7FF0, 0x7FF4, 0x3000, 0x2FFC, 0xF5800000, 0xFFFFFFFF, 0x80000000, 0x7FFFFFFF]),
    st.integers(FIRST_MFN, FIRST_MFN + NR_PAGES),
    st.integers(0, 0xFFFFFFFF),
)
MEMORY = st.lists(WORDS, min_size=4, max_size=16).map(lambda ws: struct.pack(f"<{len(ws)}I", *ws))
ADDRESSES = st.one_of(
    st.just(ARG),
    st.sampled_from([0, 1, 0xFFE, 0x1FF9, (NR_PAGES << 12) - 4, NR_PAGES << 12, 0x7FFF0000, 0xF5800000]),
    st.integers(0, (1 << 64) - 1),
)


def dispatch(_v: Vcpu, number: int, args: tuple[int, ...]) -> int:
    return number + args[0]


# name -> call(vcpu, a, b, c) with small a, address b, word c
FAMILIES: dict[str, Callable[[Vcpu, int, int, int], int]] = {
    "event_channel_op": lambda v, a, b, _: do_event_channel_op(v, a, b),
    "event_channel_op_compat": lambda v, _a, b, _c: do_event_channel_op_compat(v, b),
    "sched_op": lambda v, a, b, _: do_sched_op(v, a, b),
    "sched_op_compat": lambda v, a, b, _: do_sched_op_compat(v, a, b),
    "set_timer_op": lambda v, _a, b, c: do_set_timer_op(v, b | c << 32 & 0xFFFFFFFF00000000),
    "memory_op": lambda v, a, b, c: do_memory_op(v, a | (c & 0xF) << 6, b),
    "xen_version": lambda v, a, b, _: do_xen_version(v, a, b),
    "vm_assist": lambda v, a, _b, c: do_vm_assist(v, a & 3, c),
    "nmi_op": lambda v, a, b, _: do_nmi_op(v, a, b),
    "console_io": lambda v, a, b, c: do_console_io(v, a, c, b),
    "physdev_op": lambda v, a, b, _: do_physdev_op(v, a, b),
    "physdev_op_compat": lambda v, _a, b, _c: do_physdev_op_compat(v, b),
    "grant_table_op": lambda v, a, b, c: do_grant_table_op(v, a % 16, b, c & 3),
    "vcpu_op": lambda v, a, b, c: do_vcpu_op(v, a if a else 1, c & 3, b),
    "multicall": lambda v, _a, b, c: do_multicall(v, b, c & 7, dispatch),
    "hvm_op": lambda v, a, b, _: refused.do_hvm_op(v, a, b),
    "dm_op": lambda v, a, b, c: refused.do_dm_op(v, c, a & 3, b),
    "domctl": lambda v, _a, b, _c: do_domctl(v, b),
    "sysctl": lambda v, _a, b, _c: refused.do_sysctl(v, b),
    "platform_op": lambda v, _a, b, _c: refused.do_platform_op(v, b),
}
CALLS = st.tuples(st.sampled_from(sorted(FAMILIES)), st.integers(0, 33), ADDRESSES, WORDS, MEMORY)


def call(guest: Guest, name: str, a: int, b: int, c: int) -> int:
    try:
        return FAMILIES[name](guest.v, a, b & guest.d.abi.word_mask, c)
    except GuestError as e:
        return -e.errno


def check(guest: Guest) -> None:
    """What must hold whatever a guest did."""
    d = guest.d
    t = d.evtchn
    assert t.active_evtchns == sum(state > 1 for state in t.state)
    assert t.pollers == sum(v.poll_evtchn is not None for v in d.vcpus)
    assert d.tot_pages <= d.max_pages
    gt = d.grant_table
    assert all(act.pin > 0 for act in gt.active.values())
    assert all(gt.version == 2 or not gt.status for _ in (0,))
    assert len(d.clock.timers._live) <= 8


@pytest.mark.parametrize("abi", [abi_module.PV32_PAE, abi_module.PV64], ids=["pv32", "pv64"])
@settings(max_examples=150, deadline=None)
@given(calls=st.lists(CALLS, min_size=1, max_size=40))
def test_every_call_is_answered(abi: abi_module.Abi, calls: list[tuple[str, int, int, int, bytes]]) -> None:
    guest = Guest(abi, 2)
    for name, a, b, c, memory in calls:
        guest.d.guest.copy_to(ARG, memory)
        rc = call(guest, name, a, b, c)
        assert isinstance(rc, int)
        assert rc >= 0 or -rc in NAMES or name == "multicall", (name, a, hex(b), c, rc)
        guest.v.pause_flags = 0
        if guest.v.poll_evtchn is not None:
            guest.v.poll_evtchn = None
            guest.d.evtchn.pollers -= 1
        check(guest)
    guest.run_to(1 << 40)
    check(guest)
