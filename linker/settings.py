"""What a project can set, as plain values; `config.py` reads them from TOML."""

from __future__ import annotations

from typing import NamedTuple

PAGE = 4096


class SymbolRule(NamedTuple):
    """What is expected of a symbol: an address, an alignment, a section it must lie in."""

    name: str
    address: int | None = None
    align: int | None = None
    section: str | None = None


class Budget(NamedTuple):
    """Limits of an output section (`name` is a pattern), sizes and alignments in bytes."""

    name: str
    max_size: int | None = None
    size_modulus: int | None = None
    min_align: int | None = None
    address: int | None = None


class RegionRule(NamedTuple):
    """A memory region: what is loaded must fit between origin and origin + length.

    Without these two it is one of the script's or the map's. `budget` is how many of its bytes may be used.
    """

    name: str
    origin: int | None = None
    length: int | None = None
    budget: int | None = None


class ArrayRule(NamedTuple):
    """A table between two symbols whose entries are `entry` bytes each."""

    start: str
    stop: str
    entry: int


class Settings(NamedTuple):
    """The configuration of one run."""

    severities: dict[str, str] = {}  # noqa: RUF012 (never changed)
    page_size: int = PAGE
    page_aligned: tuple[str, ...] = (
        "*.page_aligned*",
        "*..page_aligned*",
        "*_page_aligned",
        "*.stack_aligned*",
    )
    end_symbols: tuple[str, ...] = ("_end", "__end", "end", "kernel_end", "_kernel_end")
    page_symbols: tuple[str, ...] = (
        "swapper_pg_dir",
        "init_top_pgt",
        "boot_pgd",
        "boot_pml4",
        "boot_page_directory",
        "page_directory",
        "kpgdir",
        "hypercall_page",
        "_hypercall_page",
    )
    expected_inputs: tuple[str, ...] = ()
    keep: tuple[str, ...] = (
        ".vectors",
        ".vector_table",
        ".isr_vector",
        ".isr_vectors",
        ".interrupt_vector",
        ".intvecs",
        ".reset_vector",
        ".multiboot",
        ".multiboot2",
        ".multiboot_header",
        ".multiboot.header",
    )
    allowed_orphans: tuple[str, ...] = ()
    symbols: tuple[SymbolRule, ...] = ()
    sections: tuple[Budget, ...] = ()
    arrays: tuple[ArrayRule, ...] = ()
    regions: tuple[RegionRule, ...] = ()
    image_max_size: int | None = None
    xen: bool | None = None


DEFAULTS = Settings()
