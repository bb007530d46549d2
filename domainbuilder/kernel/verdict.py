"""Which kinds of guest a kernel can be, and Xen's reason where it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from domainbuilder.errors import BuildError
from domainbuilder.kernel.elf import EM_386, EM_X86_64, ElfImage
from domainbuilder.kernel.elfnotes import Notes
from domainbuilder.kernel.parms import ElfDomParms, RefusedError, XenPaeType
from hvcore.public.elfnote import ElfNote


class GuestKind(StrEnum):
    """The kinds of x86 guest a kernel file can be started as."""

    PV32_PAE = "pv32-pae"
    PV32_TWO_LEVEL = "pv32-two-level"
    PV64 = "pv64"
    PVH = "pvh"

    @property
    def label(self) -> str:
        """The kind in words."""
        return _LABELS[self]


_LABELS = {
    GuestKind.PV32_PAE: "PV 32-bit PAE",
    GuestKind.PV32_TWO_LEVEL: "PV 32-bit two-level",
    GuestKind.PV64: "PV 64-bit",
    GuestKind.PVH: "PVH",
}

GUEST_TYPES = {
    GuestKind.PV32_PAE: "xen-3.0-x86_32p",
    GuestKind.PV32_TWO_LEVEL: "xen-3.0-x86_32",
    GuestKind.PV64: "xen-3.0-x86_64",
    GuestKind.PVH: "hvm-3.0-x86_32",
}
"""What Xen calls each kind, in its capabilities and in start_info's magic."""

_MACHINES = {
    GuestKind.PV32_PAE: EM_386,
    GuestKind.PV32_TWO_LEVEL: EM_386,
    GuestKind.PV64: EM_X86_64,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a kernel can be one kind of guest.

    `accepted`: its notes and addresses are those of such a guest. `xen`: Xen 4.17 starts it, too
    (it has no two-level guests left). `reason`: why not, in Xen's words where it has any, or ""; `remark`:
    what else to know.
    """

    kind: GuestKind
    accepted: bool
    xen: bool
    reason: str
    remark: str = ""

    @property
    def guest_type(self) -> str:
        """Xen's name for the kind of guest."""
        return GUEST_TYPES[self.kind]


def _unsupported(guest_type: str) -> str:
    return f"xc_dom_compat_check: guest type {guest_type} not supported by xen kernel, sorry: Invalid kernel"


def verdicts(
    elf: ElfImage,
    notes: Notes,
    pv: ElfDomParms | RefusedError,
    pvh: ElfDomParms | RefusedError,
    unfit: BuildError | None = None,
) -> tuple[Verdict, ...]:
    """One verdict per kind of guest, in the order of `GuestKind`.

    `pv` and `pvh` are what `xc_dom_parse_elf_kernel` returned or raised for either; `unfit` is why no PV
    domain of any size can be built.
    """
    return (*(_pv_verdict(kind, elf, pv, unfit) for kind in _MACHINES), _pvh_verdict(notes, pvh))


def _pv_verdict(
    kind: GuestKind, elf: ElfImage, pv: ElfDomParms | RefusedError, unfit: BuildError | None
) -> Verdict:
    if elf.machine != _MACHINES[kind] and elf.machine in _MACHINES.values():
        return Verdict(kind, False, False, f"it is for {elf.machine_name}")
    if isinstance(pv, RefusedError):
        return Verdict(kind, False, False, f"{pv.xen}: {pv.plain}")
    bimodal = pv.pae == XenPaeType.BIMODAL and kind is GuestKind.PV32_TWO_LEVEL
    if pv.guest_type != GUEST_TYPES[kind] and not bimodal:
        return Verdict(kind, False, False, f"it asks for {pv.guest_type}")
    if unfit is not None:
        return Verdict(kind, False, False, str(unfit).removeprefix(f"{unfit.where}: "))
    if kind is GuestKind.PV32_TWO_LEVEL:
        other = "; it is bimodal, and runs as a PAE guest" if bimodal else ""
        remark = f"no Xen since 4.0 runs two-level guests; domainbuilder does{other}"
        return Verdict(kind, True, False, _unsupported(GUEST_TYPES[kind]), remark)
    remark = "a Xen without CONFIG_PV32, or with pv=no-32, refuses it" if kind is GuestKind.PV32_PAE else ""
    return Verdict(kind, True, True, "", remark)


def _pvh_verdict(notes: Notes, pvh: ElfDomParms | RefusedError) -> Verdict:
    if isinstance(pvh, ElfDomParms):
        return Verdict(
            GuestKind.PVH, True, True, "", "domainbuilder inspects PVH kernels and does not run them"
        )
    if any(note.type == ElfNote.PHYS32_ENTRY for note in notes.used) or pvh.code == "not-pvh":
        return Verdict(GuestKind.PVH, False, False, f"{pvh.xen}: {pvh.plain}")
    # Xen would go on and take it for the firmware of an HVM guest
    return Verdict(GuestKind.PVH, False, False, "it has no PHYS32_ENTRY note")
