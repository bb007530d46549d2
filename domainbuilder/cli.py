"""The `domainbuilder` command: which subcommands there are, and how a run ends, whatever happens.

A subcommand is a function in domainbuilder/commands/NAME.py. Its module is imported when it is run or its own
help is asked for, never before, and so is Typer (command_line.py): COMMANDS holds the one-line help, so that
`domainbuilder --help` costs what Python costs and no more (a test holds the table to the docstrings).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType
from typing import NamedTuple, NoReturn

from domainbuilder import streams
from domainbuilder.errors import BuildError, ExitCode

XEN_VERSION = "4.17"


class Command(NamedTuple):
    """Where a subcommand lives, and the first line of its docstring."""

    module: str
    function: str
    help: str


# A name of two words is a verb of the first: `domainbuilder notes fix FILE` runs `notes fix`, and a kernel
# that is called "fix" is written ./fix.
COMMANDS: dict[str, Command] = {
    "notes": Command("notes", "notes", "Show what kernels ask of Xen, and whether Xen would accept them."),
    "notes fix": Command("notes", "fix", "Repair what can be repaired in a kernel's notes."),
    "plan": Command("plan", "plan", "Show the domain a kernel would get, without building it."),
    "build": Command("build", "build", "Build a kernel's domain into a dump-core ELF file."),
    "launch": Command("launch", "launch", "Run a kernel, or a built domain, with a console."),
    "initramfs": Command(
        "initramfs", "initramfs", "Make an initramfs of a busybox, for a Linux guest to boot into."
    ),
    "conform": Command(
        "conform",
        "conform",
        "Run the bundled conformance guests: is everything done and refused as Xen does?",
    ),
    "lint": Command(
        "lint", "lint", "Find layout defects in a linker script, its link map and the linked kernel."
    ),
    "lint diff": Command(
        "lint", "diff", "Show what moved, grew or lost alignment between two linked kernels."
    ),
    "lint regions": Command(
        "lint", "regions", "Show how full the memory regions are, and who takes the most."
    ),
    "lint format": Command("lint", "format_script", "Print linker scripts in one style, comments kept."),
}

ABOUT = "Inspect, plan, build and run Xen PV kernels, on a machine without Xen."

EXAMPLES = """\
  domainbuilder notes vmlinuz                     what it asks of Xen, and Xen's verdict
  domainbuilder plan vmlinuz -m 256 --format svg  its address space, as a picture
  domainbuilder build vmlinuz -o linux.core       the built domain, for readelf and launch
  domainbuilder launch vmlinuz                    run it; Ctrl-] leaves the console
  domainbuilder lint vmlinux.lds.S                what is wrong with its layout"""

EXIT_CODES = """\
  0  fine
  1  a check failed
  2  unusable input or usage
  3  the domain crashed
  4  timed out"""

OPTIONS = {
    "--version": "Show the version, and those of what it stands on, and exit.",
    "--install-completion": "Install completion for the current shell, or for the one named behind it.",
    "--show-completion": "Show completion for the current shell, or for the one named behind it.",
    "-h, --help": "Show this message and exit.",
}


def help_text() -> str:
    """What `domainbuilder --help` prints."""
    options = "\n".join(f"  {name:22}{text}" for name, text in OPTIONS.items())
    commands = "\n".join(f"  {name:13}{command.help}" for name, command in COMMANDS.items())
    return (
        f"Usage: domainbuilder [OPTIONS] COMMAND [ARGS]...\n\n  {ABOUT}\n\nOptions:\n{options}\n\n"
        f"Commands:\n{commands}\n\nExamples:\n{EXAMPLES}\n\nExit codes:\n{EXIT_CODES}\n"
    )


def verbs_and_files(command: str, incomplete: str) -> list[str]:
    """What may follow a command that takes files and has verbs, for the shell to complete."""
    from glob import escape, glob

    verbs = [name.split()[1] for name in COMMANDS if name.startswith(f"{command} ")]
    files = [f"{name}/" if os.path.isdir(name) else name for name in glob(f"{escape(incomplete)}*")]  # noqa: PTH112, PTH207
    return [verb for verb in verbs if verb.startswith(incomplete)] + sorted(files)


def version_text() -> str:
    """What `domainbuilder --version` prints: ours, then what a run depends on."""
    from importlib.metadata import PackageNotFoundError, version

    from domainbuilder import __version__
    from domainbuilder.launch.core import describe_core

    try:
        unicorn = version("unicorn")
    except PackageNotFoundError:
        unicorn = "not installed"
    python = ".".join(map(str, sys.version_info[:3]))
    return (
        f"domainbuilder {__version__}\nPython {python}, Unicorn {unicorn}, after Xen {XEN_VERSION}\n"
        f"core: {describe_core()}\n"
    )


def _refuse(message: object) -> NoReturn:
    print(f"domainbuilder: error: {message}", file=sys.stderr)
    sys.exit(ExitCode.UNUSABLE_INPUT)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """A signal that asks to end: an exception, so that what is half done is undone."""
    sys.exit(128 + number)


def completing() -> bool:
    """Whether the shell asks for completions, instead of a person for a command."""
    return "_DOMAINBUILDER_COMPLETE" in os.environ


def _run(arguments: list[str]) -> int:
    """Run the command line; the exit code, if SystemExit has not said so already."""
    first = arguments[0] if arguments else ""
    if completing() or first not in ("", "-h", "--help", "--version"):
        from domainbuilder.command_line import run

        run(arguments)
    if first == "--version":
        sys.stdout.write(version_text())
    else:
        (sys.stdout if first else sys.stderr).write(help_text())
    return ExitCode.FINE if first else ExitCode.UNUSABLE_INPUT


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line; exit with one of `ExitCode`, or 128 and the number of the signal that ended it.

    Errors in the user's input end in one line on stderr and exit code 2; any other exception is a bug of
    ours and shows as one.
    """
    gc.set_threshold(
        50_000, 20, 50
    )  # importing makes much and drops nothing: 6% of a short command went there
    streams.prepare()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)
    try:
        try:
            code = _run(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()
        sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BuildError as error:
        _refuse(" ".join(str(error).split()))
    except OSError as error:
        name = f"{error.filename}: " if error.filename is not None else ""
        _refuse(f"{name}{error.strerror or error}")
    except MemoryError:
        _refuse("this machine has not enough memory for that")
