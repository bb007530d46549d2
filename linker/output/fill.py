"""How full the memory regions are, as text, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from linker.regions import Fill

from .text import printable
from .units import in_units, percent

_BAR = 24


def _verdict(fill: Fill) -> str:
    if fill.used > fill.length:
        return f"{in_units(fill.used - fill.length)} too much"
    if fill.over:
        return f"{in_units(fill.used - (fill.budget or 0))} over budget"
    return ""


def _table(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Return rows in columns, those of `left` to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def render(fills: Sequence[Fill]) -> str:
    """Return the table for people, each region with its bar and who takes the most."""
    if not fills:
        return "no memory regions\n"
    rows = [("region", "origin", "length", "used", "full", "free", "gaps", "budget")]
    for fill in fills:
        budget = in_units(fill.budget) if fill.budget is not None else "-"
        rows.append(
            (
                printable(fill.name), f"{fill.origin:#x}", in_units(fill.length), in_units(fill.used),
                percent(fill.used, fill.length), in_units(fill.free), in_units(fill.gaps), budget,
            )
        )  # fmt: skip
    return "\n".join([*_table(rows), *(line for fill in fills for line in _region(fill))]) + "\n"


def _region(fill: Fill) -> list[str]:
    share = percent(fill.used, fill.length)
    full = min(_BAR, (2 * _BAR * fill.used + fill.length) // (2 * fill.length)) if fill.length else 0
    bar = "#" * full + "." * (_BAR - full)
    verdict = f"  {_verdict(fill)}" if fill.over else ""
    lines = ["", f"{printable(fill.name)} [{bar}] {share}{verdict}"]
    rows = [
        (f"  {one.address:#x}", in_units(one.part.size), one.verb, printable(one.part.name))
        for one in fill.places
    ]
    lines += _table(rows, left=(2, 3)) if rows else ["  nothing"]
    if fill.shares:
        largest = (f"{printable(name)} {in_units(size)}" for name, size in fill.shares)
        lines.append(f"  largest: {', '.join(largest)}")
    return lines


def _cell(text: str) -> str:
    escaped = printable(text)
    for char in "\\`*_|<>[]":
        escaped = escaped.replace(char, "\\" + char)
    return escaped


def markdown(fills: Sequence[Fill]) -> str:
    """Return the table for a comment on a pull request."""
    if not fills:
        return "No memory regions.\n"
    lines = [
        "| region | used | of | full | free | gaps | budget |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for fill in fills:
        budget = in_units(fill.budget) if fill.budget is not None else ""
        mark = f" **{_verdict(fill)}**" if fill.over else ""
        lines.append(
            f"| {_cell(fill.name)} | {in_units(fill.used)} | {in_units(fill.length)} "
            f"| {percent(fill.used, fill.length)} | {in_units(fill.free)}{mark} "
            f"| {in_units(fill.gaps)} | {budget} |"
        )
    for fill in fills:
        if not fill.shares:
            continue
        lines += [
            "",
            f"<details><summary>Largest in {_cell(fill.name)}</summary>",
            "",
            "| | bytes |",
            "| --- | ---: |",
        ]
        lines += [f"| {_cell(name)} | {size} |" for name, size in fill.shares]
        lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


class PlaceModel(BaseModel):
    """A section in a region: where it runs or where it is loaded, bytes."""

    model_config = ConfigDict(extra="forbid")

    section: str
    verb: Literal["runs", "loads"]
    address: int
    size: int


class ShareModel(BaseModel):
    """An object file, or a symbol when there is no map, and its bytes in the region."""

    model_config = ConfigDict(extra="forbid")

    name: str
    size: int


class RegionModel(BaseModel):
    """One region, bytes. `used` goes to the end of the last section, `gaps` are the holes before it."""

    model_config = ConfigDict(extra="forbid")

    name: str
    origin: int
    length: int
    used: int
    free: int
    gaps: int
    budget: int | None
    over: bool
    sections: list[PlaceModel]
    largest: list[ShareModel]


class RegionsModel(BaseModel):
    """The regions of one link."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    regions: list[RegionModel]


def as_json(fills: Sequence[Fill]) -> str:
    """Return the regions as JSON."""
    models = [
        RegionModel(
            name=fill.name, origin=fill.origin, length=fill.length, used=fill.used, free=fill.free,
            gaps=fill.gaps, budget=fill.budget, over=fill.over,
            sections=[
                PlaceModel(section=one.part.name, verb=one.verb, address=one.address, size=one.part.size)  # type: ignore[arg-type]
                for one in fill.places
            ],
            largest=[ShareModel(name=name, size=size) for name, size in fill.shares],
        )
        for fill in fills
    ]  # fmt: skip
    return RegionsModel(regions=models).model_dump_json(indent=2) + "\n"
