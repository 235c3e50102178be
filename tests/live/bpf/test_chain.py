"""Step chains on the live kernel against a loop that times its own steps."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenttop.collectors.bpf.read.tracer import Tracer
from tests.support.loops import until
from tests.support.tracing import VARIANTS, free_slot, load, load_variant, measured, watch_loop

pytestmark = pytest.mark.bpf

#: From the end of a wait in the kernel to the loop's reading of its clock.
USER_NS = 12_000


@pytest.fixture(scope="module", params=VARIANTS)
def tracer(request: pytest.FixtureRequest) -> Iterator[Tracer]:
    tracer = load_variant(request.param)
    yield tracer
    tracer.close()


@pytest.fixture(scope="module")
def full() -> Iterator[Tracer]:
    tracer = load("full")
    yield tracer
    tracer.close()


#: Gate and source of the loop -> gate and source that must be found.
PAIRS = {
    ("epoll", "timer"): ("epoll_wait", "timer"),
    ("epoll", "ipc"): ("epoll_wait", "ipc"),
    ("epoll", "tcp"): ("epoll_wait", "net"),
    ("epoll", "block"): ("epoll_wait", "block"),
    ("read", "timer"): ("read", "timer"),
    ("read", "ipc"): ("read", "ipc"),
    ("read", "tcp"): ("recvfrom", "net"),
    ("read", "block"): ("pread64", "block"),
    ("read", "kworker"): ("read", "kworker"),
    ("sleep", "timer"): ("clock_nanosleep", "timer"),
    ("io_uring", "timer"): ("io_uring_enter", "timer"),
    ("io_uring", "tcp"): ("io_uring_enter", "net"),
    ("io_uring", "block"): ("io_uring_enter", "block"),
    ("wait", "child"): ("wait4", "child"),
}


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_gate_and_source_are_named(tracer: Tracer, pair: tuple[str, str]) -> None:
    gate, source = PAIRS[pair]
    # A disk is often done before the loop sleeps.
    steps = 3000 if pair[1] == "block" else 300
    # A child that ends within its parent's fork() is not waited for.
    interval_us = 5000 if pair[1] == "child" else 500
    found, truth = watch_loop(
        tracer,
        "--gate",
        pair[0],
        "--source",
        pair[1],
        "--interval-us",
        interval_us,
        "--steps",
        steps,
    )
    slept = steps - truth["ready"]
    if pair[1] == "block" and slept < 30:
        pytest.skip(f"the disk was done before the loop slept, but for {slept} of {steps} reads")
    assert found.steps == pytest.approx(slept, rel=0.1, abs=10)
    assert found.steps >= 20
    assert found.sources[source] >= 0.95 * found.steps, found.sources
    assert found.gates.get(gate, 0) >= 0.95 * found.steps, found.gates
    # The stages telescope to the nanosecond, whatever was lost.
    assert sum(found.stage_ns.values()) == found.step_ns
    assert found.step_ns <= truth["wall_ns"] + 50_000_000


def test_signals_are_named() -> None:
    for level in ("lite", "full"):
        tracer = load(level)
        try:
            found, _ = watch_loop(
                tracer, "--gate", "poll", "--source", "signal", "--interval-us", 500, "--steps", 300
            )
        finally:
            tracer.close()
        assert found.sources["signal"] >= 0.95 * found.steps > 0, (level, found.sources)


def test_io_workers_are_named(full: Tracer) -> None:
    found, _ = watch_loop(
        full, "--gate", "epoll", "--source", "io_worker", "--interval-us", 500, "--steps", 300
    )
    assert found.sources["io_uring"] >= 0.95 * found.steps > 0, found.sources


@pytest.mark.parametrize("source", ["timer", "ipc", "tcp"])
@pytest.mark.measures
def test_steps_are_as_long_as_the_loop_says(tracer: Tracer, source: str) -> None:
    found, truth = watch_loop(
        tracer, "--source", source, "--interval-us", 1000, "--compute-us", 100, "--steps", 1500
    )
    step = truth["step" if tracer.level == "full" else "slept_step"]
    assert abs(found.steps - step["count"]) <= 0.02 * step["count"]
    p50, p90 = found.at("step", 0.5, 0.9)
    assert p50 == pytest.approx(step["p50_ns"], rel=0.03, abs=1000)
    assert p50 <= p90
    mean = found.step_ns / found.steps
    assert mean == pytest.approx(step["sum_ns"] / step["count"], rel=0.03)


@pytest.mark.measures
def test_full_splits_the_gate_from_compute(full: Tracer) -> None:
    found, truth = watch_loop(
        full, "--source", "ipc", "--interval-us", 1000, "--compute-us", 200, "--steps", 1000
    )
    stages, n = found.stage_ns, found.steps
    assert stages["return"] > 0
    in_gate = sum(ns for stage, ns in stages.items() if stage != "compute") / n
    gate = truth["gate_ns"]["sum_ns"] / truth["gate_ns"]["count"]
    # The loop's clock also sees the way into and out of the system call.
    assert in_gate == pytest.approx(gate, rel=0.05, abs=3000)
    compute = truth["compute"]["sum_ns"] / truth["compute"]["count"]
    assert stages["compute"] / n == pytest.approx(compute, rel=0.10, abs=3000)


def test_lite_does_not_claim_a_return(full: Tracer) -> None:
    lite = load("lite")
    try:
        found, _ = watch_loop(lite, "--source", "ipc", "--interval-us", 500, "--steps", 200)
    finally:
        lite.close()
    assert found.stage_ns["return"] == 0
    assert not found.counts["return"].any()


@pytest.mark.measures
def test_timer_slowpath_is_the_lateness_that_the_loop_sees(full: Tracer) -> None:
    found, truth = watch_loop(full, "--source", "timer", "--interval-us", 1000, "--steps", 1500)
    (p50,) = found.at("slowpath", 0.5)
    # From the programmed expiry to user space: nothing may hide in "wait". The loop reads its
    # clock only in user space again, where on a CPU that has just idled all is cold.
    late = truth["lateness"]["p50_ns"]
    assert p50 <= late * 1.06 + 1000
    assert late - p50 <= max(0.15 * late, USER_NS)


@pytest.mark.measures
def test_a_busy_cpu_shows_as_queue(tracer: Tracer) -> None:
    cpu = max(os.sched_getaffinity(0))
    spin = f"import os; os.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"
    hogs = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(2)]
    try:
        found, _ = watch_loop(
            tracer, "--source", "ipc", "--interval-us", 2000, "--compute-us", 500,
            "--steps", 400, "--cpu", cpu,
        )  # fmt: skip
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    slow = {s: found.stage_ns[s] for s in ("irq", "softirq", "ipi", "idle_exit", "queue")}
    assert max(slow, key=lambda stage: slow[stage]) == "queue", slow


#: Reads two bytes that come 1 ms apart: each call sleeps twice.
TWICE = """
import os, socket, sys, time
near, far = socket.socketpair()
if os.fork():
    far.close()
    print("ready", flush=True)
    sys.stdin.readline()
    near.send(b"g")
    for _ in range(100):
        assert len(near.recv(2, socket.MSG_WAITALL)) == 2
else:
    near.close()
    far.recv(1)
    for _ in range(200):
        time.sleep(0.001)
        far.send(b"x")
"""


@pytest.mark.measures
def test_a_gate_that_sleeps_twice_is_one_step(tracer: Tracer) -> None:
    slot = free_slot()
    tracer.clear(slot)
    command = [sys.executable, "-c", TWICE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as twice:
        assert twice.stdin is not None
        assert twice.stdout is not None
        assert twice.stdout.readline() == b"ready\n"
        tracer.assign({}, {twice.pid: slot})
        twice.stdin.write(b"go\n")
        twice.stdin.close()
        assert twice.wait(30) == 0
    found = measured(tracer, slot)
    assert 90 <= found.steps <= 102, found
    assert found.at("step", 0.5)[0] == pytest.approx(2.2e6, rel=0.4)


#: Waits for a byte, for two in one call, and for its end.
TWO_BYTES = """
import socket, sys
near = socket.socket(fileno=int(sys.argv[1]))
near.recv(1)
near.recv(2, socket.MSG_WAITALL)
sys.stdin.read()
"""
_RECVFROM = b"45 "


def sleeps(pid: int) -> int:
    """How often a thread has gone to sleep."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_lost_wake_up_is_not_taken_for_the_one_before(variant: str) -> None:
    tracer = load_variant(variant)
    slot = free_slot()
    tracer.clear(slot)
    near, far = socket.socketpair()
    command = [sys.executable, "-c", TWO_BYTES, str(near.fileno())]
    with (
        far,
        near,
        subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[near.fileno()]) as child,
    ):

        def asleep(before: int) -> int:
            """Wait until it has gone to sleep again; how often it has."""
            assert until(lambda: sleeps(child.pid) > before)
            assert until(lambda: call.read_bytes().startswith(_RECVFROM))
            return sleeps(child.pid)

        call = Path(f"/proc/{child.pid}/syscall")
        count = asleep(0)
        tracer.assign({child.pid: slot}, {})
        for byte in b"ab":
            far.send(bytes([byte]))
            count = asleep(count)
        # From now on nothing is told of wake-ups.
        link = tracer._loaded.links[list(tracer._loaded.programs).index("sched_waking")]
        os.dup2(far.fileno(), link)
        far.send(b"c")
        assert until(lambda: sleeps(child.pid) > count)
        child.communicate()
    found = measured(tracer, slot)
    tracer.close()
    assert found.gates["recvfrom"] == 1
    assert found.sources["unknown"] == found.steps
