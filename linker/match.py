"""Name patterns as ld matches them: fnmatch(3) without flags, so `*` crosses slashes and dots."""

from __future__ import annotations

import re
from functools import lru_cache

_SPECIAL = re.compile(r"[*?\[]")
_HEAD = re.compile(r"[*?\[\\]")
_WILDCARDS = re.compile(r"\[.*?\]|[*?\\]")
_BEYOND_A_STAR = re.compile(r"[?\[\\]")


def is_glob(pattern: str) -> bool:
    """Tell whether the pattern has a character that is special to fnmatch."""
    return _SPECIAL.search(pattern) is not None


@lru_cache(maxsize=4096)
def compile_glob(pattern: str) -> re.Pattern[str]:
    """Return the pattern as a regular expression over whole names.

    Runs of stars are one star, and each star but the last is lazy up to the next literal in an atomic group,
    which is how glob matching stays linear.
    """
    pattern = re.sub(r"\*+", "*", pattern)
    parts = [_segment(part) for part in pattern.split("*")]
    if len(parts) == 1:
        return re.compile(parts[0] + r"\Z", re.DOTALL)
    middle = "".join(f"(?>.*?{part})" for part in parts[1:-1] if part)
    last = rf".*{parts[-1]}\Z" if parts[-1] else r".*\Z"
    return re.compile(parts[0] + middle + last, re.DOTALL)


def _segment(text: str) -> str:
    out: list[str] = []
    position = 0
    while position < len(text):
        char = text[position]
        position += 1
        if char == "?":
            out.append(".")
        elif char == "[":
            end = text.find("]", position + 1)
            if end < 0:
                out.append(r"\[")
                continue
            inner = text[position:end]
            negated = inner[:1] in {"!", "^"}
            body = re.sub(r"([\\\[\]^&~|])", r"\\\1", inner[1:] if negated else inner)
            out.append(_character_class(body, negated=negated))
            position = end + 1
        elif char == "\\" and position < len(text):
            out.append(re.escape(text[position]))
            position += 1
        else:
            out.append(re.escape(char))
    return "".join(out)


def _character_class(body: str, *, negated: bool) -> str:
    text = f"[{'^' if negated else ''}{body}]"
    try:
        re.compile(text)
    except re.error:
        # A reversed range such as [z-a] matches nothing, as fnmatch has it.
        return "[^\\s\\S]" if not negated else "."
    return text


def matches(pattern: str, name: str) -> bool:
    """Tell whether ld's pattern matches the whole name."""
    if _BEYOND_A_STAR.search(pattern):
        return compile_glob(pattern).match(name) is not None
    head, star, tail = pattern.partition("*")
    if not star:
        return pattern == name
    if "*" in tail:
        return compile_glob(pattern).match(name) is not None
    # Nearly every pattern has one star: no regular expression is compiled for it.
    return len(name) >= len(head) + len(tail) and name.startswith(head) and name.endswith(tail)


def literal_head(pattern: str) -> str:
    """Return what stands before the first character that is special."""
    return _HEAD.split(pattern, maxsplit=1)[0]


def may_match(patterns: tuple[str, ...], text: str) -> bool:
    """Tell whether one of the patterns could match a part of the text: a quick no for many names at once."""
    return any(max(_WILDCARDS.split(pattern), key=len) in text for pattern in patterns)


def any_match(patterns: tuple[str, ...], name: str) -> bool:
    """Tell whether one of the patterns matches."""
    return _any_of(patterns).match(name) is not None


@lru_cache(maxsize=256)
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Return the patterns as one regular expression, one that matches nothing when there are none."""
    return re.compile(
        "|".join(f"(?>{compile_glob(pattern).pattern})" for pattern in patterns) or r"(?!)", re.DOTALL
    )
