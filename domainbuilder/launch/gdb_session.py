"""The work behind `domainbuilder gdb`: a launch that waits for gdb, and gdb, each a process of its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from domainbuilder.errors import BuildError, Where
from domainbuilder.inputs import is_elf

_START = 300  # seconds that building the domain may take
_END = 5
# gdb's own `checkpoint` forks a process of its machine: here it is our monitor's.
_COMMANDS = """\
set confirm off
define checkpoint
  monitor checkpoint
end
define restart
  monitor restart $arg0
  maintenance flush register-cache
  maintenance flush dcache
  frame
end
define info checkpoints
  monitor checkpoints
end
define delete checkpoint
  monitor forget $arg0
end
set confirm on
"""


@dataclass(frozen=True, slots=True)
class GdbOptions:
    """The command line: the kernel, options for the launch, and what gdb is given."""

    file: str
    launch: tuple[str, ...]
    symbols: str | None
    commands: tuple[str, ...]
    batch: bool
    program: str


def run_gdb(options: GdbOptions) -> int:
    """Run both until gdb ends; its exit code. Raises BuildError where there is no gdb."""
    program = shutil.which(options.program)
    if program is None:
        raise BuildError("there is no gdb (Debian: apt-get install gdb)", where=Where(options.program))
    if options.file == "-":
        raise BuildError("gdb wants a file, and what comes from stdin is none")
    with tempfile.TemporaryDirectory(prefix="domainbuilder-gdb-") as folder:
        path = Path(folder) / "socket"
        # In a session of its own: Ctrl-C is gdb's, which stops the domain by it.
        launch = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "domainbuilder",
                "launch",
                options.file,
                *options.launch,
                "--gdb",
                f"unix:{path}",
                "--gdb-comes",
            ],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            if not _is_there(path, launch):
                return launch.wait()
            return _gdb(program, path, options, _symbols(options, Path(folder)))
        finally:
            _end(launch)


def _is_there(path: Path, launch: subprocess.Popen[bytes]) -> bool:
    """Whether the domain stands and waits; if not, its launch has said why."""
    end = time.monotonic() + _START
    while time.monotonic() < end:
        if path.exists():
            return True
        if launch.poll() is not None:
            return False
        time.sleep(0.02)
    return False


def _symbols(options: GdbOptions, folder: Path) -> str | None:
    """A file from which gdb can read symbols; that of a stock kernel is made of its own kallsyms tables."""
    for name in (options.symbols, options.file):
        if name is not None and is_elf(name):
            return name
    from domainbuilder.kernel.elf import parse_elf
    from domainbuilder.kernel.kernel_file import load_kernel
    from domainbuilder.kernel.unpacked import users_kernels
    from domainbuilder.symbols.read import kernel_symbols, read_symbols
    from domainbuilder.symbols.symbol_file import symbol_file

    kernel = load_kernel(options.file, kept=users_kernels())
    elf = parse_elf(kernel.image, kernel.path)
    symbols = kernel_symbols(elf) if options.symbols is None else read_symbols(options.symbols, elf)
    if not len(symbols):
        return None
    made = folder / "symbols.elf"
    made.write_bytes(symbol_file(symbols, is_64bit=elf.elf_class == 64))
    return str(made)


def _gdb(program: str, path: Path, options: GdbOptions, symbols: str | None) -> int:
    commands = path.with_name("commands.gdb")
    commands.write_text(_COMMANDS, encoding="ascii")
    line = [program, "-q", "-iex", "set sysroot /", "-iex", f"source {commands}"]
    line += ["-ex", f"target remote {path}"]
    for command in options.commands:
        line += ["-ex", command]
    if options.batch:
        line.append("-batch")
    if symbols is not None:
        line += ["--", symbols]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.call(line, preexec_fn=_default_interrupt)
    finally:
        signal.signal(signal.SIGINT, before)


def _default_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end(launch: subprocess.Popen[bytes]) -> None:
    for ask in (launch.terminate, launch.kill):
        if launch.poll() is not None:
            return
        ask()
        try:
            launch.wait(_END)
        except subprocess.TimeoutExpired:
            continue
