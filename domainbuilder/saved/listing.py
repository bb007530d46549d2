"""What is kept under the user's cache folder, for `domainbuilder cache`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

from domainbuilder.errors import SavedError
from domainbuilder.kept_files import (
    DOMAINS_FOLDER,
    KERNELS_FOLDER,
    NAMED_FOLDER,
    Kept,
    cache_folder,
    kept_files,
)
from domainbuilder.visible import visible

Kind = Literal["kernel", "domain", "named"]
_FOLDERS: tuple[tuple[Kind, str], ...] = (
    ("named", NAMED_FOLDER), ("domain", DOMAINS_FOLDER), ("kernel", KERNELS_FOLDER),
)  # fmt: skip
_SHORT = 12  # digits of a digest


@dataclass(frozen=True, slots=True)
class Entry:
    """One kept thing: `name` is what to call it by, `what` says what it is."""

    kind: Kind
    name: str
    what: str
    kept: Kept


def listing() -> list[Entry]:
    """All that is kept: named domains, domains, kernels; of each the last used first."""
    return [
        Entry(kind, kept.name if kind == "named" else kept.name[:_SHORT], _what(kind, kept), kept)
        for kind, folder in _FOLDERS
        for kept in kept_files(cache_folder(folder))
    ]


def _what(kind: Kind, kept: Kept) -> str:
    if kind == "kernel":
        return "an unpacked kernel"
    from domainbuilder.saved.frozen import read_about

    path = next((path for path in kept.paths if path.suffix == ".domain"), None)
    if path is None:
        return "what is left of a domain"
    try:
        about = read_about(path)
    except (SavedError, OSError):
        return "a damaged domain"
    return _domain(about)


def _domain(about: dict[str, Any]) -> str:
    nanoseconds = about.get("guest_ns")
    seconds = nanoseconds / 1e9 if isinstance(nanoseconds, int) else 0.0
    until = f", at {about['until']!r}" if isinstance(about.get("until"), str) else ""
    return visible(
        f"{about.get('kernel') or 'a domain'}, {about.get('memory_mib')} MB, "
        f"{about.get('vcpus')} vCPU, {seconds:.3f} s{until}"
    )


def render_listing(entries: list[Entry]) -> str:
    """The table, and the sum."""
    width = max([len(entry.name) for entry in entries], default=0)
    lines = [
        f"{entry.kind:6}  {entry.name:{width}}  {entry.kept.size / 1e6:8.1f} MB  "
        f"{_ago(entry.kept.used):>9}  {entry.what}"
        for entry in entries
    ]
    total = sum(entry.kept.size for entry in entries)
    return "".join(f"{line}\n" for line in [*lines, f"{len(entries)} kept, {total / 1e6:.1f} MB"])


def _ago(when: float) -> str:
    """How long ago that was, in one unit."""
    seconds = max(time.time() - when, 0)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return "now"
