"""What `notes` finds in a kernel and `lint --elf` finds, too, is as bad for the one as for the other."""

from __future__ import annotations

import pytest

import linker.rules
from domainbuilder.kernel.findings import RULES

SAME = {
    "outside-pt-note": "xen-notes-outside-segment",
    "alignment": "note-alignment",
    "cut-short": "note-cut-short",
    "hypercall-page": "xen-hypercall-page",
    "entry-not-loaded": "xen-entry-outside-load",
    "rwx-segment": "rwx-load",
    "segments-overlap": "lma-overlap",
    "incongruent": "load-misaligned",
}


@pytest.mark.parametrize("slug", SAME)
def test_one_severity(slug: str) -> None:
    rule = linker.rules.find(SAME[slug])
    assert rule is not None
    assert RULES[slug].severity.name.lower() == {"note": "info"}.get(rule.severity, rule.severity)
