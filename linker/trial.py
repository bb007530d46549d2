"""A script tried on made-up inputs: a section for every pattern, of a size and alignment its kind can have.

What goes wrong in a trial can go wrong in a real link, and the trial has the numbers to show it. What needs
the value of a symbol of an object file stays unknown, and no rule speaks of it.
"""

from __future__ import annotations

import re
from functools import lru_cache

from . import ast
from .evaluate import Known
from .layout import simulate
from .layout_values import Contents, Layout, Piece, Section, Target
from .outline import Outline, inputs_of, patterns_of
from .section_kinds import CODE, LINKER, SAMPLES, THREAD_ZERO, UNKNOWN, UNLOADED, kind_of

_TARGET = Target(headers=0x40, max_page=0x1000, common_page=0x1000)


def piece_for(pattern: str) -> Piece:
    """Return the made-up input section for a pattern."""
    sample = SAMPLES[kind_of(pattern)]
    return Piece(pattern, "made-up", sample.size, sample.alignment)


def kinds_in(section: ast.OutputSection) -> frozenset[str]:
    """Return the kinds of what the section takes, by its patterns."""
    return frozenset([kind_of(pattern.name) for pattern in patterns_of(section)])


def has_data(section: ast.OutputSection) -> bool:
    """Tell whether data statements put bytes into the section."""
    return any(isinstance(statement, ast.Data | ast.StringData) for statement in section.body)


def _contents(section: ast.OutputSection) -> Contents:
    everything = (ast.Pattern(".text"),)  # a file alone: all its sections, code before all
    groups = tuple(
        [
            tuple([piece_for(pattern.name) for pattern in spec.sections or everything])
            for spec in inputs_of(section)
        ]
    )
    kinds = kinds_in(section)
    samples = [SAMPLES[kind] for kind in kinds]
    quiet = section.type in {"INFO", "COPY", "DSECT", "OVERLAY"}
    return Contents(
        groups,
        thread_zero=kinds == {THREAD_ZERO},
        allocated=not quiet and kinds != {UNLOADED},
        loaded=section.type != "NOLOAD" and (has_data(section) or any(s.loaded for s in samples)),
        writable=any(sample.writable for sample in samples) and kinds not in ({LINKER}, {UNKNOWN}),
        code=CODE in kinds,
    )


_WORDS = ((1, r"avr|hc1[12]|hcs?12|s12z|z80|m16c|rl78"), (2, r"msp430"), (8, r"64|s390x"))


def is_coff(outline: Outline) -> bool:
    """Tell whether the script makes COFF or PE files, which have no sections of single objects."""
    return any(
        argument.startswith(("coff", "pe-", "pei-", "a.out"))
        for command in outline.script.commands
        if isinstance(command, ast.Command) and command.name == "OUTPUT_FORMAT"
        for argument in command.arguments
    )


def _is_avr(outline: Outline) -> bool:
    """Tell an AVR by its memories, flash at 0 and data at 0x800000: many of its scripts do not name it."""
    origins = [origin for origin, _ in outline.regions.values()]
    return 0 in origins and any(0x800000 <= (origin or 0) < 0x811000 for origin in origins)


def _is_16_bit(outline: Outline) -> bool:
    """Tell a machine whose memories start in 64 KiB, and are no longer."""
    limit = 1 << 16
    parts = [(origin or 0, length or limit) for origin, length in outline.regions.values()]
    return len(parts) > 1 and all(origin < limit and length <= limit for origin, length in parts)


@lru_cache(maxsize=2)
def word_of(outline: Outline) -> int:
    """Return the bytes of the machine's word by the script's OUTPUT_ARCH and OUTPUT_FORMAT, else 4."""
    words = " ".join(
        argument.lower()
        for command in outline.script.commands
        if isinstance(command, ast.Command) and command.name in {"OUTPUT_ARCH", "OUTPUT_FORMAT"}
        for argument in command.arguments
    )
    if _is_avr(outline) or _is_16_bit(outline):
        return 1
    return next((size for size, pattern in _WORDS if re.search(pattern, words)), 4)


@lru_cache(maxsize=2)
def trial(outline: Outline) -> Layout:
    """Return the layout that the script gives to the made-up inputs."""
    contents: dict[str, Contents] = {}
    for placed in outline.kept_sections:
        made = _contents(placed.section)
        earlier = contents.get(placed.section.name)
        if earlier is not None:
            made = made._replace(by_spec=earlier.by_spec + made.by_spec)
        contents[placed.section.name] = made
    return simulate(outline, contents, _TARGET)


def value_of(outline: Outline, symbol: str) -> int | None:
    """Return the value of a symbol of the script in the trial, None when it cannot be known."""
    value = trial(outline).symbols.get(symbol)
    return value.value if isinstance(value, Known) else None


@lru_cache(maxsize=2)
def _by_name(outline: Outline) -> dict[str, Section]:
    out: dict[str, Section] = {}
    for section in trial(outline).sections:
        out.setdefault(section.name, section)
    return out


def section_of(outline: Outline, name: str) -> Section | None:
    """Return the output section in the trial."""
    return _by_name(outline).get(name)
