"""The disks of a saved domain: how their files are recognised, and how the restored domain gets them again.

A saved domain has what the guest wrote to memory instead of its disks (`--snapshot`), and of the disks' files
how they were: size, time of the last change, digest of the first MiB. It may come from anybody, so no name in
it opens a file: whoever restores it gives the disks again, and they have to be the same.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from domainbuilder.errors import SavedError, Where
from domainbuilder.saved.told_device import has_fields_of
from hvcore.backends.disk import Disk
from hvcore.host_state import HostState

_HEADER = 1 << 20  # bytes: the partition table, boot sectors, the super block
_DIFFERENCES = {
    "size": "its size",
    "mtime_ns": "the time of its last change, in ns",
    "header_sha256": "the digest of its first MiB",
}


def identity(disk: Disk) -> dict[str, Any]:
    """What says that the disk's file is still what it is now. Raises OSError."""
    if disk.format == "empty":
        return {"size": 0, "mtime_ns": 0, "header_sha256": ""}
    with Path(disk.target).open("rb") as file:
        found = os.fstat(file.fileno())
        header = hashlib.sha256(file.read(_HEADER)).hexdigest()
        size = file.seek(0, os.SEEK_END)
    changed = 0 if stat.S_ISBLK(found.st_mode) else found.st_mtime_ns  # of a device's node it says nothing
    return {"size": size, "mtime_ns": changed, "header_sha256": header}


def with_disks(state: HostState, session: dict[str, Any], given: Sequence[Disk], name: str) -> HostState:
    """The state of one domain, with the disks that are given in the place of those it had.

    Raises SavedError where they are others, or not what they were; OSError for one that cannot be read.
    """
    options = state.domains[0].options
    saved = options.get("disks", []) if isinstance(options, dict) else []
    if not saved and not given:
        return state
    had = [_disk(one, name) for one in saved] if isinstance(saved, list) else []
    were = session.get("disks")
    again = given_again(had, given, were if isinstance(were, dict) else {}, name)
    disks = [asdict(disk) for disk in again]
    domain = replace(state.domains[0], options=options | {"disks": disks})
    return replace(state, domains=(domain,))


def given_again(
    had: Sequence[Disk], given: Sequence[Disk], were: dict[str, Any] | None, name: str
) -> list[Disk]:
    """The disks that a domain goes on with: the files that are given, used as those that it had were.

    `were`: their identities by vdev; None where nobody knows them. Raises SavedError where they are others,
    or not what they were; OSError for one that cannot be read.
    """
    if {disk.devid for disk in had} != {disk.devid for disk in given} or len(had) != len(given):
        raise SavedError(
            "the disks of a saved domain are given again, by --disk or its configuration", where=Where(name),
            found=_names(given), expected=_names(had),
        )  # fmt: skip
    by_number = {disk.devid: disk for disk in given}
    again = [_again(disk, by_number[disk.devid]) for disk in had]
    if were is not None:
        for disk in again:
            _check_unchanged(disk, were.get(disk.vdev))
    return again


def _names(disks: Sequence[Disk]) -> str:
    return ", ".join(disk.vdev for disk in disks) or "none"


def _disk(saved: Any, name: str) -> Disk:
    """A disk as the file says that it was, its numbers and flags checked."""
    if not has_fields_of(Disk, saved) or Disk(**saved).devid < 0:
        raise SavedError("what is said of a disk cannot be", where=Where(name))
    return Disk(**saved)


def _manner(disk: Disk) -> tuple[str, str, str]:
    """How a disk is used, as xl has words for it."""
    return (
        disk.format,
        f"access={'rw' if disk.readwrite else 'ro'}",
        "devtype=cdrom" if disk.is_cdrom else "no CD",
    )


def _again(had: Disk, given: Disk) -> Disk:
    """The file of `given`, used as `had` was. Raises SavedError."""
    for found, expected in zip(_manner(given), _manner(had), strict=True):
        if found != expected:
            raise SavedError(
                f"disk {had.vdev} is given as another than it was", where=Where(given.target),
                found=found, expected=expected,
            )  # fmt: skip
    return replace(had, target=given.target, snapshot=had.snapshot or given.snapshot)


def _check_unchanged(disk: Disk, was: Any) -> None:
    """Raise SavedError where the disk's file is not what it was."""
    now = identity(disk)
    for key, what in _DIFFERENCES.items():
        if not isinstance(was, dict) or was.get(key) != now[key]:
            raise SavedError(
                f"disk {disk.vdev} has changed since the domain was saved: {what}",
                where=Where(disk.target), found=now[key],
                expected=was.get(key) if isinstance(was, dict) else "what it was",
            )  # fmt: skip
