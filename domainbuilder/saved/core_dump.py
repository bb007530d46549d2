"""A domain that ran, alive or dead, into a dump-core file: what `xl dump-core` writes, and a note of our own.

Nothing of the guest is asked: its frames are found by who owns them, and where they are by Xen's table.
Source: xc_domain_dumpcore() in tools/libs/guest/xg_core.c and docs/misc/dump-core-format.txt of Xen 4.17.
"""

from __future__ import annotations

import json
import os
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbuilder.build.dump_core import NOTE_RUN, write_core
from domainbuilder.output import atomic_output, write_at
from hvcore.machine import BOOT_TIME_NS
from hvcore.page_info import PGC_xen_heap
from hvcore.public.xen import PAGE_SHIFT, PAGE_SIZE
from hvcore.pv.vcpu_context import arch_get_info_guest

if TYPE_CHECKING:
    from domainbuilder.launch.running import RunningDomain
    from hvcore.machine import Machine

NOTE_VERSION = 1
_CONSOLE_TAIL = 16_000  # characters
_ZERO = bytes(PAGE_SIZE)


def dump_core(dom: RunningDomain, path: str | os.PathLike[str]) -> int:
    """Write the file, whole or not at all; its bytes that are no holes. Raises OSError."""
    machine = dom.machine
    pairs = frames_of(machine)
    vcpus = [v for v in machine.domain.vcpus if v.is_initialised]
    contexts = [arch_get_info_guest(v, machine.state_of(v)) for v in vcpus]
    note = json.dumps(_note(dom)).encode()
    shared_info = bytes(machine.domain.shared_info)
    with atomic_output(path) as fd:
        width = machine.domain.abi.word
        written, start = write_core(fd, width, pairs, contexts, shared_info, (NOTE_RUN, note))
        for index, mfn in enumerate(pairs[1::2]):
            page = bytes(machine.mem.frame(mfn))
            if page != _ZERO:
                written += write_at(fd, page, start + (index << PAGE_SHIFT))
    return written


def frames_of(machine: Machine) -> array[int]:
    """Pairs of pseudo-physical and machine frame of all that the domain owns, in that order.

    Xen's table may say anything that the guest told it: a number that two frames have counts for the first.
    """
    d, frames = machine.domain, machine.domain.frames
    m2p = machine.mem.m2p[d.abi.m2p_entry].words
    found: dict[int, int] = {}
    for pg in range(frames.nr):
        if frames.owner[pg] == d.domain_id and not frames.flags[pg] & PGC_xen_heap:
            mfn = pg + frames.base_mfn
            found.setdefault(m2p[mfn], mfn)
    return array("Q", (word for pair in sorted(found.items()) for word in pair))


def _note(dom: RunningDomain) -> dict[str, Any]:
    """What the hypervisor and the holder know of the domain, and the file would not say."""
    machine, outcome = dom.machine, dom.outcome
    m2p = machine.mem.m2p[machine.domain.abi.m2p_entry].words
    nodes = machine.host.xenstored.tree.nodes
    return {
        "version": NOTE_VERSION,
        "kernel": Path(dom.plan.kernel).name if dom.plan is not None else "",
        "guest_type": machine.domain.abi.name,
        "guest_ns": machine.clock.now() - BOOT_TIME_NS,
        "outcome": str(outcome) if outcome is not None else "",
        "vcpus": [v.vcpu_id for v in machine.domain.vcpus if v.is_initialised],
        "console_pfn": int(m2p[machine.boot["console_mfn"]]),
        "store_pfn": int(m2p[machine.boot["store_mfn"]]),
        "console": dom.console.transcript[-_CONSOLE_TAIL:],
        "xenstore": {path: nodes[path].value.decode("latin-1") for path in sorted(nodes)},
    }
