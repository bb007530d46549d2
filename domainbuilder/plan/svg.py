"""A plan as a picture: the whole address space, its mapped parts enlarged, the page tables and registers.

Plain SVG without scripts, references or CSS variables; it follows the viewer's light or dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from domainbuilder.kernel.findings import Finding
from domainbuilder.plan.domain_plan import DomainPlan
from domainbuilder.plan.findings import Survey, virtual_range
from domainbuilder.plan.regions import FREE, Region, human, regions, registers, tables
from domainbuilder.plan.segments import (
    BOOT_STACK,
    CONSOLE,
    KERNEL,
    MODULE0,
    PADDING,
    PAGE_TABLES,
    PHYS2MACH,
    START_INFO,
    XENSTORE,
)
from hvcore.public.xen import PAGE_SHIFT

_WIDTH, _MARGIN, _TOP = 1240, 32, 140
_SPACE_X, _SPACE_W = 172, 100  # the whole address space
_MAP_X, _MAP_W = 450, 400  # its mapped parts, enlarged
_SIDE_X, _SIDE_W = 904, 304  # page tables, registers, start_info
_ADDRESS_W = 138
_ROW_MIN, _ROW_MAX = 31, 112
_BLOCK_HEAD, _BLOCK_GAP = 20, 34
_LINE = 19

_SCHEME = {  # CSS class -> property -> (light, dark)
    "bg": {"fill": ("#ffffff", "#14171c")},
    "fg": {"fill": ("#1b1f24", "#e8ebef")},
    "dim": {"fill": ("#5b6471", "#9aa4b2")},
    "card": {"fill": ("#f5f7fa", "#1c2129"), "stroke": ("#d9dee5", "#343b46")},
    "edge": {"stroke": ("#c3cad3", "#454d59")},
    "line": {"stroke": ("#5b6471", "#9aa4b2")},
    "tip": {"fill": ("#5b6471", "#9aa4b2")},
    "zoom": {"fill": ("#2f6fde", "#6ea0ff")},
    "xen": {"fill": ("#3b4453", "#8e99a8")},
    "kernel": {"fill": ("#2f6fde", "#6ea0ff")},
    "module0": {"fill": ("#0f9d8a", "#4fd1bd")},
    "phys2mach": {"fill": ("#8b4fd0", "#bb8cf5")},
    "start": {"fill": ("#d9730d", "#ffab5c")},
    "store": {"fill": ("#a9820a", "#e6c14a")},
    "console": {"fill": ("#3c9a3f", "#7ed582")},
    "tables": {"fill": ("#d63b3b", "#ff7b7b")},
    "stack": {"fill": ("#8a6142", "#cda583")},
    "gap": {"fill": ("#9aa3af", "#6b7480")},
    "error": {"fill": ("#d63b3b", "#ff7b7b")},
    "warning": {"fill": ("#c96a0a", "#ffab5c")},
    "info": {"fill": ("#5b6471", "#9aa4b2")},
}
_CLASS = {
    KERNEL: "kernel",
    MODULE0: "module0",
    PHYS2MACH: "phys2mach",
    START_INFO: "start",
    XENSTORE: "store",
    CONSOLE: "console",
    PAGE_TABLES: "tables",
    f"{PHYS2MACH} {PAGE_TABLES}": "tables",
    BOOT_STACK: "stack",
    PADDING: "gap",
    FREE: "gap",
}
_TYPE = """text{font-family:system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;font-size:13px}
.mono{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:11.5px}
.h1{font-size:22px;font-weight:600}.h2{font-size:14px;font-weight:600}.name{font-weight:600}.small{font-size:11.5px}
.end{text-anchor:end}.mid{text-anchor:middle}.soft{fill-opacity:.15}.faint{fill-opacity:.08}
.edge,.line{fill:none}.line{stroke-width:1.2;marker-end:url(#tip)}"""

_DEFS = """<defs>
<pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<rect width="1.6" height="7" class="gap" fill-opacity=".5"/></pattern>
<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L8 4L0 8z" class="tip"/></marker></defs>"""


def svg(plan: DomainPlan, survey: Survey) -> str:
    """The picture, as the text of an SVG file."""
    picture = _Picture()
    blocks = _blocks(plan)
    ends = [_draw_blocks(picture, blocks), _draw_side(picture, plan), _draw_space(picture, plan, blocks)]
    _draw_head(picture, plan)
    return picture.finish(plan, _draw_findings(picture, survey.findings, max(ends) + 26))


@dataclass
class _Picture:
    """Collects elements; those drawn `behind` come first."""

    parts: list[str] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)

    def rect(self, x: float, y: float, w: float, h: float, cls: str, r: float = 0) -> None:
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="{r:g}" class="{cls}"/>'
        )

    def text(self, x: float, y: float, text: str, cls: str = "fg") -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{cls}">{escape(text)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, cls: str = "edge") -> None:
        self.parts.append(f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" class="{cls}"/>')

    def finish(self, plan: DomainPlan, height: float) -> str:
        title = f"Address space of {_shorten(plan.kernel, 200)} as a {plan.guest.name} domain"
        size = f'width="{_WIDTH}" height="{height:.0f}"'
        box = f"0 0 {_WIDTH} {height:.0f}"
        label = f'role="img" aria-label={quoteattr(title)}'
        return "\n".join(
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" {size} {label}>',
                f"<title>{escape(title)}</title>",
                f"<style>\n{_TYPE}\n{_css(0)}\n@media (prefers-color-scheme:dark){{{_css(1)}}}\n</style>",
                _DEFS,
                f'<rect {size} class="bg"/>',
                *self.behind,
                *self.parts,
                "</svg>\n",
            )
        )


def _css(scheme: int) -> str:
    return "".join(
        f".{name}{{{';'.join(f'{prop}:{colours[scheme]}' for prop, colours in props.items())}}}"
        for name, props in _SCHEME.items()
    )


@dataclass
class _Block:
    """A run of regions drawn as one stack, and where it came to lie."""

    title: str
    rows: list[Region]
    start: int | None = None
    end: int | None = None
    top: float = 0
    bottom: float = 0


def _blocks(plan: DomainPlan) -> list[_Block]:
    """A block for each mapping, by address, and one for the frames that nothing maps."""
    blocks = []
    for number, mapping in enumerate(plan.maps):
        start, end = virtual_range(plan.guest.paging, mapping)
        title = "Initial mapping" if number == 0 else "The p2m list, set apart"
        blocks.append(_Block(f"{title} · {human(end - start)}", [], start, end))
    blocks.sort(key=lambda block: block.start or 0)
    rest = _Block("Frames that no page table maps", [])
    for region in regions(plan):
        for block in blocks:
            if region.vstart is not None and (block.start or 0) <= region.vstart < (block.end or 0):
                block.rows.append(region)
                break
        else:
            rest.rows.append(region)
    return [*blocks, rest] if rest.rows else blocks


def _row_height(region: Region) -> float:
    return min(_ROW_MIN + 9 * math.log2(max(region.pages, 1) ** 0.75), _ROW_MAX)


def _address(value: int) -> str:
    return f"{value:#x}"


def _draw_blocks(picture: _Picture, blocks: Sequence[_Block]) -> float:
    y: float = _TOP
    for block in blocks:
        picture.text(_MAP_X, y - 9, block.title, "fg h2")
        block.top = y
        for region in block.rows:
            height = _row_height(region)
            _draw_row(picture, region, y, height)
            y += height
        last = block.rows[-1] if block.rows else None
        if last is not None and last.vend is not None:
            picture.text(_MAP_X - 12, y + 4, _address(last.vend), "dim mono end")
            picture.line(_MAP_X - 7, y, _MAP_X, y)
        block.bottom = y
        y += _BLOCK_GAP + _BLOCK_HEAD
    return y - _BLOCK_GAP - _BLOCK_HEAD + 8


def _draw_row(picture: _Picture, region: Region, y: float, height: float) -> None:
    cls = _CLASS[region.name]
    picture.rect(_MAP_X, y, _MAP_W, height - 1.5, f"{cls} soft", 3)
    if cls == "gap":
        box = f'x="{_MAP_X}" y="{y:.1f}" width="{_MAP_W}" height="{height - 1.5:.1f}"'
        picture.parts.append(f'<rect {box} fill="url(#hatch)"/>')
    picture.rect(_MAP_X, y, 6, height - 1.5, cls, 2)
    middle = y + height / 2 + 4
    picture.text(_MAP_X + 18, middle, region.name, "dim" if cls == "gap" else "fg name")
    if region.read_only:
        picture.text(_MAP_X + 112, middle, "read-only", f"{cls} small")
    picture.text(_MAP_X + 306, middle, f"pfn {region.pfn:#x}", "dim mono end")
    picture.text(_MAP_X + _MAP_W - 14, middle, human(region.size or region.pages << PAGE_SHIFT), "fg end")
    if region.vstart is not None:
        picture.text(_MAP_X - 12, y + 4, _address(region.vstart), "dim mono end")
        picture.line(_MAP_X - 7, y, _MAP_X, y)


@dataclass(frozen=True)
class _Band:
    """A stretch of the address space: `block` is what it is enlarged to, if it is."""

    start: int
    end: int
    label: str
    cls: str
    block: _Block | None = None


def _bands(plan: DomainPlan, blocks: Sequence[_Block]) -> list[_Band]:
    """The address space from bottom to top, without gaps; a mapping wins over what it reaches into."""
    bits = 64 if plan.guest.width == 8 else 32
    xen = plan.guest.hypervisor_virt
    known = [
        _Band(block.start, block.end, "mapped", "zoom", block)
        for block in blocks
        if block.start is not None and block.end is not None
    ]
    known.append(_Band(xen.start, xen.stop, "Xen", "xen"))
    if bits == 64:
        known.append(_Band(1 << 47, (1 << 64) - (1 << 47), "not canonical", "gap"))
    bands: list[_Band] = []
    at = 0
    for band in sorted(known, key=lambda band: band.start):
        if band.start > at:
            bands.append(_Band(at, band.start, "not mapped", "card"))
        if band.end > at:
            bands.append(band)
            at = band.end
    if at < 1 << bits:
        bands.append(_Band(at, 1 << bits, "not mapped", "card"))
    return bands


def _draw_space(picture: _Picture, plan: DomainPlan, blocks: Sequence[_Block]) -> float:
    y: float = _TOP
    bands = _bands(plan, blocks)
    picture.text(_SPACE_X, y - 9, "Address space", "fg h2")
    for band in bands:
        height = 46 if band.block else 62
        if band.cls == "card":
            picture.rect(_SPACE_X, y, _SPACE_W, height, "card")
        else:
            picture.rect(_SPACE_X, y, _SPACE_W, height, f"{band.cls} {'' if band.block else 'soft'}".strip())
        if band.block:
            _draw_zoom(picture, y, height, band.block)
        centre = _SPACE_X + _SPACE_W / 2
        picture.text(centre, y + height / 2 - 2, band.label, "bg name mid" if band.block else "fg mid")
        size = human(band.end - band.start)
        picture.text(centre, y + height / 2 + 14, size, "bg small mid" if band.block else "dim small mid")
        picture.text(_SPACE_X - 12, y + 4, _address(band.start), "dim mono end")
        picture.line(_SPACE_X - 7, y, _SPACE_X, y)
        y += height
    picture.text(_SPACE_X - 12, y + 4, _address(bands[-1].end - 1), "dim mono end")
    picture.line(_SPACE_X - 7, y, _SPACE_X, y)
    picture.parts.append(
        f'<rect x="{_SPACE_X}" y="{_TOP}" width="{_SPACE_W}" height="{y - _TOP:.1f}" class="edge"/>'
    )
    return y + 8


def _draw_zoom(picture: _Picture, y: float, height: float, block: _Block) -> None:
    """The funnel from a band to its enlargement."""
    left, right = _SPACE_X + _SPACE_W, _MAP_X - _ADDRESS_W - 8
    picture.behind.append(
        f'<path d="M{left} {y:.1f}L{right} {block.top:.1f}H{_MAP_X}V{block.bottom:.1f}H{right}'
        f'L{left} {y + height:.1f}Z" class="zoom faint"/>'
    )


def _draw_side(picture: _Picture, plan: DomainPlan) -> float:
    y: float = _TOP
    total = sum(mapping.area.pgtables for mapping in plan.maps)
    picture.text(_SIDE_X, y - 9, f"Page tables · {total}, read-only", "fg h2")
    mapping = 0
    for rung in tables(plan):
        if rung.mapping != mapping:
            mapping = rung.mapping
            y += 16
            picture.text(_SIDE_X, y + 4, "for the p2m list, below the same top level", "dim small")
            y += 14
        elif y > _TOP:
            picture.line(_SIDE_X + 26, y, _SIDE_X + 26, y + 13, "line")
            y += 14
        picture.rect(_SIDE_X, y, _SIDE_W, 36, "card", 4)
        picture.rect(_SIDE_X, y, 5, 36, "tables", 2)
        picture.text(_SIDE_X + 17, y + 23, f"L{rung.level}", "fg name")
        plural = "" if rung.tables == 1 else "s"
        picture.text(_SIDE_X + 48, y + 23, f"{rung.tables:,} table{plural}", "fg")
        picture.text(_SIDE_X + _SIDE_W - 14, y + 23, f"pfn {rung.pfn:#x}", "dim mono end")
        y += 36
    y = _card(picture, "Registers", [(n, _address(v)) for n, v in registers(plan).items()], y + 46)
    info = plan.start_info
    rows = [
        ("pt_base", _address(info.pt_base)),
        ("nr_pt_frames", f"{info.nr_pt_frames}"),
        ("mfn_list", _address(info.mfn_list)),
        ("mod_start", _address(info.mod_start)),
        ("mod_len", _address(info.mod_len)),
        ("flags", _address(info.flags)),
        ("cmd_line", _shorten(info.cmd_line.decode("utf-8", "replace"), 24) or "-"),
    ]
    return _card(picture, "start_info", rows, y + 46)


def _card(picture: _Picture, title: str, rows: Sequence[tuple[str, str]], y: float) -> float:
    picture.text(_SIDE_X, y - 9, title, "fg h2")
    height = len(rows) * _LINE + 16
    picture.rect(_SIDE_X, y, _SIDE_W, height, "card", 4)
    for index, (name, value) in enumerate(rows):
        at = y + 21 + index * _LINE
        picture.text(_SIDE_X + 17, at, name, "dim mono")
        picture.text(_SIDE_X + _SIDE_W - 14, at, value, "fg mono end")
    return y + height


def _shorten(text: str, most: int) -> str:
    clean = "".join(c if c.isprintable() else "·" for c in text)
    return clean if len(clean) <= most else f"{clean[: most - 1]}…"


def _draw_head(picture: _Picture, plan: DomainPlan) -> None:
    picture.text(_MARGIN, 50, _shorten(Path(plan.kernel).name, 70), "fg h1")
    facts = (
        plan.guest.name,
        f"{plan.guest.paging.name} paging",
        f"{human(plan.nr_pages << PAGE_SHIFT)} in {plan.nr_pages:,} pages",
        f"starts at {plan.parms.virt_entry:#x}",
    )
    picture.text(_MARGIN, 75, " · ".join(facts), "dim")
    picture.text(_WIDTH - _MARGIN, 75, "heights are not to scale", "dim small end")


def _draw_findings(picture: _Picture, findings: Sequence[Finding], y: float) -> float:
    if not findings:
        return y
    picture.text(_MARGIN, y + 6, "Findings", "fg h2")
    y += 30
    for finding in findings[:10]:
        severity = finding.severity.name.lower()
        picture.rect(_MARGIN, y - 10, 10, 10, severity, 5)
        picture.text(_MARGIN + 20, y, f"{finding.rule.id} {finding.rule.slug}", f"{severity} name")
        picture.text(_MARGIN + 330, y, _shorten(finding.message, 118), "fg small")
        y += 22
    if len(findings) > 10:
        picture.text(_MARGIN + 20, y, f"and {len(findings) - 10} more", "dim")
        y += 22
    return y + 14
