"""Proofs of the compiled core that take minutes and are run by hand: `make sanitize`, `make bail-outs`.

`sanitize` builds it with AddressSanitizer and UBSan, whose first finding ends the process, has lanes
tried at random against Python, and runs the tests of the core. `bail-outs` builds it with gcov's counters,
does the same with the tests of lanes, boots a Debian kernel if there is one, and tells how often lanes said
"not mine", file by file, and the places where none ever did.
Both need gcc. They give 1 where the core is found wrong; a place that nothing reached is told, and no fault.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from compile_core import ROOT, SOURCES, compile_core

GUESTS = ROOT / ".cache" / "guests"
KERNEL = GUESTS / "vmlinuz-bookworm-amd64"
LANE_TESTS = tuple(
    f"tests/hvcore/test_{name}.py" for name in ("lane_guards", "lane_frames", "lane_stores", "lanes")
)
TESTS = (
    *LANE_TESTS, "tests/hvcore/test_address_spaces.py",
    *(f"tests/hvcore/cpu/test_{name}.py" for name in ("blocks", "branches", "code_pages", "engine", "ports")),
    "tests/hvcore/test_stops.py",
)  # fmt: skip
# Words of the guest lie at any address.
SANITIZERS = (
    "-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize=alignment",
    "-fno-sanitize-recover=all",
)  # fmt: skip
COUNTERS = ("-O0", "-g", "--coverage", "-fprofile-update=single", r"-fprofile-exclude-files=.*pacing\.c")
JUMPS = '#pragma GCC optimize "O2"\n'  # in pacing.c, whose last calls have to be jumps
# Python's own memory is none of our business, and the library's blocks of code lie in the way of some checks.
ASAN_OPTIONS = "detect_leaks=0:replace_intrin=0:handle_segv=0:handle_sigfpe=0"
BAIL_OUT = "NOT_MINE"
# `python -m`, but capstone, which the tests compare with, is not to bind its symbols as ASan cannot have it.
RUN = """import os, runpy, sys
del os.RTLD_DEEPBIND, sys.argv[0]
runpy.run_module(sys.argv[0], None, "__main__", True)"""


def run_module(*arguments: str | Path, env: dict[str, str]) -> int:
    """`python -m` at the root with a core of ours, with low priority; its exit code."""
    print("$ python -m", *arguments, flush=True)
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | env, check=False, preexec_fn=_be_nice
    ).returncode


def _be_nice() -> None:
    os.nice(10)


def exercise(env: dict[str, str], seconds: float, seed: int, tests: tuple[str, ...]) -> bool:
    """Random acts and guests for so long, then tests. Whether nothing was found."""
    fuzz = run_module("tests.hvcore.hostile.lanes", "--seconds", str(seconds), "--seed", str(seed), env=env)
    return not run_module("pytest", "-q", "-p", "no:cacheprovider", *tests, env=env) and not fuzz


def sanitize(folder: Path, seconds: float, seed: int) -> int:
    """Under AddressSanitizer and UBSan."""
    library = folder / "_core.so"
    compile_core(library, ["gcc"], *SANITIZERS)
    runtime = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    env = {
        "HVCORE_CORE": str(library),
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": ASAN_OPTIONS,
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return 0 if exercise(env, seconds, seed, TESTS) else 1


def bail_outs(folder: Path, seconds: float, seed: int) -> int:
    """How often each lane was left, and where none ever was."""
    library, sources = folder / "_core.so", Path(shutil.copytree(SOURCES, folder / "core"))
    pacing = sources / "pacing.c"
    pacing.write_text(JUMPS + pacing.read_text())
    compile_core(library, ["gcc"], *COUNTERS, folder=sources)
    env = {"HVCORE_CORE": str(library)}
    if not exercise(env, seconds, seed, LANE_TESTS):
        return 1
    if KERNEL.exists():
        run_module("domainbuilder", "launch", KERNEL, "-m", "256", "--stats", "--cmdline", "console=hvc0",
                   "--timeout", "600", env=env)  # fmt: skip
    counts = lines_run(folder)
    never = 0
    for name in sorted(counts):
        text = (SOURCES / name).read_text().splitlines()
        places = [(n, counts[name][n]) for n in sorted(counts[name]) if BAIL_OUT in text[n - 1]]
        print(f"{name}: {len(places)} places, left {sum(count for _, count in places)} times")
        for n, count in places:
            if not count:
                never += 1
                print(f"  never: {n}: {text[n - 1].strip()}")
    print(f"{never} bail-outs were never taken")
    return 0


def lines_run(folder: Path) -> dict[str, Counter[int]]:
    """How often each line of each file was run, as gcov says."""
    counts: dict[str, Counter[int]] = {}
    for data in folder.glob("*.gcda"):
        command = ["gcov", "--json-format", "--stdout", data.name]
        done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        for line in done.stdout.splitlines():
            for found in json.loads(line)["files"]:
                of_file = counts.setdefault(Path(found["file"]).name, Counter())
                for row in found["lines"]:
                    of_file[row["line_number"]] += row["count"]
    return counts


def main() -> int:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    proofs = {"sanitize": sanitize, "bail-outs": bail_outs}
    parser.add_argument("proof", choices=proofs)
    parser.add_argument("--seconds", type=float, default=120, help="of random acts")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if shutil.which("gcc") is None:
        print("gcc is not installed", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        return proofs[arguments.proof](Path(folder), arguments.seconds, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
