"""Where a kernel's symbols come from: the kernel itself, or the file of `--symbols`."""

from __future__ import annotations

import os

from domainbuilder.errors import BuildError, SymbolsError, Where
from domainbuilder.inputs import open_input
from domainbuilder.kernel.elf import ElfImage, parse_elf
from domainbuilder.kernel.elfnotes import find_notes, note_bytes
from domainbuilder.kernel.kernel_file import load_kernel_bytes
from domainbuilder.symbols.frames import CallFrames
from domainbuilder.symbols.kallsyms import kallsyms_symbols
from domainbuilder.symbols.lines import SourceLines
from domainbuilder.symbols.orc import OrcFrames
from domainbuilder.symbols.symtab import symtab_symbols
from domainbuilder.symbols.system_map import system_map_symbols
from domainbuilder.symbols.table import Symbols, no_symbols

_NT_GNU_BUILD_ID = 3
_SECTIONS = (".debug_line", ".debug_frame", ".eh_frame", ".orc_unwind")
_COMPARED = 64  # names that a System.map and the kernel's own tables are compared by


def kernel_symbols(elf: ElfImage) -> Symbols:
    """What an image says of itself: its symbol table or Linux's kallsyms tables, and debug information.

    Empty where it says nothing. Never raises: a table that is broken is none.
    """
    symbols = symtab_symbols(elf)
    if symbols is None or not len(symbols):
        symbols = kallsyms_symbols(elf)
    if symbols is None:
        symbols = no_symbols()
    _attach(symbols, elf)
    return symbols


def _attach(symbols: Symbols, elf: ElfImage) -> None:
    """What `elf` knows beside names, where `symbols` lack it."""
    has = {name for name in _SECTIONS if elf.section_by_name(name) is not None}
    if ".debug_line" in has:
        symbols.lines = symbols.lines or SourceLines(elf)
    if has & {".debug_frame", ".eh_frame"}:
        symbols.frames = symbols.frames or CallFrames(elf)
    if ".orc_unwind" in has:
        symbols.orc = symbols.orc or OrcFrames(elf)


def read_symbols(path: str | os.PathLike[str], kernel: ElfImage | None = None) -> Symbols:
    """The symbols in a file: an ELF image (also packed, as a bzImage is), or a System.map.

    `kernel` is what they are for. Raises SymbolsError: unreadable, without symbols, or another kernel's by
    build id, or by the addresses that both know.
    """
    name = os.fspath(path)
    try:
        data = open_input(name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SymbolsError(f"cannot be read: {reason}", where=Where(name)) from error
    text = not (data[:4] == b"\x7fELF" or data[:2] == b"\x1f\x8b" or data[0x202:0x206] == b"HdrS")
    if text:
        symbols = system_map_symbols(data, name)
        if kernel is not None:
            _same_addresses(symbols, kernel, name)
            _attach(symbols, kernel)
        return symbols
    try:
        elf = parse_elf(load_kernel_bytes(data, name).image, name)
    except BuildError as error:
        raise SymbolsError(
            error.reason, where=error.where, found=error.found, expected=error.expected
        ) from error
    if kernel is not None:
        _same_build(elf, kernel, name)
    symbols = kernel_symbols(elf)
    if not len(symbols) and symbols.lines is None:
        raise SymbolsError("no symbols and no debug information", where=Where(name))
    symbols.origin = f"{symbols.origin} of {name}"
    if kernel is not None:
        _attach(symbols, kernel)
    return symbols


def _build_id(elf: ElfImage) -> bytes:
    notes = find_notes(elf).notes
    return next((note_bytes(elf, n) for n in notes if n.owner == b"GNU" and n.type == _NT_GNU_BUILD_ID), b"")


def _same_build(elf: ElfImage, kernel: ElfImage, name: str) -> None:
    theirs, ours = _build_id(elf), _build_id(kernel)
    if theirs and ours and theirs != ours:
        raise SymbolsError(
            "the symbols are another kernel's: the build ids differ",
            where=Where(name),
            found=theirs.hex(),
            expected=ours.hex(),
        )


def _same_addresses(symbols: Symbols, kernel: ElfImage, name: str) -> None:
    """A System.map has no build id: compare with what the kernel says of itself, where it does."""
    own = kernel_symbols(kernel)
    step = max(len(own) // _COMPARED, 1)
    some = [one for i, one in enumerate(own) if not i % step and own.lookup(one.name) == one]
    both = [(one, other) for one in some if (other := symbols.lookup(one.name)) is not None]
    moved = [(one, other) for one, other in both if one.value != other.value]
    if 2 * len(moved) > len(both):
        one, other = moved[0]
        raise SymbolsError(
            f"the symbols are another kernel's: {one.name[:80]} is elsewhere",
            where=Where(name),
            found=other.value,
            expected=one.value,
        )
