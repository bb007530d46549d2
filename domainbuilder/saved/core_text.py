"""`domainbuilder inspect`: a dump of a domain that ran, as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from domainbuilder.launch.crash_text import code_lines, frames, register_lines, stack_lines
from domainbuilder.launch.disassembly import disassemble
from domainbuilder.launch.registers import SELECTORS, Registers
from domainbuilder.launch.visible import console_lines, visible
from domainbuilder.saved.core_file import CoreFile, Mapped
from domainbuilder.symbols.backtrace import backtrace
from domainbuilder.symbols.table import Symbols, no_symbols
from hvcore.public.vcpu_guest_context import VGCF_in_kernel

_STACK_WORDS, _MOST_MAPPINGS, _MOST_NODES, _CONSOLE_LINES = 16, 60, 400, 20
_VCPU_INFO = 64
_NX = 1 << 63
_USER_BIT = 3


def render_core(core: CoreFile, symbols: Symbols | None) -> str:
    """The whole report."""
    lines = [*_head(core)]
    for index in range(core.nr_vcpus):
        lines += _vcpu(core, index, symbols or no_symbols())
    lines += [*_mappings(core), *_xenstore(core), *_console(core)]
    return "\n".join(lines) + "\n"


def _head(core: CoreFile) -> Iterator[str]:
    about = core.about
    kind = f"{8 * core.width}-bit PV domain"
    yield f"{core.name}: {kind}, {core.nr_vcpus} vCPU{'s' * (core.nr_vcpus > 1)}, {core.nr_pages:,} pages"
    if isinstance(about.get("kernel"), str) and isinstance(about.get("guest_ns"), int):
        yield f"kernel {visible(about['kernel'])}, after {about['guest_ns'] / 1e9:.6f} s of its time"
    if isinstance(about.get("outcome"), str) and about["outcome"]:
        yield visible(about["outcome"])


def _vcpu(core: CoreFile, index: int, symbols: Symbols) -> Iterator[str]:
    context = core.context(index)
    is_user = _is_user(core, context)
    registers = _registers(core, index, context, is_user=is_user)
    read = partial(core.read, registers.cr3 >> 12)
    in_code = _in_code(core, registers.cr3 >> 12, symbols)
    name, line = symbols.name(registers.rip), symbols.line(registers.rip)
    ids = core.about.get("vcpus")
    number = ids[index] if isinstance(ids, list) and index < len(ids) else index
    yield f"vcpu#{number}:"
    yield from register_lines(registers, name, line, f"v{number}")
    found = symbols.at(registers.rip)
    code = disassemble(
        read,
        registers.rip,
        start=found[0].value if found else None,
        names=symbols.name,
        long_mode=core.width == 8,
    )
    yield from code_lines(code, core.width)
    raw = read(registers.stack_address, _STACK_WORDS * core.width)
    words = [int.from_bytes(raw[at : at + core.width], "little") for at in range(0, len(raw), core.width)]
    yield from stack_lines(registers.stack_address, words, core.width)
    if registers.kernel_mode:
        steps = backtrace(
            {**registers.general, "rip": registers.rip},
            word=core.width, read=read, in_code=in_code, symbols=symbols,
        )  # fmt: skip
        yield from frames(steps, 2 * core.width)


def _is_user(core: CoreFile, context: dict[str, Any]) -> bool:
    if core.width == 4:
        return int(context["cs"]) & _USER_BIT == _USER_BIT
    return not context["vgcf"] & VGCF_in_kernel


def _registers(core: CoreFile, index: int, context: dict[str, Any], *, is_user: bool) -> Registers:
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
        cr3=core.root(context, is_user=is_user) << 12,
        cr4=context["ctrlreg"][4],
        fs_base=context.get("fs_base", 0),
        gs_base=user_gs if is_user else kernel_gs,
        gs_shadow=kernel_gs if is_user else user_gs,
        event_mask=core.view[info + 1],
        kernel_mode=not is_user,
    )


def _in_code(core: CoreFile, root: int, symbols: Symbols) -> Callable[[int], bool]:
    """By the symbols, where there are some; else what is mapped and may be executed."""
    if symbols.origin:
        return lambda address: bool(symbols.name(address))

    def executable(address: int) -> bool:
        found = core.walk(root, address)
        return found is not None and not found[1] & _NX

    return executable


def _mappings(core: CoreFile) -> Iterator[str]:
    context = core.context(0)
    root = core.root(context, is_user=_is_user(core, context))
    rows = list(core.mappings(root))
    yield f"Mapped under {root << 12:#x}, vcpu#0's page table:" if rows else "Nothing is mapped for vcpu#0."
    for row in rows[:_MOST_MAPPINGS]:
        yield f"  {row.start:0{2 * core.width}x}-{row.end - 1:0{2 * core.width}x} {_rights(row, core.width)}"
    if len(rows) > _MOST_MAPPINGS:
        rest = sum(row.end - row.start for row in rows[_MOST_MAPPINGS:])
        yield f"  and {len(rows) - _MOST_MAPPINGS} more, {rest >> 10:,} KB"


def _rights(row: Mapped, width: int) -> str:
    """Who may do what; all that a 64-bit PV guest maps is the user's for the processor."""
    who = f" {'user' if row.is_user else 'kernel':6}" if width == 4 else ""
    flags = f"r{'w' if row.is_writable else '-'}{'x' if row.is_code else '-'}"
    return f"{flags}{who} {row.end - row.start >> 10:>10,} KB"


def _xenstore(core: CoreFile) -> Iterator[str]:
    nodes = core.about.get("xenstore")
    if not isinstance(nodes, dict):
        return
    yield "xenstore:"
    rows = [(path, value) for path, value in nodes.items() if isinstance(value, str) and value]
    for path, value in rows[:_MOST_NODES]:
        yield f'  {visible(path)} = "{visible(value)}"'
    if len(rows) > _MOST_NODES:
        yield f"  and {len(rows) - _MOST_NODES} more"


def _console(core: CoreFile) -> Iterator[str]:
    pfn, text = core.about.get("console_pfn"), core.about.get("console")
    offset = core.offset_of_pfn(pfn) if isinstance(pfn, int) else None
    if offset is not None:
        yield f"Console ring: pfn {pfn:#x}, in the file at {offset:#x}"
    if isinstance(text, str) and text:
        yield from console_lines("\n".join(text.splitlines()[-_CONSOLE_LINES:]))
