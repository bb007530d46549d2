"""Time by call stack, and the formats that flame graphs are made of: folded stacks, speedscope, pprof."""

from __future__ import annotations

import gzip
import json
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from domainbuilder.errors import BuildError, Where
from domainbuilder.trace import protobuf as pb
from domainbuilder.visible import visible

_MOST_SAMPLES = 1 << 20  # that are kept in their order; of all others the sums
_MOST_STACKS = 1 << 18


class Frame(NamedTuple):
    """A function, or something in brackets that is none: "[user]", "[Xen]", "[idle]"."""

    name: str
    file: str = ""
    line: int = 0


Stack = tuple[Frame, ...]  # from the outermost in
OTHERS: Stack = (Frame("[other stacks]"),)


class Profile:
    """Nanoseconds by stack; `total` is the sum."""

    def __init__(self, kernel: str, period_ns: int) -> None:
        self.kernel = kernel
        self.period_ns = period_ns
        self.total = 0
        self._stacks: dict[Stack, int] = {}
        self._order = array("I")
        self._weights = array("Q")
        self._rest: dict[int, int] = {}

    def add(self, stack: Stack, ns: int) -> None:
        """So much time more, which passed in `stack`."""
        if not ns:
            return
        number = self._stacks.get(stack)
        if number is None:
            if len(self._stacks) >= _MOST_STACKS:
                stack = OTHERS
            number = self._stacks.setdefault(stack, len(self._stacks))
        self.total += ns
        if self._order and self._order[-1] == number:
            self._weights[-1] += ns
        elif len(self._order) < _MOST_SAMPLES:
            self._order.append(number)
            self._weights.append(ns)
        else:
            self._rest[number] = self._rest.get(number, 0) + ns

    def samples(self) -> list[tuple[Stack, int]]:
        """Stacks with the time that passed in each, in the order in which it did."""
        stacks = list(self._stacks)
        rows = [*zip(self._order, self._weights, strict=True), *self._rest.items()]
        return [(stacks[number], ns) for number, ns in rows]

    def sums(self) -> Mapping[Stack, int]:
        """Stacks with all the time that passed in each."""
        found: dict[Stack, int] = {}
        for stack, ns in self.samples():
            found[stack] = found.get(stack, 0) + ns
        return found


def folded(profile: Profile) -> bytes:
    """A line a stack, "outer;inner nanoseconds", in the order of the alphabet: flamegraph.pl, inferno."""
    sums: dict[str, int] = {}
    for stack, ns in profile.sums().items():
        line = ";".join(visible(frame.name.replace(";", ":")) for frame in stack)
        sums[line] = sums.get(line, 0) + ns
    return "".join(f"{line} {ns}\n" for line, ns in sorted(sums.items())).encode("utf-8", "backslashreplace")


def speedscope(profile: Profile) -> bytes:
    """speedscope.app's file format: samples in their order, with weights."""
    frames: dict[Frame, int] = {}
    samples = [
        ([frames.setdefault(frame, len(frames)) for frame in stack], ns) for stack, ns in profile.samples()
    ]
    shared = [
        {"name": frame.name} | ({"file": frame.file, "line": frame.line} if frame.file else {})
        for frame in frames
    ]
    document = {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": "domainbuilder",
        "name": profile.kernel,
        "shared": {"frames": shared},
        "profiles": [
            {
                "type": "sampled",
                "name": profile.kernel,
                "unit": "nanoseconds",
                "startValue": 0,
                "endValue": profile.total,
                "samples": [stack for stack, _ in samples],
                "weights": [ns for _, ns in samples],
            }
        ],
    }
    return json.dumps(document).encode() + b"\n"


def pprof(profile: Profile) -> bytes:
    """Pprof's protobuf, compressed: proto/profile.proto of github.com/google/pprof."""
    strings: dict[str, int] = {"": 0}

    def text(value: str) -> int:
        return strings.setdefault(value, len(strings))

    def value_type(kind: str, unit: str) -> bytes:
        return pb.number(1, text(kind)) + pb.number(2, text(unit))

    locations: dict[Frame, int] = {}
    functions: dict[tuple[str, str], int] = {}
    body = [pb.message(1, value_type("guest time", "nanoseconds"))]
    for stack, ns in profile.sums().items():
        numbers = [locations.setdefault(frame, len(locations) + 1) for frame in reversed(stack)]
        body.append(pb.message(2, pb.packed(1, numbers) + pb.packed(2, [ns])))
    for frame, number in locations.items():
        function = functions.setdefault((frame.name, frame.file), len(functions) + 1)
        line = pb.number(1, function) + pb.number(2, frame.line)
        body.append(pb.message(4, pb.number(1, number) + pb.message(4, line)))
    for (name, file), number in functions.items():
        made = (
            pb.number(1, number)
            + pb.number(2, text(name))
            + pb.number(3, text(name))
            + pb.number(4, text(file))
        )
        body.append(pb.message(5, made))
    period = pb.message(11, value_type("guest time", "nanoseconds")) + pb.number(12, profile.period_ns)
    tail = pb.number(10, profile.total) + period
    table = b"".join(pb.text(6, value) for value in strings)
    return gzip.compress(b"".join(body) + table + tail, mtime=0)


Encode = Callable[[Profile], bytes]
_BY_EXTENSION: dict[tuple[str, ...], Encode] = {
    (".folded", ".collapsed", ".txt"): folded,
    (".json", ".speedscope"): speedscope,
    (".gz", ".pprof", ".pb"): pprof,
}


def encoder_of(path: str | os.PathLike[str]) -> Encode:
    """The format that a file's name asks for. Raises BuildError where it asks for none."""
    suffix = Path(path).suffix.lower()
    for suffixes, encode in _BY_EXTENSION.items():
        if suffix in suffixes:
            return encode
    known: Sequence[str] = [suffix for suffixes in _BY_EXTENSION for suffix in suffixes]
    raise BuildError(
        "the name of the profile does not say its format",
        where=Where(os.fspath(path)),
        expected=", ".join(known),
    )
