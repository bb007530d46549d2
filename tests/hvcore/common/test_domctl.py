from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hvcore.common.domctl import do_domctl, do_paging_domctl_cont
from hvcore.errors import GuestError
from hvcore.public.errno import EACCES, EFAULT, EINVAL, EOPNOTSUPP, EPERM, ESRCH
from hvcore.public.xen import DOMID_INVALID, DOMID_IO

if TYPE_CHECKING:
    from tests.hvcore.conftest import Guest

OWN, NOBODY = 1, 99


def domctl(guest: Guest, cmd: int, domid: int, fmt: str = "", *fields: int, version: int = 0x15) -> int:
    """A domctl with these fields in front of its union, and zeros behind them."""
    guest.d.guest.copy_to(guest.ARG, bytes(144))
    return guest.call(lambda v, _c, arg: do_domctl(v, arg), 0, f"IIH6x{fmt}", cmd, version, domid, *fields)


@pytest.mark.parametrize(
    ("cmd", "domid", "answer"),
    [
        (2, OWN, -EPERM),
        (2, NOBODY, -ESRCH),
        (1, NOBODY, -EPERM),  # createdomain
        (5, NOBODY, -ESRCH),  # getdomaininfo: no domain from there on
        (5, OWN, -EPERM),
        (5, DOMID_INVALID, -EINVAL),
        (37, DOMID_IO, -EPERM),  # assign_device
        (37, DOMID_INVALID, -ESRCH),
        (45, DOMID_INVALID, -EPERM),  # test_assign_device
        (56, DOMID_INVALID, -ESRCH),  # vm_event_op
    ],
)
def test_domains(guest: Guest, cmd: int, domid: int, answer: int) -> None:
    assert domctl(guest, cmd, domid) == answer


@pytest.mark.parametrize(
    ("cmd", "fmt", "fields", "answer"),
    [
        (19, "I", (56,), -EINVAL),
        (19, "I", (55,), -EPERM),
        (20, "QQ", (5, 2**64 - 3), -EINVAL),
        (20, "QQ", (5, 2**64 - 5), -EPERM),
        (21, "II", (0xFFFF, 1), -EPERM),
        (21, "II", (0xFFFF, 2), -EINVAL),
        (39, "QQQ", (0, 1 << 28, 1), -EINVAL),
        (39, "QQQ", (0, (1 << 28) - 1, 1), -EPERM),
        (40, "", (), -EOPNOTSUPP),
        (46, "H", (NOBODY,), -ESRCH),
        (46, "H", (OWN,), -EINVAL),
        (46, "H", (0,), -EOPNOTSUPP),
        (48, "", (), -EINVAL),
    ],
)
def test_arguments_come_first(guest: Guest, cmd: int, fmt: str, fields: tuple[int, ...], answer: int) -> None:
    assert domctl(guest, cmd, OWN, fmt, *fields) == answer
    assert domctl(guest, cmd, NOBODY, fmt, *fields) == -ESRCH


def test_everybody_may_ask_for_the_version_of_vm_event(guest: Guest) -> None:
    assert domctl(guest, 56, DOMID_INVALID, "I", 3) == 0
    assert guest.result("24xI") == (7,)


def test_the_interface_version_and_the_pointer(guest: Guest) -> None:
    assert domctl(guest, 2, OWN, version=0x14) == -EACCES
    for call in (do_domctl, do_paging_domctl_cont):
        with pytest.raises(GuestError) as e:
            call(guest.v, 0x7FFF0000)
        assert e.value.errno == EFAULT


def test_the_continuation_of_a_paging_domctl(guest: Guest) -> None:
    def continued(cmd: int, domid: int, version: int = 0x15) -> int:
        return guest.call(lambda v, _c, arg: do_paging_domctl_cont(v, arg), 0, "IIH134x", cmd, version, domid)

    assert continued(2, OWN) == -EOPNOTSUPP
    assert continued(10, OWN, version=1) == -EOPNOTSUPP
    assert (continued(10, OWN), continued(10, NOBODY)) == (-EPERM, -ESRCH)
