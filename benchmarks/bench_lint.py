"""What linting large scripts costs: `python -m benchmarks.bench_lint [MEGABYTES...]`.

Scripts are made up, as a generator of firmware layouts would write them; the last column is the same for all
sizes as long as the linter is linear.
"""

from __future__ import annotations

import gc
import sys
import time

from linker.lint import Inputs, run
from linker.parser import parse
from linker.source import Source

_SECTION = """  .sec{0:06} : ALIGN(16)
  {{
    __start_{0:06} = .;
    *(.text.f{0:06} .text.f{0:06}.*)
    KEEP(*(.init.f{0:06}))
    . = ALIGN(8);
    PROVIDE(end_{0:06} = . + 4 * 2);
    *(SORT_BY_NAME(.data.f{0:06}*))
  }} > ROM
"""
_ROUNDS = 3


def script(size: int) -> str:
    """Return a script of about `size` bytes."""
    head = "ENTRY(_start)\nMEMORY { ROM (rx) : ORIGIN = 0x8000, LENGTH = 1024M }\nSECTIONS\n{\n"
    count = max(1, size // len(_SECTION.format(0)))
    return head + "".join(_SECTION.format(number) for number in range(count)) + "}\n"


def measure(size: int) -> tuple[int, float, float]:
    """Return lines, and the best seconds of processor time for parsing alone and for the whole run."""
    text = script(size)
    parsing, whole = [], []
    for _ in range(_ROUNDS):
        # As run() has it: the collector rests while a tree is made.
        gc.disable()
        started = time.process_time()
        parse(text)
        parsed = time.process_time()
        gc.enable()
        run(Inputs(Source("made-up.lds", text)))
        parsing.append(parsed - started)
        whole.append(time.process_time() - parsed)
    return text.count("\n"), min(parsing), min(whole)


def main(megabytes: list[float]) -> None:
    """Print a line for each size."""
    print(f"{'script':>10} {'lines':>9} {'parsing s':>10} {'all s':>8} {'s a MB':>8}")
    for size in megabytes:
        lines, parsing, whole = measure(int(size * 1e6))
        print(f"{size:7.1f} MB {lines:9} {parsing:10.2f} {whole:8.2f} {whole / size:8.2f}", flush=True)


if __name__ == "__main__":
    main([float(word) for word in sys.argv[1:]] or [0.5, 1.0, 2.0])
