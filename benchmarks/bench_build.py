"""What planning and building a domain costs: `python -m benchmarks.bench_build [KERNEL...]`.

Without a kernel, a synthetic one of 12 kB shows what the builder costs apart from copying.
"""

from __future__ import annotations

import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from domainbuilder.build.domain_image import build, plan
from domainbuilder.build.image import load_image, save_image
from domainbuilder.errors import LayoutError
from domainbuilder.kernel.kernel_file import load_kernel

_ROUNDS = 7


def _note(kind: int, desc: bytes) -> bytes:
    return struct.pack("<III4s", 4, len(desc), kind, b"Xen") + desc + bytes(-len(desc) % 4)


def _kernel() -> bytes:
    """An x86-64 kernel of three pages with the notes of Linux: the p2m list gets tables of its own."""
    base = 0xFFFFFFFF80000000
    words = {1: base + 0x100000, 3: base, 4: 0, 15: 0x8000000000, 16: 1}
    notes = b"".join(_note(kind, struct.pack("<Q", value)) for kind, value in words.items())
    notes += b"".join(_note(kind, text) for kind, text in ((5, b"xen-3.0\0"), (6, b"linux\0"), (9, b"yes\0")))
    ehdr = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, base, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 7, 4096, base + 0x100000, 0x100000, 4096, 0x3000, 4096)
    note = struct.pack("<IIQQQQQQ", 4, 4, 176, 0, 0, len(notes), len(notes), 4)
    return (ehdr + load + note + notes).ljust(4096, b"\0") + b"\xcc" * 4096


def _best(action: Callable[[], object]) -> float:
    """The best of some rounds, in milliseconds."""
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times) * 1000


def main(kernels: list[str]) -> None:
    """Print a line a kernel and memory size."""
    with tempfile.TemporaryDirectory() as place:
        synthetic, out = Path(place) / "synthetic", Path(place) / "domain"
        synthetic.write_bytes(_kernel())
        print(f"{'kernel':<28} {'MB':>5} {'open':>8} {'plan':>8} {'build':>8} {'save':>8} {'load':>8}   ms")
        for name in kernels or [str(synthetic)]:
            opened = load_kernel(name)
            open_ms = _best(lambda name=name: load_kernel(name))  # type: ignore[misc]
            for memory in (64, 256, 1024):
                try:
                    planned = plan(opened, memory_mib=memory)
                except LayoutError as error:
                    print(f"{Path(name).name:<28} {memory:>5}  {error.reason}")
                    continue
                image = build(planned)
                figures = (
                    open_ms,
                    _best(lambda: plan(opened, memory_mib=memory)),  # noqa: B023
                    _best(lambda: build(planned)),  # noqa: B023
                    _best(lambda: save_image(image, out)),  # noqa: B023
                    _best(lambda: load_image(out)),
                )
                print(f"{Path(name).name:<28} {memory:>5} " + " ".join(f"{ms:8.1f}" for ms in figures))


if __name__ == "__main__":
    main(sys.argv[1:])
