"""The pictures of docs/linker-rules.md are what the drawing makes of the page's own scripts."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tests.linker.pictures import DOCS, PAGE, pictures
from tests.linker.test_regions import check_drawing

DRAWN = pictures()
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_as_it_is_drawn(name: str) -> None:
    """When this fails: python -m tests.linker.pictures."""
    assert (DOCS / "pictures" / name).read_text() == DRAWN[name]
    check_drawing(DRAWN[name])


def test_the_page_shows_all_pictures_and_no_others() -> None:
    assert set(re.findall(r"\(pictures/([^)]+)\)", PAGE.read_text())) == set(DRAWN)
    assert {path.name for path in (DOCS / "pictures").iterdir()} == set(DRAWN)


def said(name: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(DRAWN[f"{name}.svg"]).iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("name", "found", "mended"),
    [
        ("takes", "s_safe, e_safe  0x40", "s_safe  0x0"),
        ("keeps", "tab_start, tab_end  0x5a", "tab_start  0x68"),
        ("covers", "_end  0x128", "_end  0x150"),
        ("bounds", "tab_start  0x100013", "tab_start  0x100020"),
        ("loads", "image of .data  700 B, overlaps by 500 B", "image of .data  700 B"),
        ("reserves", ".bss  5.9 KiB", ".stack  4 KiB"),
        ("pages", "0x100014", "0x101000"),
        ("starts", "_start  0x802002bc", "_start  0x80200000"),
    ],
)
def test_the_pictures_show_what_the_page_says(name: str, found: str, mended: str) -> None:
    texts = said(name)
    assert texts.index("found") < texts.index(found) < texts.index("mended")
    assert mended in texts[texts.index("mended") :]


def test_the_picture_of_firmware_shows_where_values_are_loaded() -> None:
    texts = said("firmware")
    assert "image of .data  732 B" in texts
    assert "__init_array_end, _sidata  0x8002438" in texts
