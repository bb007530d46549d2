"""start_info and shared_info, against Xen's headers and libxenguest."""

from __future__ import annotations

from pathlib import Path

import pytest

from domainbuilder.plan.domain_plan import lay_out
from domainbuilder.plan.start_info import (
    MAX_GUEST_CMDLINE,
    SHARED_INFO_UPCALL_MASK,
    SHARED_INFO_VCPU_SIZE,
    START_INFO_FIELDS,
    START_INFO_SIZE,
    XEN_LEGACY_MAX_VCPUS,
    StartInfo,
    guest_cmdline,
    shared_info,
)
from tests.domainbuilder.c_headers import assert_c_agrees
from tests.domainbuilder.libxenguest import Reference

C_NAMES = {"console_mfn": "console.domU.mfn", "console_evtchn": "console.domU.evtchn"}


@pytest.mark.parametrize("width", [4, 8])
def test_layout_is_that_of_the_headers(width: int, tmp_path: Path) -> None:
    facts = {"sizeof(struct start_info)": START_INFO_SIZE[width], "MAX_GUEST_CMDLINE": MAX_GUEST_CMDLINE}
    sizes = {"I": 4, "Q": 8, "32s": 32, "1024s": 1024}
    for field, (offset, fmt) in START_INFO_FIELDS[width].items():
        name = C_NAMES.get(field, field)
        facts[f"offsetof(struct start_info, {name})"] = offset
        facts[f"sizeof(((struct start_info *)0)->{name})"] = sizes[fmt]
    facts["sizeof(struct vcpu_info)"] = SHARED_INFO_VCPU_SIZE
    facts["offsetof(struct vcpu_info, evtchn_upcall_mask)"] = SHARED_INFO_UPCALL_MASK
    facts["offsetof(struct shared_info, vcpu_info)"] = 0
    facts["XEN_LEGACY_MAX_VCPUS"] = XEN_LEGACY_MAX_VCPUS
    assert_c_agrees(facts, width, tmp_path)


def test_every_field_is_libxenguests(reference: Reference) -> None:
    plan = lay_out(
        reference.parms,
        reference.nr_pages,
        kernel="k",
        module_size=reference.module_size,
        cmdline=reference.cmdline.encode(),
    )
    info, facts = plan.start_info, reference.facts["start_info"]
    machine = {"shared_info", "store_mfn", "cons_mfn", "cmd"}  # the plan has frames, not machine frames
    names = {"cons_evtchn": "console_evtchn"}
    for name in set(facts) - machine:
        assert getattr(info, names.get(name, name)) == facts[name], name
    assert info.cmd_line.decode() == facts["cmd"]
    assert (plan.xenstore_pfn, plan.console_pfn) == (facts["store_mfn"], facts["cons_mfn"])


@pytest.mark.parametrize("width", [4, 8])
def test_pack_and_unpack(width: int) -> None:
    info = StartInfo("xen-3.0-x86_32p", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, b"root=/dev/xvda", 13, 14)
    page = info.pack(width)
    assert len(page) == START_INFO_SIZE[width]
    assert StartInfo.unpack(page, width) == info
    assert StartInfo.unpack(info._replace(magic="m" * 40).pack(width), width).magic == "m" * 31


def test_the_command_line_is_cut_as_strncpy_cuts_it() -> None:
    assert guest_cmdline(b"x" * 2000) == b"x" * 1023
    assert guest_cmdline(b"one\0two") == b"one"


def test_shared_info_masks_every_legacy_vcpu_and_nothing_else() -> None:
    page = shared_info()
    assert len(page) == 4096
    assert [at for at, byte in enumerate(page) if byte] == [64 * vcpu + 1 for vcpu in range(32)]
