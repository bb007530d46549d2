"""A host with its domains as plain values: what save.py makes of one, and restores one from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hvcore.kinds import Plain

RUN_PAGES = 256
Fields = dict[str, Plain]


@dataclass(frozen=True, slots=True)
class DomainState:
    """One domain. `boot` are the fields of its BootImage that say where things are; `owners` by name.

    `layers` are what was written to disks that are layers over a file, by device and block.
    """

    domid: int
    boot: Fields
    heap_top: int
    options: Fields
    context: Fields
    clock: Fields
    layers: dict[str, dict[int, bytes]]
    owners: dict[str, Fields]


@dataclass(frozen=True, slots=True)
class HostState:
    """A host between two instructions of its guests.

    `pages` are the stretches of frames that are not empty, by the index of their first, of at most RUN_PAGES.
    """

    memory: Fields
    pages: Mapping[int, bytes]
    frames: Fields
    xenstored: dict[str, Fields]
    dom0: dict[str, Fields]
    domains: tuple[DomainState, ...]
    on_cpu: int | None
    next_domid: int
