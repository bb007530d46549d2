"""The initramfs of these tests: `domainbuilder initramfs` with a script of scripts/ as /init."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from domainbuilder.initramfs import cpio, program
from domainbuilder.initramfs import initramfs as make

__all__ = ["cpio", "initramfs", "program"]

SCRIPTS = Path(__file__).resolve().parent / "scripts"


def initramfs(init: str, busybox: bytes, more: Mapping[str, bytes] | None = None) -> bytes:
    """init: a file of scripts/, run after scripts/common.sh. more: programs for /bin, name to contents."""
    script = (SCRIPTS / "common.sh").read_text() + (SCRIPTS / init).read_text()
    return make(busybox, script, {f"bin/{name}": data for name, data in (more or {}).items()})
