"""What the tests take of rules and their examples."""

from __future__ import annotations

from linker import rules
from linker.config import parse_config
from linker.findings import Example, Rule
from linker.settings import DEFAULTS, Settings


def settings_of(config: str) -> Settings:
    """The settings in the text of a layout.toml; the defaults where it is empty."""
    if not config:
        return DEFAULTS
    settings = parse_config("layout.toml", config)
    assert settings is not None
    return settings


def rule_of(name: str) -> Rule:
    rule = rules.find(name)
    assert rule is not None, name
    return rule


def bad_example(name: str) -> Example:
    return rule_of(name).bad
