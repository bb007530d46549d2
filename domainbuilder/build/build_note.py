"""What a built domain says it was built from, as plain values, and what reads them and trusts none.

The plan is worked out again from them, as it was for the kernel itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from domainbuilder.errors import BuildError
from domainbuilder.kernel.parms import ElfDomParms, XenPaeType
from domainbuilder.plan.domain_plan import DomainPlan, lay_out
from domainbuilder.plan.fit import MAX_PAGES

NOTE_VERSION = 1


class Built(NamedTuple):
    """The note, checked for types and ranges."""

    kernel: str
    guest_type: str
    nr_pages: int
    module_size: int | None
    first_mfn: int
    shared_info_mfn: int
    parms: ElfDomParms

    def plan(self) -> DomainPlan:
        """The plan of such a domain, without its command line. Raises LayoutError."""
        return lay_out(
            self.parms,
            self.nr_pages,
            kernel=self.kernel,
            module_size=self.module_size,
            cmdline=b"",
            guest_type=self.guest_type,
        )


def build_note(plan: DomainPlan, first_mfn: int, shared_info_mfn: int) -> dict[str, Any]:
    """The note of a domain of that plan."""
    return {
        "version": NOTE_VERSION,
        "kernel": Path(plan.kernel).name,
        "guest_type": plan.guest.name,
        "nr_pages": plan.nr_pages,
        "module_size": plan.module_size,
        "first_mfn": first_mfn,
        "shared_info_mfn": shared_info_mfn,
        "parms": plan.parms._asdict(),
    }


Fail = Callable[..., BuildError]
_Fields = Mapping[str, tuple[type, int]]  # name -> (JSON type, bits of a number or length of a string)
_PARMS: _Fields = {
    **dict.fromkeys(ElfDomParms._fields, (int, 64)),
    **dict.fromkeys(("guest_type", "guest_os", "guest_ver", "xen_ver", "loader"), (str, 32)),
    **dict.fromkeys(("bsd_symtab", "unmapped_initrd"), (bool, 1)),
    **dict.fromkeys(("f_supported", "f_required"), (int, 32)),
    "pae": (int, 2),
}
_BUILT: _Fields = {
    "version": (int, 32),
    "kernel": (str, 255),
    "guest_type": (str, 32),
    "nr_pages": (int, MAX_PAGES.bit_length()),
    "first_mfn": (int, 40),
    "shared_info_mfn": (int, 40),
}


def _fits(value: Any, kind: type, size: int) -> bool:
    if type(value) is not kind:
        return False
    if isinstance(value, str):
        return len(value) <= size
    return isinstance(value, int) and 0 <= value < 1 << size


def _checked(fail: Fail, values: Any, table: _Fields) -> dict[str, Any]:
    """The values of a JSON object that `table` names, each of the right type and size."""
    checked = {}
    for name, (kind, size) in table.items():
        value = values.get(name) if isinstance(values, dict) else None
        if not _fits(value, kind, size):
            raise fail(
                f"the build note's {name} is unusable",
                found=repr(value)[:40],
                expected=f"a string of {size} characters"
                if kind is str
                else f"{kind.__name__} of {size} bits",
            )
        checked[name] = value
    return checked


def read_build_note(raw: Any, fail: Fail) -> Built:
    """The note of these values. Raises what `fail(reason, found=..., expected=...)` makes."""
    values = _checked(fail, raw, _BUILT)
    parms = _checked(fail, raw.get("parms"), _PARMS)
    if values.pop("version") != NOTE_VERSION:
        raise fail("the build note is of another version", found=raw["version"], expected=NOTE_VERSION)
    module_size = raw.get("module_size")
    if module_size is not None:
        module_size = _checked(fail, raw, {"module_size": (int, 40)})["module_size"]
    return Built(
        **values, module_size=module_size, parms=ElfDomParms(**{**parms, "pae": XenPaeType(parms["pae"])})
    )
