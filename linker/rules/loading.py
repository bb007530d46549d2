"""Rules about segments and load addresses of a linked ELF."""

from __future__ import annotations

from collections.abc import Iterator

from linker.elffile import PF_W, PF_X, SHT_NOBITS, Segment
from linker.findings import ERROR, NOTE, WARNING, Context, Example, Hit, Rule, elf_place

from .given import elf_of


def load_misaligned(context: Context) -> Iterator[Hit]:
    """Address and file offset of a LOAD differ modulo its alignment, or that is no power of two."""
    for segment in elf_of(context).loads:
        align = segment.alignment
        if align & (align - 1) if align else False:
            yield Hit(
                f"{segment.name} has alignment {align:#x}, which is no power of two",
                elf_place(segment.name, segment.address),
            )
        elif align > 1 and segment.file_size and segment.address % align != segment.offset % align:
            yield Hit(
                f"{segment.name}: address {segment.address:#x} and file offset {segment.offset:#x} differ "
                f"modulo {align:#x}",
                elf_place(segment.name, segment.address),
            )


def empty_load(context: Context) -> Iterator[Hit]:
    """A LOAD of no bytes."""
    for segment in elf_of(context).loads:
        if segment.size == 0:
            yield Hit(
                f"{segment.name} at {segment.address:#x} is empty", elf_place(segment.name, segment.address)
            )


def rwx_load(context: Context) -> Iterator[Hit]:
    """A LOAD that is writable and executable."""
    for segment in elf_of(context).loads:
        if segment.flags & PF_W and segment.flags & PF_X and segment.size:
            yield Hit(
                f"{segment.name} at {segment.address:#x} is writable and executable",
                elf_place(segment.name, segment.address),
            )


def lma_misaligned(context: Context) -> Iterator[Hit]:
    """A section's load address is not aligned as its address is."""
    elf = elf_of(context)
    for section in elf.sections:
        if not section.occupies or section.alignment <= 1 or section.type == SHT_NOBITS:
            continue
        load = elf.load_address(section)
        if load is not None and load % section.alignment and section.address % section.alignment == 0:
            yield Hit(
                f"{section.name} loads at {load:#x}, not a multiple of its alignment {section.alignment:#x}",
                elf_place(section.name, load),
            )


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def lma_overlap(context: Context) -> Iterator[Hit]:
    """Two LOAD segments take the same load addresses."""
    ranges: list[tuple[int, int, Segment]] = sorted(
        (segment.load_address, segment.load_address + segment.file_size, segment)
        for segment in elf_of(context).loads
        if segment.file_size
    )
    # Sorted by start: each needs comparing only with the one that reaches furthest so far.
    furthest: tuple[int, int, Segment] | None = None
    for entry in ranges:
        if furthest is not None and _overlap(furthest[:2], entry[:2]):
            yield Hit(
                f"{entry[2].name} loads at {entry[0]:#x}, inside of {furthest[2].name} "
                f"({furthest[0]:#x} to {furthest[1]:#x})",
                elf_place(entry[2].name, entry[0]),
            )
        if furthest is None or entry[1] > furthest[1]:
            furthest = entry


def _regions(context: Context) -> dict[str, tuple[int, int]]:
    regions: dict[str, tuple[int, int]] = {}
    if context.map is not None:
        regions.update(
            (region.name, (region.origin, region.length))
            for region in context.map.regions
            if region.name != "*default*"
        )
    if context.outline is not None:
        for name, (origin, length) in context.outline.regions.items():
            if origin is not None and length is not None:
                regions[name] = (origin, length)
    for rule in context.settings.regions:
        if rule.origin is not None and rule.length is not None:
            regions[rule.name] = (rule.origin, rule.length)
    return regions


def region_overflow(context: Context) -> Iterator[Hit]:
    """What is loaded or run in a memory region runs over its end."""
    elf = elf_of(context)
    regions = _regions(context)
    if not regions:
        return
    for section in elf.sections:
        if not section.occupies:
            continue
        spans = [("runs", section.address)]
        load = elf.load_address(section)
        if load is not None and load != section.address and section.type != SHT_NOBITS:
            spans.append(("loads", load))
        for verb, start in spans:
            homes = [
                (name, origin + length)
                for name, (origin, length) in regions.items()
                if origin <= start < origin + length
            ]
            if homes and all(start + section.size > end for _, end in homes):
                name, end = homes[0]
                yield Hit(
                    f"{section.name} {verb} from {start:#x} to {start + section.size:#x}, over the end of "
                    f"{name} at {end:#x}",
                    elf_place(section.name, start),
                )


def noload_load_address(context: Context) -> Iterator[Hit]:
    """A segment without file contents has a load address inside what another one loads."""
    loads = elf_of(context).loads
    loaded = [segment for segment in loads if segment.file_size]
    for segment in loads:
        if segment.file_size or not segment.size or segment.load_address == segment.address:
            continue
        span = (segment.load_address, segment.load_address + segment.size)
        for other in loaded:
            if _overlap(span, (other.load_address, other.load_address + other.file_size)):
                yield Hit(
                    f"{segment.name} holds no data, yet its load address {segment.load_address:#x} lies "
                    f"inside of {other.name}",
                    elf_place(segment.name, segment.load_address),
                )
                break


def _example(line: str) -> Example:
    return Example(elf="elf32 entry=0x1000\n" + line)


RULES = (
    Rule(
        "load-misaligned",
        WARNING,
        "a LOAD segment's address and file offset disagree",
        "A loader that maps pages cannot load such a segment, one that copies bytes can: the image starts "
        "with one loader only (Bareflank issue 985, IncludeOS issue 1464, mythos issue 122).",
        "link with -z max-page-size=4096, and do not change addresses after linking.",
        ("E",),
        load_misaligned,
        _example("load 0x1010 0x100 rx align=0x1000 offset=0x1000\nsection .text 0x1010 0x100 ax\n"),
        _example("load 0x1000 0x100 rx align=0x1000 offset=0x1000\nsection .text 0x1000 0x100 ax\n"),
    ),
    Rule(
        "empty-load",
        WARNING,
        "a LOAD segment is empty",
        "Loaders disagree on a segment of no bytes; some report it as overlapping (unikraft issue 1680).",
        "remove the program header, or the output section that caused it when empty.",
        ("E",),
        empty_load,
        _example("load 0x1000 0x100 rx\nload 0x2000 0 rw\nsection .text 0x1000 0x100 ax\n"),
        _example("load 0x1000 0x100 rx\nload 0x2000 0x10 rw\nsection .text 0x1000 0x100 ax\n"),
    ),
    Rule(
        "rwx-load",
        NOTE,
        "a LOAD segment is writable and executable",
        "Newer GNU ld warns of it too. Many kernels are linked so, GRUB's and Debian's among them: it is "
        "never more than a warning (OSv issue 1322, OP-TEE issue 5471).",
        "separate code and data by PHDRS with FLAGS, or by an alignment to a page.",
        ("E",),
        rwx_load,
        _example("load 0x1000 0x100 rwx\nsection .text 0x1000 0x100 ax\n"),
        _example("load 0x1000 0x100 rx\nsection .text 0x1000 0x100 ax\n"),
    ),
    Rule(
        "lma-misaligned",
        ERROR,
        "a load address is less aligned than the address",
        "Code that runs from where it was loaded before it is moved finds its data misaligned (echronos "
        "issue 41).",
        "use ALIGN_WITH_INPUT, or align the load address: AT(ALIGN(LOADADDR(.text) + SIZEOF(.text), 16)).",
        ("E",),
        lma_misaligned,
        _example("load 0x1000 0x100 rw paddr=0x8004\nsection .data 0x1000 0x100 aw align=16\n"),
        _example("load 0x1000 0x100 rw paddr=0x8010\nsection .data 0x1000 0x100 aw align=16\n"),
    ),
    Rule(
        "lma-overlap",
        ERROR,
        "load addresses overlap",
        "The later segment overwrites the earlier when the image is written (uf2-samdx1 issue 24).",
        "place the load addresses with AT>REGION, which counts them.",
        ("E",),
        lma_overlap,
        _example(
            "load 0x1000 0x100 rx paddr=0x8000\nload 0x2000 0x100 rw paddr=0x8080\n"
            "section .text 0x1000 0x100 ax\nsection .data 0x2000 0x100 aw\n"
        ),
        _example(
            "load 0x1000 0x100 rx paddr=0x8000\nload 0x2000 0x100 rw paddr=0x8100\n"
            "section .text 0x1000 0x100 ax\nsection .data 0x2000 0x100 aw\n"
        ),
    ),
    Rule(
        "region-overflow",
        ERROR,
        "a section runs over the end of a memory region",
        "ld checks regions only for what is placed by >REGION and AT>REGION; with AT(address) the image can "
        "be larger than the ROM (tock issue 847).",
        "make the image smaller or the region larger; let ld check by AT>REGION.",
        ("E",),
        region_overflow,
        Example(
            config='[[region]]\nname = "ROM"\norigin = 0x8000\nlength = 0x180\n',
            elf="elf32 entry=0x1000\nload 0x1000 0x100 rx paddr=0x8100\nsection .text 0x1000 0x100 ax\n",
        ),
        Example(
            config='[[region]]\nname = "ROM"\norigin = 0x8000\nlength = 0x200\n',
            elf="elf32 entry=0x1000\nload 0x1000 0x100 rx paddr=0x8100\nsection .text 0x1000 0x100 ax\n",
        ),
    ),
    Rule(
        "noload-load-address",
        WARNING,
        "a segment without data has a load address inside of another one's data",
        "Tools that turn an ELF into an image by load addresses reserve or clear the range (pico-sdk issue "
        "1538).",
        "give the section a load region of its own: `} >RAM AT>RAM`.",
        ("E",),
        noload_load_address,
        _example(
            "load 0x1000 0x100 rx paddr=0x8000\nload 0x2000 0x100 rw paddr=0x8080 nofile\n"
            "section .text 0x1000 0x100 ax\nsection .noinit 0x2000 0x100 aw nobits\n"
        ),
        _example(
            "load 0x1000 0x100 rx paddr=0x8000\nload 0x2000 0x100 rw paddr=0x2000 nofile\n"
            "section .text 0x1000 0x100 ax\nsection .noinit 0x2000 0x100 aw nobits\n"
        ),
    ),
)
