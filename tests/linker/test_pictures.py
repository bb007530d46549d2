"""The pictures of docs/linker-rules.md are what the drawing makes of the page's own scripts."""

from __future__ import annotations

import re

import pytest

from tests.linker.pictures import DOCS, PAGE, pictures
from tests.linker.test_regions import check_drawing

DRAWN = pictures()


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_as_it_is_drawn(name: str) -> None:
    """When this fails: python -m tests.linker.pictures."""
    assert (DOCS / "pictures" / name).read_text() == DRAWN[name]
    check_drawing(DRAWN[name])


def test_the_page_shows_all_pictures_and_no_others() -> None:
    assert set(re.findall(r"\(pictures/([^)]+)\)", PAGE.read_text())) == set(DRAWN)
    assert {path.name for path in (DOCS / "pictures").iterdir()} == set(DRAWN)


def test_the_pictures_show_what_the_page_says() -> None:
    assert "image of .data" in DRAWN["firmware.svg"]
    assert "free" in DRAWN["firmware.svg"]
    assert "overlaps by" in DRAWN["load-overlap.svg"]
