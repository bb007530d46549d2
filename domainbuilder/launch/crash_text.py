"""A crash report as text: registers, stack and page walk in the layout of Xen's show_execution_state()."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from domainbuilder.launch.crash_report import AddressReport, CrashReport, HypercallRecord
from domainbuilder.launch.disassembly import Instruction
from domainbuilder.launch.registers import Registers
from domainbuilder.symbols.backtrace import CALL_FRAME_INFORMATION, ORC, Frame

_ROWS = (
    ("rax", "rbx", "rcx"),
    ("rdx", "rsi", "rdi"),
    ("rbp", "rsp", "r8"),
    ("r9", "r10", "r11"),
    ("r12", "r13", "r14"),
)
_INVALID_M2P = (1 << 64) - 1


def render_crash(report: CrashReport) -> str:
    """The whole report, a section after the other; about a hundred lines at most."""
    sections = [
        *(_head(report), code_lines(report.code, report.word), _stack(report), _mappings(report)),
        *(_hypercalls(report), _refused_faults(report), _meaning(report)),
    ]
    return "\n".join(line for section in sections for line in section) + "\n"


def _head(report: CrashReport) -> Iterator[str]:
    yield report.reason
    yield f"Domain {report.domain_id} (vcpu#{report.vcpu}) crashed after {report.guest_ns / 1e9:.6f} s:"
    context = f"d{report.domain_id}v{report.vcpu}"
    yield from register_lines(report.registers, report.symbol, report.line, context)


def register_lines(r: Registers, symbol: str, line: str, context: str) -> Iterator[str]:
    """_show_registers() of xen/arch/x86/x86_64/traps.c. `context` is "d1v0", domain and vCPU."""
    g, s = r.general, r.selectors
    where = named(symbol, line)
    mode = "" if r.kernel_mode else ", user mode"
    yield f"RIP:    {s['cs']:04x}:[<{r.rip:016x}>]{where}"
    yield f"RFLAGS: {r.rflags:016x}   EM: {int(bool(r.event_mask))}   CONTEXT: pv guest ({context}){mode}"
    for row in _ROWS:
        yield "   ".join(f"{name + ':':<4} {g[name]:016x}" for name in row)
    yield f"r15: {g['r15']:016x}   cr0: {r.cr0:016x}   cr4: {r.cr4:016x}"
    yield f"cr3: {r.cr3:016x}   cr2: {r.cr2:016x}"
    yield f"fsb: {r.fs_base:016x}   gsb: {r.gs_base:016x}   gss: {r.gs_shadow:016x}"
    yield "   ".join(f"{name}: {s[name]:04x}" for name in ("ds", "es", "fs", "gs", "ss", "cs"))


def code_lines(code: Sequence[Instruction], word: int) -> Iterator[str]:
    """The instructions around RIP; `word` is the guest's, in bytes."""
    yield "Guest code:"
    if not code:
        yield "  Guest-inaccessible memory."
    function = None
    for line in code:
        name = line.symbol.rpartition("+")[0]
        if name and name != function:
            yield f"  <{line.symbol}>:"
        function = name
        marker = "=>" if line.current else "  "
        yield f"  {marker} {line.address:0{2 * word}x}:  {line.code.hex(' '):<30}  {line.text}"


def stack_lines(address: int, stack: Sequence[int], word: int) -> Iterator[str]:
    """show_guest_stack()."""
    width, per_line = 2 * word, 32 // word
    yield f"Guest stack trace from {'esp' if word == 4 else 'rsp'}={address:0{width}x}:"
    if not stack:
        yield "  Guest-inaccessible memory."
    for i in range(0, len(stack), per_line):
        yield "  " + " ".join(f"{value:0{width}x}" for value in stack[i : i + per_line])


def _stack(report: CrashReport) -> Iterator[str]:
    """The stack, and what of it points into code."""
    width = 2 * report.word
    yield from stack_lines(report.stack_address, report.stack, report.word)
    yield from frames(report.backtrace, width)
    if report.trace and not any(frame.how in {CALL_FRAME_INFORMATION, ORC} for frame in report.backtrace):
        yield "Call trace (every word of the stack that points into code):"
        for word in report.trace:
            yield f"  [<{word.value:0{width}x}>] <{word.symbol}>"


def named(symbol: str, line: str) -> str:
    """As " <function+0x12> at file.c:34", as much of it as is known."""
    return (f" <{symbol}>" if symbol else "") + (f" at {line}" if line else "")


def frames(backtrace: Sequence[Frame], width: int) -> Iterator[str]:
    """A backtrace, and by what each step of it was taken."""
    if len(backtrace) < 2:
        return
    yield "Backtrace:"
    for frame in backtrace:
        how = f"   ({frame.how})" if frame.how else ""
        yield f"  [<{frame.address:0{width}x}>]{named(frame.symbol, frame.line)}{how}"


def _mappings(report: CrashReport) -> Iterator[str]:
    for address in report.addresses:
        yield from _walk(address, report.word)


def _walk(address: AddressReport, word: int) -> Iterator[str]:
    """show_page_walk(), with what the flags mean."""
    symbol = f" <{address.symbol}>" if address.symbol else ""
    yield f"Pagetable walk from {address.address:0{2 * word}x} ({address.role}){symbol}:"
    for entry in address.walk.entries:
        pfn = _INVALID_M2P if entry.pfn is None else entry.pfn
        where = f"mfn {entry.mfn:#x}: " if entry.entry else ""
        yield (
            f" L{entry.level}[0x{entry.index:03x}] = {entry.entry:016x} {pfn:016x}   "
            f"{where}{', '.join(entry.flags)}"
        )
    yield f" {address.walk.end}"


def _hypercalls(report: CrashReport) -> Iterator[str]:
    yield "Last hypercalls:" if report.hypercalls else "No hypercalls."
    for call in report.hypercalls:
        yield f"  {call_text(call)}"
        for place, entry in call.entries:
            yield f"    entry {place}: {call_text(entry)}"
            yield from (f"      {line}" for line in entry.refusals)
        yield from (f"    {line}" for line in call.refusals)


def call_text(call: HypercallRecord) -> str:
    """A hypercall as a line of C would have it, and its result."""
    arguments = [f"{value:#x}" for value in call.arguments]
    if call.command:
        arguments[0] = call.command
    return f"{call.name}({', '.join(arguments)}) = {call.result_name}"


def _refused_faults(report: CrashReport) -> Iterator[str]:
    if report.refused_faults:
        yield "Faults for what Xen refused:"
    for fault in report.refused_faults:
        where = f" <{fault.symbol}>" if fault.symbol else ""
        yield f"  {fault.name} at {fault.rip:0{2 * report.word}x}{where}, address {fault.address:#x}"
        yield from (f"    {line}" for line in fault.refusals)


def _meaning(report: CrashReport) -> Iterator[str]:
    if report.meaning:
        yield "What it means:"
    yield from (f"  {line}" for line in report.meaning)
