"""samples/pair: two domains on one host share pages and an event channel, in every pair of widths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from hvcore.pv.audit import audit

WIDTHS = ("32", "64")


@pytest.fixture(scope="module")
def guests(guests_by_width: Callable[[str], dict[str, Path]]) -> dict[str, Path]:
    return guests_by_width("pair")


def run(guests: dict[str, Path], offers: str, takes: str) -> list[tuple[str, domainbuilder.Statistics]]:
    """What both printed, and what they counted."""
    with domainbuilder.Host(memory_mib=64) as host:
        a = host.launch(guests[offers], memory_mib=16, cmdline="offer peer=2", max_guest_seconds=20)
        b = host.launch(guests[takes], memory_mib=16, cmdline="take peer=1", max_guest_seconds=20)
        ends = [dom.wait() for dom in (b, a)]
        printed = [dom.console.transcript for dom in (a, b)]
        assert [end.reason for end in ends] == ["poweroff", "poweroff"], printed
        assert audit(a.machine.domain) == []
        return [(text, dom.stats()) for text, dom in zip(printed, (a, b), strict=True)]


@pytest.mark.parametrize("offers", WIDTHS)
@pytest.mark.parametrize("takes", WIDTHS)
def test_two_domains_share(guests: dict[str, Path], offers: str, takes: str) -> None:
    first = run(guests, offers, takes)
    for text, _ in first:
        assert "Test result: SUCCESS" in text
        assert "Fail:" not in text
    assert run(guests, offers, takes) == first
