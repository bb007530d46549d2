"""Compare what samples/statedump printed with what it printed under real Xen 4.17 (tests/data/initial-state).

Masked, because they differ from run to run or host to host on real Xen as well: machine frame numbers, time
stamps, which events had already come in, addresses inside the hypervisor, and cpuid leaves of the host.
Everything else has to be equal: registers, flags of every mapping, counts, sizes, versions, return codes.
"""

from __future__ import annotations

import re
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "data" / "initial-state"

BEGIN, END = "=== STATEDUMP begin", "=== STATEDUMP end"

# Line label -> keys whose values are the machine's or the moment's.
MASKED: dict[str, frozenset[str]] = {
    "CTRL": frozenset({"cr3"}),
    "DESC": frozenset({"idt.base"}),
    "START_INFO": frozenset({"shared_info", "store_mfn", "domU.cons_mfn"}),
    "P2M": frozenset({"last", "runs"}),
    "XENMEM": frozenset({"max_ram_page"}),
    "SHARED_INFO": frozenset({"count"}),
}

_FIELD = re.compile(r"(\S+?)=(\"[^\"]*\"|\S+)")
_FRAME_BITS = 0x000F_FFFF_FFFF_F000
# shared_info offsets, in 32-bit words: vcpu_info[0].evtchn_pending_sel, its time, pending events, wallclock.
_TIME_WORDS = range(0x20, 0x40, 4)
_EVENT_WORDS = (0x4, 0x8, 0x800)
_WALLCLOCK_WORDS = (0x900, 0x904, 0x908, 0xC00, 0xC04, 0xC08, 0xC0C)


def dump_lines(text: str) -> list[str]:
    """The lines from the dump's first to its last, without carriage returns; empty where there is none."""
    lines = [line.rstrip("\r ") for line in text.replace("\r\n", "\n").split("\n")]
    start = next((i for i, line in enumerate(lines) if line.startswith(BEGIN)), len(lines))
    end = next((i for i, line in enumerate(lines) if i >= start and line.startswith(END)), len(lines))
    return lines[start : end + 1]


def _label(line: str) -> str:
    if line.startswith("START_INFO last"):
        return "START_INFO last"
    return re.split(r"[ =:]", line.strip(), maxsplit=1)[0]


def _shared_info_word(key: str, value: str) -> tuple[str, str] | None:
    offset = int(key, 16)
    if offset in _TIME_WORDS or offset in _EVENT_WORDS or offset in _WALLCLOCK_WORDS:
        return None
    if offset == 0:  # evtchn_upcall_pending is the moment's; evtchn_upcall_mask is a fact
        value = f"{int(value, 16) & ~0xFF:x}"
    return key, value


def _field(label: str, key: str, value: str) -> tuple[str, str] | None:
    if key in MASKED.get(label, frozenset()):
        return None
    if label == "SHARED_INFO" and key.startswith("+"):
        return _shared_info_word(key, value)
    if key == "entry":  # a page-table entry: its flags are facts, its frame is not
        return key, f"{int(value, 16) & ~_FRAME_BITS:#x}"
    return key, value


def normalise(line: str) -> tuple[str, dict[str, str]]:
    """One line as (label, facts), what is masked left out."""
    label = _label(line)
    if label == "CPUID":  # leaf 1 is the host's
        line = line.split(" 1.a=", maxsplit=1)[0]
    if label in {"L4E", "L3E", "L2E", "MAP", "GDT"}:
        line = line.replace(f"{label} ", "", 1)
    facts: dict[str, str] = {}
    for key, value in _FIELD.findall(line):
        unique = key if key not in facts else f"{key}#{sum(k.split('#')[0] == key for k in facts) + 1}"
        if (field := _field(label, key, value)) is not None:
            facts[unique] = field[1]
    rest = " ".join(_FIELD.sub("", line).split())
    if label == "P2M":
        rest = ""  # four machine frames
    facts["text"] = rest
    return label, facts


def facts(text: str) -> dict[str, str]:
    """Every fact of a dump as {"LABEL.key": value}; lines that repeat a label are numbered."""
    result: dict[str, str] = {}
    seen: dict[str, int] = {}
    for line in dump_lines(text):
        label, fields = normalise(line)
        seen[label] = seen.get(label, 0) + 1
        name = label if seen[label] == 1 else f"{label}[{seen[label]}]"
        result.update({f"{name}.{key}": value for key, value in fields.items()})
    return result


def compare(actual_console_text: str, reference: str) -> list[str]:
    """The differences between a console's text and the reference of that name; empty when they agree.

    `reference` is a file of tests/data/initial-state without its suffix: "domU-32", "domU-32-linuxlike", ...
    """
    expected = facts((DATA / f"{reference}.txt").read_text())
    actual = facts(actual_console_text)
    if not actual:
        return ["no dump in the console's text"]
    return [
        f"{key}: expected {expected.get(key, 'nothing')}, got {actual.get(key, 'nothing')}"
        for key in [*expected, *(key for key in actual if key not in expected)]
        if expected.get(key) != actual.get(key)
    ]
