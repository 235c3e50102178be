"""Which gate can wait for which source, and the three calls of a step made of both.

epoll, sleep, io_uring and poll are loop gates, read and wait are gates that
end a step only if they slept (agenttop.model.vocabulary).
"""

from __future__ import annotations

import select
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agenttop.errors import UserError
from agenttop.workloads import uring
from agenttop.workloads.blockfile import BlockFile
from agenttop.workloads.sources import (
    Block,
    Child,
    Deadline,
    Peer,
    PeerPlan,
    Ring,
    Source,
    Timer,
    Worker,
    check,
)

#: Gate -> the sources that it can wait for.
TABLE: Final = {
    "epoll": ("timer", "ipc", "tcp", "block", "child", "kworker", "io_worker"),
    "read": ("timer", "ipc", "tcp", "block", "kworker"),
    "sleep": ("timer",),
    "io_uring": ("timer", "ipc", "tcp", "block", "kworker", "io_worker"),
    "wait": ("child",),
    "poll": ("signal",),
}
SOURCES: Final = tuple(dict.fromkeys(source for sources in TABLE.values() for source in sources))

#: Sources that come at an interval; the others last as long as they last.
PACED: Final = ("timer", "ipc", "tcp", "kworker", "signal")

FILE_SIZE: Final = 64 << 20


@dataclass(frozen=True)
class Plan:
    """What a loop waits for."""

    gate: str
    source: str
    interval_ns: int = 1_000_000
    peer_cpu: int | None = None
    slack_ns: int = 1
    file: str | None = None
    file_size: int = FILE_SIZE


@dataclass(frozen=True)
class Step:
    """The calls of a step, in order: ``arm``, ``wait`` (the gate alone), ``finish``.

    ``finish`` takes what came and gives the time at which it was due or sent,
    0 where that is unknown.
    """

    source: Source
    arm: Callable[[], None]
    wait: Callable[[], object]
    finish: Callable[[], int]
    close: Callable[[], None]


def validate(plan: Plan) -> None:
    """Raises UserError for a pair that cannot be, naming those that can."""
    if plan.gate not in TABLE:
        raise UserError(f"no gate '{plan.gate}': there are {', '.join(TABLE)}")
    if plan.source not in TABLE[plan.gate]:
        waits = "; ".join(f"{gate}: {', '.join(sources)}" for gate, sources in TABLE.items())
        raise UserError(f"gate {plan.gate} cannot wait for source {plan.source}. Possible: {waits}")
    if plan.source == "timer" and plan.interval_ns <= 0:
        raise UserError("--source timer needs --interval-us of at least 1")


def build(plan: Plan) -> Step:
    """Open what the pair needs (the peer process starts here). Raises UserError."""
    validate(plan)
    if plan.gate == "epoll":
        return _epoll(plan)
    if plan.gate == "io_uring":
        return _io_uring(plan)
    source = _source(plan)
    return Step(source, source.arm, source.take, source.origin, source.close)


def _source(plan: Plan) -> Source:
    if plan.source == "timer":
        if plan.gate in ("sleep", "io_uring"):
            return Deadline(plan.interval_ns)
        return Timer(plan.interval_ns)
    if plan.source == "block":
        return Block(BlockFile(plan.file, plan.file_size))
    if plan.source == "io_worker":
        return Worker(BlockFile(plan.file, plan.file_size, direct=False))
    if plan.source == "child":
        return Child(None)
    return Peer(plan.source, PeerPlan(plan.interval_ns, plan.peer_cpu, plan.slack_ns))


def _epoll(plan: Plan) -> Step:
    poller = select.epoll()
    source: Source
    if plan.source == "child":
        source = Child(poller)
    else:
        source = _source(plan)
        if isinstance(source, Block):
            source = Ring(source)
        assert source.fd is not None
        poller.register(source.fd, select.EPOLLIN)

    def finish() -> int:
        source.take()
        return source.origin()

    def close() -> None:
        poller.close()
        source.close()

    return Step(source, source.arm, poller.poll, finish, close)


def _io_uring(plan: Plan) -> Step:
    ring = uring.Uring()
    source = _source(plan)

    def arm() -> None:
        source.arm()
        request = source.request()
        assert request is not None
        ring.queue(*request)

    def finish() -> int:
        check(ring.reap())
        return source.origin()

    def close() -> None:
        ring.close()
        source.close()

    return Step(source, arm, ring.wait, finish, close)
