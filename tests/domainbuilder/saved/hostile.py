"""`python -m tests.domainbuilder.saved.hostile FILE SEED FIRST COUNT`: a saved domain, its values changed.

They go to those who check values, past all checksums. Each is refused in one line, or makes a domain that
runs for a little; anything else ends this process. Prints how many were refused and how many ran.
"""

from __future__ import annotations

import random
import resource
import sys
from pathlib import Path
from typing import Any

from domainbuilder.errors import BuildError
from domainbuilder.launch.options import Chosen
from domainbuilder.saved.domain import thaw
from domainbuilder.saved.frozen import Frozen, plain_state, read_frozen
from hvcore.host_state import DomainState, HostState

_NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    64,
    255,
    4096,
    65535,
    65536,
    70000,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every value in the tree, by where it is."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += _places(item, (*path, key))
    return found


def _other(value: Any, chance: random.Random) -> Any:
    if chance.random() < 0.1:
        return chance.choice((None, True, -1, b"", "x", [], {}, ["list", []], ["tuple", [1]]))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return chance.choice((*_NUMBERS, value + 1, value - 1, value ^ 1 << chance.randrange(64)))
    if isinstance(value, bytes) and value:
        data = bytearray(value)
        for _ in range(chance.choice((1, 1, 4, 64))):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 255, chance.randrange(256)))
        return bytes(data) if chance.random() < 0.9 else bytes(data[: chance.randrange(len(data))])
    if isinstance(value, str):
        return chance.choice(("", "x", value + "x", "/", "__class__"))
    if isinstance(value, list) and value:
        return chance.choice((value[:-1], value + value[-1:], value[::-1]))
    return chance.choice((0, "x", b"x", [1], ["dict", [[1, 2]]]))


def _changed(plain: dict[str, Any], places: list[tuple[Any, ...]], chance: random.Random) -> dict[str, Any]:
    changed = _copy(plain)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        *above, last = chance.choice(places)
        holder = changed
        try:
            for key in above:
                holder = holder[key]
            holder[last] = _other(holder[last], chance)
        except (LookupError, TypeError):  # changed away before
            continue
    return changed


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _pages(pages: dict[int, bytes], chance: random.Random) -> dict[int, bytes]:
    """A page of them with words changed."""
    index = chance.choice(list(pages))
    page = bytearray(pages[index])
    for _ in range(chance.choice((1, 8, 512))):
        at = chance.randrange(len(page) // 8) * 8
        page[at : at + 8] = (chance.getrandbits(52) & ~0xFFF | chance.getrandbits(12)).to_bytes(8, "little")
    return pages | {index: bytes(page)}


def main(path: str, seed: int, first: int, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    frozen = read_frozen(path)
    state, pages = plain_state(frozen.state), dict(frozen.state.pages)
    places = _places(state)
    refused = ran = 0
    for case in range(first, first + count):
        print(case, end="\r", file=sys.stderr, flush=True)
        chance = random.Random(f"{seed} {case}")
        plain = _changed(state, places, chance)
        memory = _pages(pages, chance) if chance.random() < 0.3 else pages
        try:
            domains = tuple(DomainState(**domain) for domain in plain.pop("domains"))
            again = Frozen(frozen.about, frozen.session, HostState(**plain, domains=domains, pages=memory))
        except (TypeError, AttributeError):  # the reader of files looks at that
            refused += 1
            continue
        try:
            with thaw(again, path, 0.0, Chosen()) as dom:
                dom.run_for(0.05, timeout=5)
                ran += 1
        except BuildError as error:
            if "\n" in str(error):
                raise
            refused += 1
    print(refused, ran)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))


def run(path: Path, seed: int, first: int, count: int) -> list[str]:
    return [
        sys.executable,
        "-m",
        "tests.domainbuilder.saved.hostile",
        str(path),
        str(seed),
        str(first),
        str(count),
    ]
