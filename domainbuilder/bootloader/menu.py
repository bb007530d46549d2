"""What every boot loader's configuration comes to: a menu of entries, one of which is the default."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from domainbuilder.bootloader.disk import DiskError


class Boot(NamedTuple):
    """What an entry boots: paths on the disk, and the command line."""

    kernel: str
    ramdisks: tuple[str, ...]
    args: str


class Entry(NamedTuple):
    """A line of the menu. `boot` says what it boots, or raises DiskError: it is no kernel for a guest."""

    title: str
    ident: str
    boot: Callable[[], Boot]
    submenu: Menu | None = None


class Menu(NamedTuple):
    """The entries in order. `default` is a number, a title or an id, with ">" between the levels."""

    source: str
    entries: tuple[Entry, ...]
    default: str = "0"
    timeout: int | None = None

    def every(self, prefix: str = "") -> Iterable[tuple[str, Entry]]:
        """Each entry that boots something, with its number ("1>2" in a submenu)."""
        for number, entry in enumerate(self.entries):
            if entry.submenu is None:
                yield f"{prefix}{number}", entry
            else:
                yield from entry.submenu.every(f"{prefix}{number}>")

    def find(self, wanted: str) -> Entry | None:
        """The entry of that number, title or id; the first one of a submenu if it is that."""
        for number, entry in enumerate(self.entries):
            names = (str(number), entry.title, entry.ident)
            if wanted in names:
                return entry if entry.submenu is None else entry.submenu.find("0")
            if entry.submenu is not None:
                for name in names:
                    if name and wanted.startswith(f"{name}>"):
                        return entry.submenu.find(wanted[len(name) + 1 :])
        return None

    def chosen(self, wanted: str | None) -> Entry:
        """The entry `wanted`, else the default, else the first. Raises DiskError where there is none."""
        if wanted is not None:
            # A title is unambiguous enough to find a submenu's entry by it alone, as people expect.
            entry = self.find(wanted) or next(
                (e for _, e in self.every() if wanted in (e.title, e.ident)), None
            )
            if entry is None:
                raise DiskError(f"{self.source}: there is no entry {wanted!r}", expected=self.titles())
            return entry
        first = next((entry for _, entry in self.every()), None)
        if (found := self.find(self.default) or first) is None:
            raise DiskError(f"{self.source}: no entry boots anything")
        return found

    def titles(self) -> str:
        """What there is to choose from, in one line."""
        return ", ".join(f"{number} {entry.title!r}" for number, entry in self.every())
