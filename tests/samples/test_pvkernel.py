"""samples/pvkernel: what it says of itself, the same each time; and that it needs each of its rules."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import domainbuilder
from domainbuilder.plan.segments import PAGE_TABLES
from hvcore.pv.audit import audit
from hvcore.stats import Stats

pytest.importorskip("ziglang")

SAMPLES = Path(__file__).resolve().parent.parent.parent / "samples"
MEMORY_MIB = 64
PAGE_ALIGNED = "    *(.data.page_aligned)               /* <- before anything that is not a whole page */\n"

# Printed under Xen 4.17 too, as its dom0; but for the number of page tables, which are dom0's own there.
SETUP = """\
pvkernel: xen-3.0-x86_32p, 64 MiB
cpuid: XenVMMXenVMM; APIC hidden, ACPI hidden
privileged: mov %cr0 in ring 1 was emulated, and shows protection and paging
pagetables: Xen's are the template; {kept} pages stay read-only, {added} tables are added
reserved: all from f5800000 up is Xen's
segments: our GDT is loaded; code runs on selector 61, in ring 1
traps: the table is set; 1 breakpoint came and went
events: masked, 1 pending and 0 arrived; unmasked, 1 arrived
"""
PROCESSES = """\
[1] hello from ring 3
[2] hello from ring 3
[1] thread-local value after a switch: 1111
[1] my copy of the counter: 42
[1] an unknown system call gives minus 38
[1] writing from the kernel's memory gives minus 14
[2] thread-local value after a switch: 2222
[2] my copy of the counter: 42
[2] an unknown system call gives minus 38
[2] writing from the kernel's memory gives minus 14
[1] slept while the other one computed; my TLS is still 1111
[2] computed; my TLS is still 2222
page fault, error code 7, address c0100000: process 2 is killed
process 1: exited, never preempted
process 2: killed, after having been preempted
multicall: a context switch is 3 hypercalls in 1
faults: 4 pages on demand, 2 copied on write
memory: every page came back
pvkernel: done
"""


@dataclass(frozen=True)
class Run:
    """What came of a run."""

    text: str
    reason: str
    stats: Stats
    audit: list[str]


def run(kernel: Path) -> Run:
    output = bytearray()
    with domainbuilder.launch(kernel, memory_mib=MEMORY_MIB, timeout=60, console_output=output.extend) as dom:
        reason = dom.wait().reason
        problems = audit(dom.machine.domain)
        stats = dom.machine.stats()
    return Run(output.decode().replace("\r\n", "\n"), reason, stats, problems)


@dataclass(frozen=True)
class Workshop:
    """Links the kernel, whose objects are compiled once, also with something in it changed."""

    load: Callable[..., ModuleType]
    builder: ModuleType
    folder: Path

    def link(self, name: str, changed: dict[str, Path] | None = None, script: Path | None = None) -> Path:
        """NAME.elf and NAME.map; `changed` has other objects for some sources."""
        sample = self.builder.pvkernel()
        objects = [
            (changed or {}).get(source) or self.builder.compile_object(source, sample.width, self.folder)
            for source in sample.sources
        ]
        output = self.folder / f"{name}.elf"
        linked = self.builder.Sample(name, (), script=str(script or sample.script))
        self.builder.link(linked, objects, self.folder, output, f"-Map={output.with_suffix('.map')}")
        return output

    def without(self, name: str, source: str, old: str, new: str) -> Path:
        """The kernel with `old` in one source replaced by `new`."""
        copy = self.folder / name
        shutil.copytree(SAMPLES, copy, ignore=shutil.ignore_patterns("__pycache__"))
        text = (copy / source).read_text()
        assert text.count(old) == 1
        (copy / source).write_text(text.replace(old, new))
        builder = self.load(copy)
        return self.link(name, {source: builder.compile_object(source, builder.I386, copy)})


@pytest.fixture(scope="module")
def workshop(
    samples_builder: Callable[..., ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> Workshop:
    return Workshop(samples_builder, samples_builder(), tmp_path_factory.mktemp("pvkernel"))


@pytest.fixture(scope="module")
def kernel(workshop: Workshop) -> Path:
    return workshop.link("pvkernel")


@pytest.fixture(scope="module")
def first(kernel: Path) -> Run:
    return run(kernel)


def domainbuilder_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "domainbuilder", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_says_what_it_said_under_xen(kernel: Path, first: Run) -> None:
    plan = domainbuilder.plan(kernel, memory_mib=MEMORY_MIB)
    mapped = plan.maps[0].area.end + 1 - plan.maps[0].area.start
    expected = SETUP.format(kept=plan.layout[PAGE_TABLES].pages, added=(MEMORY_MIB << 20) - mapped >> 21)
    assert first.text == expected + PROCESSES
    assert first.reason == "poweroff"


def test_two_runs_are_one(kernel: Path, first: Run) -> None:
    assert run(kernel) == first


def test_it_is_the_same_file_wherever_it_is_built(workshop: Workshop, kernel: Path) -> None:
    copy = workshop.folder / "another place"
    shutil.copytree(SAMPLES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    builder = workshop.load(copy)
    (built,) = builder.build((builder.pvkernel(),), workshop.folder / "elsewhere")
    assert built.read_bytes() == kernel.read_bytes()


def test_the_counts_of_its_memory_are_right_when_it_ends(first: Run) -> None:
    assert first.audit == []


def test_a_copy_on_write_is_a_store_to_a_page_table_of_each_process(first: Run) -> None:
    assert first.stats.page_table_stores == 2


@pytest.mark.parametrize(
    ("name", "source", "old", "new", "said"),
    [
        pytest.param(
            "readonly", "pvkernel/mm.c", "        value &= ~PTE_RW;\n", "", "mmu_update: error -16",
            id="a set_pte that turns read-only pages writable is refused: EBUSY",
        ),
        pytest.param(
            "unmask", "pvkernel/events.c", "    if (vcpu()->evtchn_upcall_pending)\n", "    if (0)\n",
            "unmasked, 0 arrived",
            id="without the check on unmask, the event waits",
        ),
        pytest.param(
            "gdt", "pvkernel/segments.c", "    mc_make_readonly(gdt);\n", "", "set_gdt: error -22",
            id="a GDT that is mapped writable is refused: EINVAL",
        ),
        pytest.param(
            "tables", "pvkernel/user_memory.c", "    mc_make_readonly(mm->l2_kernel);\n", "",
            "a new address space: error -22",
            id="a page table that is mapped writable is refused: EINVAL",
        ),
        pytest.param(
            "ptwr", "pvkernel/mm.c", "VMASST_CMD_enable, VMASST_TYPE_writable_pagetables",
            "VMASST_CMD_disable, VMASST_TYPE_writable_pagetables", "page fault, error code 3, address c",
            id="a store to a page table faults where writable page tables were not asked for",
        ),
        pytest.param(
            "slot3", "pvkernel/user_memory.c", "mm->l3[3] = mk_pte(mm->l2_kernel, PTE_PRESENT)",
            "mm->l3[3] = init_l3[3] & ~(PTE_RW | PTE_USER | PTE_ACCESSED | PTE_DIRTY)",
            "a new address space: error -22",
            id="the L2 of slot 3 cannot be shared",
        ),
    ],
)  # fmt: skip
def test_without_one_of_its_rules_it_fails_as_under_xen(
    name: str, source: str, old: str, new: str, said: str, workshop: Workshop
) -> None:
    result = run(workshop.without(name, source, old, new))
    assert said in result.text
    assert result.audit == []
    if name != "unmask":
        assert result.reason == "crash"


@pytest.fixture(scope="module")
def misplaced(workshop: Workshop) -> Path:
    """The founding lesson: without the line that places .data.page_aligned. It links all the same."""
    text = (SAMPLES / "pvkernel" / "pvkernel.lds").read_text()
    assert text.count(PAGE_ALIGNED) == 1
    script = workshop.folder / "misplaced.lds"
    script.write_text(text.replace(PAGE_ALIGNED, ""))
    return workshop.link("misplaced", script=script)


def test_the_kernel_dies_of_a_misplaced_page(misplaced: Path) -> None:
    result = run(misplaced)
    assert result.text.endswith("set_gdt: error -22\npanic: Xen refused\n")
    assert result.reason == "crash"


def test_lint_finds_the_misplaced_page(misplaced: Path) -> None:
    done = domainbuilder_command("lint", "--map", misplaced.with_suffix(".map"))
    assert done.returncode == 1
    assert "page-aligned-address" in done.stdout


def test_lint_and_notes_find_nothing_in_the_kernel_as_it_is(kernel: Path) -> None:
    script = SAMPLES / "pvkernel" / "pvkernel.lds"
    done = domainbuilder_command("lint", script, "--map", kernel.with_suffix(".map"), "--elf", kernel)
    assert (done.returncode, done.stdout) == (0, "no findings\n")
    assert domainbuilder_command("notes", "--check", kernel).returncode == 0
