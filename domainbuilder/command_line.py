"""The command line by Typer: a command that is run or helped with, and all of them for completion."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from domainbuilder.command_names import ABOUT, COMMANDS, completing
from domainbuilder.errors import ExitCode

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def load(name: str) -> Any:
    """The function behind the subcommand `name`, a key of COMMANDS."""
    command = COMMANDS[name]
    return getattr(import_module(f"domainbuilder.commands.{command.module}"), command.function)


def typer_command(name: str) -> Any:
    """The Typer command of that name, a key of COMMANDS."""
    single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    single.command(name, cls=SectionedCommand, context_settings=CONTEXT_SETTINGS)(load(name))
    return typer.main.get_command(single)


class SectionedCommand(TyperCommand):
    """A command whose help has its options in sections, where they have some (rich_help_panel)."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, options that are in no section, and the sections in the order of their first options."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            section = getattr(parameter, "rich_help_panel", None) or kind
            sections.setdefault(section, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class LazyGroup(TyperGroup):
    """A group that knows its commands by COMMANDS and imports one only to complete its arguments."""

    def list_commands(self, _ctx: Any) -> list[str]:
        """The names to complete: verbs of two words are found through their first word."""
        return [name for name in COMMANDS if " " not in name]

    def get_command(self, _ctx: Any, cmd_name: str) -> Any:
        """The Typer command for a name, built on demand; None for an unknown one."""
        return typer_command(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As the base class does, with the verbs of two words tried first."""
        if (verb := " ".join(args[:2])) in COMMANDS:
            return verb, self.get_command(ctx, verb), args[2:]
        return super().resolve_command(ctx, args)


def _group() -> Any:
    app = typer.Typer(
        name="domainbuilder", cls=LazyGroup, rich_markup_mode=None, context_settings=CONTEXT_SETTINGS
    )
    app.callback(help=ABOUT)(lambda: None)
    return typer.main.get_command(app)


def run(arguments: list[str]) -> NoReturn:
    """Run a command line that is neither empty nor --help or --version; ends with SystemExit.

    Raises what commands raise: BuildError, OSError, KeyboardInterrupt.
    """
    name = next((name for n in (2, 1) if (name := " ".join(arguments[:n])) in COMMANDS), "")
    if name and not completing():
        program, rest = f"domainbuilder {name}", arguments[len(name.split()) :]
        typer_command(name).main(rest, prog_name=program)
    if arguments[1:] and arguments[0] in ("--show-completion", "--install-completion"):
        os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"  # the shell is named
    try:
        _group().main(arguments, prog_name="domainbuilder")
    except SystemExit as end:
        if (
            end.code == ExitCode.CHECK_FAILED
        ):  # Typer's, where it does not know the shell; nothing was checked
            sys.exit(ExitCode.UNUSABLE_INPUT)
        raise
    sys.exit(ExitCode.FINE)
