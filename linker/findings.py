"""What a rule says, and what a rule is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from .ast import Span

if TYPE_CHECKING:
    from .elffile import Elf
    from .mapfile import LinkMap
    from .outline import Outline
    from .settings import Settings

NOTE = "note"
WARNING = "warning"
ERROR = "error"
OFF = "off"
SEVERITIES = (NOTE, WARNING, ERROR)


class Place(NamedTuple):
    """Where a finding is: a span of the script, a line of the map, or something of the ELF by name.

    `name` is the section, symbol or segment concerned; `address` its address in bytes, when it has one.
    """

    artifact: str
    span: Span | None = None
    line: int = 0
    name: str = ""
    address: int | None = None


class Edit(NamedTuple):
    """A mechanical repair: the span of the script that `text` replaces, and in a few words what that does.

    An empty span inserts. The spans of one finding do not overlap.
    """

    span: Span
    text: str
    title: str


class Hit(NamedTuple):
    """What the function of a rule yields: a message, where, and the edits that together repair it."""

    message: str
    place: Place
    fix: tuple[Edit, ...] = ()


class Finding(NamedTuple):
    """A hit with the rule it is of and the severity it has in this run."""

    rule: str
    severity: str
    message: str
    place: Place
    fix: tuple[Edit, ...] = ()


class Context(NamedTuple):
    """Everything a rule may look at; what was not given is None."""

    settings: Settings
    outline: Outline | None = None
    map: LinkMap | None = None
    elf: Elf | None = None


class Example(NamedTuple):
    """Inputs that show a rule: a script, a link map, an ELF in the words of elftext.py, a layout.toml."""

    script: str = ""
    map: str = ""
    elf: str = ""
    config: str = ""


Check: TypeAlias = Callable[[Context], Iterable[Hit]]


class Rule(NamedTuple):
    """A rule: what it looks for, why, and how to fix it.

    `needs` lists alternatives: each a set of letters, S for script, M for map, E for ELF. The check is called
    when one of them is covered by what was given.
    """

    id: str
    severity: str
    summary: str
    why: str
    fix: str
    needs: tuple[str, ...]
    check: Check
    bad: Example
    good: Example


def script_place(span: Span, name: str = "") -> Place:
    """Return a place in the script."""
    return Place("script", span, name=name)


def elf_place(name: str, address: int | None = None) -> Place:
    """Return a place in the ELF."""
    return Place("elf", name=name, address=address)


def map_place(line: int, name: str, address: int | None = None) -> Place:
    """Return a place in the map."""
    return Place("map", line=line, name=name, address=address)
