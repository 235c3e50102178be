"""io_uring's requests on the live kernel, against loops that know what they asked for."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from agenttop.collectors.bpf.causes.uring_opcodes import OPERATIONS
from agenttop.collectors.bpf.read.tracer import Tracer
from agenttop.model.sample import DetailCounters
from agenttop.workloads import uring
from tests.live.bpf.test_causes import observe
from tests.support.loops import loop
from tests.support.tracing import LEVELS, caused, free_slot, load, measured, run_loop

pytestmark = pytest.mark.bpf

STEPS = 300


@pytest.fixture(scope="module", params=LEVELS)
def tracer(request: pytest.FixtureRequest) -> Iterator[Tracer]:
    tracer = load(request.param)
    yield tracer
    tracer.close()


class Seen:
    """A loop that was an agent, and its own figures."""

    def __init__(self, tracer: Tracer, *options: object) -> None:
        slot, self.own = run_loop(tracer, *options)
        self.found, causes, _, labels = caused(tracer, slot)
        self.steps = causes["io_uring"].steps if "io_uring" in causes else 0
        self.labels = labels.get("io_uring", [])
        assert sum(one.sum_ns for one in self.labels) <= self.found.stage_ns["wait"]

    def role(self, role: str) -> list[DetailCounters]:
        return [one for one in self.labels if one.label["role"] == role]


#: Gate, source, and the operation that it waits for.
ASKED = [
    ("io_uring", "timer", "timeout"),
    ("io_uring", "tcp", "recv"),
    ("io_uring", "ipc", "read"),
    ("io_uring", "block", "read"),
    ("io_uring", "io_worker", "read"),
    ("epoll", "block", "read"),
    ("epoll", "io_worker", "read"),
]


@pytest.mark.parametrize(("gate", "source", "operation"), ASKED)
@pytest.mark.measures
def test_the_request_that_a_gate_waited_for(
    tracer: Tracer, gate: str, source: str, operation: str
) -> None:
    observe(tracer, "io_uring")
    seen = Seen(tracer, "--gate", gate, "--source", source, "--steps", STEPS)
    assert seen.steps >= 0.95 * seen.found.steps
    label = max(seen.role("gate"), key=lambda one: one.steps)
    assert label.label["operation"] == operation
    assert label.steps >= 0.95 * seen.found.steps
    assert label.events == label.steps
    worker = label.events if source == "io_worker" else 0
    assert label.sums["worker_requests"] == worker
    # Each request completes once.
    assert sum(one.events for one in seen.labels) == pytest.approx(STEPS, abs=2)
    if gate == "io_uring":
        # One call submits and waits: by the loop's own clock, with the way in and out of it.
        own = seen.own["gate_ns"]["sum_ns"] / seen.own["gate_ns"]["count"]
        completion = sum(one.sums["completion_ns"] for one in seen.labels) / STEPS
        assert completion <= own + 2000
        if source in ("timer", "tcp", "ipc"):
            assert completion >= own * 0.9 - 2000


@pytest.mark.parametrize("gate", ["io_uring", "epoll"])
def test_a_worker_that_was_there_before_the_agent_was_known(tracer: Tracer, gate: str) -> None:
    """It is listed as a thread of the process like others, and yet waits in no gate.

    Its saved registers are those of the call in which it was started.
    """
    observe(tracer, "io_uring")
    slot = free_slot()
    tracer.clear(slot)
    with loop("--gate", gate, "--source", "io_worker", "--for", 1.5) as running:
        running.go()
        time.sleep(0.5)
        tracer.assign({running.pid: slot}, {})
        listed = {int(tid) for tid in os.listdir(f"/proc/{running.pid}/task")}
        assert len(listed) > 1
        assert {thread.tid for thread in tracer.threads() if thread.slot == slot} == {running.pid}
        running.result()
    found = measured(tracer, slot)
    assert found.steps > 100
    assert tracer.cause_counters(slot, full=True)[0]["io_uring"].steps >= 0.95 * found.steps


def test_no_io_uring_is_named_where_there_is_none(tracer: Tracer) -> None:
    observe(tracer, "io_uring")
    seen = Seen(tracer, "--gate", "epoll", "--source", "tcp", "--steps", STEPS)
    assert seen.found.steps >= 0.9 * STEPS
    assert (seen.steps, seen.labels) == (0, [])


def test_the_operations_are_the_kernels(tracer: Tracer) -> None:
    assert OPERATIONS.index("timeout") == uring.OP_TIMEOUT
    assert OPERATIONS.index("read") == uring.OP_READ
    assert OPERATIONS.index("recv") == uring.OP_RECV
    try:
        dump = subprocess.run(
            ["bpftool", "btf", "dump", "file", "/sys/kernel/btf/vmlinux", "format", "c"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no bpftool")
    body = dump.split("enum io_uring_op {")[1]
    names = [line.split()[0] for line in body.partition("}")[0].strip().splitlines()]
    known = [name.removeprefix("IORING_OP_").lower() for name in names]
    known = known[: known.index("last")]
    shorter = min(len(known), len(OPERATIONS))
    assert known[:shorter] == list(OPERATIONS[:shorter])
