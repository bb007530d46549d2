"""Rules for Xen PV kernels: what the domain builder and the hypervisor expect of the layout.

Applied when the script or the ELF names Xen, or when the configuration says `xen = true`. Note numbers from
Xen's public header elfnote.h; where notes are looked for, from xen/common/libelf/libelf-dominfo.c and
libelf-tools.c (Xen 4.17): NOTE segments first, note sections only when no segment has a Xen note.
"""

from __future__ import annotations

from collections.abc import Iterator

from linker import ast
from linker.elffile import PF_W, PF_X, PT_NOTE, SHF_EXECINSTR, SHF_WRITE, SHT_NOTE, Elf, Note
from linker.findings import ERROR, NOTE, WARNING, Context, Example, Hit, Rule, elf_place, script_place
from linker.match import any_match

from .given import elf_of, speaks_of_xen

XEN_ELFNOTE_ENTRY = 1
XEN_ELFNOTE_HYPERCALL_PAGE = 2
OWNER = b"Xen"
_LEGACY = "__xen_guest"


def _in_segments(elf: Elf) -> list[Note]:
    return [
        note
        for segment in elf.segments
        if segment.type == PT_NOTE and segment.file_size
        for note in elf.notes(segment, 4)[0]
        if note.owner == OWNER
    ]


def _in_sections(elf: Elf) -> list[tuple[str, int, Note]]:
    return [
        (section.name, section.address, note)
        for section in elf.sections
        if section.type == SHT_NOTE and section.size
        for note in elf.walk_notes(section.offset, min(section.size, 1 << 20), 4)[0]
        if note.owner == OWNER
    ]


def _xen_elf(context: Context) -> bool:
    if context.settings.xen is not None:
        return context.settings.xen
    elf = elf_of(context)
    return _LEGACY in elf.by_name or bool(_in_segments(elf)) or bool(_in_sections(elf))


def _xen_script(context: Context) -> bool:
    if context.settings.xen is not None:
        return context.settings.xen
    assert context.outline is not None
    return speaks_of_xen((*context.outline.patterns, *context.outline.names))


def _number(note: Note, elf: Elf) -> int | None:
    # As elf_note_numeric does: 4 or 8 bytes, anything else is no number.
    return int.from_bytes(note.data, elf.byteorder) if len(note.data) in {4, 8} else None


def _notes(elf: Elf) -> dict[int, Note]:
    notes = _in_segments(elf) or [note for _, _, note in _in_sections(elf)]
    return {note.type: note for note in notes}


def notes_outside_segment(context: Context) -> Iterator[Hit]:
    """A Xen note lies in no NOTE segment."""
    if not _xen_elf(context):
        return
    elf = elf_of(context)
    covered = {note.offset for note in _in_segments(elf)}
    for name, address, note in _in_sections(elf):
        if note.offset not in covered:
            yield Hit(
                f"the Xen note of type {note.type} in {name} lies in no NOTE segment",
                elf_place(name, address),
            )


def entry_outside_load(context: Context) -> Iterator[Hit]:
    """The entry that Xen jumps to lies in no executable LOAD segment."""
    if not _xen_elf(context):
        return
    elf = elf_of(context)
    note = _notes(elf).get(XEN_ELFNOTE_ENTRY)
    value = _number(note, elf) if note is not None else None
    entry, what = (elf.entry, "the ELF entry") if value is None else (value, "the ENTRY note")
    segment = next((load for load in elf.loads if load.holds(entry)), None)
    if segment is None:
        yield Hit(f"{what} {entry:#x} lies in no LOAD segment", elf_place("entry", entry))
    elif not segment.flags & PF_X:
        yield Hit(f"{what} {entry:#x} lies in {segment.name}, which is not executable",
                  elf_place("entry", entry))  # fmt: skip


def hypercall_page(context: Context) -> Iterator[Hit]:
    """The hypercall page is not on a page, or not inside code."""
    if not _xen_elf(context):
        return
    elf, page = elf_of(context), context.settings.page_size
    address = _hypercall_page_address(elf)
    if address is None:
        return
    what, place = f"the hypercall page at {address:#x}", elf_place("hypercall_page", address)
    if address % page:
        yield Hit(f"{what} is not on a page", place)
    if not elf.sections:
        # A stripped kernel may have no section headers at all: then segments must do.
        if not any(load.holds(address) and load.flags & PF_X for load in elf.loads):
            yield Hit(f"{what} lies in no executable LOAD segment", place)
        return
    inside = [
        section for section in elf.sections if section.occupies and section.address <= address < section.end
    ]
    code = [section for section in inside if section.flags & SHF_EXECINSTR]
    if not code:
        yield Hit(f"{what} lies in {inside[0].name if inside else 'no section'}, not in code", place)
    elif address + page > max(section.end for section in code):
        yield Hit(
            f"{what} runs over the end of {code[0].name} at {code[0].end:#x}: Xen writes all of the page",
            place,
        )


def _hypercall_page_address(elf: Elf) -> int | None:
    """Return where Xen writes the page: as the note says, or else as the symbol is called."""
    note = _notes(elf).get(XEN_ELFNOTE_HYPERCALL_PAGE)
    address = _number(note, elf) if note is not None else None
    if address is not None:
        return address
    symbols = elf.find(("hypercall_page", "_hypercall_page"))
    return next((symbol.address for symbol in symbols.values()), None)


def page_data_together(context: Context) -> Iterator[Hit]:
    """Page-aligned inputs of an output section are not all together at its start."""
    if not _xen_script(context):
        return
    assert context.outline is not None
    for placed in context.outline.kept_sections:
        run_ended: ast.Pattern | None = None
        other_first: str = ""
        for statement in placed.section.body:
            if not isinstance(statement, ast.InputSpec):
                continue
            for pattern in statement.sections or ():
                name = pattern.name.rstrip("*.") if pattern.name.endswith("*") else pattern.name
                if not any_match(context.settings.page_aligned, name):
                    run_ended = pattern
                    other_first = other_first or pattern.name
                elif run_ended is not None:
                    yield Hit(
                        f"'{pattern.name}' is not at the start of {placed.section.name}: '{other_first}' "
                        "comes before it",
                        script_place(pattern.span, pattern.name),
                    )


def allocated_after_end_symbol(context: Context) -> Iterator[Hit]:
    """The script places allocated sections after the symbol that ends the kernel."""
    if not _xen_script(context):
        return
    assert context.outline is not None
    ended = ""
    for command in context.outline.sequence:
        if isinstance(command, ast.Assign) and command.target in context.settings.end_symbols:
            ended = command.target
        elif ended and isinstance(command, ast.OutputSection) and _allocates(command):
            yield Hit(
                f"{command.name} is placed after {ended}: p2m list, start_info and page tables follow the "
                "kernel there",
                script_place(command.name_span, command.name),
            )


_NOT_ALLOCATED = (".debug*", ".stab*", ".comment", ".gnu.*", ".note*", ".symtab", ".strtab", ".shstrtab")


def _allocates(section: ast.OutputSection) -> bool:
    zero = isinstance(section.address, ast.Number) and section.address.value == 0
    quiet = section.name == "/DISCARD/" or any_match(_NOT_ALLOCATED, section.name)
    return not (zero or quiet or section.type in {"INFO", "COPY", "DSECT", "OVERLAY"} or not section.body)


def shared_page(context: Context) -> Iterator[Hit]:
    """Page-aligned data, which becomes read-only as page tables, shares a page with writable data."""
    if not _xen_elf(context):
        return
    elf = elf_of(context)
    page = context.settings.page_size
    placed = sorted((item for item in elf.sections if item.occupies), key=lambda item: item.address)
    tables = [item for item in placed if any_match(context.settings.page_aligned, item.name)]
    for table in tables:
        first, last = table.address // page, (table.end - 1) // page
        for other in placed:
            if other is table or not other.flags & SHF_WRITE or other in tables:
                continue
            if other.address // page <= last and (other.end - 1) // page >= first:
                yield Hit(
                    f"{other.name} at {other.address:#x} shares a page with {table.name} at "
                    f"{table.address:#x}",
                    elf_place(other.name, other.address),
                )


def read_only_sections(context: Context) -> Iterator[Hit]:
    """A LOAD that is mapped read-only holds a writable section."""
    if not _xen_elf(context):
        return
    elf = elf_of(context)
    for section in elf.sections:
        if section.occupies and section.flags & SHF_WRITE:
            segment = elf.segment_of(section)
            if segment is not None and not segment.flags & PF_W:
                yield Hit(
                    f"{section.name} is writable and lies in {segment.name}, which is read-only",
                    elf_place(section.name, section.address),
                )


_XEN = "note .note.Xen 0x3000 owner=Xen type=6 data=6c696e757800 pad=4\n"
_HEAD = "elf64 entry=0x1000\nload 0x1000 0x3000 rwx\nsection .text 0x1000 0x2000 ax\n"
_SEGMENT = "segment note 0x3000 auto r align=4\n"
_SCRIPT = "SECTIONS\n{{\n  .note : {{ *(.note.Xen) }}\n  .data : ALIGN(4096) {{ {} }}\n  {}\n}}\n"

RULES = (
    Rule(
        "xen-notes-outside-segment",
        WARNING,
        "a Xen note is in no NOTE segment",
        "Xen reads NOTE segments; only when no segment holds a Xen note does it look at sections. pygrub and "
        "other loaders never look at sections: no loader found (GRUB, Unikraft).",
        "add a PT_NOTE program header and the section into it: `.notes : { *(.note.Xen) } :text :note`.",
        ("E",),
        notes_outside_segment,
        Example(elf=_HEAD + _XEN),
        Example(elf=_HEAD + _SEGMENT + _XEN),
    ),
    Rule(
        "xen-entry-outside-load",
        ERROR,
        "the entry lies in no executable LOAD segment",
        "The builder maps LOAD segments only, and a PV guest starts at the ENTRY note.",
        "define the entry in a section that a LOAD segment holds.",
        ("E",),
        entry_outside_load,
        Example(elf=(_HEAD + _SEGMENT + _XEN).replace("entry=0x1000", "entry=0x9000")),
        Example(elf=_HEAD + _SEGMENT + _XEN),
    ),
    Rule(
        "xen-hypercall-page",
        ERROR,
        "the hypercall page is not a whole page of code",
        "Xen fills the page at the HYPERCALL_PAGE note with code, all 4096 bytes of it: misaligned it "
        "destroys its neighbours, and outside of code it cannot be executed.",
        "define it with .balign 4096 and .skip 4096 in an executable section.",
        ("E",),
        hypercall_page,
        Example(elf=_HEAD + _SEGMENT + _XEN + "symbol hypercall_page 0x1080\n"),
        Example(elf=_HEAD + _SEGMENT + _XEN + "symbol hypercall_page 0x2000\n"),
    ),
    Rule(
        "xen-page-data-first",
        ERROR,
        "page-aligned data is not first and together in its output section",
        "Page tables and descriptor tables of a PV kernel become read-only, page by page. Between other data "
        "they drag their neighbours along.",
        "put the patterns of page-aligned sections first, `. = ALIGN(4096);` after them.",
        ("S",),
        page_data_together,
        Example(script=_SCRIPT.format("*(.data) . = ALIGN(4096); *(.data.page_aligned)", "")),
        Example(script=_SCRIPT.format("*(.data.page_aligned) . = ALIGN(4096); *(.data)", "")),
    ),
    Rule(
        "xen-after-end-symbol",
        ERROR,
        "the script places sections after the end of the kernel",
        "The builder puts the p2m list, start_info, page tables and the boot stack behind the kernel; a "
        "kernel that takes memory from its end symbol on overwrites what the script placed there.",
        "move the end symbol behind the last allocated section.",
        ("S",),
        allocated_after_end_symbol,
        Example(script=_SCRIPT.format("*(.data)", "_end = .;\n  .bss : { *(.bss) *(COMMON) }")),
        Example(script=_SCRIPT.format("*(.data)", ".bss : { *(.bss) *(COMMON) }\n  _end = .;")),
    ),
    Rule(
        "xen-shared-page",
        ERROR,
        "page-aligned data shares a page with writable data",
        "Xen makes a page read-only as long as it is a page table. A variable in the same page cannot be "
        "written from then on.",
        "end the page-aligned data with `. = ALIGN(4096);`.",
        ("E",),
        shared_page,
        Example(
            elf=_HEAD + _SEGMENT + _XEN + "section .data.page_aligned 0x4000 0x800 aw\n"
            "section .data 0x4800 0x100 aw\n"
        ),
        Example(
            elf=_HEAD + _SEGMENT + _XEN + "section .data.page_aligned 0x4000 0x800 aw\n"
            "section .data 0x5000 0x100 aw\n"
        ),
    ),
    Rule(
        "xen-read-only",
        NOTE,
        "a writable section lies in a read-only segment",
        "A loader that maps segments with their permissions, and a kernel that protects itself by them, "
        "faults at the first write. A note only: Xen's builder maps all of a kernel but its page tables "
        "writable, and Linux writes to its .rodata until it has started.",
        "move the section to a writable segment, or give the segment FLAGS(6).",
        ("E",),
        read_only_sections,
        Example(
            elf=(_HEAD + _SEGMENT + _XEN).replace("0x3000 rwx", "0x3000 rx") + "section .data 0x3800 8 aw\n"
        ),
        Example(elf=_HEAD + _SEGMENT + _XEN + "section .data 0x3800 8 aw\n"),
    ),
)
