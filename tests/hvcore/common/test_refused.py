from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hvcore.common import refused
from hvcore.common.console import do_console_io
from hvcore.common.physdev import do_physdev_op, do_physdev_op_compat
from hvcore.errors import GuestError
from hvcore.public import physdev as p
from hvcore.public.errno import (
    E2BIG,
    EACCES,
    EBUSY,
    EFAULT,
    EINVAL,
    ENODATA,
    ENODEV,
    ENOSPC,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    ESRCH,
)
from hvcore.public.xen import DOMID_SELF

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hvcore.conftest import Guest

NOWHERE = 0x7FFF0000


def privileged(guest: Guest, call: Callable[..., int], fmt: str, *fields: int) -> int:
    return guest.call(lambda v, _c, arg: call(v, arg), 0, fmt, *fields)


def test_sysctl_and_platform_op(guest: Guest) -> None:
    assert privileged(guest, refused.do_sysctl, "II128x", 1, 0x15) == -EPERM
    assert privileged(guest, refused.do_sysctl, "II128x", 1, 1) == -EACCES
    assert privileged(guest, refused.do_platform_op, "II128x", 1, 0x03000001) == -EPERM
    assert privileged(guest, refused.do_platform_op, "II128x", 1, 0) == -EACCES
    for call in (refused.do_sysctl, refused.do_platform_op):
        with pytest.raises(GuestError) as e:
            call(guest.v, NOWHERE)
        assert e.value.errno == EFAULT


def test_hvm_op_of_a_pv_domain(guest: Guest) -> None:
    def hvm(op: int, fmt: str = "", *fields: int) -> int:
        return guest.call(refused.do_hvm_op, op, fmt, *fields)

    assert hvm(0, "H2xIQ", DOMID_SELF, 0, 0) == -EINVAL
    assert hvm(1, "H2xIQ", 50, 0, 0) == -ESRCH
    assert hvm(1, "H2xIQ", 50, 39, 0) == -EINVAL
    assert refused.do_hvm_op(guest.v, 5, 0) == -EINVAL
    assert hvm(9, "H6xQ", DOMID_SELF, 0) == -EINVAL
    assert hvm(9, "H6xQ", 0, 0) == -EOPNOTSUPP
    assert hvm(15, "HHH2xQ", 0, 0, 0, 0) == -EPERM
    assert hvm(15, "HHH2xQ", DOMID_SELF, 0, 0, 0) == -EINVAL
    assert hvm(11, "HH28x", 0x1000, 0) == -EINVAL
    assert hvm(11, "HH28x", 5, 29) == -EINVAL
    assert hvm(11, "HH28x", 5, 28) == 0
    assert hvm(23) == -EINVAL
    assert hvm(25) == -EOPNOTSUPP
    assert (refused.do_hvm_op(guest.v, 24, 0), refused.do_hvm_op(guest.v, 24, 8)) == (0, -EINVAL)
    assert hvm(2) == -ENOSYS
    guest.run_to(4321)
    assert hvm(10) == 0
    assert guest.result("Q") == (4321,)


def test_the_others(guest: Guest) -> None:
    v = guest.v
    assert refused.do_dm_op(v, 0, 3, NOWHERE) == -E2BIG
    assert refused.do_dm_op(v, guest.d.domain_id, 0, NOWHERE) == -ENODATA
    assert refused.do_dm_op(v, guest.d.domain_id, 1, 0x1000) == -EPERM
    assert refused.do_dm_op(v, 0, 1, 0x1000) == -EINVAL
    assert refused.do_dm_op(v, 44, 2, 0x1000) == -ESRCH
    assert refused.do_kexec_op(v, 0, 0) == -EPERM
    assert refused.do_hypfs_op(v, 0, 0, 0, 0, 0) == -EPERM
    assert refused.do_mca(v, NOWHERE) == -EPERM
    assert refused.do_xenpmu_op(v, 0, 0) == -EOPNOTSUPP
    assert refused.do_xsm_op(v, 0) == -ENOSYS
    assert refused.do_argo_op(v, 0, 0, 0, 0, 0) == -ENOSYS
    assert [do_console_io(v, cmd, 5, 0x1000) for cmd in (0, 1, 2)] == [-EPERM] * 3


def test_xenoprof(guest: Guest) -> None:
    v = guest.v
    assert [refused.do_xenoprof_op(v, op, 0x1000) for op in (1, 8, 17, 18)] == [-EPERM] * 3 + [-EINVAL]
    assert refused.do_xenoprof_op(v, 14, NOWHERE) == -EBUSY  # get_buffer: as where the counters are taken
    assert guest.call(refused.do_xenoprof_op, 0, "ii64s", 1, 1, b"\xff" * 64) == 0
    assert guest.result("ii64s") == (4, 0, b"x86-64/hammer\0" + b"\xff" * 50)


def physdev(guest: Guest, cmd: int, fmt: str, *fields: int) -> int:
    return guest.call(do_physdev_op, cmd, fmt, *fields)


def test_iopl_and_io_bitmap(guest: Guest) -> None:
    assert physdev(guest, p.PHYSDEVOP_set_iopl, "I", 3) == 0
    assert guest.v.iopl == 0x3000
    assert physdev(guest, p.PHYSDEVOP_set_iopl, "I", 4) == -EINVAL
    fmt = "II" if guest.d.abi.word == 4 else "QI4x"
    assert physdev(guest, p.PHYSDEVOP_set_iobitmap, fmt, 0x5000, 65536) == 0
    assert (guest.v.iobmp, guest.v.iobmp_limit) == (0x5000, 65536)
    assert physdev(guest, p.PHYSDEVOP_set_iobitmap, fmt, 0x5000, 65537) == -EINVAL
    xens = 0xF57FFF00 if guest.d.abi.word == 4 else 1 << 47
    assert physdev(guest, p.PHYSDEVOP_set_iobitmap, fmt, xens, 1) == -EINVAL


def test_pirqs_of_a_guest_without_devices(guest: Guest) -> None:
    assert physdev(guest, p.PHYSDEVOP_eoi, "I", 55) == -EINVAL
    assert physdev(guest, p.PHYSDEVOP_get_free_pirq, "iI", 0, 0) == 0
    assert guest.result("iI") == (0, 55)
    assert physdev(guest, p.PHYSDEVOP_eoi, "I", 55) == 0
    assert physdev(guest, p.PHYSDEVOP_get_free_pirq, "iI", 1, 0) == 0
    assert guest.result("iI") == (1, 16)
    for _ in range(31):
        assert physdev(guest, p.PHYSDEVOP_get_free_pirq, "iI", 0, 0) == 0
    assert physdev(guest, p.PHYSDEVOP_get_free_pirq, "iI", 0, 0) == -ENOSPC
    assert physdev(guest, p.PHYSDEVOP_irq_status_query, "II", 3, 7) == 0
    assert guest.result("II") == (3, 1)
    assert physdev(guest, p.PHYSDEVOP_irq_status_query, "II", 56, 7) == -EINVAL


def test_the_eoi_page(guest: Guest) -> None:
    fmt = guest.d.abi.word_format
    mfn = guest.d.mem.first_mfn + 8
    assert physdev(guest, p.PHYSDEVOP_pirq_eoi_gmfn_v2, fmt, 5) == -EINVAL
    assert physdev(guest, p.PHYSDEVOP_pirq_eoi_gmfn_v2, fmt, mfn) == 0
    assert physdev(guest, p.PHYSDEVOP_pirq_eoi_gmfn_v1, fmt, mfn) == -EBUSY
    i = mfn - guest.d.mem.base_mfn
    assert (guest.d.frames.count[i], guest.d.frames.tcount[i]) == (2, 1)


def test_devices_are_not_for_us(guest: Guest) -> None:
    wide = guest.d.abi.word == 8
    map_pirq = "H2xiiiiii4xQ" if wide else "H2xiiiiiiQ"
    assert physdev(guest, p.PHYSDEVOP_map_pirq, map_pirq, DOMID_SELF, 3, 1, 2, 3, 4, 5, 6) == -EPERM
    assert guest.result(map_pirq) == (DOMID_SELF, 0, 1, 2, 3, 4, 5, 6)
    assert physdev(guest, p.PHYSDEVOP_map_pirq, map_pirq, 70, 0, 1, 2, 3, 4, 5, 6) == -ESRCH
    assert physdev(guest, p.PHYSDEVOP_map_pirq, map_pirq, DOMID_SELF, 4, 1, 2, 3, 4, 5, 6) == -EINVAL
    assert physdev(guest, p.PHYSDEVOP_unmap_pirq, "H2xi", DOMID_SELF, 1) == -EPERM
    assert physdev(guest, p.PHYSDEVOP_setup_gsi, "iBB2x", 24, 0, 0) == -EINVAL
    assert physdev(guest, p.PHYSDEVOP_setup_gsi, "iBB2x", 3, 0, 0) == -EPERM
    assert physdev(guest, p.PHYSDEVOP_manage_pci_add_ext, "BB2xIIBB2x", 0, 0, 2, 0, 0, 0) == -EINVAL
    assert physdev(guest, p.PHYSDEVOP_restore_msi, "BB", 0, 0) == -ENODEV
    for cmd in (8, 9, 10, 15, 16, 20, 24, 25, 26, 29, 30, 31):
        assert physdev(guest, cmd, "64x") == -EPERM
    for cmd in (0, 1, 11, 18, 22, 32):
        assert physdev(guest, cmd, "64x") == -ENOSYS
    assert physdev(guest, p.PHYSDEVOP_IRQ_UNMASK_NOTIFY, "") == 0


def test_physdev_op_compat(guest: Guest) -> None:
    fmt = "II8x" if guest.d.abi.word == 4 else "I4xI12x"
    assert guest.call(lambda v, _c, arg: do_physdev_op_compat(v, arg), 0, fmt, p.PHYSDEVOP_set_iopl, 2) == 0
    assert guest.v.iopl == 0x2000


@pytest.mark.parametrize("cmd", [5, 6, 7, 8, 10, 12, 13, 14, 15, 17, 19, 20, 21, 23, 25, 26, 30])
def test_bad_pointers(guest: Guest, cmd: int) -> None:
    with pytest.raises(GuestError) as e:
        do_physdev_op(guest.v, cmd, NOWHERE)
    assert e.value.errno == EFAULT
