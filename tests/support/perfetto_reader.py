"""Reads traces back with Perfetto's published schema (PyPI's perfetto), and nests their slices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

pb2: Any = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")


@dataclass
class Slice:
    """A slice as Perfetto's trace processor builds it."""

    name: str
    track: int
    begin: int
    category: str
    args: dict[str, Any]
    flows: list[int]
    ends_flows: list[int]
    end: int = -1
    children: list[Slice] = field(default_factory=list)


@dataclass
class Read:
    """A whole trace."""

    tracks: dict[int, Any] = field(default_factory=dict)
    slices: list[Slice] = field(default_factory=list)
    instants: list[Slice] = field(default_factory=list)
    counters: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    clocks: dict[int, int] = field(default_factory=dict)
    primary: int = 0
    kernel: str = ""

    def name(self, track: int) -> str:
        found = self.tracks[track]
        return str(found.name or found.thread.thread_name or found.process.process_name)

    def within(self, track: int) -> list[str]:
        """The names of the tracks that it lies in, outermost first."""
        parent = self.tracks[track].parent_uuid
        return [*self.within(parent), self.name(parent)] if parent else []

    def on(self, track: int) -> list[Slice]:
        return [each for each in self.slices if each.track == track]

    def steps(self) -> list[Slice]:
        return [each for each in self.slices if each.category == "step"]


def read(data: bytes) -> Read:
    """Decode, and nest as the trace processor does: by time, of equal times as in the file."""
    trace = pb2.Trace()
    assert trace.ParseFromString(data) == len(data)
    length = trace.ByteSize()
    trace.DiscardUnknownFields()
    assert trace.ByteSize() == length, "a field that the schema does not know"
    out = Read()
    events: list[tuple[int, int, Any]] = []
    assert {packet.trusted_packet_sequence_id for packet in trace.packet} == {1}
    assert trace.packet[0].sequence_flags & pb2.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
    for place, packet in enumerate(trace.packet):
        kind = packet.WhichOneof("data")
        if kind == "clock_snapshot":
            out.clocks = {c.clock_id: c.timestamp for c in packet.clock_snapshot.clocks}
            out.primary = packet.clock_snapshot.primary_trace_clock
        elif kind == "system_info":
            out.kernel = packet.system_info.utsname.release
        elif kind == "track_descriptor":
            track = packet.track_descriptor
            assert track.uuid not in out.tracks
            assert not track.parent_uuid or track.parent_uuid in out.tracks
            out.tracks[track.uuid] = track
        else:
            assert kind == "track_event"
            assert packet.timestamp_clock_id == pb2.BUILTIN_CLOCK_MONOTONIC
            assert packet.track_event.track_uuid in out.tracks
            events.append((packet.timestamp, place, packet.track_event))
    _nest(sorted(events, key=lambda event: event[:2]), out)
    return out


def _nest(events: list[tuple[int, int, Any]], out: Read) -> None:
    kinds = pb2.TrackEvent
    open_: dict[int, list[Slice]] = {}
    for t_ns, _, event in events:
        stack = open_.setdefault(event.track_uuid, [])
        if event.type == kinds.TYPE_COUNTER:
            wide = event.HasField("double_counter_value")
            value = event.double_counter_value if wide else event.counter_value
            out.counters.setdefault(event.track_uuid, []).append((t_ns, value))
        elif event.type == kinds.TYPE_SLICE_END:
            assert stack, "an end without a beginning"
            stack.pop().end = t_ns
        else:
            new = Slice(
                event.name, event.track_uuid, t_ns, ",".join(event.categories),
                {a.name: _value(a) for a in event.debug_annotations},
                list(event.flow_ids), list(event.terminating_flow_ids),
            )  # fmt: skip
            if event.type == kinds.TYPE_INSTANT:
                out.instants.append(new)
                continue
            assert event.type == kinds.TYPE_SLICE_BEGIN
            if stack:
                stack[-1].children.append(new)
            stack.append(new)
            out.slices.append(new)
    assert not any(open_.values()), "a slice without an end"


def _value(argument: Any) -> Any:
    return getattr(argument, argument.WhichOneof("value"))
