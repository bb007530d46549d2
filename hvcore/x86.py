"""Facts about the processor that everybody needs: vectors, flags, bits of page-table entries, masks.

Sources: Intel's and AMD's manuals; names as Xen has them (xen/arch/x86/include/asm/x86-defns.h, page.h).
"""

from __future__ import annotations

M32 = 0xFFFFFFFF
M64 = 0xFFFFFFFFFFFFFFFF

# Exceptions: x86-defns.h
TRAP_divide_error = 0
TRAP_debug = 1
TRAP_nmi = 2
TRAP_int3 = 3
TRAP_overflow = 4
TRAP_bounds = 5
TRAP_invalid_op = 6
TRAP_no_device = 7
TRAP_double_fault = 8
TRAP_invalid_tss = 10
TRAP_no_segment = 11
TRAP_stack_error = 12
TRAP_gp_fault = 13
TRAP_page_fault = 14
TRAP_alignment_check = 17
# Those that push an error code, a bit each.
TRAP_HAVE_EC = (
    1 << TRAP_double_fault | 1 << TRAP_invalid_tss | 1 << TRAP_no_segment | 1 << TRAP_stack_error
    | 1 << TRAP_gp_fault | 1 << TRAP_page_fault | 1 << TRAP_alignment_check
)  # fmt: skip

# As Xen's vec_name() has them
VECTOR_NAMES = (
    "#DE", "#DB", "#NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "#CSO", "#TS", "#NP", "#SS", "#GP", "#PF",
    "#15", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
)  # fmt: skip

# EFLAGS
X86_EFLAGS_TF = 0x100
X86_EFLAGS_IF = 0x200
X86_EFLAGS_DF = 0x400
X86_EFLAGS_IOPL = 0x3000
X86_EFLAGS_NT = 0x4000
X86_EFLAGS_RF = 0x10000
X86_EFLAGS_VM = 0x20000
X86_EFLAGS_AC = 0x40000

X86_CR0_TS = 0x8

# Page-table entries
PAGE_PRESENT = 0x1
PAGE_RW = 0x2
PAGE_USER = 0x4
PAGE_PWT = 0x8
PAGE_PCD = 0x10
PAGE_ACCESSED = 0x20
PAGE_DIRTY = 0x40
PAGE_PSE = 0x80
PAGE_GLOBAL = 0x100
PAGE_AVAIL = 0xE00
PAGE_NX = 1 << 63


def vector_name(vector: int) -> str:
    """Xen's name of an exception vector."""
    return VECTOR_NAMES[vector] if vector < len(VECTOR_NAMES) else f"{vector:#x}"
