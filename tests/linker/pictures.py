"""The pictures of docs/linker-rules.md, drawn as `lint --svg` draws: `python -m tests.linker.pictures`.

The scripts are the page's own, and the examples of `lint --explain` side by side. They are laid out with the
inputs that are given here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from linker.evaluate import Known
from linker.layout import simulate, wants
from linker.layout_values import Contents, Layout, Piece, Target
from linker.orphan_places import Orphan
from linker.outline import Outline, inputs_of
from linker.output import svg
from linker.parser import parse
from linker.regions import CODE, CONSTANT, DATA, ZERO, Part
from tests.linker.examples import rule_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "linker-rules.md"

_KINDS = (
    (re.compile(r"\.bss|\.stack|\.heap"), ZERO),
    (re.compile(r"\.data|\.app_table"), DATA),
    (re.compile(r"\.rodata|\.notes|\.note|\.init_array|\.tab"), CONSTANT),
)


class Scene(NamedTuple):
    """What a picture shows: inputs by name, size and alignment; inputs instead of the sections they are in.

    `before` is the section that the orphans lie behind ("" for the start of the script) and how many
    assignments. `symbols` are marked, of inputs (`entry: .start`) where an input begins.
    """

    rule: str
    inputs: tuple[tuple[str, int, int], ...]
    symbols: tuple[str, ...] = ()
    within: bool = False
    orphans_behind: tuple[str, int] = ("", 0)
    entry: tuple[str, str] = ("", "")
    dropped: tuple[str, ...] = ()  # by --gc-sections from what the rule finds


SCENES = {
    "takes": Scene(
        "shadowed-pattern", ((".text.init", 24, 8), (".text.safe", 40, 8)), ("s_safe", "e_safe"), within=True
    ),
    "keeps": Scene(
        "not-kept",
        ((".text.main", 90, 2), (".init_array", 8, 8), (".app_table", 24, 8)),
        ("tab_start", "tab_end"),
        within=True,
        dropped=(".init_array", ".app_table"),
    ),
    "covers": Scene(
        "pattern-variants",
        ((".text", 90, 4), (".bss", 200, 8), (".bss.cxx", 40, 8)),
        ("_end",),
        orphans_behind=(".bss", 1),
    ),
    "bounds": Scene("start-symbol-outside", ((".text", 19, 4), (".tab", 64, 16)), ("tab_start", "tab_end")),
    "loads": Scene("load-overlap", ((".text", 3000, 4), (".rodata", 500, 4), (".data", 700, 4))),
    "reserves": Scene("reserved-in-use", ((".data", 900, 8), (".bss", 6000, 8)), ("stack_top",)),
    "pages": Scene("page-aligned-order", ((".data", 20, 4), (".data.page_aligned", 4096, 1)), within=True),
    "starts": Scene(
        "rodata-before-entry",
        ((".start", 30, 4), (".text", 5000, 16), (".rodata", 700, 8)),
        orphans_behind=("", 1),
        entry=("_start", ".start"),
    ),
}

# By what the section stands for in the page's two scripts: name, bytes, alignment.
FIRMWARE = (
    (".isr_vector", 256, 4), (".text", 9001, 4), (".init_array", 12, 4), (".data", 730, 8), (".bss", 3000, 8),
)  # fmt: skip
KERNEL = (
    (".start", 64, 16), (".text", 400_000, 64), (".rodata", 90_000, 32), (".note.Xen", 180, 4),
    (".data.page_aligned", 4096, 4096), (".data", 2100, 32), (".bss", 60_000, 64),
)  # fmt: skip


def _kind(name: str) -> str:
    return next((kind for pattern, kind in _KINDS if pattern.match(name)), CODE)


def _laid_out(outline: Outline, inputs: Iterable[tuple[str, int, int]], behind: tuple[str, int]) -> Layout:
    """Lay the inputs out: each goes to the first pattern that takes it, what none takes is an orphan."""
    left = [Piece(name, "a.o", size, alignment) for name, size, alignment in inputs]
    contents: dict[str, Contents] = {}
    for placed in outline.kept_sections:
        groups = []
        for spec in inputs_of(placed.section):
            groups.append(tuple(piece for piece in left if wants(spec, piece)))
            left = [piece for piece in left if piece not in groups[-1]]
        pieces = [piece for group in groups for piece in group]
        zeroed = bool(pieces) and all(_kind(piece.name) == ZERO for piece in pieces)
        contents[placed.section.name] = Contents(tuple(groups), loaded=not zeroed)
    orphans = []
    for piece in left:
        contents[piece.name] = Contents(((piece,),), loaded=_kind(piece.name) != ZERO)
        orphans.append(Orphan(piece.name, *behind))
    return simulate(outline, contents, Target(headers=0), orphans)


def _parts(layout: Layout, *, within: bool) -> Iterator[Part]:
    for one in layout.sections:
        if not (one.size and isinstance(one.address, Known) and isinstance(one.load_address, Known)):
            continue
        where, moved = one.address.value, one.load_address.value - one.address.value
        if within:
            for piece, at in one.pieces:
                yield Part(piece.name, at, piece.size, _kind(piece.name), at + moved)
        else:
            yield Part(one.name, where, one.size, _kind(one.name), where + moved)


def _column(heading: str, script: str, scene: Scene) -> svg.Column:
    outline = Outline(parse(script))
    layout = _laid_out(outline, scene.inputs, scene.orphans_behind)
    regions = [
        svg.Extent(name, origin, length)
        for name, (origin, length) in outline.regions.items()
        if origin is not None and length is not None
    ]
    marks = [
        svg.Mark(name, value.value)
        for name, value in layout.symbols.items()
        if name in scene.symbols and isinstance(value, Known)
    ]
    entry, begins = scene.entry
    for one in layout.sections:
        if entry and one.name == begins and isinstance(one.address, Known):
            marks.append(svg.Mark(entry, one.address.value))
    return svg.Column(heading, list(_parts(layout, within=scene.within)), regions, marks)


def _side_by_side(scene: Scene) -> str:
    rule = rule_of(scene.rule)
    left = [one for one in scene.inputs if one[0] not in scene.dropped]
    return svg.beside(
        scene.rule,
        (
            _column("found", rule.bad.script, scene._replace(inputs=tuple(left))),
            _column("mended", rule.good.script, scene),
        ),
    )


def _from_page(title: str, script: str, inputs: Sequence[tuple[str, int, int]]) -> str:
    names = tuple(statement.target for statement in Outline(parse(script)).assignments)
    scene = Scene("", tuple(inputs), names, within=title != "firmware")
    return svg.beside(title, (_column("", script, scene),))


def pictures() -> dict[str, str]:
    """Return the pictures by the name of their file."""
    firmware, kernel = re.findall(r"```ld\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return {
        "firmware.svg": _from_page("firmware", firmware, FIRMWARE),
        "kernel.svg": _from_page("a kernel", kernel, KERNEL),
        **{f"{name}.svg": _side_by_side(scene) for name, scene in SCENES.items()},
    }


if __name__ == "__main__":
    for name, text in pictures().items():
        (DOCS / "pictures" / name).write_text(text)
