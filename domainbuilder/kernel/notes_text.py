"""`domainbuilder notes` as text: the verdict first, then what was found, then where it was read."""

from __future__ import annotations

from collections.abc import Iterator

from domainbuilder.kernel.elfnotes import Note, Value, decode, feature_names, quoted
from domainbuilder.kernel.findings import Finding, Severity
from domainbuilder.kernel.inspection import Inspection
from domainbuilder.kernel.parms import UNSET_ADDR, UNSET_ADDR32, ElfDomParms
from domainbuilder.kernel.verdict import Verdict
from domainbuilder.visible import visible

_BOLD, _DIM, _RED, _GREEN, _YELLOW, _CYAN = "1", "2", "31", "32", "33", "36"
_SEVERITIES = {Severity.ERROR: _RED, Severity.WARNING: _YELLOW, Severity.INFO: _CYAN}
_MOST_NOTES = 256
_MOST_BYTES = 24


class Pen:
    """Paints, or leaves as it is."""

    def __init__(self, *, colour: bool) -> None:
        self.colour = colour

    def __call__(self, text: str, *codes: str) -> str:
        """`text` in the given SGR codes."""
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if self.colour and codes else text


def render(inspection: Inspection, *, colour: bool = False) -> str:
    """The whole report on one kernel; lines end in a newline."""
    pen = Pen(colour=colour)
    parts = (_verdicts, _findings, _kernel, _parms, _notes, _guest_info)
    blocks = (list(part(inspection, pen)) for part in parts)
    return "\n".join("".join(f"{line}\n" for line in block) for block in blocks if block)


def _verdicts(inspection: Inspection, pen: Pen) -> Iterator[str]:
    kinds = ", ".join(verdict.kind.label for verdict in inspection.accepted)
    head = pen(kinds, _BOLD, _GREEN) if kinds else pen("no kind of guest", _BOLD, _RED)
    yield f"{pen(visible(inspection.kernel.path), _BOLD)}: {head}"
    width = max(len(verdict.kind.label) for verdict in inspection.verdicts)
    for verdict in inspection.verdicts:
        answer, colour = _answer(verdict)
        told = "; ".join(filter(None, (verdict.reason, verdict.remark)))
        yield f"  {verdict.kind.label:<{width}}  {pen(f'{answer:<3}', colour)}  {told or verdict.guest_type}"


def _answer(verdict: Verdict) -> tuple[str, str]:
    if not verdict.accepted:
        return "no", _RED
    return ("yes", _GREEN) if verdict.xen else ("yes", _YELLOW)


def _findings(inspection: Inspection, pen: Pen) -> Iterator[str]:
    if not inspection.findings:
        return
    yield pen("Findings", _BOLD)
    width = max(len(finding.rule.slug) for finding in inspection.findings)
    for finding in inspection.findings:
        yield from _finding(finding, width, pen)


def _finding(finding: Finding, width: int, pen: Pen) -> Iterator[str]:
    severity = finding.severity.name.lower()
    offset = "" if finding.offset is None else f"+{finding.offset:#x}"
    head = pen(f"{severity:<7}", _SEVERITIES[finding.severity])
    rule = f"{finding.rule.id} {finding.rule.slug:<{width}}"
    yield f"  {head}  {rule}  {offset:<11}  {finding.message}"
    indent = " " * (2 + 7 + 2 + 7 + width + 2 + 11 + 2)
    yield pen(f"{indent}{finding.rule.advice}", _DIM)


def _table(title: str, rows: list[tuple[str, str]], pen: Pen) -> Iterator[str]:
    yield pen(title, _BOLD)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        yield f"  {name:<{width}}  {value}"


def _kernel(inspection: Inspection, pen: Pen) -> Iterator[str]:
    kernel, elf = inspection.kernel, inspection.elf
    at = f" at {kernel.payload_offset:#x}" if kernel.payload_offset else ""
    rows = [
        ("file", f"{kernel.packing}{at}, {len(elf.view):,} bytes of ELF"),
        ("image", f"ELF{elf.elf_class} {elf.machine_name}, entry {elf.entry:#x}"),
    ]
    if elf.load_segments:
        rows.append(
            ("memory", f"{elf.pstart:#x} to {elf.pend:#x} physical, {len(elf.load_segments)} segments")
        )
    yield from _table("Kernel", rows, pen)


def _parms(inspection: Inspection, pen: Pen) -> Iterator[str]:
    if inspection.pv is not None:
        yield from _table(f"What it asks for as {inspection.pv.guest_type}", _parm_rows(inspection.pv), pen)
    if inspection.pvh is not None:
        if inspection.pv is not None:
            yield ""
        rows = [("entry", f"{inspection.pvh.phys_entry:#x} physical, 32-bit, paging off")]
        yield from _table(f"What it asks for as {inspection.pvh.guest_type}", rows, pen)


def _address(value: int) -> str:
    return "-" if value == UNSET_ADDR else f"{value:#x}"


def _parm_rows(parms: ElfDomParms) -> list[tuple[str, str]]:
    yes_no = ("no", "yes")
    return [
        ("guest_os", " ".join(quoted(text) for text in (parms.guest_os, parms.guest_ver) if text) or "-"),
        ("loader", quoted(parms.loader) if parms.loader else "-"),
        ("xen_ver", quoted(parms.xen_ver)),
        ("pae", parms.pae.name.lower()),
        ("virt_base", _address(parms.virt_base)),
        ("virt_kstart", _address(parms.virt_kstart)),
        ("virt_kend", _address(parms.virt_kend)),
        ("virt_entry", _address(parms.virt_entry)),
        ("virt_hypercall", _address(parms.virt_hypercall)),
        ("virt_hv_start_low", _address(parms.virt_hv_start_low)),
        ("p2m_base", _address(parms.p2m_base)),
        ("elf_paddr_offset", _address(parms.elf_paddr_offset)),
        ("phys_entry", "-" if parms.phys_entry == UNSET_ADDR32 else f"{parms.phys_entry:#x}"),
        ("bsd_symtab", yes_no[parms.bsd_symtab]),
        ("unmapped_initrd", yes_no[parms.unmapped_initrd]),
        ("f_required", ", ".join(feature_names(parms.f_required)) or "-"),
        ("f_supported", ", ".join(feature_names(parms.f_supported)) or "-"),
    ]


def _show(value: Value) -> str:
    if value is None:
        return "(unreadable)"
    if isinstance(value, int):
        return f"{value:#x}"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bytes):
        return value[:_MOST_BYTES].hex(" ") + (" ..." if len(value) > _MOST_BYTES else "")
    return " ".join(f"{name}={number:#x}" for name, number in value)


def _notes(inspection: Inspection, pen: Pen) -> Iterator[str]:
    notes = inspection.notes.notes
    if not notes:
        return
    shown = notes[:_MOST_NOTES]
    owners = [quoted(note.owner_text)[1:-1][:24] for note in shown]
    names = [note.type_name or f"{note.type:#x}" for note in shown]
    owner_width, name_width = max(map(len, (*owners, "owner"))), max(map(len, (*names, "type")))
    yield pen("Notes", _BOLD)
    head = (
        f"  {'offset':<10}  {'from':<8}  {'owner':<{owner_width}}  {'type':<{name_width}}  {'size':>4}  value"
    )
    yield pen(head, _DIM)
    for note, owner, name in zip(shown, owners, names, strict=True):
        line = (
            f"  {note.offset:#010x}  {note.source:<8}  {owner:<{owner_width}}  {name:<{name_width}}"
            f"  {note.descsz:>4}  {_show(decode(inspection.elf, note))}{_feature_bits(note, inspection)}"
        )
        yield line if note.used else pen(line, _DIM)
    if len(notes) > len(shown):
        yield f"  ... and {len(notes) - len(shown):,} more"


def _feature_bits(note: Note, inspection: Inspection) -> str:
    value = decode(inspection.elf, note) if note.type_name == "SUPPORTED_FEATURES" else 0
    return f" ({', '.join(feature_names(value))})" if isinstance(value, int) and value else ""


def _guest_info(inspection: Inspection, pen: Pen) -> Iterator[str]:
    info = inspection.guest_info
    if info is None or not info.keys:
        return
    yield pen("__xen_guest" if info.used else "__xen_guest (ignored)", _BOLD)
    shown = info.keys[:_MOST_NOTES]
    width = max(len(quoted(entry.key)[1:-1]) for entry in shown)
    for entry in shown:
        yield f"  {entry.offset:#010x}  {quoted(entry.key)[1:-1]:<{width}}  {quoted(entry.value)[1:-1]}"
    if len(info.keys) > len(shown):
        yield f"  ... and {len(info.keys) - len(shown):,} more"
