"""`domainbuilder tour`: a boot told step by step, with lessons that point to what is there."""

from __future__ import annotations

import asyncio
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from rich.console import Console

from domainbuilder.hypercall_names import _commands
from domainbuilder.launch.address_space import Span, spans
from domainbuilder.launch.domain import launch
from domainbuilder.plan.domain_plan import plan
from domainbuilder.plan.regions import tables
from domainbuilder.tour.lessons import BEFORE, COMMANDS, HYPERCALLS, KINDS, Lesson
from domainbuilder.tour.run import TourOptions, collect
from domainbuilder.tour.steps import Named, Step, named
from domainbuilder.tour.text import linked, render
from domainbuilder.trace.record import CLASS_OF
from hvcore.debug.view import GuestView
from hvcore.public.xen import Hypercall

ROOT = Path(__file__).resolve().parent.parent.parent


def lessons() -> Iterator[Lesson]:
    for table in (BEFORE, HYPERCALLS, COMMANDS, KINDS):
        yield from table.values()


def steps(kernel: Path, typed: bytes) -> list[Step]:
    return collect(plan(str(kernel)), TourOptions(str(kernel), None, None, "", typed, 60.0, pause=False))


@pytest.fixture(scope="module")
def hello(sample_guest: Callable[[str], Path]) -> list[Step]:
    return steps(sample_guest("hello"), b"trap\nhalt\n")


def test_lessons_name_modules_that_exist_and_calls_that_exist() -> None:
    """Of Xen's files and functions tests/test_xen_names.py knows."""
    for lesson in lessons():
        assert all((ROOT / name).is_file() for name in lesson.here.split(", ")), lesson.here
        assert re.search(r"(xen|tools)/[\w./-]+\.[chS]", lesson.xen)
        assert lesson.asks
        assert lesson.checks
    assert set(HYPERCALLS) <= {call.name for call in Hypercall}
    assert set(COMMANDS) <= {name for _, names in _commands().values() for name in names.values()}
    assert set(KINDS) - {"refused"} <= set(CLASS_OF)


def test_a_boot_in_its_order(hello: list[Step]) -> None:
    titles = [step.title for step in hello]
    told = iter(titles)
    for title in (
        "The notes are read",
        "Page tables are made",
        "It asks: memory_op: XENMEM_machphys_mapping",
        "It asks: set_trap_table",
        "The console backend is notified",
        "It asks: event_channel_op: EVTCHNOP_bind_virq",
        "It asks: sched_op: SCHEDOP_block",
        "The first upcall",
        "An event channel is raised: VIRQ_TIMER",
        "An exception of its own: #PF",
        "It asks: sched_op: SCHEDOP_shutdown",
        "The end",
    ):
        assert title in told, f"{title!r} does not come, or not in this place: {titles}"
    times = [step.ns for step in hello if step.ns is not None]
    assert times == sorted(times)
    assert hello[-1].shown == ("the guest powered off",)
    printed = "\n".join(line for step in hello for line in step.console)
    assert "Hello from a paravirtual guest." in printed
    again = dict(row for step in hello for row in step.since)
    assert again["EVTCHNOP_send"] > 1


def test_page_tables_grow(pvkernel: Path) -> None:
    """pvkernel maps all of its memory: its L1 tables become more."""
    told = steps(pvkernel, b"")
    growth = [(was, now) for step in told for name, was, now in step.frames if name == "l1"]
    assert growth
    assert growth[0][0] < growth[-1][1]
    assert any(step.title.startswith("It asks: mmu_update") for step in told)


def test_as_text(hello: list[Step], sample_guest: Callable[[str], Path]) -> None:
    command = [sys.executable, "-m", "domainbuilder", "tour", str(sample_guest("hello"))]
    done = subprocess.run(
        [*command, "--send", "trap\\nhalt\\n"],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout == "".join(render(number, step) for number, step in enumerate(hello, 1))
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 180
    shown = linked("xen/arch/x86/mm.c: do_mmu_update()")
    assert re.sub(r"\x1b\]8;;[^\x1b]*\x1b\\", "", shown) == "xen/arch/x86/mm.c: do_mmu_update()"
    assert subprocess.run([*command[:-1], "/bin/ls"], capture_output=True, check=False).returncode == 2


def test_an_address_space_with_nothing_but_xens_part_is_shown() -> None:
    pytest.importorskip("textual")
    from domainbuilder.tour import panes

    step = Step("", 0, (), BEFORE["start"], spans=(Span(0xF5800000, 1 << 32, 0, None, is_xens=True),))
    shown = io.StringIO()
    Console(file=shown, width=120).print(panes.address_space(step, None, []))
    assert "Xen's own" in shown.getvalue()


def test_the_application(hello: list[Step], sample_guest: Callable[[str], Path]) -> None:
    """Its keys: on and back, search, the panes of the domain as it was, sources."""
    pytest.importorskip("textual")
    from textual.widgets import OptionList, Static, TabbedContent

    from domainbuilder.tour.app import TourApp

    app = TourApp("hello", hello, named(plan(str(sample_guest("hello")))))
    opened: list[str] = []
    app.open_url = lambda url, **_: opened.append(url)  # type: ignore[method-assign]

    def text(name: str) -> str:
        shown = io.StringIO()
        console = Console(file=shown, width=120)
        console.print(app.query_one(name, Static).content)
        return shown.getvalue()

    async def use() -> None:
        async with app.run_test(size=(120, 40)) as pilot:
            steps = app.query_one("#steps", OptionList)
            assert steps.option_count == len(hello)
            assert "The notes are read" in text("#detail")
            assert "nothing is mapped" in text("#space-text")
            await pilot.press("n", "space", "right", "k")
            assert app.step == 2
            assert f"step 3 of {len(hello)}, before the guest runs" in text("#detail")
            assert re.search(r"0xc0000000 +4 MB +2 .*kernel, phys2mach, start info", text("#space-text"))

            await pilot.press("slash", *"va_mapping", "enter")
            assert app.step is not None
            assert hello[app.step].title == "It asks: update_va_mapping"
            assert steps.option_count < len(hello) // 2
            assert re.search(r"argument 1 +0x", text("#detail"))
            await pilot.press("x")
            assert opened[-1].endswith("f=xen/arch/x86/mm.c")
            await pilot.press("o")
            await pilot.pause()
            assert "hvcore/pv/mmu_update.py" in str(app.screen.query_one("#source").border_title)
            await pilot.press("j", "q", "escape")
            assert steps.option_count == len(hello)
            assert hello[app.step].title == "It asks: update_va_mapping"

            await pilot.press("slash", *"nosuchword")
            assert app.step is None
            assert "no step has" in text("#detail")
            await pilot.press("enter", "n", "r", "o", "x", "escape", "G", "c")
            assert app.step == len(hello) - 1
            assert app.query_one("#tabs", TabbedContent).active == "console"
            assert "Hello from a paravirtual guest." in text("#console-text")
            await pilot.press("f", "g", "t", "question_mark", "question_mark")
            assert app.step is not None
            assert hello[app.step].spans != hello[app.step - 1].spans
            await pilot.press("G", "m", "p")
            assert re.search(r"writable +[\d,]+", text("#frames-text"))
            await pilot.press("r")
            assert app.step == len(hello) - 2  # nothing is refused, and it stays
            await pilot.press("q")

    asyncio.run(use())
    assert app.return_code == 0


def test_the_application_takes_nothing_of_a_guests_for_markup(hello: list[Step]) -> None:
    pytest.importorskip("textual")
    from textual.widgets import OptionList

    from domainbuilder.tour.app import TourApp

    evil = "[red]a[/nothing]\x1b[2J\u202e[@click=app.quit]b[/]"
    bad = Step(evil, 5, (evil,), hello[0].lesson, console=(evil,), since=((evil, 2),), facts=((evil, evil),))
    app = TourApp(evil, [bad, bad._replace(is_refused=True)], [Named(0, 1, evil)])

    async def use() -> None:
        async with app.run_test(size=(80, 24)) as pilot:
            for key in "afcmr":
                await pilot.press(key)
            shown = app.query_one("#steps", OptionList).get_option_at_index(1).prompt
            assert "[red]a[/nothing]\\x1b[2J\\u202e[@click" in str(shown)
            assert app.step == 1
            await pilot.press("q")

    asyncio.run(use())
    assert app.return_code == 0


@pytest.mark.parametrize("is_64bit", [False, True])
def test_the_address_space_is_what_a_walk_of_each_page_finds(
    sample_guest: Callable[[str], Path], conformance_guest: Callable[[str], Path], is_64bit: bool
) -> None:
    kernel = conformance_guest("vcpus-64") if is_64bit else sample_guest("hello")
    with launch(kernel, memory_mib=16) as dom:
        found = spans(dom.machine)
        view, abi = GuestView(dom.machine), dom.machine.domain.abi
        own = [span for span in found if not span.is_xens]
        for span in own:
            pages = sum(view.walk(va).end == "mapped" for va in range(span.start, span.end, 4096))
            assert span.pages == pages
            assert span.tables == (span.end - span.start) >> 21
            for beside in (span.start - 1, span.end):
                assert view.walk(beside & abi.word_mask).end != "mapped"
        assert [(s.start, s.end) for s in found if s.is_xens] == [
            (abi.hypervisor_virt_start & -(1 << 21), abi.hypervisor_virt_end)
        ]
    mapped = [t for t in tables(plan(str(kernel), 16)) if t.level == 1]
    assert [(span.start, span.end) for span in own] == [(t.start, t.end) for t in mapped]


def test_on_a_terminal_it_waits(sample_guest: Callable[[str], Path]) -> None:
    arguments = ["-m", "domainbuilder", "tour", str(sample_guest("hello")), "--send", "halt\\n"]
    child = pexpect.spawn(
        sys.executable, arguments, timeout=60, encoding="utf-8", env={**os.environ, "TERM": "dumb"}
    )
    try:
        for title in ("The notes are read", "The address space is laid out", "Page tables are made"):
            child.expect_exact(title)
            child.expect_exact("Enter: the next step")
            child.send("\r")
        child.expect_exact("its first vCPU gets registers")
        child.expect_exact("Enter: the next step")
        child.send("q\r")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
    finally:
        child.close(force=True)


@pytest.mark.parametrize("options", [(), ("--text",)])
def test_on_a_terminal_that_can_draw_it_is_the_application(
    sample_guest: Callable[[str], Path], options: tuple[str, ...]
) -> None:
    pytest.importorskip("textual")
    arguments = ["-m", "domainbuilder", "tour", str(sample_guest("hello")), "--send", "halt\\n", *options]
    child = pexpect.spawn(
        sys.executable, arguments, timeout=60, encoding="utf-8", dimensions=(40, 120),
        env={**os.environ, "TERM": "xterm-256color"},
    )  # fmt: skip
    try:
        if options:
            child.expect_exact("The notes are read")
            child.expect_exact("Enter: the next step")
        else:
            child.expect_exact("\x1b[?1049h")  # the alternate screen; what is on it comes in pieces
        for _ in range(20):  # a key may come before the application listens
            child.send("q\r")
            if child.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=5) == 0:
                break
        child.close()
        assert child.exitstatus == 0
    finally:
        child.close(force=True)
