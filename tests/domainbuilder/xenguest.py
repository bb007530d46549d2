"""Debian's own libxenguest, run beside ours on the same kernel: `xenguest.c` without a hypervisor."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.domainbuilder.libxenguest import FIRST_MFN, SHARED_INFO_MFN
from tests.needs import missing

SOURCE = Path(__file__).parent / "xenguest.c"
LIBRARIES = ("-lxenguest", "-lxenctrl", "-lxencall", "-lxentoollog")


@dataclass(frozen=True)
class Domain:
    """A domain that libxenguest built: what it told, memory in machine order, the vCPU, shared_info.

    `refusal` is what it said instead, and everything else is empty then.
    """

    facts: dict[str, Any]
    ram: bytes = b""
    context: bytes = b""
    shared_info: bytes = b""
    refusal: str = ""


class Xenguest:
    """The compiled program. Fails in CI, and skips elsewhere, where libxenguest 4.17 is not installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "xenguest"
        found = [*Path("/usr/lib").glob("*/libxenguest.so.4.17")]
        if not found or not shutil.which("gcc") or not Path("/usr/include/xenguest.h").exists():
            missing("gcc and libxen-dev of Xen 4.17 are needed to build domains as libxenguest does")
        command: list[str | Path] = ["gcc", "-Wall", "-Werror", SOURCE, "-o", self.program, *LIBRARIES]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def build(self, kernel: Path, memory_mib: int, cmdline: str = "", ramdisk: Path | None = None) -> Domain:
        """Machine frames in order from FIRST_MFN; channel 1 for xenstore and 2 for the console."""
        numbers = (memory_mib, FIRST_MFN, SHARED_INFO_MFN)
        arguments = [self.folder, *numbers, kernel, cmdline, *([ramdisk] if ramdisk else [])]
        done = subprocess.run(
            [self.program, *map(str, arguments)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            assert done.returncode == 1, done.stderr
            return Domain({}, refusal=done.stderr)
        ram, context, shared_info = (
            (self.folder / name).read_bytes() for name in ("ram", "context", "shared_info")
        )
        return Domain(json.loads(done.stdout, strict=False), ram, context, shared_info)
