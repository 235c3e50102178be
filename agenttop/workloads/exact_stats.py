"""Exact figures of a loop's own clock: every value kept, sorted, nearest rank."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Figures:
    """One measure, ns. Percentiles are values that occurred (nearest rank); None without any."""

    count: int
    sum_ns: int
    p50_ns: int | None
    p99_ns: int | None
    p999_ns: int | None
    max_ns: int | None


def nearest_rank(ordered: list[int], per_mille: int) -> int | None:
    """The smallest value that at least ``per_mille`` thousandths do not exceed."""
    if not ordered:
        return None
    return ordered[-(-len(ordered) * per_mille // 1000) - 1]


def figures(values: Iterable[int]) -> Figures:
    ordered = sorted(values)
    return Figures(
        count=len(ordered),
        sum_ns=sum(ordered),
        p50_ns=nearest_rank(ordered, 500),
        p99_ns=nearest_rank(ordered, 990),
        p999_ns=nearest_rank(ordered, 999),
        max_ns=ordered[-1] if ordered else None,
    )


class Record:
    """Timestamps of a run, written into memory that is there from the start.

    Per gate: ``enter`` and ``leave`` around the call, ``origin`` when the
    completion was due or sent (0: unknown). CLOCK_MONOTONIC, ns. ``slept``:
    the thread went to sleep in it, and did not find the completion waiting.
    """

    def __init__(self, capacity: int, caused: bool = False) -> None:
        """``caused``: there is a cause in each step, which is timed too."""
        zeros = bytes(8 * capacity)
        self.caused = array("q", zeros if caused else b"")
        self.enter = array("q", zeros)
        self.leave = array("q", zeros)
        self.origin = array("q", zeros)
        self.slept = bytearray(capacity)
        #: Gates that have returned.
        self.gates = 0


@dataclass(frozen=True)
class Result:
    """What ``agenttop loop`` reports."""

    pid: int
    tid: int
    gate: str
    source: str
    #: Gates that returned; the last one's step has no end.
    steps: int
    #: First gate entry to the last gate's return.
    wall_ns: int
    #: From each gate that slept to the next gate: what agenttop sees at level full.
    step: Figures
    gate_ns: Figures
    compute: Figures
    #: Gate return minus the timer's expiry or the peer's sending, of the gates
    #: that were waiting at that time; None where the source has no such time.
    lateness: Figures | None
    #: Gates that returned without sleeping: their completion had come before.
    ready: int
    #: From each gate that slept to the next that did: what agenttop sees at
    #: level lite, where a gate without a sleep is no event, and at full for
    #: gates that end a step only if they sleep (read, wait).
    slept_step: Figures
    #: The time of the cause that was made in each step, of those that had it; None where none was
    #: to be made.
    caused: Figures | None = None

    def as_json(self) -> dict[str, object]:
        return {"schema": "agenttop.loop", "version": 1, **asdict(self)}


def evaluate(record: Record, pid: int, tid: int, gate: str, source: str) -> Result:
    """The figures of a run, complete or cut short."""
    count = record.gates
    enter, leave, origin = (
        column[:count].tolist() for column in (record.enter, record.leave, record.origin)
    )
    sleeping = [entered for entered, slept in zip(enter, record.slept, strict=False) if slept]
    late = [
        left - due
        for entered, left, due in zip(enter, leave, origin, strict=True)
        if due >= entered
    ]
    return Result(
        pid=pid,
        tid=tid,
        gate=gate,
        source=source,
        steps=count,
        wall_ns=leave[-1] - enter[0] if count else 0,
        step=figures(
            after - before
            for (before, after), slept in zip(pairwise(enter), record.slept, strict=False)
            if slept
        ),
        gate_ns=figures(left - entered for entered, left in zip(enter, leave, strict=True)),
        compute=figures(after - left for left, after in zip(leave, enter[1:], strict=False)),
        lateness=figures(late) if any(origin) else None,
        ready=count - len(sleeping),
        slept_step=figures(after - before for before, after in pairwise(sleeping)),
        caused=figures(filter(None, record.caused[:count])) if record.caused else None,
    )
