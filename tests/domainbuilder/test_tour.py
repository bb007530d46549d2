"""`domainbuilder tour`: a boot told step by step, with lessons that point to what is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from domainbuilder.launch.hypercall_names import _commands
from domainbuilder.tour.lessons import BEFORE, COMMANDS, HYPERCALLS, KINDS, Lesson
from domainbuilder.tour.run import TourOptions, collect
from domainbuilder.tour.steps import Step
from domainbuilder.tour.text import linked, render
from domainbuilder.trace.record import CLASS_OF
from hvcore.public.xen import Hypercall

ROOT = Path(__file__).resolve().parent.parent.parent


def lessons() -> Iterator[Lesson]:
    for table in (BEFORE, HYPERCALLS, COMMANDS, KINDS):
        yield from table.values()


def steps(kernel: Path, typed: bytes) -> list[Step]:
    return collect(TourOptions(str(kernel), None, None, "", typed, 60.0, pause=False))


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


def test_page_tables_grow(samples_builder: Callable[..., object], tmp_path: Path) -> None:
    """pvkernel maps all of its memory: its L1 tables become more."""
    pytest.importorskip("ziglang")
    builder = samples_builder()
    builder.build((builder.pvkernel(),), tmp_path)  # type: ignore[attr-defined]
    (kernel,) = tmp_path.glob("pvkernel*.elf")
    told = steps(kernel, b"")
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
