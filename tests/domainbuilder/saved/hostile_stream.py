"""`python -m tests.domainbuilder.saved.hostile_stream FILE SEED FIRST COUNT`: a stream with bytes changed.

Each is refused in one line, or makes a domain that runs for a little; anything else ends this process. Prints
how many were refused and how many ran.
"""

from __future__ import annotations

import random
import resource
import struct
import sys
from pathlib import Path

from domainbuilder.errors import BuildError
from domainbuilder.launch.options import Chosen
from domainbuilder.saved.started import received
from domainbuilder.saved.stream_read import Source, read_stream
from domainbuilder.saved.stream_restore import Restorer

_WORDS = (0, 1, 7, 255, 4095, 4096, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 52, (1 << 64) - 1)


def interesting(data: bytes) -> list[range]:
    """Where the stream is more than the contents of ordinary pages: headers, words, tables, contexts."""
    size = struct.unpack_from("<I", data, 44)[0]
    at = 48 + size + 16 + 8 + 24 + 16
    found = [range(at)]
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        end = at + 8 + -(-length // 8) * 8
        if kind == 1 and length:
            count = struct.unpack_from("<I", data, at + 8)[0]
            words = struct.unpack_from(f"<{count}Q", data, at + 16)
            page = at + 16 + 8 * count
            found.append(range(at, page))
            for word in words:
                if word >> 60 in (0, *range(1, 5), *range(9, 13)):
                    if word >> 60:
                        found.append(range(page, page + 4096))
                    page += 4096
        else:
            found.append(range(at, end))
        at = end
    return found


def changed(data: bytes, places: list[range], chance: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        place = chance.choice(places)
        at = chance.choice(place)
        how = chance.randrange(4)
        if how == 0:
            out[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            width = chance.choice((4, 8))
            at &= -width
            value = chance.choice(_WORDS) & (1 << 8 * width) - 1
            out[at : at + width] = value.to_bytes(width, "little")
        elif how == 2:
            out[at] = chance.randrange(256)
        else:
            other = chance.choice(chance.choice(places))
            out[at & -8 : (at & -8) + 8] = data[other & -8 : (other & -8) + 8]
    return bytes(out[: chance.randrange(len(out))]) if chance.random() < 0.03 else bytes(out[: len(data)])


def try_one(data: bytes, name: str) -> bool:
    """Whether a domain came of it."""
    view = memoryview(data)
    source = Source(name, lambda size: view[source.at : source.at + size])
    restorer = Restorer(name)
    read_stream(source, restorer)
    with received(restorer, 0.0, Chosen()) as dom:
        dom.run_for(0.02, timeout=5)
    return True


def main(path: str, seed: int, first: int, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    data = Path(path).read_bytes()
    places = interesting(data)
    refused = ran = 0
    for case in range(first, first + count):
        print(case, end="\r", file=sys.stderr, flush=True)
        try:
            ran += try_one(changed(data, places, random.Random(f"{seed} {case}")), path)
        except BuildError as error:
            if "\n" in str(error):
                raise
            refused += 1
    print(refused, ran)


def run(path: Path, seed: int, first: int, count: int) -> list[str]:
    module = "tests.domainbuilder.saved.hostile_stream"
    return [sys.executable, "-m", module, str(path), str(seed), str(first), str(count)]


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
