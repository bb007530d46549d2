"""The inputs of a run, for rules that are called only when these were given."""

from __future__ import annotations

from collections.abc import Iterable

from linker.elffile import Elf
from linker.findings import Context
from linker.mapfile import LinkMap
from linker.outline import Outline


def outline_of(context: Context) -> Outline:
    """Return the script."""
    assert context.outline is not None
    return context.outline


def map_of(context: Context) -> LinkMap:
    """Return the link map."""
    assert context.map is not None
    return context.map


def elf_of(context: Context) -> Elf:
    """Return the linked ELF."""
    assert context.elf is not None
    return context.elf


def speaks_of_xen(names: Iterable[str]) -> bool:
    """Tell whether one of the names is about Xen."""
    text = "\n".join(names).lower()  # one text: to look at each name costs ten times as much
    return "xen" in text or "hypercall" in text
