"""What Perfetto's own protobuf classes see in a trace: run as a program, for they are no company for Unicorn.

Prints JSON: slices by name, annotations of the first slice of each name, instants, counters' last values, and
what is wrong with how slices nest, which tracks events are on, and which flows end.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from typing import Any

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb


def main(path: str) -> None:  # noqa: C901
    trace = pb.Trace()
    with open(path, "rb") as file:  # noqa: PTH123
        trace.ParseFromString(file.read())
    tracks: dict[int, str] = {}
    names: dict[str, dict[int, str]] = defaultdict(dict)
    slices, instants, wrong = Counter[str](), Counter[str](), list[str]()
    first: dict[str, dict[str, Any]] = {}
    counters: dict[str, int] = {}
    begun, ended = set[int](), Counter[int]()
    timeline: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
    for packet in trace.packet:
        for kind in ("event_names", "event_categories", "debug_annotation_names"):
            for entry in getattr(packet.interned_data, kind):
                names[kind][entry.iid] = entry.name
        if packet.HasField("track_descriptor"):
            tracks[packet.track_descriptor.uuid] = packet.track_descriptor.name or "process"
        if not packet.HasField("track_event"):
            continue
        event = packet.track_event
        name = names["event_names"].get(event.name_iid, "")
        if event.track_uuid not in tracks:
            wrong.append(f"no track {event.track_uuid}")
        if event.type == event.TYPE_SLICE_BEGIN:
            slices[name] += 1
            notes = {names["debug_annotation_names"][a.name_iid]: value(a) for a in event.debug_annotations}
            first.setdefault(name, notes | {"track": tracks[event.track_uuid], "ns": packet.timestamp})
            timeline[event.track_uuid].append((packet.timestamp, 1, name))
        elif event.type == event.TYPE_SLICE_END:
            timeline[event.track_uuid].append((packet.timestamp, -1, ""))
        elif event.type == event.TYPE_INSTANT:
            instants[name] += 1
        elif event.type == event.TYPE_COUNTER:
            counters[tracks[event.track_uuid]] = event.counter_value
        begun.update(event.flow_ids)
        ended.update(event.terminating_flow_ids)
        if not set(event.terminating_flow_ids) <= begun:
            wrong.append("a flow ends that has not begun")
    for events in timeline.values():
        depth = 0
        for _, step, _ in sorted(events, key=lambda e: e[0]):  # which is stable, as trace_processor's is
            depth += step
            if not 0 <= depth <= 2:
                wrong.append(f"a depth of {depth}")
    print(json.dumps({
        "slices": slices, "instants": instants, "counters": counters, "first": first, "wrong": wrong[:10],
        "flows": [len(begun), len(ended)], "tracks": sorted(tracks.values()),
    }))  # fmt: skip


def value(annotation: Any) -> Any:
    return getattr(annotation, annotation.WhichOneof("value"))


if __name__ == "__main__":
    main(sys.argv[1])
