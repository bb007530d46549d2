#!/usr/bin/env python3
"""Build the sample guests with the pinned ziglang wheel, the same bytes on every machine.

    samples/build.py              build the bundled guests into domainbuilder/guests/
    samples/build.py --check      build them elsewhere and compare with what is there
    samples/build.py --to DIR     build them into DIR
    samples/build.py --NAME --to DIR
                                  build others into DIR: conformance, two-level, pvkernel, ... (OTHERS)
    samples/build.py --debug --to DIR
                                  build them with symbols and debug information

`zig cc -c` compiles, `zig ld.lld` links: both come from the wheel, no other compiler is used.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

SAMPLES = Path(__file__).resolve().parent
BUNDLED = SAMPLES.parent / "domainbuilder" / "guests"

RUNTIME = tuple(
    f"common/{name}"
    for name in ("start.S", "entry.S", "main.c", "print.c", "console.c", "memory.c", "traps.c", "events.c")
)
CONFORMANCE_RUNTIME = (*RUNTIME, "common/user.c", "common/smp.c", "conformance/conform.c")


class BuildFailure(Exception):
    """The compiler or the linker refused; the message is theirs."""


@dataclass(frozen=True)
class Width:
    """What differs between the kinds of guest."""

    name: str
    target: str
    emulation: str
    virt_base: int
    flags: tuple[str, ...]


I386 = Width("32", "x86-freestanding-none", "elf_i386", 0xC0000000, ("-mno-sse", "-mno-mmx"))
I386_TWO_LEVEL = replace(I386, name="two-level", flags=(*I386.flags, "-DPAE_MODE_NO"))
X86_64 = Width(
    "64",
    "x86_64-freestanding-none",
    "elf_x86_64",
    0xFFFFFFFF80000000,
    ("-mno-sse", "-mno-mmx", "-mno-red-zone", "-mcmodel=kernel"),
)

FLAGS = (
    "-std=gnu11",
    "-Os",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-fno-builtin",
    "-fno-pic",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-sanitize=all",
)


DEBUG_FLAGS = ("-g", "-fforce-dwarf-frame", "-fdebug-prefix-map=" + str(SAMPLES) + "=.")


@dataclass(frozen=True)
class Sample:
    """One guest: its file NAME.elf, all its sources and its linker script (under samples/), and its width."""

    name: str
    sources: tuple[str, ...]
    width: Width = I386
    script: str = "common/guest.lds"


BUNDLE: tuple[Sample, ...] = (Sample("hello", (*RUNTIME, "hello/main.c")),)


def pvkernel() -> Sample:
    """The teaching kernel; of the common sources it uses printf, and what suspending takes."""
    sources = sorted(path.name for path in (SAMPLES / "pvkernel").glob("*.[cS]"))
    return Sample(
        "pvkernel",
        ("common/print.c", "common/suspend.c", *(f"pvkernel/{name}" for name in sources)),
        script="pvkernel/pvkernel.lds",
    )


def backwards() -> Sample:
    """The kernel with a bug that docs/backwards.md finds; it is of use with --debug."""
    return Sample("backwards", (*RUNTIME, "backwards/main.c"))


def _of_widths(
    name: str, main: str, *, widths: tuple[Width, ...] = (I386, X86_64), runtime: tuple[str, ...] = RUNTIME
) -> tuple[Sample, ...]:
    """One source for guests of several widths: NAME-32, NAME-64."""
    return tuple(Sample(f"{name}-{width.name}", (*runtime, main), width) for width in widths)


def bench() -> tuple[Sample, ...]:
    """The guest that benchmarks time."""
    return _of_widths("bench", "bench/main.c")


def hostile() -> tuple[Sample, ...]:
    """Random hypercalls, stores and instructions."""
    return _of_widths("hostile", "hostile/main.c")


def pair() -> tuple[Sample, ...]:
    """The guest of which two meet on a host: share-32 and share-64."""
    return _of_widths("share", "pair/share.c", runtime=CONFORMANCE_RUNTIME)


def recursive() -> tuple[Sample, ...]:
    """The kernel with recursive page tables, for each kind of them."""
    return _of_widths("recursive", "recursive/main.c", widths=(I386, X86_64, I386_TWO_LEVEL))


def suspend() -> tuple[Sample, ...]:
    """The guest that suspends."""
    return _of_widths("suspend", "suspend/main.c", runtime=(*RUNTIME, "common/suspend.c"))


def conformance() -> tuple[Sample, ...]:
    """Every conformance guest in both widths: NAME-32 and NAME-64."""
    names = sorted(path.stem for path in (SAMPLES / "conformance").glob("*.c") if path.stem != "conform")
    return tuple(
        sample
        for name in names
        for sample in _of_widths(name, f"conformance/{name}.c", runtime=CONFORMANCE_RUNTIME)
    )


# Conformance guests that know nothing of the size of an entry.
_ANY_PAGING = (
    *("linear_pt", "bad_commands", "bad_pointers", "call_gates", "callbacks", "cpuid", "debug_registers"),
    *("event_channel", "event_mask", "fifo", "fifo_reset", "fifo_vcpus", "fpu", "fpu_image"),
    *("grant_map", "grant_table", "grant_v2"),
    *("int80", "io_ports", "iret", "iret_forms", "ldt", "memory_exchange", "memory_op", "mmuext_op", "msr"),
    *("multicall", "multicall_stops", "nested_faults", "nmi", "odd_arguments", "physdev", "privileged"),
    *("refused", "runstate"),
    *("sched_op", "stack_switch", "timers", "tlb_flush", "tls", "trap_table", "traps", "unknown"),
    *("user_mode", "user_privileged", "vcpus", "vm_assist", "wallclock", "xen_version"),
)


def two_level() -> tuple[Sample, ...]:
    """Guests with two-level page tables: NAME-two-level, and hello-two-level."""
    own = sorted((SAMPLES / "conformance" / "two-level").glob("*.c"))
    sources = {path.stem: f"conformance/two-level/{path.name}" for path in own}
    sources |= {name: f"conformance/{name}.c" for name in _ANY_PAGING}
    return (
        Sample("hello-two-level", (*RUNTIME, "hello/main.c"), I386_TWO_LEVEL),
        *(
            Sample(f"{name}-two-level", (*CONFORMANCE_RUNTIME, source), I386_TWO_LEVEL)
            for name, source in sources.items()
        ),
    )


def _zig(*arguments: str, cache: Path) -> None:
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(cache), "ZIG_LOCAL_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "ziglang", *arguments]
    done = subprocess.run(command, cwd=SAMPLES, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildFailure(f"zig {' '.join(arguments)}\n{done.stderr or done.stdout}")


def compile_object(source: str, width: Width, scratch: Path, *, debug: bool = False) -> Path:
    """Compile one source, given relative to samples/ so that no path of this machine enters the object."""
    output = scratch / f"{width.name}-{source.replace('/', '-')}.o"
    if not output.exists():
        flags = (
            *FLAGS,
            *(DEBUG_FLAGS if debug else ("-g0",)),
            *width.flags,
            "-target",
            width.target,
            "-mcpu=baseline",
            "-Icommon",
            "-Iconformance",
        )
        _zig("cc", "-c", *flags, source, "-o", str(output), cache=scratch / "cache")
    return output


def link(
    sample: Sample, objects: list[Path], scratch: Path, output: Path, *options: str, debug: bool = False
) -> None:
    """Link the objects with its script into `output`, which is stripped where it is not for a debugger."""
    _zig(
        "ld.lld",
        *(
            "-m",
            sample.width.emulation,
            "-T",
            sample.script,
            "--build-id=none",
            *(() if debug else ("--strip-all",)),
        ),
        *("-z", "max-page-size=4096", "-z", "nognustack", "--orphan-handling=error"),
        f"--defsym=VIRT_BASE={sample.width.virt_base:#x}",
        *options,
        *map(str, objects),
        *("-o", str(output)),
        cache=scratch / "cache",
    )
    output.chmod(0o644)


def build(
    samples: tuple[Sample, ...], folder: Path, *, maps: bool = False, debug: bool = False
) -> list[Path]:
    """Build `samples` into `folder`, with link maps or debug information if asked to; the files made.

    Raises BuildFailure.
    """
    folder = folder.resolve()  # the tools run in samples/
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        scratch = Path(name)
        wanted = dict.fromkeys((source, sample.width) for sample in samples for source in sample.sources)
        jobs = {key: pool.submit(compile_object, *key, scratch, debug=debug) for key in wanted}
        for sample in samples:
            objects = [jobs[source, sample.width].result() for source in sample.sources]
            made.append(folder / f"{sample.name}.elf")
            options = [f"-Map={made[-1].with_suffix('.map')}"] if maps else []
            link(sample, objects, scratch, made[-1], *options, debug=debug)
    return made


def differing(samples: tuple[Sample, ...], bundled: Path) -> list[str]:
    """The names of those samples whose file in `bundled` is not what a build gives."""
    with tempfile.TemporaryDirectory() as name:
        fresh = build(samples, Path(name))
        return [
            path.stem
            for path in fresh
            if not (bundled / path.name).exists() or (bundled / path.name).read_bytes() != path.read_bytes()
        ]


# What can be built instead of the bundled guests: --NAME, which guests, what its help says.
OTHERS: dict[str, tuple[Callable[[], tuple[Sample, ...]], str]] = {
    "conformance": (conformance, "the conformance guests"),
    "two-level": (two_level, "guests with two-level page tables"),
    "recursive": (recursive, "the kernel with recursive page tables"),
    "suspend": (suspend, "the guest that suspends"),
    "pair": (pair, "the guest of which two meet"),
    "hostile": (hostile, "the guest that tries everything at random"),
    "pvkernel": (lambda: (pvkernel(),), "the teaching kernel, with its link map"),
    "backwards": (lambda: (backwards(),), "the kernel with a bug to find"),
    "bench": (bench, "the guest that benchmarks time"),
}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build the sample guests.")
    parser.add_argument("--check", action="store_true", help="compare with the bundled files instead")
    others = parser.add_mutually_exclusive_group()
    for name, (_, what) in OTHERS.items():
        help_ = f"{what} instead (with --to)"
        others.add_argument(f"--{name}", dest="other", action="store_const", const=name, help=help_)
    parser.add_argument("--debug", action="store_true", help="with symbols and debug information (with --to)")
    parser.add_argument("--to", type=Path, default=BUNDLED, metavar="DIR")
    arguments = parser.parse_args()
    try:
        if arguments.check:
            changed = differing(BUNDLE, BUNDLED)
            print("\n".join(f"{name} differs from a fresh build" for name in changed) or "all equal")
            return 1 if changed else 0
        samples = OTHERS[arguments.other][0]() if arguments.other else BUNDLE
        maps = arguments.other == "pvkernel"
        for path in build(samples, arguments.to, maps=maps, debug=arguments.debug):
            print(f"{path.name}: {path.stat().st_size} bytes")
    except BuildFailure as failure:
        print(failure, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
