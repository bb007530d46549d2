"""What a crash report says in plain words, of guests that make one mistake each."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from domainbuilder.launch.crash_report import CrashReport
from domainbuilder.launch.crash_text import render_crash
from domainbuilder.launch.domain import launch
from domainbuilder.launch.stop_text import render_stop
from tests.domainbuilder.elfwriter import EM_386, EM_X86_64, RWX, ElfWriter, xen_notes
from tests.domainbuilder.tiny_guest import CODE, STACK_TOP, UD2, hypercall, kernel, mov

BASE64 = 0xFFFFFFFF80000000
CODE64 = BASE64 + 0x100000
SCHED_OP, SET_TRAP_TABLE, SET_CALLBACKS, EVENT_CHANNEL_OP = 29, 0, 4, 32


def kernel64(code: bytes) -> bytes:
    """A 64-bit kernel that runs `code`."""
    writer = ElfWriter(64, EM_X86_64, entry=CODE64)
    writer.load(
        code.ljust(0x1000, b"\xcc"), paddr=0x100000, vaddr=CODE64, memsz=0x3000, flags=RWX, align=4096
    )
    notes = xen_notes(8, ENTRY=CODE64, VIRT_BASE=BASE64, PAE_MODE=None)
    return writer.note_segment(b"".join(notes)).build()


def crash_of(path: Path, image: bytes) -> CrashReport:
    """The report of a guest that has to crash."""
    path.write_bytes(image)
    with launch(path, memory_mib=8, timeout=60) as dom:
        report = dom.wait().report
    assert report is not None
    return report


def told(path: Path, image: bytes) -> tuple[str, ...]:
    """What is said of a guest that has to crash, as its report's text has it."""
    report = crash_of(path, image)
    shown = render_crash(report).partition("What it means:\n")[2]
    assert shown == "".join(f"  {line}\n" for line in report.meaning)
    return report.meaning


NOTHING_SET = "set_trap_table has given Xen no handler of anything"


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        (
            b"\xc7\x05\x10\x00\x00\x00" + bytes(4),
            ["a store to 0x10, where nothing is mapped: a null pointer"],
        ),
        (b"\xa1\x00\x00\x00\x70", ["a load from 0x70000000, where nothing is mapped"]),
        (mov("eax", 0x70000000) + b"\xff\xe0", ["a jump to 0x70000000, where nothing is mapped"]),
        (b"\xf4", ["`hlt` in ring 1, where a PV kernel runs: a vCPU waits by sched_op(SCHEDOP_block)"]),
        (b"\xe6\x80", ["`out 0x80, al` in ring 1, where a PV kernel runs: a domU has no I/O ports"]),
        (b"\x0f\x01\x15" + CODE.to_bytes(4, "little"), ["the GDT is set by set_gdt"]),
        (b"\x0f\x22\xd8", ["it takes the machine address of a top-level page table"]),
        (b"\xcd\x20", ["`int 0x20`: set_trap_table has no handler for it that the guest's ring may call"]),
        (  # a stack of no pages, which lies below the kernel's first page
            mov("esp", 0xC0000000) + b"\x50",
            [
                "a store to 0xbffffffc, where",
                "esp is 0xc0000000, and nothing is mapped below 0xc0000000: the stack",
            ],
        ),
        (
            mov("esp", 0x6000) + b"\x50",
            ["a store to 0x5ffc, where", "esp is 0x6000, and no stack is mapped there"],
        ),
        (mov("esp", 0) + b"\x50", ["a store to 0xfffffffc, ", "esp is 0x0, and no stack is mapped there"]),
        (  # start_info->pt_base is the top-level table, and its first word one of its entries
            b"\x8b\x46\x3c" + b"\xc7\x00\x00\x00\x00\x00",
            ["whose page is read-only", "page tables are changed by mmu_update and update_va_mapping"],
        ),
        (  # start_info->shared_info is a machine address
            b"\x8b\x46\x24" + b"\x88\x00",
            ["where nothing is mapped", "the machine address of shared_info: update_va_mapping() maps it"],
        ),
        (  # start_info->console.domU.mfn, as if it were a pfn
            b"\x8b\x46\x34" + b"\xc1\xe0\x0c" + b"\x8a\x80\x00\x00\x00\xc0",
            ["where nothing is mapped", "is the machine frame of pfn 0x10"],
        ),
        (UD2, []),
    ],
)
def test_a_fault_without_a_handler(tmp_path: Path, code: bytes, lines: list[str]) -> None:
    *found, last = told(tmp_path / "tiny.elf", kernel(code))
    assert last == NOTHING_SET
    for line, wanted in zip(found, lines, strict=True):
        assert wanted in line


def test_a_handler_of_something_else(tmp_path: Path) -> None:
    """One for #BP: struct trap_info is vector, flags, cs, address, and the list ends with address 0."""
    table = struct.pack("<BBHI", 3, 0, 0xE019, CODE) + bytes(8)
    code = hypercall(SET_TRAP_TABLE, CODE + 0x80) + UD2
    assert told(tmp_path / "tiny.elf", kernel(code.ljust(0x80) + table)) == (
        "set_trap_table has given Xen no handler for #UD",
    )


# EVTCHNOP_bind_ipi of vCPU 0, EVTCHNOP_send to port 3, which that gives. At CODE + 0x80: vCPU and port.
IPI = hypercall(EVENT_CHANNEL_OP, 7, CODE + 0x80) + hypercall(EVENT_CHANNEL_OP, 4, CODE + 0x84)
BLOCK = hypercall(SCHED_OP, 1, 0)


def test_an_event_and_no_callback(tmp_path: Path) -> None:
    (line,) = told(tmp_path / "tiny.elf", kernel((IPI + BLOCK).ljust(0x80) + bytes(8)))
    assert line.startswith("an event has come, and the guest has no event callback: set_callbacks, or ")


def test_an_iret_from_the_wrong_words(tmp_path: Path) -> None:
    """RAX R11 RCX flags RIP CS RFLAGS RSP SS, a word too early: the flags are taken for CS."""
    frame = struct.pack("<9Q", 0, 0, 0, 0, CODE64, 0x246, CODE64 + 0x2000, 0xE02B, 0)
    code = b"\x48\xc7\xc4" + (CODE64 + 0x80 & 0xFFFFFFFF).to_bytes(4, "little")  # mov rsp, CODE64 + 0x80
    code += mov("eax", 23) + b"\x0f\x05"
    line, _ = told(tmp_path / "tiny.elf", kernel64(code.ljust(0x80) + frame))
    assert line == (
        "cs 0247 names no segment: the iret hypercall takes RAX R11 RCX flags RIP CS RFLAGS RSP SS from the "
        "stack; a handler takes RCX, R11 and the error code off it before"
    )


@pytest.mark.parametrize("stack", [CODE + 0x80, 0x10])
def test_an_iret_that_xen_refuses(tmp_path: Path, stack: int) -> None:
    """EAX, EIP, CS, EFLAGS behind an error code, so that CS is the address; and a frame that is nowhere."""
    frame = struct.pack("<5I", 0, 2, CODE, 0xE019, 0x202)
    code = mov("esp", stack) + mov("eax", 23) + b"\xcd\x82"
    (line,) = told(tmp_path / "tiny.elf", kernel(code.ljust(0x80) + frame))
    assert line.startswith(
        "the iret hypercall takes EAX EIP CS EFLAGS from the stack; a handler takes the error"
    )


@pytest.mark.parametrize("noted", [True, False])
def test_a_hypercall_page_that_is_not_noted(tmp_path: Path, *, noted: bool) -> None:
    """The kernel calls into the page, whose zeros are `add [eax], al`, and runs out of it."""
    page = 0xC0101000
    code = mov("eax", STACK_TOP) + b"\xe9" + (page - CODE - 10).to_bytes(4, "little")
    writer = ElfWriter(32, EM_386, entry=CODE)
    data = code.ljust(0x1000, b"\xcc") + bytes(0x1000) + UD2.ljust(0x1000)
    writer.load(data, paddr=0x100000, vaddr=CODE, memsz=0x3000, flags=RWX, align=4096)
    writer.note_segment(b"".join(xen_notes(4, HYPERCALL_PAGE=page if noted else None)))
    writer.symbols([("hypercall_page", page, 0x1004, 0)])
    lines = told(tmp_path / "tiny.elf", writer.build())
    empty = "hypercall_page is empty: no note HYPERCALL_PAGE names it, and so Xen wrote no hypercalls there"
    assert (empty in lines) is not noted


def test_a_crash_that_the_guest_reports_means_what_it_says(tmp_path: Path) -> None:
    code = hypercall(SCHED_OP, 2, CODE + 0x80)  # SCHEDOP_shutdown, SHUTDOWN_crash
    report = crash_of(tmp_path / "tiny.elf", kernel(code.ljust(0x80) + struct.pack("<I", 3)))
    assert report.meaning == ()
    assert "What it means" not in render_crash(report)


def test_a_fault_again_and_again_is_counted(tmp_path: Path) -> None:
    """Its handler of #UD is the `ud2` itself."""
    table = struct.pack("<BBHI", 6, 0, 0xE019, CODE + 0x70) + bytes(8)
    code = mov("esp", STACK_TOP) + hypercall(SET_TRAP_TABLE, CODE + 0x80)
    again = mov("esp", STACK_TOP) + UD2
    path = tmp_path / "tiny.elf"
    path.write_bytes(kernel(code.ljust(0x70, b"\x90") + again.ljust(0x10) + table))
    with launch(path, memory_mib=8, timeout=60, max_guest_seconds=0.0005) as dom:
        assert dom.wait().reason == "timeout"
        report = dom.look()
    assert dict(report.recently)["#UD"] > 1000
    assert "of its time: #UD: " in render_stop(report)


def test_an_event_that_stays_pending(tmp_path: Path) -> None:
    """Its callback clears evtchn_upcall_pending, leaves the bit in evtchn_pending, and blocks."""
    page = STACK_TOP - 0x1000
    set_callbacks = hypercall(SET_CALLBACKS, 0xE019, CODE + 0xC0, 0xE019, CODE + 0xC0)
    map_shared_info = (
        b"\x8b\x4e\x24" + b"\x83\xc9\x63"
    )  # mov ecx, start_info->shared_info; or ecx, RW and so on
    map_shared_info += mov("ebx", page) + mov("edx", 0) + mov("esi", 2) + mov("eax", 14) + b"\xcd\x82"
    code = mov("esp", STACK_TOP) + map_shared_info + set_callbacks + IPI + BLOCK
    callback = b"\xc6\x05" + page.to_bytes(4, "little") + b"\x00" + BLOCK
    data = struct.pack("<II", 0, 3)
    path = tmp_path / "tiny.elf"
    path.write_bytes(kernel(code.ljust(0x80, b"\x90") + data + bytes(0x38) + callback))
    with launch(path, memory_mib=8, timeout=60) as dom:
        assert dom.wait().reason == "idle"
        text = render_stop(dom.look())
    assert "  port 3: IPI, for vcpu 0\n  an event is told once: the guest clears its bit" in text
