"""Edits of ELF headers by lief, in a process of their own.

lief is native code, and crashes on some malformed files: so it gets a child, with bounded memory and
time, and a file that kills the child is an ElfError here. The only importer of lief.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from domainbuilder.errors import ElfError, Where
from domainbuilder.kernel.elf import PT_NOTE

PT_NULL = 0
PT_GNU_STACK = 0x6474E551

_MEMORY = 4 << 30  # bytes of address space
_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Edits:
    """What to change: (offset, size, new size) of ranges whose sections and PT_NOTEs shrink with them,
    indices of segments to align to 4, (offset, size) of notes that want a PT_NOTE.
    """

    resize: list[tuple[int, int, int]] = field(default_factory=list)
    align: list[int] = field(default_factory=list)
    home: list[tuple[int, int]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.resize or self.align or self.home)


def edit(image: bytes, edits: Edits, name: str) -> tuple[bytes, dict[int, tuple[int, int]]]:
    """`image` with `edits` made, and the homes found: offset of the notes -> (segment index, its old type).

    Notes without a home found no idle program header. Raises ElfError where lief cannot do it.
    """
    with tempfile.TemporaryDirectory() as directory:
        before, after = Path(directory) / "before", Path(directory) / "after"
        before.write_bytes(image)
        job = json.dumps({"before": str(before), "after": str(after), **asdict(edits)})
        try:
            done = subprocess.run(
                [sys.executable, "-c", "from domainbuilder.kernel.lief_edit import child; child()"],
                input=job,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        except subprocess.TimeoutExpired as error:
            raise ElfError("lief takes too long over it", where=Where(name)) from error
        if done.returncode or not after.exists():
            raise ElfError("lief cannot edit it", where=Where(name), found=_reason(done))
        homes = json.loads(done.stdout)
        return after.read_bytes(), {offset: (index, kind) for offset, index, kind in homes}


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"signal {-done.returncode}"
    return (done.stderr.splitlines() or ["nothing written"])[-1]


def child() -> None:
    """In the child: a job on stdin, the homes found on stdout."""
    import resource

    import lief

    job = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lief.logging.disable()
    binary = lief.ELF.parse(job["before"])
    if binary is None:
        sys.exit("not read")
    for offset, size, new in job["resize"]:
        _resize(binary, offset, size, new)
    for index in job["align"]:
        segment = binary.segments[index]
        segment.alignment = 4
        for section in binary.sections:
            if section.type == lief.ELF.Section.TYPE.NOTE and section.file_offset == segment.file_offset:
                section.alignment = 4
    homes = [found for offset, size in job["home"] if (found := _home(binary, offset, size))]
    binary.write(job["after"])
    print(json.dumps(homes))


def _resize(binary: Any, offset: int, size: int, new: int) -> None:
    """Sections and segments that held exactly these notes hold exactly the repaired ones."""
    for section in binary.sections:
        if (section.file_offset, section.size) == (offset, size):
            section.size = new
    for segment in binary.segments:
        if int(segment.type) == PT_NOTE and (segment.file_offset, segment.physical_size) == (offset, size):
            segment.physical_size = new
            segment.virtual_size = min(segment.virtual_size, new)


def _home(binary: Any, offset: int, size: int) -> tuple[int, int, int] | None:
    """Make a PT_NOTE of a header that a kernel has no use for, if there is one."""
    import lief

    for index, segment in enumerate(binary.segments):
        kind = int(segment.type)
        if kind not in {PT_NULL, PT_GNU_STACK}:
            continue
        segment.type = lief.ELF.Segment.TYPE.NOTE
        segment.file_offset, segment.physical_size = offset, size
        segment.virtual_address = segment.physical_address = segment.virtual_size = 0
        segment.alignment, segment.flags = 4, lief.ELF.Segment.FLAGS.R
        return offset, index, kind
    return None
