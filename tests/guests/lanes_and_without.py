"""A boot with lanes and one without: `python -m tests.guests.lanes_and_without KERNEL [--ramdisk FILE]...`.

Outcome, counts, memory, console and registers have to be the same. Told are the code bytes and the memory's
checksum, by which runs of different days can be compared.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from contextlib import nullcontext
from typing import NamedTuple

from domainbuilder.launch.domain import launch


class Boot(NamedTuple):
    """All that there is to see of a boot."""

    outcome: str
    stats: object
    memory: int
    console: int
    registers: tuple[int, ...]


def boot(arguments: argparse.Namespace, *, lanes: bool) -> tuple[Boot, int]:
    """Run to the end; what was seen, and how many bytes of code there were."""
    with launch(
        arguments.kernel, arguments.memory, ramdisk=arguments.ramdisk, cmdline=arguments.cmdline
    ) as domain:
        machine = domain.machine
        with nullcontext() if lanes else machine.without_lanes():
            outcome = str(domain.wait(timeout=arguments.timeout))
        stats = machine.stats()
        console = zlib.crc32(str(domain.console.transcript).encode())
        seen = Boot(outcome, stats, zlib.crc32(machine.mem.view), console, tuple(machine.engine.q[:17]))
        return seen, stats.code_bytes


def main() -> int:
    """1 if the two differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kernel")
    parser.add_argument("--memory", type=int, default=256)
    parser.add_argument("--ramdisk")
    parser.add_argument("--cmdline", default="console=hvc0")
    parser.add_argument("--timeout", type=float, default=3000)
    arguments = parser.parse_args()
    (mine, code), (python, _) = (boot(arguments, lanes=lanes) for lanes in (True, False))
    differ = [name for name in mine._fields if getattr(mine, name) != getattr(python, name)]
    verdict = f"differ: {differ}" if differ else "equal"
    print(f"{mine.outcome}: {verdict}, {code:,} bytes of code, memory {mine.memory:08x}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
