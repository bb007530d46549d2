"""The picture: well-formed, legible in either scheme, nothing on top of anything else."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest

from domainbuilder.plan.domain_plan import plan
from domainbuilder.plan.findings import survey
from domainbuilder.plan.svg import svg
from tests.domainbuilder.build.test_image import KINDS
from tests.domainbuilder.elfwriter import xen_kernel

NS = "{http://www.w3.org/2000/svg}"


def drawn(tmp_path: Path, kind: str, **options: object) -> str:
    path = tmp_path / "kernel"
    path.write_bytes(xen_kernel(**KINDS[kind]).build())
    planned = plan(path, memory_mib=64, **options)  # type: ignore[arg-type]
    return svg(planned, survey(planned))


@pytest.fixture(params=KINDS)
def picture(request: pytest.FixtureRequest, tmp_path: Path) -> ET.Element:
    return ET.fromstring(drawn(tmp_path, request.param, ramdisk=b"x" * 900_000, cmdline="root=/dev/xvda1"))


def boxes(picture: ET.Element) -> list[tuple[float, float, float, float, str]]:
    """Rough boxes of the texts: 7.4 pixels a character at most of the small sizes, 13 for the title."""
    found = []
    for text in picture.iter(f"{NS}text"):
        classes, words = text.get("class", "").split(), text.text or ""
        width = len(words) * (13 if "h1" in classes else 8 if "h2" in classes or "name" in classes else 7.2)
        x, y = float(text.get("x", "")), float(text.get("y", ""))
        left = x - width if "end" in classes else x - width / 2 if "mid" in classes else x
        found.append((left, y - 9, left + width, y + 2, words))
    return found


def test_no_text_covers_another(picture: ET.Element) -> None:
    texts = boxes(picture)
    for index, (left, top, right, bottom, words) in enumerate(texts):
        for other in texts[index + 1 :]:
            apart = right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
            assert apart, f"{words!r} covers {other[4]!r}"


def test_everything_is_within_the_frame(picture: ET.Element) -> None:
    width, height = float(picture.get("width", "")), float(picture.get("height", ""))
    assert picture.get("viewBox") == f"0 0 {width:.0f} {height:.0f}"
    for left, top, right, bottom, words in boxes(picture):
        assert left >= 0, words
        assert right <= width + 1, words
        assert top >= 0, words
        assert bottom <= height, words


def test_rows_of_the_map_do_not_overlap(picture: ET.Element) -> None:
    rows = sorted(
        (float(rect.get("y", "")), float(rect.get("height", "")))
        for rect in picture.iter(f"{NS}rect")
        if rect.get("width") == "400.0" and "soft" in rect.get("class", "").split()
    )
    assert len(rows) >= 9
    for (y, height), (below, _) in pairwise(rows):
        assert y + height <= below


def test_every_segment_is_in_it(picture: ET.Element) -> None:
    words = {text.text for text in picture.iter(f"{NS}text")}
    names = {
        "kernel",
        "module0",
        "phys2mach",
        "start info",
        "xenstore",
        "console",
        "page tables",
        "boot stack",
    }
    assert names | {"Xen", "read-only", "free"} <= words


def test_both_schemes_colour_every_class(tmp_path: Path) -> None:
    text = drawn(tmp_path, "pae")
    style = re.search(r"<style>(.*)</style>", text, re.S)
    assert style
    light, dark = style[1].split("@media (prefers-color-scheme:dark)")
    for name in ("bg", "fg", "dim", "card", "kernel", "tables", "gap", "zoom", "error"):
        here, there = (re.search(rf"\.{name}\{{(.*?)\}}", part) for part in (light, dark))
        assert here
        assert there
        assert here[1] != there[1], name


def test_the_same_plan_is_the_same_picture(tmp_path: Path) -> None:
    assert drawn(tmp_path, "pae") == drawn(tmp_path, "pae")


def test_hostile_names_are_text(tmp_path: Path) -> None:
    path = tmp_path / '<script>"&\x01'
    path.write_bytes(xen_kernel().build())
    planned = plan(path, memory_mib=8, cmdline="<b>\x02&amp;]]>\xff")
    root = ET.fromstring(svg(planned, survey(planned)))
    assert root.find(f".//{NS}script") is None
    assert '<script>"&·' in {text.text for text in root.iter(f"{NS}text")}
