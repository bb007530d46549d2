"""Profiles as files: the same sums in every format, read by other means than they were written."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from typing import Any

import pytest

from domainbuilder.errors import BuildError
from domainbuilder.profile import stacks
from domainbuilder.profile.stacks import Frame, Profile, encoder_of, folded, pprof, speedscope

MAIN, WORK, EVIL = Frame("main", "main.c", 3), Frame("work", "work.c", 9), Frame('a;b "\n\x1b[')
# proto/profile.proto of github.com/google/pprof: message -> field -> (number, type, repeated)
MESSAGES = {
    "Profile": {
        "sample_type": (1, "ValueType", True), "sample": (2, "Sample", True),
        "location": (4, "Location", True), "function": (5, "Function", True),
        "string_table": (6, "string", True), "duration_nanos": (10, "int64", False),
        "period_type": (11, "ValueType", False), "period": (12, "int64", False),
    },
    "ValueType": {"type": (1, "int64", False), "unit": (2, "int64", False)},
    "Sample": {"location_id": (1, "uint64", True), "value": (2, "int64", True)},
    "Location": {"id": (1, "uint64", False), "line": (4, "Line", True)},
    "Line": {"function_id": (1, "uint64", False), "line": (2, "int64", False)},
    "Function": {"id": (1, "uint64", False), "name": (2, "int64", False), "filename": (4, "int64", False)},
}  # fmt: skip


def profile() -> Profile:
    made = Profile("kernel", 1000)
    for stack, ns in (((MAIN,), 5), ((MAIN, WORK), 7), ((MAIN,), 11), ((MAIN, WORK), 0), ((EVIL,), 2)):
        made.add(stack, ns)
    return made


def parsed(raw: bytes) -> Any:
    """By protobuf's own library."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="profile.proto", package="p", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for message, fields in MESSAGES.items():
        made = file.message_type.add(name=message)
        for name, (number, kind, repeated) in fields.items():
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            field = made.field.add(name=name, number=number, label=label)
            if kind in MESSAGES:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".p.{kind}"
            else:
                field.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = message_factory.GetMessageClass(pool.FindMessageTypeByName("p.Profile"))()
    found.ParseFromString(gzip.decompress(raw))
    return found


def test_folded() -> None:
    lines = folded(profile()).decode().splitlines()
    assert lines == [r'a:b "\n\x1b[ 2', "main 16", "main;work 7"]
    assert sum(int(line.rpartition(" ")[2]) for line in lines) == profile().total == 25


def test_speedscope() -> None:
    document = json.loads(speedscope(profile()))
    frames = document["shared"]["frames"]
    (one,) = document["profiles"]
    assert one["weights"] == [5, 7, 11, 2]
    names = [[frames[i]["name"] for i in stack] for stack in one["samples"]]
    assert names == [["main"], ["main", "work"], ["main"], [EVIL.name]]
    assert (one["endValue"], one["unit"]) == (25, "nanoseconds")
    assert frames[0] == {"name": "main", "file": "main.c", "line": 3}


def test_pprof() -> None:
    raw = pprof(profile())
    assert raw == pprof(profile())  # with no time of day in it
    found = parsed(raw)
    text = found.string_table
    functions = {f.id: (text[f.name], text[f.filename]) for f in found.function}
    places = {at.id: (*functions[at.line[0].function_id], at.line[0].line) for at in found.location}
    sums = {tuple(places[i] for i in sample.location_id): sample.value[0] for sample in found.sample}
    assert sums == {(MAIN,): 16, (WORK, MAIN): 7, (EVIL,): 2}  # the innermost is first
    assert text[0] == ""
    assert (text[found.sample_type[0].unit], found.period, found.duration_nanos) == ("nanoseconds", 1000, 25)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "_MOST_SAMPLES", 3)
    monkeypatch.setattr(stacks, "_MOST_STACKS", 4)
    made, sums = Profile("kernel", 1), Counter[str]()
    for i in range(20):
        made.add((Frame(f"f{i % 7}"),), i)
        sums[f"f{i % 7}"] += i
    assert made.total == sum(sums.values()) == sum(ns for _, ns in made.samples())
    assert len(made.samples()) <= 3 + 5


def test_names_say_the_format() -> None:
    assert encoder_of("a.folded") is folded
    assert encoder_of("a.speedscope.json") is speedscope
    assert encoder_of("a.pb.gz") is pprof
    with pytest.raises(BuildError, match="does not say its format"):
        encoder_of("profile")
