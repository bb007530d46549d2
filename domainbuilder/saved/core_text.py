"""`domainbuilder inspect`: a dump of a domain that ran, as text."""

from __future__ import annotations

from collections.abc import Iterator

from domainbuilder.launch.crash_text import code_lines, frames, register_lines, stack_lines
from domainbuilder.saved.core_file import CoreFile, Mapped
from domainbuilder.saved.core_vcpu import is_user, vcpu_state
from domainbuilder.symbols.table import Symbols, no_symbols
from domainbuilder.visible import console_lines, visible

_MOST_MAPPINGS, _MOST_NODES, _CONSOLE_LINES = 60, 400, 20


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
    vcpu = vcpu_state(core, index, symbols)
    yield f"vcpu#{vcpu.number}:"
    yield from register_lines(vcpu.registers, vcpu.symbol, vcpu.line, f"v{vcpu.number}")
    yield from code_lines(vcpu.code, core.width)
    yield from stack_lines(vcpu.registers.stack_address, vcpu.stack, core.width)
    yield from frames(vcpu.backtrace, 2 * core.width)


def _mappings(core: CoreFile) -> Iterator[str]:
    context = core.context(0)
    root = core.root(context, is_user=is_user(core, context))
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
