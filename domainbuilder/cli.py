"""The `domainbuilder` command: its help and version, and how a run ends, whatever happens.

Typer (command_line.py) is imported where a subcommand is run or its own help is asked for, never before.
"""

from __future__ import annotations

import atexit
import gc
import signal
import sys
from types import FrameType
from typing import NoReturn

from domainbuilder import streams
from domainbuilder.command_names import ABOUT, COMMANDS, completing
from domainbuilder.errors import BuildError, ExitCode, one_line

XEN_VERSION = "4.17"


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
    commands = "\n".join(f"  {name:18}{command.help}" for name, command in COMMANDS.items())
    return (
        f"Usage: domainbuilder [OPTIONS] COMMAND [ARGS]...\n\n  {ABOUT}\n\nOptions:\n{options}\n\n"
        f"Commands:\n{commands}\n\nExamples:\n{EXAMPLES}\n\nExit codes:\n{EXIT_CODES}\n"
    )


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


def _refuse(message: str) -> NoReturn:
    streams.tell_error(message)
    sys.exit(ExitCode.UNUSABLE_INPUT)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """A signal that asks to end: an exception, so that what is half done is undone."""
    sys.exit(128 + number)


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
    atexit.register(gc.freeze)  # nothing is to be freed at the end: 7% of it went there
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
    except (BuildError, OSError) as error:
        _refuse(one_line(error))
    except MemoryError:
        _refuse("this machine has not enough memory for that")
