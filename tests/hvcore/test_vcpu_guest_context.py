"""hvcore/public/vcpu_guest_context.py against what a compiler makes of Xen's own headers (libxen-dev)."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvcore.public.vcpu_guest_context import (
    FXSAVE_SIZE,
    TRAP_INFO,
    VCPU_GUEST_CONTEXT,
    VCPU_GUEST_CONTEXT_SIZE,
    xen_cr3_to_pfn,
    xen_pfn_to_cr3,
)
from tests.domainbuilder.c_headers import assert_c_agrees

STRUCT = "struct vcpu_guest_context"
NAMES = {"vgcf": "flags", "cr3": "ctrlreg[3]", "dr6": "debugreg[6]", "dr7": "debugreg[7]"}
SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
GENERAL = ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp", "ip", "flags")
SIZES = {"H": 2, "I": 4, "Q": 8}


def c_name(field: str, word: int) -> str:
    if field == "callbacks":
        return "event_callback_cs" if word == 4 else "event_callback_eip"
    if field in GENERAL:
        return f"user_regs.{'e' if word == 4 else 'r'}{field}"
    if field in SEGMENTS or (field[1:].isdigit() and field.startswith("r")):
        return f"user_regs.{field}"
    return NAMES.get(field, field)


def size_of(code: str) -> int:
    if code.endswith("s"):
        return int(code[:-1])
    return int(code[:-1] or "1") * SIZES[code[-1]]


@pytest.mark.parametrize("word", [4, 8])
def test_the_layout_is_that_of_the_headers(word: int, tmp_path: Path) -> None:
    facts = {
        f"sizeof({STRUCT})": VCPU_GUEST_CONTEXT_SIZE[word],
        "sizeof(struct trap_info)": TRAP_INFO[word].size,
        f"sizeof((({STRUCT} *)0)->fpu_ctxt)": FXSAVE_SIZE,
    }
    for field, (offset, code) in VCPU_GUEST_CONTEXT[word].items():
        name = c_name(field, word)
        facts[f"offsetof({STRUCT}, {name})"] = offset
        if field != "callbacks":  # several fields in C
            facts[f"sizeof((({STRUCT} *)0)->{name})"] = size_of(code)
    assert len(facts) > 55
    assert_c_agrees(facts, word, tmp_path)


@pytest.mark.parametrize("pfn", [0, 0x105A5, 0x300001, 0x12345678])
def test_cr3_of_a_32_bit_guest_is_folded(pfn: int, tmp_path: Path) -> None:
    cr3 = xen_pfn_to_cr3(pfn, 4)
    assert xen_cr3_to_pfn(cr3, 4) == pfn
    assert_c_agrees({f"xen_pfn_to_cr3({pfn:#x}u)": cr3, f"xen_cr3_to_pfn({cr3:#x}u)": pfn}, 4, tmp_path)
    assert xen_cr3_to_pfn(xen_pfn_to_cr3(pfn, 8), 8) == pfn
