"""Names of hypercalls, as xen/include/public/*.h of Xen 4.17 has them."""

from __future__ import annotations

import pytest

from domainbuilder.hypercall_names import command_name, hypercall_name, result_name


@pytest.mark.parametrize(
    ("number", "name"),
    [(0, "set_trap_table"), (1, "mmu_update"), (26, "mmuext_op"), (11, "hypercall 11"), (63, "hypercall 63")],
)
def test_hypercalls(number: int, name: str) -> None:
    assert hypercall_name(number) == name


@pytest.mark.parametrize(
    ("number", "first", "name"),
    [
        (12, 1, "XENMEM_decrease_reservation"),
        (12, 7 | 5 << 6, "XENMEM_add_to_physmap"),  # continued at extent 5
        (20, 2, "GNTTABOP_setup_table"),
        (21, 0, "VMASST_CMD_enable"),
        (28, 0, "XENNMI_register_callback"),
        (29, 3, "SCHEDOP_poll"),
        (32, 4, "EVTCHNOP_send"),
        (33, 4, ""),
        (33, 6, "PHYSDEVOP_set_iopl"),
        (24, 10, "VCPUOP_register_vcpu_info"),
        (29, 99, ""),
        (26, 0, ""),  # its first argument is an address
        (63, 0, ""),
    ],
)
def test_commands(number: int, first: int, name: str) -> None:
    assert command_name(number, (first, 0)) == name


def test_a_hypercall_without_arguments_has_no_command() -> None:
    assert command_name(29, ()) == ""


@pytest.mark.parametrize(
    ("result", "name"),
    [(0, "0"), (9, "9"), (0x40011, "0x40011"), (-22, "-EINVAL"), (-38, "-ENOSYS"), (-9999, "-9999")],
)
def test_results(result: int, name: str) -> None:
    assert result_name(result) == name
