"""What is told of a guest that died, against what its instructions were written to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from domainbuilder.launch.crash_report import CrashReport
from domainbuilder.launch.crash_text import render_crash
from domainbuilder.launch.domain import RunningDomain, launch
from domainbuilder.launch.session import Outcome
from domainbuilder.reports.launch_report import launch_report
from tests.domainbuilder.pagewalk import walk_page_tables
from tests.domainbuilder.tiny_guest import CODE, STACK_TOP, UD2, hypercall, kernel, mov

FUNCTION = 2
STORE_TO_16 = b"\xc7\x05\x10\x00\x00\x00\x44\x33\x22\x11"  # mov dword [0x10], 0x11223344
Crash = Callable[..., tuple[CrashReport, RunningDomain]]


@pytest.fixture
def crash(tmp_path: Path) -> Crash:
    """Run a few instructions that end in a crash."""

    def run(
        code: bytes, symbols: list[tuple[str, int, int, int]] | None = None
    ) -> tuple[CrashReport, RunningDomain]:
        path = tmp_path / "tiny.elf"
        path.write_bytes(kernel(code, symbols))
        dom = launch(path, memory_mib=8, timeout=60)
        outcome = dom.wait()
        assert outcome.report is not None
        return outcome.report, dom

    return run


def test_a_page_fault_without_a_handler(crash: Crash) -> None:
    setup = mov("eax", 0xA1) + mov("ecx", 0xC1) + mov("ebp", 0xB9) + mov("esp", STACK_TOP)
    report, _ = crash(setup + STORE_TO_16)
    assert report.reason == "Unhandled: vec 14, #PF[0002]"  # Xen's words: a write, not present, in the kernel
    registers = report.registers
    assert registers.rip == CODE + len(setup)
    general = registers.general
    assert (general["rax"], general["rcx"], general["rbp"]) == (0xA1, 0xC1, 0xB9)
    assert general["rsp"] == STACK_TOP
    assert registers.cr2 == 0x10
    assert registers.kernel_mode
    assert {registers.selectors[name] for name in ("ss", "ds", "es")} == {0xE021}
    assert registers.selectors["cs"] == 0xE019
    (address,) = report.addresses
    assert (address.role, address.address) == ("faulting address", 0x10)
    assert address.walk.end == "the L3 entry is not present"
    assert address.walk.machine_address is None


def test_the_code_around_the_instruction(crash: Crash) -> None:
    before = mov("eax", 1) + b"\x01\xc0" + b"\x90"
    report, _ = crash(before + STORE_TO_16 + mov("ebx", 7), [("start", CODE, 64, FUNCTION)])
    shown = [(i.address - CODE, i.text, i.current) for i in report.code]
    assert shown[:5] == [
        (0, "mov eax, 1", False),
        (5, "add eax, eax", False),
        (7, "nop", False),
        (8, "mov dword ptr [0x10], 0x11223344", True),
        (18, "mov ebx, 7", False),
    ]
    assert report.code[3].code == STORE_TO_16
    assert sum(i.current for i in report.code) == 1


def test_the_stack_with_symbols(crash: Crash) -> None:
    code = (
        mov("esp", STACK_TOP)
        + b"\x68\x2a\x00\x00\x00"  # push 42
        + b"\xe8\x02\x00\x00\x00"  # call inner
        + UD2
        + UD2  # inner, at CODE + 17
    )
    inner = CODE + 17
    report, _ = crash(code, [("outer", CODE, 17, FUNCTION), ("inner", inner, 2, FUNCTION)])
    assert report.reason == "Unhandled: vec 6, #UD"
    assert report.symbol == "inner+0x0"
    assert report.stack[:2] == (CODE + 15, 42)
    assert report.stack_address == STACK_TOP - 8
    (word,) = report.trace
    assert (word.address, word.value, word.symbol) == (STACK_TOP - 8, CODE + 15, "outer+0xf")
    current = next(i for i in report.code if i.current)
    assert (current.address, current.symbol) == (inner, "inner+0x0")
    text = render_crash(report)
    assert f"  [<{CODE + 15:08x}>] <outer+0xf>" in text
    assert f"RIP:    e019:[<{inner:016x}>] <inner+0x0>" in text


def test_the_last_hypercalls(crash: Crash) -> None:
    many = hypercall(17, 0, 0) * 20  # XENVER_version
    report, _ = crash(many + hypercall(29, 99, 0) + hypercall(63) + hypercall(24, 3, 7, 0) + UD2)
    shown = [(h.name, h.command, h.arguments, h.result_name) for h in report.hypercalls]
    assert shown[-4:] == [
        ("xen_version", "XENVER_version", (0, 0), "0x40011"),  # 4.17
        ("sched_op", "", (99, 0), "-ENOSYS"),
        ("hypercall 63", "", (), "-ENOSYS"),
        ("vcpu_op", "VCPUOP_is_up", (3, 7, 0), "-ENOENT"),
    ]
    assert len(shown) == 16
    text = render_crash(report)
    assert "  sched_op(0x63, 0x0) = -ENOSYS\n" in text
    assert "  vcpu_op(VCPUOP_is_up, 0x7, 0x0) = -ENOENT\n" in text


def test_a_walk_is_that_of_the_page_tables(crash: Crash) -> None:
    """A store to a page-table page: mapped, but read-only. The builder's tables, walked by other code."""
    table_va = CODE - 0x100000 + 0  # virtual address 0xC0000000 + 0: pfn 0
    report, dom = crash(STORE_TO_16)
    mem = dom.machine.mem
    assert report.registers.cr3 == dom.machine.boot["root_mfn"] << 12
    walk = walk_page_tables(mem.ram, mem.first_mfn, report.registers.cr3 >> 12, 3)
    leaves = dict(walk.leaves)
    from hvcore.debug.view import GuestView

    view = GuestView(dom.machine)
    for va in (CODE, table_va, *list(leaves)[::37]):
        found = view.walk(va)
        assert found.end == "mapped"
        leaf = found.entries[-1]
        assert leaf.entry & ~0x60 == leaves[va] & ~0x60
        assert leaf.pfn is not None
        assert mem.m2p[4].words[leaf.mfn] == leaf.pfn
        assert leaf.mfn == leaves[va] >> 12 & 0xFFFFFFFFFF
        assert ("read-only" in leaf.flags) == (not leaves[va] & 2)
        assert found.machine_address == leaf.mfn << 12
    assert view.read(CODE, len(STORE_TO_16)) == STORE_TO_16


def test_a_store_to_a_page_table_tells_how_it_is_mapped(crash: Crash, tmp_path: Path) -> None:
    path = tmp_path / "where.elf"
    path.write_bytes(kernel(UD2))
    import domainbuilder

    plan = domainbuilder.plan(path, memory_mib=8)
    va = next(s.vstart for s in plan.segments if s.pfn == plan.pgtables_pfn)
    report, _ = crash(b"\xa3" + va.to_bytes(4, "little"))  # mov [va], eax
    assert report.reason == "Unhandled: vec 14, #PF[0003]"
    (address,) = report.addresses
    assert address.address == va
    assert address.walk.end == "mapped"
    assert address.walk.entries[-1].pfn == plan.pgtables_pfn
    assert "read-only" in address.walk.entries[-1].flags
    assert f"Pagetable walk from {va:08x} (faulting address):" in render_crash(report)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("no stack", mov("esp", 0x1000) + UD2),
        ("stack at the top", mov("esp", 0xFFFFFFFE) + UD2),
        ("no code", mov("eax", 0xDEAD0000) + b"\xff\xe0"),
        ("code at the top", mov("eax", 0xFFFFFFFF) + b"\xff\xe0"),
        ("bad instruction", b"\xff\xff\xff\xff"),
        ("int without a gate", b"\xcd\x03"),
        ("divide", b"\x31\xc9\xf7\xf1"),
    ],
)
def test_garbage_is_reported_and_not_followed(crash: Crash, name: str, code: bytes) -> None:
    report, _ = crash(code)
    text = render_crash(report)
    assert report.reason
    assert len(text.splitlines()) < 120
    if name.startswith("no stack"):
        assert report.stack == ()
        assert "Guest-inaccessible memory." in text
        assert [a.role for a in report.addresses] == ["stack"]
    if name == "no code":
        assert report.code == ()
        assert report.registers.cr2 == 0xDEAD0000


def test_a_report_survives_page_tables_of_garbage(crash: Crash) -> None:
    from domainbuilder.launch.crash_report import capture

    _, dom = crash(UD2)
    mem = dom.machine.mem
    root = dom.machine.domain.current.cr3_mfn
    for garbage in (b"\xff" * 4096, b"\x81" * 4096, bytes(4096), b"\x01" + bytes(4095)):
        mem.frame(root)[:] = garbage
        report = capture(dom.machine, dom.names(), "test", address=CODE, role="test", guest_ns=0)
        assert len(render_crash(report).splitlines()) < 120
        dom.machine.domain.current.cr3_mfn = 0x7FFFFFFF
        report = capture(dom.machine, dom.names(), "test", address=CODE, role="test", guest_ns=0)
        assert report.addresses[0].walk.end == "the L3 table would be outside of memory"
        dom.machine.domain.current.cr3_mfn = root


def test_the_layout_is_xens(crash: Crash) -> None:
    """The lines of show_execution_state(), as xen/arch/x86/x86_64/traps.c prints them."""
    report, _ = crash(mov("eax", 0x12345678) + UD2)
    lines = render_crash(report).splitlines()
    assert lines[1].startswith("Domain 1 (vcpu#0) crashed")
    assert lines[2].startswith("RIP:    e019:[<00000000c0100005>]")
    assert lines[3].startswith("RFLAGS: 0000000000000202   EM: 1   CONTEXT: pv guest (d1v0)")
    assert lines[4] == "rax: 0000000012345678   rbx: 0000000000000000   rcx: 0000000000000000"
    assert lines[9].startswith("r15: 0000000000000000   cr0: 0000000080050033   cr4: 0000000000000660")
    assert lines[12] == "ds: e021   es: e021   fs: e021   gs: e021   ss: e021   cs: e019"


def test_the_json_says_the_same(crash: Crash) -> None:
    report, dom = crash(mov("esp", STACK_TOP) + hypercall(17, 0, 0) + STORE_TO_16)
    outcome = Outcome("crashed", report.reason, report)
    document = json.loads(
        launch_report("tiny.elf", outcome, str(outcome), 3, [], dom.stats()).model_dump_json()
    )
    crashed = document["crash"]
    assert crashed["reason"] == "Unhandled: vec 14, #PF[0002]"
    assert crashed["registers"]["cr2"] == "0x10"
    assert crashed["registers"]["general"]["rsp"] == hex(STACK_TOP)
    assert crashed["hypercalls"] == [
        {
            "number": 17,
            "name": "xen_version",
            "command": "XENVER_version",
            "arguments": ["0x0", "0x0"],
            "result": 0x40011,
            "result_name": "0x40011",
            "refusals": [],
            "entries": [],
        }
    ]
    assert crashed["refused_faults"] == []
    assert [i["text"] for i in crashed["code"] if i["current"]] == ["mov dword ptr [0x10], 0x11223344"]
    assert document["statistics"]["hypercalls"] == {"xen_version": 1}
    assert document["statistics"]["traps"] == {"#PF": 1}


def test_symbols_of_any_kind_do_no_harm(crash: Crash) -> None:
    odd = [
        ("\x1b[2J" + "x" * 5000, CODE, 2, FUNCTION),
        ("", CODE, 2, FUNCTION),
        ("far", 0, 0xFFFFFFFF, FUNCTION),
    ]
    report, _ = crash(UD2, odd)
    text = render_crash(report)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 300
