"""A trace that Perfetto reads (ui.perfetto.dev, trace_processor): kept steps as nested slices.

The packets are those of Perfetto's published schema, protos/perfetto/trace/
perfetto_trace.proto, with its field numbers below. All times are
CLOCK_MONOTONIC, which the clock snapshot ties to the time of day.

- each agent's process, and in it a track per control-loop thread: a step is a
  slice, its stages are slices within it, with what is known as arguments;
- each CPU: the stages whose CPU is known (irq and softirq where the waker ran,
  the rest where the thread did), and the share of interrupts and softirqs;
- wakers: an instant at the wake-up, from which a flow leads to the step;
- each agent's slowpath p99 and steps per second, and the policies' toggles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from agenttop.flight.protobuf_writer import blob, double, fixed64, number, string
from agenttop.flight.recorder import Flight, Who
from agenttop.model.sample import Exemplar
from agenttop.model.vocabulary import SLOWPATH_STAGES, STAGE_TARGETS_NS, STAGES
from agenttop.text.figures import clean

#: Suffix of the files' names, as Perfetto's own tools have it.
SUFFIX: Final = ".perfetto-trace"

# Trace
_PACKET: Final = 1
# TracePacket
_CLOCKS, _TIMESTAMP, _SEQUENCE, _EVENT, _FLAGS = 6, 8, 10, 11, 13
_SYSTEM, _CLOCK_ID, _TRACK = 45, 58, 60
_CLEARED, _NEEDS = 1, 2  # SEQ_INCREMENTAL_STATE_CLEARED, SEQ_NEEDS_INCREMENTAL_STATE
# BuiltinClock
_REALTIME, _MONOTONIC = 1, 3
# TrackDescriptor
_UUID, _NAME, _PROCESS, _THREAD, _PARENT, _COUNTER, _ORDERING, _RANK = 1, 2, 3, 4, 5, 8, 11, 12
_EXPLICIT: Final = 3
# CounterDescriptor
_UNIT, _UNIT_NAME, _UNIT_TIME_NS = 3, 6, 1
# TrackEvent
_ARGUMENT, _TYPE, _ON, _CATEGORY, _CALLED, _VALUE, _DOUBLE = 4, 9, 11, 22, 23, 30, 44
_FLOW, _FLOW_END = 47, 48
_BEGIN, _END, _INSTANT, _COUNT = 1, 2, 3, 4

#: Steps of one thread, or stages on one CPU, that are drawn beside each other: what is measured
#: does not overlap, a file may say so of 50,000.
_MOST_LANES: Final = 64

Argument = str | int | bool
_IPI: Final = STAGES.index("ipi")
_SLOW: Final = [STAGES.index(stage) for stage in SLOWPATH_STAGES]


def trace(flight: Flight) -> bytes:
    """The whole file. Kept steps that overlap (none of one thread do) get tracks of their own."""
    out = _Trace()
    out.begin(flight)
    out.steps(flight)
    out.counters(flight)
    out.switches(flight)
    return out.whole()


def stages_of(step: Exemplar) -> Iterator[tuple[str, int, int]]:
    """Stage, begin and end in CLOCK_MONOTONIC ns of those that took time, in order."""
    at = step.t_ns - sum(_times(step))
    for stage, took in zip(STAGES, _times(step), strict=True):
        if took:
            yield stage, at, at + took
        at += took


def _times(step: Exemplar) -> list[int]:
    return [max(value or 0, 0) for value in step.stages_ns]


def _argument(name: str, value: Argument) -> bytes:
    body = string(10, name)
    if isinstance(value, bool):
        body += number(2, value)
    elif isinstance(value, int):
        body += number(4, value)
    else:
        body += string(6, clean(value, 200))
    return blob(_ARGUMENT, body)


@dataclass
class _Lanes:
    """Tracks of one name; each holds intervals that do not overlap (but beyond _MOST_LANES)."""

    name: str
    parent: int
    rank: int = 0
    tracks: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


class _Trace:
    """Packets so far, and the tracks that they named."""

    def __init__(self) -> None:
        # Tracks stand before all events, whenever they are first asked for.
        self._head = bytearray()
        self._events = bytearray()
        self._next = 1
        self._flows = 0
        self._groups: dict[str, int] = {}
        self._processes: dict[int, int] = {}
        #: By process and thread: a thread's number is used again.
        self._threads: dict[tuple[int, int], _Lanes] = {}
        #: By thread alone, as wakers are known: the one that made a step last.
        self._newest: dict[int, _Lanes] = {}
        self._cpus: dict[int, _Lanes] = {}
        self._wakers: dict[str, int] = {}

    def whole(self) -> bytes:
        self._head += self._events
        self._events.clear()
        return bytes(self._head)

    # ------------------------------------------------------------------ packets

    def begin(self, flight: Flight) -> None:
        """Clocks and host, in the packet that begins the sequence."""
        clocks = b"".join(
            blob(1, number(1, clock) + number(2, max(t_ns, 0)))
            for clock, t_ns in ((_MONOTONIC, flight.t_ns), (_REALTIME, int(flight.wall_s * 1e9)))
        )
        self._head += _packet(blob(_CLOCKS, clocks + number(2, _MONOTONIC)), flags=_CLEARED)
        if flight.host is not None:
            names = string(1, "Linux") + string(3, clean(flight.host.kernel, 100))
            system = blob(1, names) + number(8, flight.host.cpus)
            self._head += _packet(blob(_SYSTEM, system))

    def _track(self, body: bytes) -> int:
        uuid, self._next = self._next, self._next + 1
        self._head += _packet(blob(_TRACK, number(_UUID, uuid) + body))
        return uuid

    def _event(self, kind: int, t_ns: int, track: int, body: bytes = b"") -> None:
        event = number(_TYPE, kind) + number(_ON, track) + body
        self._events += _packet(
            number(_TIMESTAMP, max(t_ns, 0)) + number(_CLOCK_ID, _MONOTONIC) + blob(_EVENT, event)
        )

    def _slice(
        self, begin: int, end: int, track: int, name: str, category: str, rest: bytes = b""
    ) -> None:
        self._event(
            _BEGIN, begin, track, string(_CALLED, name) + string(_CATEGORY, category) + rest
        )
        self._event(_END, end, track)

    # ------------------------------------------------------------------ tracks

    def _group(self, name: str) -> int:
        if name not in self._groups:
            body = string(_NAME, name) + number(_ORDERING, _EXPLICIT)
            self._groups[name] = self._track(body)
        return self._groups[name]

    def _process(self, who: Who, pid: int) -> int:
        if pid not in self._processes:
            name = clean(who.name, 64) if pid == who.pid else f"{clean(who.name, 48)}: its process"
            body = blob(_PROCESS, number(1, pid) + string(6, name))
            self._processes[pid] = self._track(body)
        return self._processes[pid]

    def _thread(self, who: Who, step: Exemplar) -> _Lanes:
        pid = step.pid or who.pid
        lanes = self._threads.get((pid, step.tid))
        if lanes is None:
            parent = self._process(who, pid)
            name = clean(who.name, 64)
            thread = number(1, pid) + number(2, step.tid) + string(5, name)
            first = self._track(number(_PARENT, parent) + blob(_THREAD, thread))
            lanes = _Lanes(f"{name} {step.tid}", parent, 0, [first], [0])
            self._threads[pid, step.tid] = lanes
        self._newest[step.tid] = lanes
        return lanes

    def _cpu(self, cpu: int) -> _Lanes:
        if cpu not in self._cpus:
            lanes = _Lanes(f"CPU {cpu}", self._group("CPUs"), 2 * cpu)
            self._cpus[cpu] = lanes
            self._lane(lanes, 0, 0)
        return self._cpus[cpu]

    def _lane(self, lanes: _Lanes, begin: int, end: int) -> int:
        """The first of them that is free from ``begin`` on; taken until ``end`` now."""
        for i, until in enumerate(lanes.ends):
            if until <= begin:
                lanes.ends[i] = end
                return lanes.tracks[i]
        if len(lanes.tracks) >= _MOST_LANES:
            return lanes.tracks[-1]
        track = self._track(
            string(_NAME, lanes.name) + number(_PARENT, lanes.parent) + number(_RANK, lanes.rank)
        )
        lanes.tracks.append(track)
        lanes.ends.append(end)
        return track

    def _waker(self, step: Exemplar) -> int:
        """Where the waker is drawn: its own thread, the CPU that it interrupted, or by name."""
        if step.waker_tid in self._newest:
            return self._newest[step.waker_tid].tracks[0]
        if step.waker_tid is None and step.waker_cpu is not None:
            return self._cpu(step.waker_cpu).tracks[0]
        name = clean(step.waker, 64)
        if name not in self._wakers:
            body = string(_NAME, name) + number(_PARENT, self._group("Wakers"))
            self._wakers[name] = self._track(body)
        return self._wakers[name]

    # ------------------------------------------------------------------ what happened

    def steps(self, flight: Flight) -> None:
        """Steps with their stages, the CPUs' part in them, and who woke them."""
        known = [step for step in flight.steps if step.agent in flight.agents]
        known.sort(key=lambda step: (step.t_ns - sum(_times(step)), -step.t_ns))
        for step in known:
            self._thread(flight.agents[step.agent], step)
        for step in known:
            self._step(flight.agents[step.agent], step)
        self._on_cpus(flight, known)

    def _step(self, who: Who, step: Exemplar) -> None:
        times = _times(step)
        begin = step.t_ns - sum(times)
        track = self._lane(self._thread(who, step), begin, step.t_ns)
        flow = self._wake(who, step, begin + sum(times[:_IPI])) if step.waker else None
        arguments: dict[str, Argument] = {
            "agent": who.name,
            "gate": step.gate,
            "source": step.source or "unattributed",
            "waker": step.waker or "not known",
            "cpu": step.cpu,
            "step_ns": sum(times),
            "slowpath_ns": sum(times[i] for i in _SLOW),
        }
        if step.stages_ns[STAGES.index("return")] is None:
            arguments["return"] = "not measured at level lite: it stands in compute"
        self._event(
            _BEGIN, begin, track,
            string(_CALLED, f"step {clean(step.gate, 40)}") + string(_CATEGORY, "step")
            + b"".join(_argument(name, value) for name, value in arguments.items()),
        )  # fmt: skip
        for stage, since, until in stages_of(step):
            rest = b"".join(_argument(*pair) for pair in _against_target(stage, until - since))
            if flow is not None and STAGES.index(stage) >= _IPI:
                rest += fixed64(_FLOW_END, flow)
                flow = None
            category = "slowpath" if stage in SLOWPATH_STAGES else "agent"
            self._slice(since, until, track, stage, category, rest)
        self._event(_END, step.t_ns, track)

    def _wake(self, who: Who, step: Exemplar, t_ns: int) -> int:
        """The wake-up where it came from; the flow that leads away from it."""
        self._flows += 1
        name = string(_CALLED, f"wakes {clean(who.name, 40)}") + string(_CATEGORY, "wake")
        rest = _argument("waker", step.waker) + fixed64(_FLOW, self._flows)
        self._event(_INSTANT, t_ns, self._waker(step), name + rest)
        return self._flows

    def _on_cpus(self, flight: Flight, steps: Iterable[Exemplar]) -> None:
        found = []
        for step in steps:
            for stage, since, until in stages_of(step):
                cpu = _cpu_of(stage, step)
                if cpu is not None:
                    found.append((since, -until, cpu, stage, step))
        found.sort(key=lambda each: each[:3])
        for since, until, cpu, stage, step in found:
            who = clean(flight.agents[step.agent].name, 40)
            track = self._lane(self._cpu(cpu), since, -until)
            rest = _argument("tid", step.tid)
            if step.waker:
                rest += _argument("waker", step.waker)
            self._slice(since, -until, track, f"{stage}: {who}", "cpu", rest)

    def counters(self, flight: Flight) -> None:
        """A value holds from the Sample before it on, which is the time that it is of."""
        tracks: dict[object, int] = {}

        def count(key: object, body: bytes, t_ns: int, value: bytes) -> None:
            if key not in tracks:
                tracks[key] = self._track(body)
            self._event(_COUNT, t_ns, tracks[key], value)

        for tail in flight.tails:
            who = flight.agents.get(tail.agent)
            if who is None or tail.t_ns <= tail.from_ns:
                continue
            parent = number(_PARENT, self._process(who, who.pid))
            name = clean(who.name, 48)
            unit = blob(_COUNTER, string(_UNIT_NAME, "steps/s"))
            per_s = tail.steps * 1e9 / (tail.t_ns - tail.from_ns)
            count(
                (tail.agent, "steps"), string(_NAME, f"{name} steps/s") + parent + unit,
                tail.from_ns, double(_DOUBLE, per_s),
            )  # fmt: skip
            if tail.p99_ns is not None:
                unit = blob(_COUNTER, number(_UNIT, _UNIT_TIME_NS))
                count(
                    (tail.agent, "p99"), string(_NAME, f"{name} slowpath p99") + parent + unit,
                    tail.from_ns, number(_VALUE, tail.p99_ns),
                )  # fmt: skip
        for heat in flight.heat:
            body = (
                string(_NAME, f"CPU {heat.cpu} interrupts and softirqs")
                + number(_PARENT, self._group("CPUs"))
                + number(_RANK, 2 * heat.cpu + 1)
                + blob(_COUNTER, string(_UNIT_NAME, "%"))
            )
            count((heat.cpu, "heat"), body, heat.from_ns, double(_DOUBLE, 100 * heat.ratio))

    def switches(self, flight: Flight) -> None:
        """Policies, as they went on and off."""
        for switch in flight.switches:
            name = f"{clean(switch.policy, 40)} {'on' if switch.on else 'off'}"
            body = string(_CALLED, name) + string(_CATEGORY, "policy")
            self._event(_INSTANT, switch.t_ns, self._group("Policies"), body)


def _packet(body: bytes, flags: int = _NEEDS) -> bytes:
    return blob(_PACKET, number(_SEQUENCE, 1) + number(_FLAGS, flags) + body)


def _against_target(stage: str, took_ns: int) -> Iterator[tuple[str, Argument]]:
    yield "ns", took_ns
    target = STAGE_TARGETS_NS.get(stage)
    if target is not None:
        yield "target_p99_ns", target
        yield "over_target", took_ns > target


def _cpu_of(stage: str, step: Exemplar) -> int | None:
    """Where the stage ran, if it is known: not in which CPUs the thread waited or computed."""
    if stage in ("irq", "softirq"):
        return step.waker_cpu
    return step.cpu if stage in ("idle_exit", "queue", "return") else None
