"""A vCPU of a dump: its registers, and what they lead to in the dump's memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from domainbuilder.launch.disassembly import Instruction, disassemble
from domainbuilder.launch.registers import SELECTORS, Registers
from domainbuilder.saved.core_file import CoreFile
from domainbuilder.symbols.backtrace import Frame, backtrace
from domainbuilder.symbols.table import Symbols
from hvcore.public.vcpu_guest_context import VGCF_in_kernel

_STACK_WORDS = 16
_VCPU_INFO = 64
_NX = 1 << 63
_USER_BIT = 3


class VcpuState(NamedTuple):
    """Where a vCPU stood; `symbol` and `line` are RIP's, and there is no backtrace of a process."""

    number: int
    registers: Registers
    symbol: str
    line: str
    code: tuple[Instruction, ...]
    stack: tuple[int, ...]
    backtrace: tuple[Frame, ...]

    @property
    def stack_address(self) -> int:
        """Where `stack` begins."""
        return self.registers.stack_address


def vcpu_state(core: CoreFile, index: int, symbols: Symbols) -> VcpuState:
    """The vCPU that comes at `index` in the dump."""
    context = core.context(index)
    registers = _registers(core, index, context, in_user=is_user(core, context))
    read = partial(core.read, registers.cr3 >> 12)
    ids = core.about.get("vcpus")
    number = ids[index] if isinstance(ids, list) and index < len(ids) else index
    found = symbols.at(registers.rip)
    code = disassemble(
        read,
        registers.rip,
        start=found[0].value if found else None,
        names=symbols.name,
        long_mode=core.width == 8,
    )
    raw = read(registers.stack_address, _STACK_WORDS * core.width)
    steps: tuple[Frame, ...] = ()
    if registers.kernel_mode:
        steps = tuple(
            backtrace(
                {**registers.general, "rip": registers.rip}, word=core.width, read=read,
                in_code=_in_code(core, registers.cr3 >> 12, symbols), symbols=symbols,
            )
        )  # fmt: skip
    return VcpuState(
        number=number,
        registers=registers,
        symbol=symbols.name(registers.rip),
        line=symbols.line(registers.rip),
        code=tuple(code),
        stack=tuple(
            int.from_bytes(raw[at : at + core.width], "little") for at in range(0, len(raw), core.width)
        ),
        backtrace=steps,
    )


def is_user(core: CoreFile, context: dict[str, Any]) -> bool:
    """Whether the vCPU ran a process, and not the kernel."""
    if core.width == 4:
        return int(context["cs"]) & _USER_BIT == _USER_BIT
    return not context["vgcf"] & VGCF_in_kernel


def _registers(core: CoreFile, index: int, context: dict[str, Any], *, in_user: bool) -> Registers:
    info = core.section(".xen_shared_info").offset + _VCPU_INFO * index
    kernel_gs, user_gs = context.get("gs_base_kernel", 0), context.get("gs_base_user", 0)
    return Registers(
        general=core.general(context),
        selectors={name: context[name] for name in SELECTORS},
        rip=context["ip"],
        code_address=context["ip"],
        stack_address=context["sp"],
        rflags=context["flags"],
        cr0=context["ctrlreg"][0],
        cr2=context["ctrlreg"][2],
        cr3=core.root(context, is_user=in_user) << 12,
        cr4=context["ctrlreg"][4],
        fs_base=context.get("fs_base", 0),
        gs_base=user_gs if in_user else kernel_gs,
        gs_shadow=kernel_gs if in_user else user_gs,
        event_mask=core.view[info + 1],
        kernel_mode=not in_user,
    )


def _in_code(core: CoreFile, root: int, symbols: Symbols) -> Callable[[int], bool]:
    """By the symbols, where there are some; else what is mapped and may be executed."""
    if symbols.origin:
        return lambda address: bool(symbols.name(address))

    def executable(address: int) -> bool:
        found = core.walk(root, address)
        return found is not None and not found[1] & _NX

    return executable
