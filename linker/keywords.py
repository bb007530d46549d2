"""What each word of the script language means, in a line or two: for an editor's hover and completion.

The facts are those of the ld manual (binutils 2.40), chapter "Linker Scripts".
"""

from __future__ import annotations

from typing import NamedTuple


class Keyword(NamedTuple):
    """How a word is used, and what it does."""

    usage: str
    text: str


COMMANDS = {
    "ASSERT": Keyword(
        "ASSERT(expression, message)", "Ends the link with the message when the expression is zero."
    ),
    "ENTRY": Keyword(
        "ENTRY(symbol)",
        "The first instruction that is executed. With --gc-sections it is a root: what it refers to is kept.",
    ),
    "EXTERN": Keyword(
        "EXTERN(symbol ...)",
        "Enters symbols as undefined, as -u does: archive members that define them are "
        "linked, and --gc-sections keeps them.",
    ),
    "GROUP": Keyword("GROUP(file ...)", "Archives that are searched again until no new symbol is found."),
    "INCLUDE": Keyword(
        "INCLUDE file",
        "Reads the file in this place. It is looked for in the working directory and in those of -L.",
    ),
    "INPUT": Keyword("INPUT(file ...)", "Files to link, as if they were on the command line."),
    "INSERT": Keyword(
        "INSERT AFTER|BEFORE section",
        "Adds what the script has to the default script, beside one of its output sections.",
    ),
    "MEMORY": Keyword(
        "MEMORY { name (attributes) : ORIGIN = address, LENGTH = bytes }",
        "The regions that `>region` and `AT>region` place sections in; ld refuses what does not fit.",
    ),
    "NOCROSSREFS": Keyword("NOCROSSREFS(section ...)", "Refuses references between these output sections."),
    "NOCROSSREFS_TO": Keyword(
        "NOCROSSREFS_TO(to from ...)", "Refuses references to the first section from the others."
    ),
    "OUTPUT": Keyword("OUTPUT(file)", "The name of the output file, as -o gives it."),
    "OUTPUT_ARCH": Keyword("OUTPUT_ARCH(architecture)", "The machine of the output file, in BFD's names."),
    "OUTPUT_FORMAT": Keyword(
        "OUTPUT_FORMAT(default, big, little)", "The BFD target of the output file; -EB and -EL choose one."
    ),
    "OVERLAY": Keyword(
        "OVERLAY address : AT(lma) { sections }",
        "Sections that run at the same address and are loaded one "
        "after the other; start-up code copies the one that is needed.",
    ),
    "PHDRS": Keyword(
        "PHDRS { name type FILEHDR PHDRS AT(address) FLAGS(flags); }",
        "The program headers; sections choose "
        "theirs with `:name`. Without this command ld makes them itself.",
    ),
    "REGION_ALIAS": Keyword("REGION_ALIAS(alias, region)", "A second name for a memory region."),
    "SEARCH_DIR": Keyword("SEARCH_DIR(directory)", "A directory for libraries, as -L gives it."),
    "SECTIONS": Keyword(
        "SECTIONS { ... }",
        "Which input sections go to which output sections, and where those lie. What no "
        "pattern takes is an orphan, which ld places where it sees fit.",
    ),
    "STARTUP": Keyword("STARTUP(file)", "The file that is linked first, whatever the command line says."),
    "TARGET": Keyword("TARGET(name)", "The BFD target of the input files that follow."),
    "VERSION": Keyword(
        "VERSION { tag { global: ...; local: ...; }; }", "Symbol versions of a shared object."
    ),
}

FUNCTIONS = {
    "ABSOLUTE": Keyword(
        "ABSOLUTE(expression)",
        "The value as an absolute one: inside an output section symbols are otherwise relative to its start.",
    ),
    "ADDR": Keyword("ADDR(section)", "The address (VMA) of an output section."),
    "ALIGN": Keyword(
        "ALIGN(n), ALIGN(expression, n)",
        "The location counter, or the expression, rounded up to a multiple "
        "of n. It moves nothing by itself: write `. = ALIGN(n);`. On an output section, `: ALIGN(n)` aligns "
        "its start.",
    ),
    "ALIGNOF": Keyword("ALIGNOF(section)", "The alignment of an output section, in bytes."),
    "BLOCK": Keyword("BLOCK(n)", "An old name of ALIGN."),
    "CONSTANT": Keyword("CONSTANT(MAXPAGESIZE|COMMONPAGESIZE)", "A page size of the target."),
    "DATA_SEGMENT_ALIGN": Keyword(
        "DATA_SEGMENT_ALIGN(maxpagesize, commonpagesize)",
        "Where the data segment starts: on a page of its "
        "own, or on the same offset of the next page, whichever wastes less memory.",
    ),
    "DATA_SEGMENT_END": Keyword("DATA_SEGMENT_END(expression)", "The end of the data segment."),
    "DATA_SEGMENT_RELRO_END": Keyword(
        "DATA_SEGMENT_RELRO_END(offset, expression)",
        "The end of what is read-only after relocation; ld moves the data segment so that it lies on a page.",
    ),
    "DEFINED": Keyword("DEFINED(symbol)", "1 when the symbol is defined before this place, else 0."),
    "LENGTH": Keyword("LENGTH(region)", "The length of a memory region, in bytes."),
    "LOADADDR": Keyword(
        "LOADADDR(section)",
        "The load address (LMA) of an output section: where start-up code copies it from.",
    ),
    "LOG2CEIL": Keyword("LOG2CEIL(expression)", "The binary logarithm, rounded up."),
    "MAX": Keyword("MAX(a, b)", "The larger of two values."),
    "MIN": Keyword("MIN(a, b)", "The smaller of two values."),
    "NEXT": Keyword("NEXT(n)", "The next free address that is a multiple of n."),
    "ORIGIN": Keyword("ORIGIN(region)", "The first address of a memory region."),
    "SEGMENT_START": Keyword(
        "SEGMENT_START(name, default)", "The address that -Ttext, -Tdata or the like gives, else the default."
    ),
    "SIZEOF": Keyword("SIZEOF(section)", "The size of an output section in bytes, 0 when there is none."),
    "SIZEOF_HEADERS": Keyword("SIZEOF_HEADERS", "The bytes of the ELF header and the program headers."),
}

STATEMENTS = {
    "ALIGN_WITH_INPUT": Keyword(
        "section : ALIGN_WITH_INPUT", "Load address and address move together when the section is aligned."
    ),
    "ASCIZ": Keyword('ASCIZ "text"', "The text and a zero byte."),
    "AS_NEEDED": Keyword("AS_NEEDED(file ...)", "Shared objects that are needed only when they are used."),
    "AT": Keyword(
        "section : AT(address), >region AT>region", "The load address (LMA): where the bytes are in the "
        "image that is programmed or loaded. ld counts AT>region against the region, AT(address) against "
        "none."
    ),
    "BYTE": Keyword("BYTE(expression)", "One byte of data."),
    "CONSTRUCTORS": Keyword("CONSTRUCTORS", "Constructor tables of a.out; ELF has .ctors and .init_array."),
    "COPY": Keyword("section (COPY) :", "In the file, and not in the memory image."),
    "COMMON": Keyword(
        "*(COMMON)", "Tentative definitions of C (`int x;` with -fcommon): without this pattern they are put "
        "behind everything else."
    ),
    "DSECT": Keyword("section (DSECT) :", "In the file, and not in the memory image."),
    "EXCLUDE_FILE": Keyword(
        "*(EXCLUDE_FILE(files) pattern), EXCLUDE_FILE(files) *(patterns)", "Leaves files out. Inside of the "
        "brackets it holds for the one pattern behind it, before them for all."
    ),
    "FILL": Keyword("FILL(expression)", "What the gaps from here on are filled with."),
    "HIDDEN": Keyword("HIDDEN(symbol = expression);", "A symbol that is not exported."),
    "INFO": Keyword("section (INFO) :", "In the file, and not in the memory image."),
    "INPUT_SECTION_FLAGS": Keyword(
        "INPUT_SECTION_FLAGS(SHF_WRITE & !SHF_EXECINSTR) *(...)", "Takes only sections that have these flags."
    ),
    "KEEP": Keyword(
        "KEEP(*(pattern))", "--gc-sections keeps what the pattern takes, whether or not something refers to "
        "it: vectors, tables between two symbols, constructors."
    ),
    "LONG": Keyword("LONG(expression)", "Four bytes of data."),
    "NOLOAD": Keyword(
        "section (NOLOAD) :", "Takes addresses and has no bytes in the file: contents are lost."
    ),
    "ONLY_IF_RO": Keyword("section : ONLY_IF_RO", "Made only when all of its inputs are read-only."),
    "ONLY_IF_RW": Keyword("section : ONLY_IF_RW", "Made only when one of its inputs is writable."),
    "PROVIDE": Keyword(
        "PROVIDE(symbol = expression);", "Defines the symbol when something refers to it and nothing else "
        "defines it."
    ),
    "PROVIDE_HIDDEN": Keyword("PROVIDE_HIDDEN(symbol = expression);", "PROVIDE, and not exported."),
    "QUAD": Keyword("QUAD(expression)", "Eight bytes of data."),
    "READONLY": Keyword("section (READONLY) :", "Marks the section read-only, whatever its inputs are."),
    "REVERSE": Keyword("REVERSE(pattern)", "Sorts the other way round."),
    "SHORT": Keyword("SHORT(expression)", "Two bytes of data."),
    "SORT": Keyword("SORT(pattern)", "SORT_BY_NAME."),
    "SORT_BY_ALIGNMENT": Keyword(
        "SORT_BY_ALIGNMENT(pattern)", "In descending order of alignment, which leaves the least padding."
    ),
    "SORT_BY_INIT_PRIORITY": Keyword(
        "SORT_BY_INIT_PRIORITY(pattern)", "By the number at the end of the name, as .init_array.00100 has it."
    ),
    "SORT_BY_NAME": Keyword("SORT_BY_NAME(pattern)", "In ascending order of the sections' names."),
    "SORT_NONE": Keyword("SORT_NONE(pattern)", "Not sorted, whatever --sort-section says."),
    "SQUAD": Keyword("SQUAD(expression)", "Eight bytes of data, sign-extended."),
    "SUBALIGN": Keyword(
        "section : SUBALIGN(n)", "Every input section is aligned to n, also when it wants more."
    ),
    "/DISCARD/": Keyword("/DISCARD/ : { patterns }", "What these patterns take is not in the output."),
    ".": Keyword(
        ".", "The location counter: inside an output section an offset from its start, outside an address."
    ),
}  # fmt: skip

KEYWORDS = {**COMMANDS, **FUNCTIONS, **STATEMENTS}
