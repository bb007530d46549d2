"""What --fix changes: each fix that a rule brings ends its finding; edits are made whole or not at all."""

from __future__ import annotations

import pytest

from linker import rules
from linker.ast import Span
from linker.edits import apply, compatible
from linker.findings import Context, Edit, Hit, Rule
from linker.outline import Outline
from linker.parser import parse
from tests.linker.examples import settings_of


def hits(rule: Rule, text: str) -> list[Hit]:
    settings = settings_of(rule.bad.config)
    return list(rule.check(Context(settings, Outline(parse(text)))))


FIXING = [
    rule
    for rule in rules.load("S")
    if rule.bad.script
    and not rule.bad.map
    and not rule.bad.elf
    and any(h.fix for h in hits(rule, rule.bad.script))
]


def test_some_rules_bring_fixes() -> None:
    assert "not-kept" in {rule.id for rule in FIXING}


@pytest.mark.parametrize("rule", FIXING, ids=lambda rule: rule.id)
def test_fix_of_the_bad_example_ends_the_finding(rule: Rule) -> None:
    found = hits(rule, rule.bad.script)
    fixed = apply(rule.bad.script, compatible(hit.fix for hit in found if hit.fix))
    assert parse(fixed).problems == ()
    assert [hit for hit in hits(rule, fixed) if hit.fix] == []
    assert all(hit.fix[0].title for hit in found if hit.fix)


def test_edits_that_touch_are_left_for_the_next_run() -> None:
    first = (Edit(Span(0, 2), "AA", "one"), Edit(Span(5, 5), "+", ""))
    second = (Edit(Span(1, 3), "BB", "two"),)
    third = (Edit(Span(3, 4), "C", "three"),)
    same = (Edit(Span(3, 4), "C", "three"),)
    assert apply("abcdefg", compatible([first, second, third, same])) == "AAcCe+fg"
