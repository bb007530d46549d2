"""Ask a C compiler about Xen's public headers (libxen-dev)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.needs import missing


def assert_c_agrees(facts: Mapping[str, int], width: int, tmp_path: Path) -> None:
    """Each C expression of `facts` has its value, in a guest whose long is `width` bytes."""
    compiler = shutil.which("gcc")
    if compiler is None or not Path("/usr/include/xen/xen.h").exists():
        missing("gcc and libxen-dev are needed to compare with Xen's headers")
    lines = ["#include <stddef.h>", "#include <stdint.h>", "#include <xen/xen.h>"]
    lines += [f'_Static_assert(({name}) == {value}u, "{name}");' for name, value in facts.items()]
    source = tmp_path / "facts.c"
    source.write_text("\n".join(lines) + "\n")
    flags = [f"-m{width * 8}", "-ffreestanding", "-std=gnu11", "-fsyntax-only"]
    done = subprocess.run([compiler, *flags, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
