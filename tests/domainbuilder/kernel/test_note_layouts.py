"""Note layouts at random: `notes` says yes exactly where `plan` and libxenguest accept.

NOTE_LAYOUTS=10000 in the environment tries so many of them.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from domainbuilder.errors import BuildError
from domainbuilder.kernel.inspection import inspect_kernel
from domainbuilder.kernel.kernel_file import load_kernel_bytes
from domainbuilder.kernel.verdict import GuestKind
from domainbuilder.plan.domain_plan import plan
from domainbuilder.plan.fit import least_memory_mib
from tests.domainbuilder.note_layouts import layout
from tests.domainbuilder.xenguest import Xenguest

LAYOUTS = int(os.environ.get("NOTE_LAYOUTS", "250"))
MEMORY_MIB = 64


def answers(image: bytes) -> tuple[bool, bool, int]:
    """Whether `notes` takes it, whether it says that Xen 4.17 does, and the memory to try the others with."""
    try:
        inspection = inspect_kernel(load_kernel_bytes(image, "kernel"))
    except BuildError:
        return False, False, MEMORY_MIB
    pv = [verdict for verdict in inspection.verdicts if verdict.kind is not GuestKind.PVH]
    accepted = any(verdict.accepted for verdict in pv)
    memory = MEMORY_MIB
    if accepted:
        assert inspection.pv is not None
        memory = max(memory, least_memory_mib(inspection.elf, inspection.pv))
    assert not any(verdict.xen and not verdict.accepted for verdict in pv)
    return accepted, any(verdict.xen for verdict in pv), memory


def planned(path: Path, memory_mib: int) -> bool:
    try:
        plan(path, memory_mib=memory_mib)
    except BuildError:
        return False
    return True


def test_three_opinions(xenguest: Xenguest, tmp_path: Path) -> None:
    path, counts, wrong = tmp_path / "kernel", Counter[bool](), []
    for seed in range(LAYOUTS):
        path.write_bytes(layout(seed))
        accepted, by_xen, memory = answers(path.read_bytes())
        refusal = xenguest.build(path, memory).refusal
        two_level = "guest type xen-3.0-x86_32 not supported" in refusal  # domainbuilder runs these
        theirs = not refusal
        agreed = planned(path, memory) == accepted and by_xen == theirs
        if not agreed or (accepted != theirs and not two_level):
            wrong.append((seed, accepted, by_xen, refusal[-200:]))
        counts[theirs] += 1
    assert not wrong
    assert counts[True] > LAYOUTS // 5
    assert counts[False] > LAYOUTS // 5
