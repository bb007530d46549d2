"""Two-level i386 guests, as kernels of 2007 could be built: no living Xen runs them, this one does."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import domainbuilder
from domainbuilder.errors import BuildError
from hvcore.public import xen
from hvcore.public.errno import EBUSY, EINVAL, EPERM
from hvcore.pv import mmu_update, mmuext_op
from hvcore.pv.audit import audit
from hvcore.pv.mmu_update import do_update_va_mapping
from hvcore.stats import Stats

pytest.importorskip("ziglang")

SAMPLES = Path(__file__).resolve().parent.parent.parent / "samples"
OWN = sorted(path.stem for path in (SAMPLES / "conformance" / "two-level").glob("*.c"))
GUEST_TYPE = "xen-3.0-x86_32"


@pytest.fixture(scope="module")
def folder(samples_builder: Callable[..., ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    builder = samples_builder()
    made = tmp_path_factory.mktemp("two-level")
    builder.build(builder.two_level(), made)
    return made


@pytest.fixture(scope="module")
def hello(folder: Path) -> Path:
    return folder / "hello-two-level.elf"


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "domainbuilder", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def run(kernel: Path, vcpus: int = 2) -> tuple[str, str, list[str], Stats]:
    output = bytearray()
    with domainbuilder.launch(
        kernel, memory_mib=64, vcpus=vcpus, timeout=60, console_output=output.extend
    ) as dom:
        reason = dom.wait().reason
        problems = audit(dom.machine.domain)
        return output.decode(), reason, problems, dom.machine.stats()


def test_every_guest_passes_and_the_counts_are_right(folder: Path) -> None:
    guests = sorted(path for path in folder.glob("*.elf") if path.stem != "hello-two-level")
    assert {f"{name}-two-level" for name in OWN} < {path.stem for path in guests}
    results = {}
    for guest in guests:
        text, reason, problems, _stats = run(guest)
        failed = [line for line in text.splitlines() if line.startswith(("Fail:", "Error:", "Skip:"))]
        passed = "Test result: SUCCESS" in text
        results[guest.stem] = (passed, reason, failed, problems)
    assert results == {guest.stem: (True, "poweroff", [], []) for guest in guests}


@pytest.mark.parametrize("name", OWN)
def test_two_runs_are_one(name: str, folder: Path) -> None:
    guest = folder / f"{name}-two-level.elf"
    assert run(guest) == run(guest)


@pytest.mark.parametrize("memory_mib", [8, 1024, 3840])
def test_hello_in_any_memory(memory_mib: int, hello: Path) -> None:
    with domainbuilder.launch(hello, memory_mib=memory_mib, cmdline="ticks=1", timeout=60) as dom:
        dom.console.expect(f"magic +{GUEST_TYPE}\n")
        dom.console.expect(f"memory +{memory_mib} MiB")
        dom.console.expect("hello> ")
        dom.console.send("halt\n")
        assert dom.wait().reason == "poweroff"
        assert audit(dom.machine.domain) == []


def test_more_memory_than_an_entry_can_name_is_refused(hello: Path) -> None:
    with pytest.raises(BuildError, match="two-level page-table entry cannot hold machine frame"):
        domainbuilder.launch(hello, memory_mib=3841)


def test_no_frame_number_is_wider_than_an_entry(hello: Path) -> None:
    with domainbuilder.launch(hello, memory_mib=64, timeout=60) as dom:
        dom.console.expect("hello> ")
        machine = dom.machine
        root = machine.domain.vcpus[0].cr3_mfn
        entries = machine.mem.frame(root).cast("I")
        assert machine.domain.abi.pt_levels == 2
        assert entries[0xC0000000 >> 22] & 1
        assert [i for i in range(0xC0000000 >> 22) if entries[i]] == []


class TestHowItIsChosen:
    """By the kernel alone: PAE_MODE "no", or no such note at all."""

    def test_notes_says_so(self, hello: Path) -> None:
        text = command("notes", hello).stdout
        assert text.splitlines()[0].endswith(": PV 32-bit two-level")
        assert "guest type xen-3.0-x86_32 not supported by xen kernel" in text
        assert "domainbuilder does" in text

    def test_notes_says_so_to_machines(self, hello: Path) -> None:
        report = json.loads(command("notes", "--format", "json", hello).stdout)
        verdicts = {verdict["kind"]: verdict for verdict in report["files"][0]["verdicts"]}
        two_level = verdicts["pv32-two-level"]
        assert (two_level["accepted"], two_level["accepted_by_xen"]) == (True, False)
        assert not verdicts["pv32-pae"]["accepted"]

    def test_plan_says_so(self, hello: Path) -> None:
        text = command("plan", hello).stdout
        assert text.splitlines()[0].endswith("xen-3.0-x86_32, two-level paging, 64 MB")
        assert "Xen 4.17 runs no guests with two-level page tables; domainbuilder launch does" in text

    def test_launch_runs_it(self, hello: Path) -> None:
        done = command("launch", hello, "--timeout", "60", "--expect", "hello> ", "--send", "halt\\n")
        assert done.returncode == 0
        assert f"magic         {GUEST_TYPE}\n" in done.stdout.replace("\r", "")
        assert (
            f"domainbuilder: {hello} does not ask for PAE and gets two-level page tables, as under Xen 3; "
            "later ones do not run it"
        ) in done.stderr.splitlines()

    def test_a_kernel_without_the_note_gets_two_levels(self, hello: Path, tmp_path: Path) -> None:
        # Under another owner's name the note says nothing to Xen.
        data = hello.read_bytes()
        note = b"\x04\0\0\0\x03\0\0\0\x09\0\0\0Xen\0no\0\0"
        assert data.count(note) == 1
        kernel = tmp_path / "silent.elf"
        kernel.write_bytes(data.replace(note, note.replace(b"Xen\0", b"Not\0")))
        assert domainbuilder.plan(kernel).guest_type == GUEST_TYPE
        with domainbuilder.launch(kernel, timeout=60) as dom:
            dom.console.expect(f"magic +{GUEST_TYPE}\n")

    def test_another_type_cannot_be_forced_on_it(self, hello: Path) -> None:
        with pytest.raises(BuildError, match=r"xen-3\.0-x86_32p"):
            domainbuilder.launch(hello, guest_type="xen-3.0-x86_32p")


REQUESTS = 4000
POOL = 12
FLAGS = (0, 0x1, 0x3, 0x7, 0x21, 0x23, 0x27, 0x61, 0x63, 0x67, 0x83, 0x103, 0x18)
SLOTS = (0, 1, 700, 768, 769, 1007, 1008, 1009, 1022, 1023)
COMMANDS = (
    *(xen.MMUEXT_PIN_L1_TABLE, xen.MMUEXT_PIN_L2_TABLE, xen.MMUEXT_PIN_L3_TABLE, xen.MMUEXT_UNPIN_TABLE),
    *(xen.MMUEXT_UNPIN_TABLE, xen.MMUEXT_NEW_BASEPTR, xen.MMUEXT_NEW_BASEPTR, xen.MMUEXT_NEW_USER_BASEPTR),
    *(xen.MMUEXT_CLEAR_PAGE, xen.MMUEXT_COPY_PAGE, xen.MMUEXT_TLB_FLUSH_LOCAL),
)


class Requests:
    """Random requests about a few frames of a guest that stands still.

    As its hypercalls would make them, but for their arguments: those would have to stand in memory that the
    requests may well unmap.
    """

    def __init__(self, seed: int, dom: domainbuilder.RunningDomain) -> None:
        self.random = random.Random(seed)
        self.d = dom.machine.domain
        self.v = self.d.vcpus[0]
        root = self.v.cr3_mfn
        pool = [self.d.mem.first_mfn + 0x300 + i for i in range(POOL)]
        for i, mfn in enumerate(pool):  # read-only, so that they can become tables
            assert not self.update_va(0xC0300000 + (i << 12), mfn << 12 | 0x21)
        self.frames = [*pool, root, self.d.mem.frame(root).cast("I")[768] >> 12]
        self.others = [self.d.shared_info_mfn, self.d.mem.m2p[4].mfn, self.d.mem.end_mfn, 0xFFFFF]

    def frame(self) -> int:
        return self.random.choice(self.frames if self.random.random() < 0.9 else self.others)

    def entry(self) -> int:
        high = self.random.getrandbits(32) << 32 if self.random.random() < 0.1 else 0
        return self.frame() << 12 | self.random.choice(FLAGS) | high

    def update_va(self, va: int, entry: int) -> int:
        return do_update_va_mapping(self.v, va, entry, xen.UVMF_INVLPG)

    def ask(self) -> int:
        kind = self.random.randrange(10)
        if kind < 2:
            fixed = (0, 0xFFFFF000, 0xFC000000, 0xFF800000, 0xC0300000 + (self.random.randrange(POOL) << 12))
            return self.update_va(self.random.choice(fixed), self.entry())
        if kind < 6:
            slot = self.random.choice((*SLOTS, self.random.randrange(1024)))
            command = self.random.choice((0, 0, 0, 1, 2, 3))
            return mmu_update._one_update(self.d.mm, self.frame() << 12 | slot << 2 | command, self.entry())
        return mmuext_op._OPS[self.random.choice(COMMANDS)](self.v, self.frame(), self.frame())


@pytest.mark.parametrize("seed", range(4))
def test_random_requests_break_nothing(seed: int, hello: Path) -> None:
    with domainbuilder.launch(hello, memory_mib=8, timeout=60) as dom:
        dom.console.expect("hello> ")
        requests = Requests(seed, dom)
        d = requests.d
        xens = d.mem.frame(requests.v.cr3_mfn).cast("I")[1008:].tolist()
        answers = {requests.ask() for _ in range(REQUESTS)}
        assert audit(d) == []
        assert {0, -EINVAL, -EBUSY, -EPERM} <= answers
        assert max(answers) == 0
        assert d.mem.frame(requests.v.cr3_mfn).cast("I")[1008:].tolist() == xens
