from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from hvcore.common.kernel import do_nmi_op, do_vm_assist, do_xen_version
from hvcore.errors import GuestError
from hvcore.public.errno import EFAULT, EINVAL, ENOSYS, EPERM

if TYPE_CHECKING:
    from tests.hvcore.conftest import Guest


def version(guest: Guest, cmd: int, arg: int = 0x1000) -> int:
    return do_xen_version(guest.v, cmd, arg)


def text(guest: Guest, size: int) -> bytes:
    return guest.d.guest.copy_from(0x1000, size)


def test_numbers_and_names(guest: Guest) -> None:
    assert version(guest, 0, 0) == 0x40011
    assert version(guest, 1) == 0
    assert text(guest, 16) == b".7" + bytes(14)
    assert version(guest, 3) == 0
    assert text(guest, 1024).rstrip(b"\0") == (
        b"xen-3.0-x86_64 xen-3.0-x86_32p hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 "
    )
    assert version(guest, 2) == 0
    assert version(guest, 4) == 0


def test_platform_parameters(guest32: Guest, guest64: Guest) -> None:
    assert version(guest32, 5) == 0
    assert guest32.result("I") == (0xF5800000,)
    assert version(guest64, 5) == 0
    assert guest64.result("Q") == (0xFFFF800000000000,)


def test_features_of_a_domu(guest: Guest) -> None:
    """The submap that real domUs read: 0x220e0, and bit 4 for a kernel with pae_pgdir_above_4gb."""

    def features(index: int) -> int:
        return guest.call(do_xen_version, 6, "II", index, 0)

    assert features(0) == 0
    assert guest.result("II") == (0, 0x220E0)
    assert do_vm_assist(guest.v, 0, 3) == 0
    assert features(0) == 0
    assert guest.result("II") == (0, 0x220F0)
    assert features(1) == -EINVAL


def test_what_is_denied(guest: Guest) -> None:
    guest.d.guest.copy_to(0x1000, b"x" * 16)
    assert version(guest, 9) == 0
    assert text(guest, 10) == b"<denied>\0x"
    assert version(guest, 10) == -EPERM
    assert version(guest, 10, 0) == -EPERM


def test_pagesize_handle_and_unknown(guest: Guest) -> None:
    assert version(guest, 7, 0) == 4096
    assert version(guest, 7) == -EINVAL
    guest.d.handle = bytes(range(16))
    assert version(guest, 8) == 0
    assert text(guest, 16) == bytes(range(16))
    assert version(guest, 11) == -ENOSYS
    assert version(guest, 0xFFFFFFFF) == -ENOSYS


@pytest.mark.parametrize("cmd", [1, 2, 3, 4, 5, 6, 8, 9])
def test_bad_pointers(guest: Guest, cmd: int) -> None:
    with pytest.raises(GuestError) as e:
        version(guest, cmd, 0x7FFF0000)
    assert e.value.errno == EFAULT


def test_vm_assists(guest: Guest) -> None:
    width = guest.d.abi.word
    for kind in range(6):
        assert do_vm_assist(guest.v, 0, kind) == 0
    assert guest.d.vm_assist == 0x3F
    assert do_vm_assist(guest.v, 1, 2) == 0
    assert guest.d.vm_assist == 0x3B
    assert do_vm_assist(guest.v, 0, 32) == (0 if width == 8 else -EINVAL)
    assert do_vm_assist(guest.v, 2, 2) == -ENOSYS
    for kind in (6, 31, 33, 63, 64, 0xFFFFFFFF):
        assert do_vm_assist(guest.v, 0, kind) == -EINVAL


def test_nmi_callbacks(guest: Guest) -> None:
    fmt = "I4x" if guest.d.abi.word == 4 else "Q8x"
    assert guest.call(do_nmi_op, 0, fmt, 0x1234) == 0
    assert guest.v.trap_ctxt[2] == (4, guest.d.abi.flat_kernel_cs, 0x1234)
    assert not guest.v.nmi_pending
    assert do_nmi_op(guest.v, 1, 0) == 0
    assert guest.v.trap_ctxt[2] == (0, 0, 0)
    assert do_nmi_op(guest.v, 2, 0) == -ENOSYS
    at = guest.d.abi.arch_shared_info + 2 * guest.d.abi.word
    guest.d.shared_info[at] = 1  # a reason is waiting: the edge is not lost
    assert guest.call(do_nmi_op, 0, fmt, 0x1234, vcpu=1) == 0
    assert not guest.d.vcpus[1].nmi_pending
    assert guest.call(do_nmi_op, 0, fmt, 0x1234) == 0
    assert guest.v.nmi_pending


def test_a_non_canonical_handler_is_refused(guest64: Guest) -> None:
    assert guest64.call(do_nmi_op, 0, "Q8x", 1 << 47) == -EINVAL
    assert guest64.call(do_nmi_op, 0, "Q8x", 0xFFFF800000000000) == 0
    assert struct.calcsize("Q8x") == 16
