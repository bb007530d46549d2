"""A whole boot of Debian's, looked into: nothing of it changes, and nothing is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.launch.profiling import sampled
from domainbuilder.launch.run_stats import Statistics
from domainbuilder.launch.tracing import traced

pytestmark = pytest.mark.guest
COUNTS = Path(__file__).resolve().parent.parent / "domainbuilder" / "trace" / "perfetto_counts.py"


@pytest.fixture(scope="module")
def launched(
    guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path]
) -> Callable[[], domainbuilder.RunningDomain]:
    """Bookworm, which powers off as soon as it has a shell."""
    kernel, initramfs = guest_kernel("vmlinuz-bookworm-amd64"), ramdisk("shell.sh")

    def launch() -> domainbuilder.RunningDomain:
        dom = domainbuilder.launch(
            kernel, 256, ramdisk=initramfs, cmdline="console=hvc0", max_guest_seconds=60
        )
        dom.console.send("poweroff -f\n")
        return dom

    return launch


@pytest.fixture(scope="module")
def untouched(launched: Callable[[], domainbuilder.RunningDomain]) -> Statistics:
    with launched() as dom:
        assert dom.wait().reason == "poweroff"
        return dom.stats()


def test_a_boot_in_perfetto(
    launched: Callable[[], domainbuilder.RunningDomain], untouched: Statistics, tmp_path: Path
) -> None:
    path = tmp_path / "boot.pftrace"
    with launched() as dom, traced(dom, path):
        dom.wait()
        stats = dom.stats()
    assert stats == untouched
    command = [sys.executable, str(COUNTS), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip("the perfetto package is not installed")
    seen = json.loads(done.stdout)
    assert seen["wrong"] == []
    slices = Counter({name: n for name, n in seen["slices"].items() if name in stats.hypercalls})
    assert slices + Counter(iret=seen["instants"]["iret"]) == Counter(stats.hypercalls)
    assert seen["instants"]["upcall"] == stats.events_delivered
    assert seen["instants"]["store"] == stats.page_table_stores
    emulated = {
        name.partition(" ")[2]: n for name, n in seen["instants"].items() if name.startswith("emulated")
    }
    assert {n: c for n, c in emulated.items() if n not in ("in", "out")} == {
        n: c for n, c in stats.emulated.items() if n not in ("in", "out")
    }
    assert seen["counters"]["frames: l1"] > 100
    assert seen["flows"][1] > 1000


def test_where_a_boot_spends_its_time(
    launched: Callable[[], domainbuilder.RunningDomain], untouched: Statistics
) -> None:
    """Linux walks 128 million empty entries of its p2m tree, and tests its DH and RSA."""
    with launched() as dom, sampled(dom) as profile:
        dom.wait()
        assert dom.stats() == untouched
    assert profile.total == untouched.guest_ns
    inner, within = Counter[str](), Counter[str]()
    for stack, ns in profile.samples():
        inner[stack[-1].name] += ns
        within.update(dict.fromkeys((frame.name for frame in stack), ns))
    assert [name for name, _ in inner.most_common(3)] == [
        "xen_vmalloc_p2m_tree",
        "mpihelp_submul_1",
        "mpihelp_addmul_1",
    ]
    assert within["mpi_powm"] > within["dh_compute_value"] > inner["mpihelp_addmul_1"]
    assert within["cryptomgr_test"] > within["rsa_dec"] > within["rsa_enc"] > 0
    known = sum(within[name] for name in ("start_kernel", "ret_from_fork", "[idle]", "[user]"))
    assert known > profile.total // 2
