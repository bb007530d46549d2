"""The first registers, against Xen's headers and libxenguest."""

from __future__ import annotations

from dataclasses import fields

import pytest

from domainbuilder.build.guest_memory import linear_frames
from domainbuilder.plan.domain_plan import lay_out
from domainbuilder.plan.vcpu_context import (
    VCPU_CONTEXT_FIELDS,
    VcpuContext,
)
from hvcore.public.vcpu_guest_context import VCPU_GUEST_CONTEXT_SIZE, xen_pfn_to_cr3
from tests.domainbuilder.libxenguest import FIRST_MFN, Reference

PLAIN = ("cs", "ss", "ds", "es", "fs", "gs")


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
    assert len(packed) == VCPU_GUEST_CONTEXT_SIZE[width]
    assert VcpuContext.unpack(packed, width) == context
