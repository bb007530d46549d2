"""The `domainbuilder` command: which subcommands there are, and how errors end.

A subcommand is a function in domainbuilder/commands/NAME.py. Its module is imported when it is run or
its own help is asked for, never before: COMMANDS holds the one-line help, so that `domainbuilder --help`
and shell completion cost what Typer costs and no more (a test holds the table to the docstrings).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperGroup

from domainbuilder.errors import BuildError, ExitCode


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

EPILOG = """\b
Examples:
  domainbuilder notes vmlinuz                     what it asks of Xen, and Xen's verdict
  domainbuilder plan vmlinuz -m 256 --format svg  its address space, as a picture
  domainbuilder build vmlinuz -o linux.core       the built domain, for readelf and launch
  domainbuilder launch vmlinuz                    run it; Ctrl-] leaves the console
  domainbuilder lint vmlinux.lds.S                what is wrong with its layout

\b
Exit codes: 0 fine, 1 a check failed, 2 unusable input or usage,
            3 the domain crashed, 4 timed out."""


def load(name: str) -> Any:
    """The function behind the subcommand `name`, a key of COMMANDS."""
    command = COMMANDS[name]
    return getattr(import_module(f"domainbuilder.commands.{command.module}"), command.function)


class LazyGroup(TyperGroup):
    """A group that knows its commands by COMMANDS and imports one only to run it or to show its help."""

    def list_commands(self, _ctx: Any) -> list[str]:
        """The names to complete: verbs of two words are found through their first word."""
        return [name for name in COMMANDS if " " not in name]

    def get_command(self, _ctx: Any, cmd_name: str) -> Any:
        """The Typer command for a name, built on demand; None for an unknown one."""
        if cmd_name not in COMMANDS:
            return None
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(cmd_name, context_settings=CONTEXT_SETTINGS)(load(cmd_name))
        return typer.main.get_command(single)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As the base class does, with the verbs of two words tried first."""
        if (verb := " ".join(args[:2])) in COMMANDS:
            return verb, self.get_command(ctx, verb), args[2:]
        return super().resolve_command(ctx, args)

    def format_commands(self, _ctx: Any, formatter: Any) -> None:
        """The list of commands, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in COMMANDS.items()])


CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

app = typer.Typer(
    name="domainbuilder",
    cls=LazyGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    epilog=EPILOG,
    context_settings=CONTEXT_SETTINGS,
)


def _show_version(value: bool) -> None:
    if value:
        from domainbuilder import __version__
        from domainbuilder.launch.core import describe_core

        typer.echo(f"domainbuilder {__version__}\ncore: {describe_core()}")
        raise typer.Exit


@app.callback()
def domainbuilder(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Inspect, plan, build and run Xen PV kernels, on a machine without Xen."""


def _refuse(message: object) -> NoReturn:
    print(f"domainbuilder: error: {message}", file=sys.stderr)
    sys.exit(ExitCode.UNUSABLE_INPUT)


def _close_quietly() -> NoReturn:
    """Leave after the reader of our output has gone; nothing is left to be flushed when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(ExitCode.FINE)


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with one of `ExitCode`, or 130 after Ctrl-C.

    Errors in the user's input end in one line on stderr and exit code 2; any other exception is a bug of
    ours and shows as one.
    """
    try:
        typer.main.get_command(app).main(argv, prog_name="domainbuilder", standalone_mode=True)
        sys.exit(ExitCode.FINE)
    except SystemExit:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _close_quietly()
        raise
    except BrokenPipeError:
        _close_quietly()
    except KeyboardInterrupt:
        sys.exit(130)
    except BuildError as error:
        _refuse(" ".join(str(error).split()))
    except OSError as error:
        name = f"{error.filename}: " if error.filename is not None else ""
        _refuse(f"{name}{error.strerror or error}")
