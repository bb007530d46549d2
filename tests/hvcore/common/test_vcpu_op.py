from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest

from hvcore.common.schedule import schedule_in
from hvcore.common.vcpu_op import do_vcpu_op
from hvcore.errors import GuestError
from hvcore.public import vcpu as pub
from hvcore.public.errno import EEXIST, EFAULT, EINVAL, ENOENT, ENOSYS, ENXIO
from hvcore.public.sched import SHUTDOWN_poweroff
from hvcore.public.vcpu_guest_context import VCPU_GUEST_CONTEXT_SIZE
from hvcore.public.xen import VIRQ_TIMER
from hvcore.vcpu import RUNSTATE_running, VPF_blocked, VPF_down
from tests.hvcore.common.test_schedule import bind_timer

if TYPE_CHECKING:
    from hvcore.vcpu import Vcpu
    from tests.hvcore.conftest import Guest

AREA = 0x5000


def op(guest: Guest, cmd: int, vcpuid: int, fmt: str = "", *fields: int, vcpu: int = 0) -> int:
    return guest.call(lambda v, c, arg: do_vcpu_op(v, c, vcpuid, arg), cmd, fmt, *fields, vcpu=vcpu)


def handle(guest: Guest) -> str:
    return "I4x" if guest.d.abi.word == 4 else "Q"


def test_up_down_and_is_up(guest: Guest) -> None:
    other = guest.d.vcpus[1]
    assert op(guest, pub.VCPUOP_is_up, 0) == 1
    assert op(guest, pub.VCPUOP_is_up, 1) == 0
    assert op(guest, pub.VCPUOP_up, 1) == -EINVAL  # not initialised
    other.is_initialised = True
    assert op(guest, pub.VCPUOP_up, 1) == 0
    assert other.pause_flags == 0
    assert op(guest, pub.VCPUOP_up, 1) == 0
    assert op(guest, pub.VCPUOP_down, 0) == 0
    assert guest.v.pause_flags == VPF_down
    assert guest.reschedules == 1
    assert op(guest, pub.VCPUOP_is_up, 2) == -ENOENT


def test_the_last_vcpu_down_powers_off(guest: Guest) -> None:
    assert op(guest, pub.VCPUOP_down, 0) == 0
    assert guest.d.shutdown_code == SHUTDOWN_poweroff


def test_initialise_order_of_refusals(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    vcpu_context: Any = pytest.importorskip("hvcore.pv.vcpu_context")
    raws: list[bytes] = []

    def noted(_v: Vcpu, raw: bytes) -> int:
        raws.append(raw)
        return 0

    monkeypatch.setattr(vcpu_context, "arch_set_info_guest", noted)
    size = VCPU_GUEST_CONTEXT_SIZE[guest.d.abi.word]
    assert do_vcpu_op(guest.v, pub.VCPUOP_initialise, 0, guest.ARG) == -EEXIST
    assert do_vcpu_op(guest.v, pub.VCPUOP_initialise, 1, guest.ARG) == 0
    assert [len(raw) for raw in raws] == [size]
    with pytest.raises(GuestError) as e:
        do_vcpu_op(guest.v, pub.VCPUOP_initialise, 0, 0x7FFF0000)
    assert e.value.errno == EFAULT


def test_runstate_info(guest: Guest) -> None:
    schedule_in(guest.v)
    guest.run_to(900)
    assert do_vcpu_op(guest.v, pub.VCPUOP_get_runstate_info, 0, AREA) == 0
    fmt = "<iQ4Q" if guest.d.abi.word == 4 else "<i4xQ4Q"
    info = struct.unpack(fmt, guest.d.guest.copy_from(AREA, struct.calcsize(fmt)))
    assert info == (RUNSTATE_running, 0, 900, 0, 0, 0)


def test_runstate_area(guest: Guest) -> None:
    guest.run_to(50)
    schedule_in(guest.v)
    assert op(guest, pub.VCPUOP_register_runstate_memory_area, 0, handle(guest), AREA) == 0
    assert guest.v.runstate_guest == AREA
    assert guest.d.guest.read_u32(AREA) == RUNSTATE_running
    outside = 0xF5800000 if guest.d.abi.word == 4 else 1 << 47
    assert op(guest, pub.VCPUOP_register_runstate_memory_area, 0, handle(guest), outside) == -EFAULT
    assert guest.v.runstate_guest == AREA


def test_periodic_timer_limits(guest: Guest) -> None:
    assert op(guest, pub.VCPUOP_set_periodic_timer, 0, "Q", 999_999) == -EINVAL
    assert op(guest, pub.VCPUOP_set_periodic_timer, 0, "Q", 1 << 62) == -EINVAL
    assert op(guest, pub.VCPUOP_set_periodic_timer, 1, "Q", 1_000_000) == 0
    assert guest.d.vcpus[1].periodic_period == 1_000_000
    assert op(guest, pub.VCPUOP_stop_periodic_timer, 1) == 0
    assert guest.d.vcpus[1].periodic_period == 0


def test_singleshot_timer(guest: Guest) -> None:
    port = bind_timer(guest)
    fmt = "QI" if guest.d.abi.word == 4 else "QI4x"
    guest.run_to(1000)
    assert op(guest, pub.VCPUOP_set_singleshot_timer, 1, fmt, 2000, 0) == -EINVAL
    assert op(guest, pub.VCPUOP_set_singleshot_timer, 0, fmt, 2000, 0) == 0
    assert guest.d.clock.expires(("singleshot", 0)) == 2000
    assert op(guest, pub.VCPUOP_stop_singleshot_timer, 1) == -EINVAL
    assert op(guest, pub.VCPUOP_stop_singleshot_timer, 0) == 0
    assert guest.d.clock.expires(("singleshot", 0)) is None
    # a time that has passed: the event at once, whatever the flags
    assert op(guest, pub.VCPUOP_set_singleshot_timer, 0, fmt, 999, 1) == 0
    assert guest.d.evtchn.port_poll(port) == 1
    assert VIRQ_TIMER == 0


def test_register_vcpu_info_moves_it(guest: Guest) -> None:
    v = guest.v
    v.info[1] = 0
    mfn = guest.d.mem.first_mfn + 9
    assert op(guest, pub.VCPUOP_register_vcpu_info, 0, "QII", mfn, 0x100, 0) == 0
    frame = guest.memory(9)
    word = guest.d.abi.word
    assert frame[0x100] == 1
    assert bytes(frame[0x100 + word : 0x100 + 2 * word]) == b"\xff" * word
    assert struct.unpack_from("<I", frame, 0x120)[0] % 2 == 0
    v.info[0] = 0
    assert frame[0x100] == 0
    assert op(guest, pub.VCPUOP_register_vcpu_info, 0, "QII", mfn, 0x200, 0) == -EINVAL
    assert guest.d.frames.tcount[mfn - guest.d.mem.base_mfn] == 1


def test_register_vcpu_info_refusals(guest: Guest) -> None:
    mfn = guest.d.mem.first_mfn + 9

    def register(mfn: int, offset: int, vcpuid: int = 0) -> int:
        return op(guest, pub.VCPUOP_register_vcpu_info, vcpuid, "QII", mfn, offset, 0)

    assert register(mfn, 4096 - 63) == -ENXIO
    assert register(mfn, 2) == -ENXIO
    assert register(mfn, 4) == (0 if guest.d.abi.word == 4 else -ENXIO)
    guest.v.info_mfn = None
    assert register(3, 0) == -EINVAL
    guest.mm.make_table(mfn)
    assert register(mfn, 0) == -EINVAL
    guest.d.vcpus[1].pause_flags = 0
    assert register(mfn + 1, 0, vcpuid=1) == -EINVAL  # somebody else's, and running
    guest.d.vcpus[1].pause_flags = VPF_down
    assert register(mfn + 1, 0, vcpuid=1) == 0


def test_time_area(guest: Guest) -> None:
    guest.run_to(60)
    assert op(guest, pub.VCPUOP_register_vcpu_time_memory_area, 0, handle(guest), AREA) == 0
    assert guest.d.guest.copy_from(AREA, 32) == bytes(guest.v.info[0x20:0x40])
    assert int.from_bytes(guest.d.guest.copy_from(AREA + 16, 8), "little") == 60


def test_send_nmi(guest: Guest) -> None:
    other = guest.d.vcpus[1]
    other.pause_flags = VPF_blocked
    assert do_vcpu_op(guest.v, pub.VCPUOP_send_nmi, 1, 4) == -EINVAL
    assert do_vcpu_op(guest.v, pub.VCPUOP_send_nmi, 1, 0) == 0
    assert other.nmi_pending
    assert other.pause_flags == 0


def test_unknown_and_not_for_us(guest: Guest) -> None:
    assert do_vcpu_op(guest.v, 14, 0, 0) == -ENOSYS
    assert do_vcpu_op(guest.v, 0xFFFFFFFF, 0, 0) == -ENOSYS
    assert do_vcpu_op(guest.v, pub.VCPUOP_get_physid, 0, AREA) == -EINVAL
    assert do_vcpu_op(guest.v, pub.VCPUOP_is_up, 0xFFFFFFFF, 0) == -ENOENT


@pytest.mark.parametrize("cmd", [4, 5, 6, 8, 10, 13])
def test_bad_pointers(guest: Guest, cmd: int) -> None:
    with pytest.raises(GuestError) as e:
        do_vcpu_op(guest.v, cmd, 0, 0x7FFF0000)
    assert e.value.errno == EFAULT
