"""The first registers, against Xen's headers and libxenguest."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from domainbuilder.build.guest_memory import linear_frames
from domainbuilder.plan.domain_plan import lay_out
from domainbuilder.plan.vcpu_context import (
    VCPU_CONTEXT_FIELDS,
    VCPU_CONTEXT_SIZE,
    VcpuContext,
    xen_pfn_to_cr3,
)
from tests.domainbuilder.c_headers import assert_c_agrees
from tests.domainbuilder.libxenguest import FIRST_MFN, Reference

C_NAMES = {"vgcf": "flags", "cr3": "ctrlreg[3]", "dr6": "debugreg[6]", "dr7": "debugreg[7]"}
PLAIN = ("cs", "ss", "ds", "es", "fs", "gs")


def c_name(field: str, width: int) -> str:
    if field in C_NAMES:
        return C_NAMES[field]
    if field in ("kernel_ss", "kernel_sp", "vm_assist"):
        return field
    return "user_regs." + (field if field in PLAIN or field[1:].isdigit() else "er"[width == 8] + field)


@pytest.mark.parametrize("width", [4, 8])
def test_layout_is_that_of_the_headers(width: int, tmp_path: Path) -> None:
    facts = {"sizeof(struct vcpu_guest_context)": VCPU_CONTEXT_SIZE[width]}
    sizes = {"H": 2, "I": 4, "Q": 8}
    for field, (offset, fmt) in VCPU_CONTEXT_FIELDS[width].items():
        name = c_name(field, width)
        facts[f"offsetof(struct vcpu_guest_context, {name})"] = offset
        facts[f"sizeof(((struct vcpu_guest_context *)0)->{name})"] = sizes[fmt]
    assert_c_agrees(facts, width, tmp_path)


def test_every_register_is_libxenguests(reference: Reference) -> None:
    plan = lay_out(
        reference.parms, reference.nr_pages, kernel="k", module_size=reference.module_size, cmdline=b""
    )
    facts, vcpu = reference.facts["vcpu"], plan.vcpu
    letter = "r" if plan.guest.width == 8 else "e"
    expected = {f"{letter}{name}": getattr(vcpu, name) for name in ("ip", "sp", "si", "flags")}
    expected |= {name: getattr(vcpu, name) for name in PLAIN}
    expected |= {name: getattr(vcpu, name) for name in ("vm_assist", "kernel_ss", "kernel_sp")}
    expected["flags"] = vcpu.vgcf
    p2m = linear_frames(plan.nr_pages, FIRST_MFN)
    expected["cr3"] = xen_pfn_to_cr3(p2m[plan.pgtables_pfn], plan.guest.width)
    assert expected == facts
    general = {"ax", "bx", "cx", "dx", "di", "bp", *(f"r{n}" for n in range(8, 16))}
    assert {getattr(vcpu, name) for name in general} == {0}
    assert (vcpu.dr6, vcpu.dr7) == (0xFFFF0FF0, 0x400)


@pytest.mark.parametrize("width", [4, 8])
def test_pack_and_unpack(width: int) -> None:
    names = VCPU_CONTEXT_FIELDS[width]
    context = VcpuContext(
        **{field.name: n for n, field in enumerate(fields(VcpuContext)) if field.name in names},
        **{field.name: 0 for field in fields(VcpuContext) if field.name not in names},
    )
    packed = context.pack(width)
    assert len(packed) == VCPU_CONTEXT_SIZE[width]
    assert VcpuContext.unpack(packed, width) == context


def test_cr3_folds_high_frames_for_a_32_bit_guest() -> None:
    """xen_pfn_to_cr3 of xen-x86_32.h: the bits above 4 GB come around at the bottom."""
    assert xen_pfn_to_cr3(0x105A5, 4) == 0x105A5000
    assert xen_pfn_to_cr3(0x300001, 4) == 0x00001003
    assert xen_pfn_to_cr3(0x300001, 8) == 0x300001000
