"""The rules, by what they need. A run loads what it can use, `--explain` and the documentation load all."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from linker.findings import Rule

# module -> the inputs that any of its rules can use: S script, M map, E linked ELF.
MODULES = {
    "alignment": "S",
    "placement": "S",
    "taking": "S",
    "keeping": "SM",
    "bounding": "S",
    "copying": "S",
    "regions": "S",
    "coverage": "SME",
    "dialect": "S",
    "names": "SE",
    "addresses": "ME",
    "orphans": "ME",
    "loading": "E",
    "headers": "E",
    "budgets": "ME",
    "xen": "SE",
}


def load(given: Iterable[str] = "SME") -> tuple[Rule, ...]:
    """Return the rules that can say something about the inputs `given`, as letters out of S, M and E."""
    letters = set(given)
    rules: list[Rule] = []
    for name, needs in MODULES.items():
        if letters & set(needs):
            rules.extend(import_module(f"linker.rules.{name}").RULES)
    return tuple(rule for rule in rules if any(set(need) <= letters for need in rule.needs))


def find(rule_id: str) -> Rule | None:
    """Return the rule of this id."""
    return next((rule for rule in load() if rule.id == rule_id), None)
