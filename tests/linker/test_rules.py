"""Every rule finds its bad example and is silent on its good one; no rule lacks either."""

from __future__ import annotations

import pytest

from linker import rules
from linker.elffile import Elf
from linker.findings import OFF, SEVERITIES, WARNING, Example, Rule
from linker.lint import Inputs, Report, run
from linker.mapfile import parse_map
from linker.source import Source
from tests.linker.elftext import build
from tests.linker.examples import settings_of

ALL = rules.load()
# A rule that is off until it is asked for is tested as one that was asked for.
ASKED = {rule.id: WARNING for rule in ALL if rule.severity == OFF}


def shown(rule: Rule) -> str:
    return ASKED.get(rule.id, rule.severity)


def report(example: Example) -> Report:
    settings = settings_of(example.config)
    settings = settings._replace(severities={**ASKED, **settings.severities})
    return run(
        Inputs(
            Source("example.lds", example.script) if example.script else None,
            parse_map("example.map", example.map.encode().splitlines(keepends=True)) if example.map else None,
            Elf("example.elf", build(example.elf)) if example.elf else None,
        ),
        settings,
    )


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.id)
def test_bad_example_is_found(rule: Rule) -> None:
    found = report(rule.bad)
    assert found.usable
    assert [d.severity for d in found.diagnostics if d.rule == rule.id] != []
    assert {d.severity for d in found.diagnostics if d.rule == rule.id} == {shown(rule)}


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.id)
def test_good_example_is_clean(rule: Rule) -> None:
    found = report(rule.good)
    assert found.usable
    assert rule.id not in {diagnostic.rule for diagnostic in found.diagnostics}


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.id)
def test_rule_is_complete(rule: Rule) -> None:
    assert any(rule.bad[:3]), "no bad example"
    assert any(rule.good[:3]), "no good example"
    assert rule.bad != rule.good
    assert rule.severity in {*SEVERITIES, OFF}
    assert all(len(text) > 15 for text in (rule.summary, rule.why, rule.fix))
    assert rule.check.__doc__


def test_ids_are_unique() -> None:
    assert len({rule.id for rule in ALL}) == len(ALL)
