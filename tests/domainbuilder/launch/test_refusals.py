"""Why a page-table entry was refused, in the report, in --stats and in JSON, in the words of Xen's log."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from domainbuilder.launch.crash_report import CrashReport
from domainbuilder.launch.crash_text import render_crash
from domainbuilder.launch.domain import RunningDomain, launch
from tests.domainbuilder.tiny_guest import CODE, UD2, hypercall, kernel

MMU_UPDATE, MULTICALL, UPDATE_VA_MAPPING, XEN_VERSION, SET_TRAP_TABLE, SET_GDT = 1, 13, 14, 17, 0, 2
EINVAL, EPERM, ENOSYS = 22, 1, 38
DATA = 0x800  # behind the code
PT_BASE = b"\x8b\x46\x3c"  # mov eax, [esi + 60]: start_info.pt_base
STORE_TO_L3 = PT_BASE + b"\xc7\x00\x00\x00\x00\x00"  # mov dword [eax], 0


def bad_mapping(entry: int, va: int = CODE) -> bytes:
    return hypercall(UPDATE_VA_MAPPING, va, entry & 0xFFFFFFFF, entry >> 32, 2)


def guest(folder: Path, code: bytes, data: bytes = b"") -> Path:
    path = folder / "tiny.elf"
    path.write_bytes(kernel(code.ljust(DATA, b"\xcc") + data))
    return path


def crashed(folder: Path, code: bytes, data: bytes = b"") -> tuple[CrashReport, RunningDomain]:
    dom = launch(guest(folder, code, data), memory_mib=8, timeout=60)
    outcome = dom.wait()
    assert outcome.report is not None
    return outcome.report, dom


@pytest.mark.parametrize(
    ("entry", "rc", "why"),
    [
        (0x11, -EINVAL, "Bad L1 flags 10"),
        (0x81, -EINVAL, "Bad L1 flags 80"),
        (0xFEE00 << 12 | 1, -EPERM, "d1 non-privileged attempt to map MMIO space fee00"),
        ((1 << 40) - 1 << 12 | 1, -EINVAL, "L1 entry ffffffffff001 names INVALID_MFN"),
    ],
)
def test_an_update_that_was_refused(tmp_path: Path, entry: int, rc: int, why: str) -> None:
    report, dom = crashed(tmp_path, bad_mapping(entry) + UD2)
    call = report.hypercalls[-1]
    assert (call.result, call.refusals, call.entries) == (rc, (why,), ())
    assert f"= -{'EPERM' if rc == -EPERM else 'EINVAL'}\n    {why}\n" in render_crash(report)
    ((count, last),) = dom.stats().refused.values()
    assert (count, last) == (1, why)


def test_what_succeeds_says_nothing(tmp_path: Path) -> None:
    report, dom = crashed(tmp_path, hypercall(XEN_VERSION, 0, 0) + UD2)
    assert [(call.refusals, call.entries) for call in report.hypercalls] == [((), ())]
    assert dom.stats().refused == {}


def test_the_failed_entries_of_a_multicall_are_listed(tmp_path: Path) -> None:
    entries = (
        (XEN_VERSION, 0, 0, 0, 0, 0, 0, 0),
        (UPDATE_VA_MAPPING, 0, CODE, 0x11, 0, 2, 0, 0),
        (63, 0, 0, 0, 0, 0, 0, 0),
        (UPDATE_VA_MAPPING, 0, 0x10000000, 0, 0, 0, 0, 0),
        (XEN_VERSION, 0, 0, 0, 0, 0, 0, 0),
    )
    data = b"".join(struct.pack("<8I", *entry) for entry in entries)
    report, dom = crashed(tmp_path, hypercall(MULTICALL, CODE + DATA, len(entries)) + UD2, data)
    call = report.hypercalls[-1]
    assert (call.name, call.result, call.refusals) == ("multicall", 0, ())
    assert [(place, entry.result, entry.refusals) for place, entry in call.entries] == [
        (1, -EINVAL, ("Bad L1 flags 10",)),
        (2, -ENOSYS, ()),
        (3, -EINVAL, ("no L1 table maps 10000000",)),
    ]
    text = render_crash(report)
    assert "    entry 1: update_va_mapping(0xc0100000, 0x11, 0x0, 0x2, 0x0, 0x0) = -EINVAL\n" in text
    assert "      Bad L1 flags 10\n    entry 2: " in text
    assert sum(count for count, _ in dom.stats().refused.values()) == 2


def test_a_chain_begins_with_its_cause(tmp_path: Path) -> None:
    """The table at pt_base, mapped writable by nobody, is to be mapped writable: its type is in the way."""
    dom = launch(guest(tmp_path, UD2), memory_mib=8, timeout=60)
    dom.wait()
    mfn = dom.machine.domain.vcpus[0].cr3_mfn
    report, _ = crashed(tmp_path, bad_mapping(mfn << 12 | 3) + UD2)
    pfn = dom.machine.domain.mm.gpfn(mfn)
    frame, entry = f"mfn {mfn:x} (pfn {pfn:x})", mfn << 12 | 3
    assert report.hypercalls[-1].refusals == (
        f"Bad type (saw PGT_l3_page_table in use 2 times != exp PGT_writable_page) for {frame}",
        "Could not get page type PGT_writable_page",
        f"Error getting {frame} from L1 entry {entry:x} for l1e_owner d1, pg_owner d1",
    )


def test_a_descriptor_table(tmp_path: Path) -> None:
    """The page of the code, mapped read-only, is offered as a GDT: `hlt` after `hlt` is no descriptor."""
    dom = launch(guest(tmp_path, UD2), memory_mib=8, timeout=60)
    dom.wait()
    mm = dom.machine.domain.mm
    mfn = mm.e[mm.l1_entry_of(dom.machine.domain.vcpus[0].cr3_mfn, CODE)] >> 12 & mm.mfn_mask
    code = bad_mapping(mfn << 12 | 1) + hypercall(SET_GDT, CODE + DATA, 512) + UD2
    report, _ = crashed(tmp_path, code.ljust(0x200, b"\xf4"), struct.pack("<I", mfn))
    assert [call.result for call in report.hypercalls] == [0, -EINVAL]
    why = report.hypercalls[-1].refusals
    assert why[0] == f"mfn {mfn:x} holds a descriptor that Xen lets no guest have"
    assert why[1].startswith(f"Error while validating mfn {mfn:x} (pfn 100) for type PGT_seg_desc_page")


# -- stores


def test_a_store_to_an_upper_table(tmp_path: Path) -> None:
    report, _ = crashed(tmp_path, STORE_TO_L3)
    (fault,) = report.refused_faults
    assert (fault.name, fault.rip, fault.address) == ("#PF", CODE + len(PT_BASE), report.registers.cr2)
    assert fault.refusals == ("a store to an L3 page table, where Xen carries out those to L1 tables alone",)
    assert (
        f"Faults for what Xen refused:\n  #PF at {fault.rip:08x}, address {fault.address:#x}\n    a store"
        in (render_crash(report))
    )


def run(folder: Path, code: bytes, data: bytes = b"", *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "domainbuilder",
            "launch",
            str(guest(folder, code, data)),
            "-m",
            "8",
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_hint_is_for_the_store_that_was_the_end(tmp_path: Path) -> None:
    done = run(tmp_path, STORE_TO_L3)
    assert done.returncode == 3
    assert "--upper-ptwr lets it" in done.stderr


def test_no_hint_where_the_guest_went_on(tmp_path: Path) -> None:
    """It has a handler for page faults, and dies in there of something else."""
    table = struct.pack("<BBHI", 14, 0, 0xE019, CODE + 0x400) + bytes(8)
    code = hypercall(SET_TRAP_TABLE, CODE + DATA) + STORE_TO_L3
    done = run(tmp_path, code.ljust(0x400, b"\xcc") + UD2, table)
    assert done.returncode == 3
    assert "vec 6" in done.stderr
    assert "a store to an L3 page table" in done.stderr
    assert "--upper-ptwr" not in done.stderr


# -- on the command line


def test_statistics_and_json(tmp_path: Path) -> None:
    code = bad_mapping(0x11) + bad_mapping(0x19) + bad_mapping(0, 0x10000000) + UD2
    text = run(tmp_path, code, b"", "--stats").stderr
    assert re.search(r"^page-table refusals +3\n +2 x Bad L1 flags 18\n +1 x no L1 table", text, re.MULTILINE)
    report = json.loads(run(tmp_path, code, b"", "--stats", "--format", "json").stderr)
    assert report["statistics"]["refused"] == {
        "bad_flags": {"count": 2, "last": "Bad L1 flags 18"},
        "no_table": {"count": 1, "last": "no L1 table maps 10000000"},
    }
    calls = report["crash"]["hypercalls"]
    assert [call["refusals"] for call in calls] == [
        ["Bad L1 flags 10"],
        ["Bad L1 flags 18"],
        ["no L1 table maps 10000000"],
    ]
