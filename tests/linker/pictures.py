"""The pictures of docs/linker-rules.md, drawn as `lint --svg` draws: `python -m tests.linker.pictures`.

The scripts are those of the page and of the rules' examples, laid out with the contents that are given here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from linker.evaluate import Known
from linker.layout import simulate
from linker.layout_values import Contents, Layout, Piece, Target
from linker.outline import Outline, inputs_of
from linker.output import svg
from linker.parser import parse
from linker.regions import CODE, CONSTANT, DATA, ZERO, Part
from linker.trial import trial
from tests.linker.examples import bad_example

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "linker-rules.md"

_KINDS = {".bss": ZERO, ".data": DATA, ".rodata": CONSTANT, ".notes": CONSTANT, ".init_array": CONSTANT}
# By what the section stands for in the page's two scripts: bytes, alignment.
_FIRMWARE = {".isr_vector": (256, 4), ".text": (9001, 4), ".init_array": (12, 4), ".data": (730, 8),
             ".bss": (3000, 8)}  # fmt: skip
_KERNEL = {".text": (400_000, 64), ".rodata": (90_000, 32), ".notes": (180, 4), ".data": (8192, 4096),
           ".bss": (60_000, 64)}  # fmt: skip


def _laid_out(outline: Outline, sizes: Mapping[str, tuple[int, int]]) -> Layout:
    contents: dict[str, Contents] = {}
    for placed in outline.kept_sections:
        name = placed.section.name
        size, alignment = sizes[name]
        rest = [()] * (len(inputs_of(placed.section)) - 1)
        pieces = (Piece(name, "kernel.o", size, alignment),)
        contents[name] = Contents((pieces, *rest), loaded=_KINDS.get(name) != ZERO)
    return simulate(outline, contents, Target(headers=0))


def _parts(layout: Layout) -> Iterator[Part]:
    for one in layout.sections:
        if one.size and isinstance(one.address, Known) and isinstance(one.load_address, Known):
            kind = _KINDS.get(one.name, CODE)
            yield Part(one.name, one.address.value, one.size, kind, one.load_address.value)


def _drawn(title: str, outline: Outline, layout: Layout) -> str:
    regions = [
        svg.Extent(name, origin, length)
        for name, (origin, length) in outline.regions.items()
        if origin is not None and length is not None
    ]
    return svg.render(list(_parts(layout)), title, regions)


def pictures() -> dict[str, str]:
    """Return the pictures by the name of their file."""
    firmware, kernel = (
        Outline(parse(block)) for block in re.findall(r"```ld\n(.*?)```", PAGE.read_text(), re.DOTALL)
    )
    out = {
        "firmware.svg": _drawn("firmware", firmware, _laid_out(firmware, _FIRMWARE)),
        "kernel.svg": _drawn("a kernel", kernel, _laid_out(kernel, _KERNEL)),
    }
    overlap = Outline(parse(bad_example("load-overlap").script))
    out["load-overlap.svg"] = _drawn("what load-overlap finds", overlap, trial(overlap))
    return out


if __name__ == "__main__":
    for name, text in pictures().items():
        (DOCS / "pictures" / name).write_text(text)
