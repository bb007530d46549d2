"""Compiles the compiled core (hvcore/cpu/core) in place: `scripts/compile_core.py [--to FILE] [OPTION...]`.

The compiler is $CC, cc, gcc or clang, or zig where the ziglang package is installed. Installation does the
same by scripts/backend.py.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "hvcore" / "cpu" / "core"
LIBRARY = ROOT / "hvcore" / "cpu" / "_core.so"
MACHINES = ("x86_64", "aarch64")  # where the core is of use, and where the ziglang wheel is to be had
FLAGS = (
    "-std=gnu11", "-O2", "-g0", "-Wall", "-Wextra", "-Werror=implicit-function-declaration", "-fPIC",
    "-shared", "-fvisibility=hidden", "-fno-strict-aliasing", "-foptimize-sibling-calls",
)  # fmt: skip


def is_wanted() -> bool:
    """Whether the core is of use here, or for another machine, and nobody wants a package without it."""
    if os.environ.get("HVCORE_WITHOUT_CORE"):
        return False
    return bool(other_machine()) or (sys.platform == "linux" and platform.machine() in MACHINES)


def other_machine() -> str:
    """$HVCORE_MACHINE, one of MACHINES, for a wheel that every Linux on such a machine can use."""
    return os.environ.get("HVCORE_MACHINE", "")


def compiler() -> list[str] | None:
    """The command that compiles C here; None where there is none."""
    if other_machine():
        return _zig(other_machine()) if _has_zig() else None
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    return _zig(platform.machine()) if _has_zig() else None


def _has_zig() -> bool:
    return importlib.util.find_spec("ziglang") is not None


def _zig(machine: str) -> list[str]:
    # The oldest C library that wheels are for; nothing newer is needed.
    return [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-gnu.2.17"]


def digest() -> str:
    """Of the sources, so that the loader can tell a library that is older than they are."""
    crc = 0
    for path in sorted(SOURCES.glob("*.[ch]")):
        crc = zlib.crc32(path.name.encode() + b"\0" + path.read_bytes(), crc)
    return f"{crc:08x}"


def compile_core(target: Path, command: list[str], *more: str, folder: Path = SOURCES) -> None:
    """Compile the core to `target`, from another folder for a core with one change (mutants).

    Raises subprocess.CalledProcessError or OSError when that fails.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sources = sorted(str(path) for path in folder.glob("*.c"))
    partial = target.with_name(f"{target.name}.{os.getpid()}")  # never half a library in its place
    define = f'-DHV_SOURCES="{digest()}"'
    try:
        subprocess.run([*command, *FLAGS, *more, define, *sources, "-o", str(partial)], check=True)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def main(arguments: list[str]) -> None:
    """Compile to the place that --to names, or where Python looks for it; the rest is for the compiler."""
    target = LIBRARY
    if arguments[:1] == ["--to"]:
        target, arguments = Path(arguments[1]), arguments[2:]
    command = compiler()
    if command is None:
        raise SystemExit("no C compiler (cc, gcc, clang, or the ziglang package)")
    compile_core(target, command, *arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
