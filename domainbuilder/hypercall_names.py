"""Hypercalls as people read them: names of calls and of their commands, results as error names."""

from __future__ import annotations

from functools import cache
from types import ModuleType

from hvcore.public.errno import errno_name
from hvcore.public.xen import Hypercall

_NUMBERS = frozenset(int(call) for call in Hypercall)


def hypercall_name(number: int) -> str:
    """The name of __HYPERVISOR_* `number`, or "hypercall 63"."""
    return Hypercall(number).name if number in _NUMBERS else f"hypercall {number}"


def result_name(result: int) -> str:
    """-22 as "-EINVAL", other negative numbers as they are, addresses and versions in hexadecimal."""
    return errno_name(result) if result < 0 else f"{result:#x}" if result > 9 else str(result)


def hypercall_text(number: int, arguments: tuple[int, ...], result: int | None = None) -> str:
    """A hypercall as one would write it, "event_channel_op(EVTCHNOP_send, 0x7ffc) = 0"; without a result
    (None) for one that has not returned.
    """
    shown = [f"{value:#x}" for value in arguments]
    command = command_name(number, arguments)
    if command:
        shown[0] = command
    returned = "" if result is None else f" = {result_name(result)}"
    return f"{hypercall_name(number)}({', '.join(shown)}){returned}"


@cache
def _commands() -> dict[int, tuple[int, dict[int, str]]]:
    """Hypercall -> (which bits of the first argument are its command, command -> name)."""
    from hvcore.public import event_channel, grant_table, memory, nmi, physdev, sched, vcpu, version, xen

    def named(module: ModuleType, prefix: str) -> dict[int, str]:
        return {
            value: name
            for name, value in vars(module).items()
            # flags and masks of the same prefix are in capitals
            if name.startswith(prefix) and isinstance(value, int) and name[len(prefix) :].islower()
        }

    whole = 0xFFFFFFFF
    return {
        Hypercall.memory_op: (memory.MEMOP_CMD_MASK, named(memory, "XENMEM_")),
        Hypercall.xen_version: (whole, named(version, "XENVER_")),
        Hypercall.console_io: (whole, named(xen, "CONSOLEIO_")),
        Hypercall.grant_table_op: (grant_table.GNTTABOP_CMD_MASK, named(grant_table, "GNTTABOP_")),
        Hypercall.vm_assist: (whole, named(xen, "VMASST_CMD_")),
        Hypercall.nmi_op: (whole, named(nmi, "XENNMI_")),
        Hypercall.sched_op: (whole, named(sched, "SCHEDOP_")),
        Hypercall.sched_op_compat: (whole, named(sched, "SCHEDOP_")),
        Hypercall.event_channel_op: (whole, named(event_channel, "EVTCHNOP_")),
        Hypercall.physdev_op: (whole, named(physdev, "PHYSDEVOP_")),
        Hypercall.vcpu_op: (whole, named(vcpu, "VCPUOP_")),
    }


def command_name(number: int, arguments: tuple[int, ...]) -> str:
    """The name of the command in a hypercall's first argument ("EVTCHNOP_send"), or ""."""
    mask, names = _commands().get(number, (0, {}))
    return names.get(arguments[0] & mask, "") if arguments and mask else ""


def virq_name(number: int) -> str:
    """The name of VIRQ_* `number`, or "VIRQ 22"."""
    return _virqs().get(number, f"VIRQ {number}")


@cache
def _virqs() -> dict[int, str]:
    from hvcore.public import xen

    names = (name for name in dir(xen) if name.startswith("VIRQ_") and "ARCH" not in name)
    return {getattr(xen, name): name for name in names}
