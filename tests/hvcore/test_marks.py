"""A host goes back to a mark within its process: what it is and does from there on is as before."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from domainbuilder.conform.run import MEMORY_MIB, VCPUS, bundled
from domainbuilder.launch.domain import RunningDomain, launch
from hvcore import page_marks
from hvcore.machine import BOOT_TIME_NS
from hvcore.machine_memory import MachineMemory
from hvcore.page_marks import MarkedPages
from hvcore.save import owners, state_fields, store_owners
from tests.domainbuilder.tiny_guest import CODE, hypercall, kernel, mov
from tests.hvcore.saved import run_on
from tests.hvcore.stops import Subject, launched, run
from tests.hvcore.tlb_audit import errors_of

SECOND = 10**9
TYPED = ((3_000_000, b"about\n"), (50_000_000, b"trap\n"), (400_000_000, b"halt\n"))


@pytest.fixture
def running(sample_guest: Callable[[str], Path]) -> Iterator[RunningDomain]:
    with launch(sample_guest("hello"), 16) as dom:
        dom.console.expect("tick 1,")
        yield dom


def again_and_again(subject: Subject, after_ns: int) -> None:
    """To a point, then several times to the end, with something else between."""
    reference, output = run(subject), bytearray()
    otherwise = replace(subject, limit_ns=after_ns + 40_000_000, typed=((after_ns + 1_000_000, b"crash\n"),))
    with launched(subject, output) as dom:
        host = dom.machine.host
        for at, data in subject.typed:
            if at < after_ns:
                host.set_timer(at, BOOT_TIME_NS + at, partial(dom.machine.input, data))
        host.set_timer("mark", BOOT_TIME_NS + after_ns, host.pause)
        host.run()
        printed = bytes(output)
        before = host.save()
        mark = host.mark()
        assert host.save() == before
        for turn in range(3):
            if turn == 1:
                run_on(host, otherwise, output)
            else:
                assert run_on(host, subject, output) == reference
            host.rewind(mark)
            assert errors_of(dom.machine.engine, levels=dom.machine.domain.abi.pt_levels) == []
            output[:] = printed
            assert host.save() == before


def test_hello(sample_guest: Callable[[str], Path]) -> None:
    subject = Subject(sample_guest("hello"), 2 * SECOND, 16, typed=TYPED)
    end = run(subject).stats.system_time_ns - BOOT_TIME_NS
    chance = random.Random(4)
    for _ in range(3):
        again_and_again(subject, chance.randrange(end))


@pytest.mark.parametrize("name", ["fifo_vcpus", "grant_map", "ptwr_forms", "timers", "vcpus"])
def test_conformance_guests(name: str) -> None:
    with bundled() as guests:
        path = next(guest.kernel for guest in guests if guest.name == name)
        subject = Subject(path, 60 * SECOND, MEMORY_MIB, vcpus=VCPUS)
        end = run(subject).stats.system_time_ns - BOOT_TIME_NS
        again_and_again(subject, random.Random(name).randrange(end))


def test_address_spaces(pvkernel: Path) -> None:
    """Which one is in use when it goes back is not the one that was."""
    subject = Subject(pvkernel, 60 * SECOND, 64)
    end = run(subject).stats.system_time_ns - BOOT_TIME_NS
    for quarter in (1, 2, 3):
        again_and_again(subject, end * quarter // 4)


@pytest.mark.guest
def test_debian(guest_kernel: Callable[[str], Path]) -> None:
    kernel, cmdline = guest_kernel("vmlinuz-bookworm-amd64"), "console=hvc0 earlyprintk=xen"
    again_and_again(Subject(kernel, SECOND // 2, 128, vcpus=2, cmdline=cmdline), SECOND // 4)


def test_code_that_was_written_over(tmp_path: Path) -> None:
    """The guest counts in the operand of its own instruction: what was translated since has to go."""
    loop = mov("eax", 0) + b"\x83\x05" + (CODE + 1).to_bytes(4, "little") + b"\x01"  # add dword [CODE + 1], 1
    loop += b"\x3d" + (20_000).to_bytes(4, "little")  # cmp eax, 20000
    loop += b"\x75" + (-len(loop) - 2).to_bytes(1, signed=True)  # jne CODE
    path = tmp_path / "counts.elf"
    path.write_bytes(kernel(loop + mov("ebx", 2) + hypercall(29, 2, CODE + 0x100)))
    again_and_again(Subject(path, 5_000_000), 100_000)


def test_every_number_of_every_owner_comes_back(running: RunningDomain) -> None:
    m = running.machine
    before, mark = m.host.save(), m.host.mark()
    changed = 0
    for _, owner in (*owners(m), *store_owners(m.host.xenstored)):
        for field in state_fields(owner):
            value = getattr(owner, field)
            if value.__class__ in (int, bool):
                setattr(owner, field, value + 1 if value.__class__ is int else not value)
                changed += 1
            elif isinstance(value, dict | set | list):
                value.clear()
    assert changed > 60
    m.host.rewind(mark)
    assert m.host.save() == before


# --- pages --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["scan", "read"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MachineMemory:
    """Memory with something in it, on a kernel with PAGEMAP_SCAN and on one without."""
    if request.param == "read":

        def refuse(*_args: object, **_more: object) -> list[tuple[int, int]]:
            raise OSError(25, "Inappropriate ioctl for device")

        monkeypatch.setattr(page_marks, "_scan", refuse)
    memory = MachineMemory(6000)
    for page in range(0, len(memory.view) >> 12, 7):
        memory.view[page << 12] = page % 251
    return memory


def test_pages_that_were_written_and_no_others(memory: MachineMemory) -> None:
    pages, was = MarkedPages(memory), bytes(memory.view)
    mark = pages.set_mark()
    assert memory.view == was
    assert pages.written(mark) == []
    memory.view[5 << 12] = 9
    memory.view[(6 << 12) + 8] = 9
    memory.view[4000 << 12] = 9
    sum(memory.view[:: 1 << 12])  # looking changes nothing
    runs = pages.written(mark)
    assert runs == [(5 << 12, 7 << 12), (4000 << 12, 4001 << 12)]
    pages.go_back(mark, runs)
    assert memory.view == was
    memory.view[5 << 12] = 1  # which the process has to itself by now: no fault
    memory.view[80 << 12] = 1
    pages.go_back(mark, pages.written(mark))
    assert memory.view == was


def test_marks_one_after_the_other_and_back_to_the_first(memory: MachineMemory) -> None:
    pages = MarkedPages(memory)
    first, was = pages.set_mark(), bytes(memory.view)
    memory.view[9 << 12] = 77
    second, then = pages.set_mark(), bytes(memory.view)
    memory.view[9 << 12] = 78
    memory.view[10 << 12] = 78
    pages.go_back(second, pages.written(second))
    assert memory.view == then
    pages.go_back(first, pages.written(first))
    assert memory.view == was
    pages.go_back(second, pages.written(second))
    assert memory.view == then
    pages.go_back(first, pages.written(first))
    assert memory.view == was
    del second
    memory.view[3] = 1
    pages.go_back(first, pages.written(first))
    assert memory.view == was


def test_a_process_that_owns_many_pages_begins_anew(
    memory: MachineMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_marks, "_MANY_PAGES", 10)
    pages = MarkedPages(memory)
    mark, was = pages.set_mark(), bytes(memory.view)
    memory.view[:] = bytes(len(memory.view))
    runs = pages.written(mark)
    assert runs == [(0, len(memory.view))]
    pages.go_back(mark, runs)
    assert memory.view == was
    assert pages.written(mark) == []


def test_memory_that_settles_is_what_it_was(memory: MachineMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    pages, was = MarkedPages(memory), bytes(memory.view)
    monkeypatch.setattr(page_marks, "_MANY_PAGES_TO_FORK", 1 << 20)
    pages.settle()  # for so few it is not worth it
    assert not memory.is_from_file
    monkeypatch.undo()
    mark = pages.set_mark()
    memory.view[:] = was[::-1]
    pages.settle()
    assert memory.view == was[::-1]
    pages.go_back(mark, pages.written(mark))
    assert memory.view == was


def test_a_forked_process_has_pages_of_its_own(memory: MachineMemory) -> None:
    pages = MarkedPages(memory)
    mark, was = pages.set_mark(), bytes(memory.view)
    memory.view[1 << 12] = 1
    pages.go_back(mark, pages.written(mark))
    pid = os.fork()
    if not pid:
        memory.view[1 << 12] = memory.view[200 << 12] = 2
        pages.go_back(mark, pages.written(mark))
        os._exit(memory.view != was)
    assert os.waitpid(pid, 0)[1] == 0
    assert memory.view == was


def test_many_marks_have_their_pages_in_common(memory: MachineMemory) -> None:
    """Random writes, marks, ways back and marks given up; also on both sides of a fork, with marks then."""
    pages, chance = MarkedPages(memory), random.Random(11)
    count = len(memory.view) >> 12
    marks: list[tuple[page_marks.PageMark, bytes]] = []

    def act() -> None:
        for _ in range(chance.randrange(40)):
            at = chance.randrange(count) << 12
            memory.view[at + chance.randrange(4096)] = chance.randrange(256)
        if len(marks) > 6:
            del marks[chance.randrange(len(marks))]
        marks.append((pages.set_mark(), hashlib.sha256(memory.view).digest()))
        for _ in range(2):
            mark, was = chance.choice(marks)
            memory.view[chance.randrange(count) << 12] = 99
            pages.go_back(mark, pages.written(mark))
            assert hashlib.sha256(memory.view).digest() == was

    for _ in range(30):
        act()
    assert pages.size < 2 * len(memory.view)  # not a copy each
    for turn in range(3):
        pid = os.fork()
        if not pid:
            with suppress(BaseException):
                for _ in range(4):
                    act()
                os._exit(0)
            os._exit(1)
        for _ in range(2):
            act()
        assert os.waitpid(pid, 0)[1] == 0, turn


def test_frames_are_scrubbed_behind_a_mark_too(memory: MachineMemory) -> None:
    pages, was = MarkedPages(memory), bytes(memory.view)
    mark = pages.set_mark()
    memory.scrub(memory.base_mfn, 20)
    assert memory.view[: 20 << 12] == bytes(20 << 12)
    pages.go_back(mark, pages.written(mark))
    assert memory.view == was
