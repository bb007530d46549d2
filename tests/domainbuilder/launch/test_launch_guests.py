"""Real kernels, launched: PV-GRUB to its prompt and back, GNU Mach through its boot."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from domainbuilder.launch.domain import RunningDomain, launch

pytestmark = pytest.mark.guest

PROMPT = r"grub> "


@pytest.fixture
def grub(guest_kernel: Callable[[str], Path]) -> Path:
    return guest_kernel("grub-i386-xen.bin")


def test_grub_answers(grub: Path) -> None:
    with launch(grub, timeout=120) as dom:
        dom.console.expect(r"GNU GRUB +version 2\.")
        dom.console.expect(PROMPT)
        for line, answer in (
            ("echo ring $pxe one", r"ring one"),
            ("ls", r"PROMPT"),
            ("lsmod", r"adler32\s+\d+\s+crypto"),
        ):
            dom.console.send(line + "\n")
            dom.console.expect(PROMPT if answer == "PROMPT" else answer)
            if answer != "PROMPT":
                dom.console.expect(PROMPT)
        dom.console.send("halt\n")
        outcome = dom.wait()
        assert (outcome.reason, int(outcome.exit_code)) == ("poweroff", 0)
        assert dom.stats().unknown_hypercalls == {}


def test_grub_is_the_same_run_every_time(grub: Path) -> None:
    def counts() -> object:
        with launch(grub, timeout=120) as dom:
            dom.console.expect(PROMPT)
            dom.console.send("lsmod\n")
            dom.console.expect(PROMPT)
            dom.console.send("halt\n")
            assert dom.wait().reason == "poweroff"
            return dom.stats(), dom.console.transcript

    assert counts() == counts()


def test_grub_from_the_command_line(grub: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "domainbuilder", "launch", str(grub), "--timeout", "120",
         "--expect", PROMPT, "--send", "echo one   two\\n", "--expect", "one two",
         "--expect", PROMPT, "--send", "ls\\n", "--expect", PROMPT, "--send", "lsmod\\n",
         "--expect", "adler32", "--expect", PROMPT, "--send", "halt\\n"],
        stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"domainbuilder: the guest powered off\n")


def test_grub_reads_what_is_piped_to_it(grub: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "domainbuilder", "launch", str(grub), "--timeout", "120"],
        input=b"\necho piped\nhalt\n", capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert b"piped" in done.stdout


NO_BOOTSTRAP = "No bootstrap code loaded with the kernel"


def ends_as_gnumach_does(dom: RunningDomain) -> None:
    """It calls sched_op_compat with an address in the place of a reason: Xen takes its low byte for one."""
    outcome = dom.wait()
    assert outcome.reason.startswith("reason ")
    assert outcome.report is not None
    assert outcome.report.hypercalls[-1].name == "sched_op_compat"


def test_gnumach_boots(guest_kernel: Callable[[str], Path]) -> None:
    with launch(guest_kernel("gnumach-bookworm-i386.gz"), upper_ptwr=True, timeout=120) as dom:
        dom.console.expect(r"GNU Mach 1\.8")
        dom.console.expect("Running on xen-3.0-x86_32p")
        dom.console.expect(f"panic .*{NO_BOOTSTRAP}")
        ends_as_gnumach_does(dom)


def test_gnumach_that_keeps_its_messages(guest_kernel: Callable[[str], Path]) -> None:
    """Nothing in trixie's GNU Mach refers to its cninit(): what it says stays in its own memory."""
    with launch(guest_kernel("gnumach-trixie-i386.gz"), timeout=120) as dom:
        ends_as_gnumach_does(dom)
        said = dom.console.transcript.encode() + bytes(dom.machine.mem.ram)
    assert re.search(rb"GNU Mach 1\.8[^\0]+panic [^\0]+" + NO_BOOTSTRAP.encode(), said)


def test_grub_of_64_bits(guest_kernel: Callable[[str], Path]) -> None:
    with launch(guest_kernel("grub-x86_64-xen.bin"), timeout=120) as dom:
        dom.console.expect(PROMPT)
        dom.console.send("halt\n")
        assert dom.wait().reason == "poweroff"


def test_a_guest_for_hvm_is_refused_in_words(guest_kernel: Callable[[str], Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "domainbuilder", "launch", str(guest_kernel("grub-i386-xen_pvh.bin"))],
        stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, b"")
    assert len(done.stderr.splitlines()) == 1
