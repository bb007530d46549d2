"""The kinds of finding that `domainbuilder plan` has: ids, severities and advice.

The one place where they are kept; docs/builder.md explains each id, and a test holds both to it. The checks
are in plan_findings.py and page_layout.py.
"""

from __future__ import annotations

from domainbuilder.kernel.findings import Finding, Rule, Severity

_I, _W, _E = Severity

RULES = {
    rule[1]: Rule(*rule)
    for rule in (
        ("DBP001", "guest-type-unsupported", _W, 'build for PAE and say so: PAE_MODE "yes"'),
        ("DBP002", "virt-base-not-canonical", _E, "choose an address whose bits 63 to 47 are all alike"),
        (
            "DBP003",
            "mapping-in-hypervisor-range",
            _E,
            "choose a lower VIRT_BASE or INIT_P2M, or a smaller ramdisk",
        ),
        ("DBP004", "hypercall-page-outside-kernel", _E, "point HYPERCALL_PAGE at a page of the kernel's"),
        ("DBP005", "command-line-truncated", _W, "shorten the command line"),
        ("DBP006", "little-memory-left", _I, "give the domain more memory"),
        (
            "DBP010",
            "page-symbol-misaligned",
            _E,
            "align it in the source, and put its input section first in a page-aligned output section",
        ),
        (
            "DBP011",
            "page-symbol-shared",
            _E,
            "put page-aligned inputs first in their output section, and `. = ALIGN(4096)` behind them",
        ),
        ("DBP012", "hypercall-page-misaligned", _E, "align the page that HYPERCALL_PAGE names to 4096 bytes"),
        ("DBP013", "hypercall-page-shared", _E, "give the hypercall page 4096 bytes of its own"),
        (
            "DBP014",
            "page-aligned-section-misaligned",
            _E,
            "put `. = ALIGN(4096)` before it in the linker script, and a pattern for its inputs in it",
        ),
        (
            "DBP015",
            "page-aligned-section-shared",
            _W,
            "put `. = ALIGN(4096)` before and behind it in the linker script",
        ),
        (
            "DBP016",
            "page-layout-unchecked",
            _I,
            "keep the symbol table, or look at the vmlinux the kernel was made from",
        ),
    )
}


def found(slug: str, message: str, offset: int | None = None, severity: Severity | None = None) -> Finding:
    """A finding of the rule `slug`; `offset` is in the ELF image, None where it is nowhere in particular."""
    return RULES[slug].found(message, offset, severity)
