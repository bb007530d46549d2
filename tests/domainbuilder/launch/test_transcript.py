"""The transcript's bounds, and searches in output that comes in pieces."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainbuilder.launch.transcript import WINDOW, Search, Transcript, compile_pattern


def search(pattern: str, *pieces: bytes) -> tuple[Search, Transcript, int]:
    """Feed pieces until the pattern matches; also how many pieces that took."""
    transcript = Transcript()
    found = Search(compile_pattern(pattern), transcript, 0)
    for count, piece in enumerate(pieces, 1):
        transcript.append(piece)
        if found.more():
            return found, transcript, count
    return found, transcript, len(pieces)


@pytest.mark.parametrize(
    ("pattern", "pieces", "matched", "taken"),
    [
        ("grub> ", [b"gru", b"b> "], "grub> ", 2),
        ("^grub> ", [b"GRUB\n", b"xgrub> \n", b"grub> "], "grub> ", 3),
        (".*login:", [b"de", b"bian lo", b"gin:"], "debian login:", 3),
        (r"a\s+b", [b"a\n", b" \n", b"b"], "a\n \nb", 3),
        ("[^x]b", [b"a\n", b"b"], "\nb", 2),
        ("(?s)a.b", [b"a", b"\n", b"b"], "a\nb", 3),
        ("foo(?=bar)", [b"foo", b"b", b"ar"], "foo", 3),
        ("b$", [b"ba\n", b"ab", b"\n"], "b", 2),
        ("é", ["é".encode()[:1], "é".encode()[1:]], "é", 2),
        ("a\\Z", [b"ab", b"a"], "a", 2),
    ],
)
def test_a_match_is_found_with_the_piece_that_completes_it(
    pattern: str, pieces: list[bytes], matched: str, taken: int
) -> None:
    found, _, count = search(pattern, *pieces)
    assert found.match is not None
    assert (found.match[0], count) == (matched, taken)


@given(
    text=st.text(alphabet="ab\né", max_size=60),
    cuts=st.lists(st.integers(0, 80), max_size=10),
    pattern=st.sampled_from(
        ["ab", "a+b", "^b", "b$", r"a\nb", r"\Sé", "b.a", "[^a]b", "(?s)a.*b", "aa|bb", "é"]
    ),
)
def test_cutting_output_finds_no_later_and_no_other_match_than_a_whole_search_would_allow(
    text: str, cuts: list[int], pattern: str
) -> None:
    data = text.encode()
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    found, transcript, _ = search(pattern, *pieces)
    compiled = compile_pattern(pattern)
    # What pexpect would do: search everything again after every piece.
    seen = b""
    expected = None
    for piece in pieces:
        seen += piece
        expected = compiled.search(seen.decode("utf-8", "ignore"))
        if expected:
            break
    assert (found.match is None) == (expected is None)
    if found.match and expected:
        assert (found.match[0], found.match.start()) == (expected[0], expected.start())
        assert (
            transcript.since(found.consumed).decode("utf-8", "ignore")
            == seen.decode("utf-8", "ignore")[expected.end() :]
        )


def test_a_search_goes_on_behind_the_last_match() -> None:
    transcript = Transcript()
    transcript.append("first > é second > rest".encode() + b"\xff\xc3")
    first = Search(compile_pattern("> "), transcript, 0)
    assert first.more()
    second = Search(compile_pattern("> "), transcript, first.consumed)
    assert second.more()
    assert transcript.since(second.consumed) == b"rest\xff\xc3"
    third = Search(compile_pattern("> "), transcript, second.consumed)
    assert not third.more()


def test_lines_end_as_in_python_text_files() -> None:
    found, transcript, count = search("^b$", b"a\r\nb\r", b"\nc\r", b"d")
    assert (found.match is not None, count) == (True, 1)
    transcript.append(b"\nc\r")
    transcript.append(b"d")
    assert transcript.text() == "a\nb\nc\rd"


def test_a_match_stays() -> None:
    found, transcript, _ = search("a", b"xa")
    transcript.append(b"a")
    assert found.more()
    assert found.match is not None
    assert found.match.end() == 2


def test_a_match_that_spans_lines_reaches_back_a_window() -> None:
    filler = b"-" * (WINDOW - 10)
    found, _, _ = search(r"start[^x]*end", b"start", filler, b"end")
    assert found.match is not None
    found, _, _ = search(r"start[^x]*end", b"start", filler, b"----------", b"-", b"end")
    assert found.match is None


def test_what_is_dropped_is_told() -> None:
    transcript = Transcript(limit=100)
    for number in range(100):
        transcript.append(b"line %d\n" % number)
    assert transcript.end == sum(len(f"line {n}\n") for n in range(100))
    assert transcript.dropped == transcript.end - len(transcript.since(0)) > 0
    assert len(transcript.since(0)) <= 200
    first, *_, last = transcript.text().splitlines()
    assert first == f"[{transcript.dropped} bytes of earlier output dropped]"
    assert last == "line 99"
    assert transcript.tail(lines=2) == "line 98\nline 99"


def test_searching_is_linear() -> None:
    """Twice the output is about twice the work: characters looked at, counted by a pattern that tells."""
    looked_at = 0

    class Counting:
        flags = re.compile("x").flags
        pattern = "nothing"

        def search(self, text: str, start: int) -> None:
            nonlocal looked_at
            looked_at += len(text) - start

    def feed(lines: int) -> int:
        nonlocal looked_at
        looked_at = 0
        transcript = Transcript()
        found = Search(Counting(), transcript, 0)  # type: ignore[arg-type]
        for _ in range(lines):
            for piece in (b"some words ", b"of a line", b"\n"):
                transcript.append(piece)
                assert not found.more()
        return looked_at

    small, large = feed(1000), feed(4000)
    assert large <= 4.2 * small
    assert large < 4000 * 3 * 25


def test_a_flood_is_searched_in_reasonable_memory() -> None:
    transcript = Transcript()
    found = Search(compile_pattern(r"never\s"), transcript, 0)
    for _ in range(200):
        transcript.append(b"x" * 2048)
        assert not found.more()
    assert len(found._text) <= 17 * WINDOW + 2048
    transcript.append(b"never\n")
    assert found.more()
    assert transcript.since(found.consumed) == b""


@pytest.mark.parametrize(
    ("pattern", "may"),
    [
        (r"^1000005", False),
        (r"login: $", False),
        (r"[ab]\d.", False),
        ("(a+)+b", True),
        ("a?a?aa", True),
        ("a{9}", True),
    ],
)
def test_only_what_has_a_choice_may_take_for_ever(pattern: str, may: bool) -> None:
    assert Search(compile_pattern(pattern), Transcript(), 0).may_backtrack == may
