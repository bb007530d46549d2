"""The options that commands share: what Typer makes of them."""

from __future__ import annotations

import pytest

from domainbuilder.command_line import typer_command
from domainbuilder.commands._run_options import SECTIONS, RunOptions


@pytest.mark.parametrize("name", ["launch", "restore", "create"])
def test_every_option_of_a_run_is_the_commands_own_and_in_a_section(name: str) -> None:
    shown = {one.name: one.rich_help_panel for one in typer_command(name).params}
    for field in RunOptions._fields:
        assert field in SECTIONS[shown[field]]


def test_help_has_the_sections_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        typer_command("launch").main(["--help"], prog_name="domainbuilder launch")
    lines = capsys.readouterr().out.splitlines()
    heads = [line[:-1] for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert heads == ["Arguments", "Options", *SECTIONS]
