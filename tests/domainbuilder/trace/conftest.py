"""A guest's run, recorded once in every format at the same time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.launch.run_stats import Statistics
from domainbuilder.launch.tracing import recording, traced
from domainbuilder.trace.filter import Filter
from domainbuilder.trace.record import Record

SUFFIXES = ("jsonl", "pftrace", "xentrace", "txt")


@dataclass(frozen=True, repr=False)
class Recorded:
    """A run: what it counted, its records, and a file of each format."""

    stats: Statistics
    untraced: Statistics
    records: list[Record]
    files: dict[str, Path]


@pytest.fixture(scope="session", params=["vcpus-64", "vcpus-32", "mmu_update-64", "ptwr-32"])
def recorded(
    request: pytest.FixtureRequest,
    conformance_guest: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Recorded:
    folder = tmp_path_factory.mktemp("traces")
    guest = conformance_guest(request.param)
    with domainbuilder.launch(guest, 32, vcpus=2) as dom:
        dom.wait()
        untraced = dom.stats()
    files = {suffix: folder / f"trace.{suffix}" for suffix in SUFFIXES}
    records: list[Record] = []
    with domainbuilder.launch(guest, 32, vcpus=2) as dom, ExitStack() as stack:
        stack.enter_context(recording(dom, records.append, Filter(), dom.names()))
        for path in files.values():
            stack.enter_context(traced(dom, path, reason=lambda: "poweroff"))
        dom.wait()
        stats = dom.stats()
    return Recorded(stats, untraced, records, files)
