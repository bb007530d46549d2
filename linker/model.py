"""Everything known of a layout, joined: computed by its linker's rules, from the map, from the ELF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .contents import contents_of, target_of
from .elffile import Elf, Segment
from .layout import simulate
from .layout_values import Layout, Target
from .lld_layout import lld_contents_of, simulate_lld
from .mapfile import LinkMap, MapOutput
from .orphan_places import Orphan
from .outline import Outline


class Model(NamedTuple):
    """Everything known of a layout: computed, from the map, from the ELF; each may be missing."""

    computed: Layout | None
    outputs: tuple[MapOutput, ...]
    segments: tuple[Segment, ...]
    orphans: tuple[str, ...]
    matched: Mapping[str, int]


def model(outline: Outline | None, link_map: LinkMap | None, elf: Elf | None) -> Model:
    """Join what was given. `matched` counts the input sections each pattern of the map took."""
    computed = None
    orphans: list[Orphan] = []
    if outline is not None and link_map is not None:
        lld = link_map.flavor == "lld"
        contents, orphans = (lld_contents_of if lld else contents_of)(link_map, outline, elf)
        target = target_of(elf) if elf is not None else Target()
        computed = (simulate_lld if lld else simulate)(outline, contents, target, orphans)
    elif outline is not None and elf is not None:
        orphans = [
            Orphan(section.name, "")
            for section in elf.sections
            if section.allocated and section.name not in outline.names
        ]
    matched: dict[str, int] = {}
    for output in link_map.outputs if link_map is not None else ():
        for pattern in output.patterns:
            matched[pattern.text] = matched.get(pattern.text, 0) + pattern.taken
    return Model(
        computed,
        link_map.outputs if link_map is not None else (),
        elf.segments if elf is not None else (),
        tuple(orphan.name for orphan in orphans),
        matched,
    )
