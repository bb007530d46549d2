"""What libxenguest 4.17 makes of real kernels, as facts: data/libxenguest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbuilder.kernel.parms import ElfDomParms, XenPaeType

REFERENCE = Path(__file__).parent / "data" / "libxenguest"
BUILT = [
    "gnumach-git20201129-4",
    "gnumach-git20221224-2",
    "gnumach-git20250702-1",
    "gnumach",
    "grub-i386-xen.bin",
    "grub-x86_64-xen.bin",
    "statedump32",
    "statedump32-linuxlike",
    "statedump64",
    "statedump64-linuxlike",
    "vmlinuz-deb",
]


@dataclass(frozen=True)
class Reference:
    """One file of data/libxenguest."""

    name: str
    facts: Any

    @property
    def parms(self) -> ElfDomParms:
        """What xc_dom_parse_image made of the kernel; libxenguest's dump leaves virt_offset out."""
        parms = dict(self.facts["parms"], guest_type=self.facts["guest_type"], virt_offset=0)
        return ElfDomParms(**{**parms, "pae": XenPaeType(parms["pae"])})

    @property
    def nr_pages(self) -> int:
        return int(self.facts["memory_mib"]) << 8

    @property
    def module_size(self) -> int | None:
        segment = self.facts["segments"]["module0"]
        return segment["vend"] - segment["vstart"] or None

    @property
    def cmdline(self) -> str:
        return str(self.facts["start_info"]["cmd"])


def read_reference(name: str) -> Reference:
    return Reference(name, json.loads((REFERENCE / f"{name}.json").read_text()))


FIRST_MFN = 0x10000
SHARED_INFO_MFN = 0xFFFF

# reference name -> name in scripts/guests.py, for what is in Debian's packages
GUESTS = {
    "gnumach-git20201129-4": "gnumach-bullseye-i386.gz",
    "gnumach-git20221224-2": "gnumach-bookworm-i386.gz",
    "gnumach-git20250702-1": "gnumach-trixie-i386.gz",
    "gnumach": "gnumach-bookworm-amd64.gz",
    "grub-i386-xen.bin": "grub-i386-xen.bin",
    "grub-x86_64-xen.bin": "grub-x86_64-xen.bin",
    "vmlinuz-deb": "vmlinuz-bookworm-amd64",
}
