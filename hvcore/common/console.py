"""console_io: the hypervisor's own console, which is not for a domU (xen/drivers/char/console.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.public.errno import EPERM

if TYPE_CHECKING:
    from hvcore.vcpu import Vcpu


def do_console_io(_v: Vcpu, _cmd: int, _count: int, _buffer: int) -> int:
    """HYPERVISOR_console_io: a release build lets no domU write either, whatever the command."""
    return -EPERM
