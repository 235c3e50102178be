"""Causes on the live kernel, against loops that make them and time them by their own clock."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest

from agenttop.collectors.bpf import syscall
from agenttop.collectors.bpf.read.tracer import Tracer
from agenttop.model.histogram_layout import BUCKETS
from agenttop.model.sample import CauseCounters
from agenttop.model.vocabulary import STAGES
from agenttop.stats.histogram import percentiles
from agenttop.workloads.cause_makers import MAKERS
from tests.support.loops import loop, until
from tests.support.tracing import LEVELS, caused, free_slot, load, run_loop

pytestmark = pytest.mark.bpf

STEPS = 300
#: Of causes that take long.
FEWER = {"compaction": 40, "throttled": 20, "reclaim": 100}
#: Longer than they take, or the loop would find its gate ready.
INTERVAL = {
    "lock": ("--interval-us", 3000),
    # Longer than a slow disk takes: a gate that is ready begins no step.
    "major_fault": ("--interval-us", 8000),
    "page_cache_miss": ("--interval-us", 8000),
    "cold_metadata": ("--interval-us", 8000),
    "block_in_compute": ("--interval-us", 12_000),
    # Whole periods: each begins at the same moment of one and takes the same.
    "throttled": ("--interval-us", 300_000),
    "reclaim": ("--interval-us", 10_000),
    "compaction": ("--interval-us", 80_000),
}
#: Those for which the thread sleeps, and how long the loop may then take from the kernel to its
#: clock: on a CPU that has just idled all is cold, in a virtual machine for 15 us and more.
SLEEP = ("major_fault", "page_cache_miss", "cold_metadata", "block_in_compute", "lock")
COLD_NS = 25_000
#: Before they begin the kernel has all CPUs give back the pages that they hold; the loop's own
#: clock has that too.
DRAINS = ("reclaim", "compaction")


@pytest.fixture(scope="module", params=LEVELS)
def tracer(request: pytest.FixtureRequest) -> Iterator[Tracer]:
    tracer = load(request.param)
    yield tracer
    tracer.close()


def observe(tracer: Tracer, *names: str) -> None:
    tracer.causes.want(names)
    if tracer.causes.loading is not None:
        tracer.causes.finish()
    states = {state.name: state for state in tracer.causes.states(cost=False)}
    for name in names:
        if states[name].reason.startswith(("no tracepoint", "no field")):
            pytest.skip(f"this kernel has {states[name].reason}")
        assert states[name].state == "on", states[name].reason


class Watched(NamedTuple):
    """A loop that was an agent."""

    steps: int
    causes: dict[str, CauseCounters]
    explained_ns: int
    stage_ns: dict[str, int]
    #: Its own figures of the cause that it made.
    own: dict[str, int]


def watched(tracer: Tracer, *options: object) -> Watched:
    slot, own = run_loop(tracer, *options)
    found, causes, explained, _ = caused(tracer, slot)
    return Watched(found.steps, causes, explained["compute"], found.stage_ns, own["caused"] or {})


def p50(cause: CauseCounters) -> int:
    return percentile(cause, 0.5)


def percentile(cause: CauseCounters, ratio: float) -> int:
    counts = np.zeros(BUCKETS, dtype=np.uint64)
    counts[np.frombuffer(cause.histogram.buckets, "<u2")] = np.frombuffer(
        cause.histogram.counts, "<u8"
    )
    (value,) = percentiles(counts, [ratio])
    assert value is not None
    return value


def unobserved(tracer: Tracer, cause: str) -> list[int]:
    """What making the cause takes the loop itself: medians of some runs."""
    tracer.causes.want(())
    found = []
    for _ in range(2):
        with loop("--steps", STEPS, "--cause", cause) as running:
            found.append(int(running.run()["caused"]["p50_ns"]))
    return found


@pytest.mark.parametrize("cause", MAKERS)
@pytest.mark.measures
def test_a_cause_is_named_in_each_step_that_has_it(tracer: Tracer, cause: str) -> None:
    known = tracer.causes.states(cost=False)
    # Observing a fault takes as long as the fault: what it takes when nobody looks counts, before
    # and after, as the machine is not always as fast.
    alone = cause == "minor_fault"
    own = unobserved(tracer, cause) if alone else []
    observe(tracer, *(one.name for one in known if one.state != "n/a" or one.name == cause))
    steps = FEWER.get(cause, STEPS)
    found = watched(tracer, "--cause", cause, "--steps", steps, *INTERVAL.get(cause, ()))
    own += unobserved(tracer, cause) if alone else [found.own["p50_ns"]]
    assert found.steps >= 0.8 * steps  # a slow disk leaves gates ready
    named = found.causes[cause]
    # Those that were made; of the loop's first and last step not all is seen.
    assert found.own["count"] >= (0.5 if cause == "block_in_compute" else 0.8) * steps
    assert named.steps >= 0.95 * min(found.own["count"], found.steps)
    assert named.events >= named.steps
    # Nothing explains more time than there was.
    assert 0 < named.sum_ns <= found.explained_ns
    assert found.explained_ns <= found.stage_ns["compute"]
    seen_ns = COLD_NS if cause in SLEEP else 2000
    if cause not in DRAINS and not alone:
        mean, told = found.own["sum_ns"] / found.own["count"], named.sum_ns / named.steps
        assert told <= max(mean * 1.05, mean + 2000)
        assert told >= min(mean * 0.95, mean - seen_ns)
    # A histogram's bucket is 6 % wide.
    high = max(max(own) * (1 + 0.05 + 0.03), max(own) + 2000)
    low = min(min(own) * (0.5 if cause in DRAINS else 1 - 0.05 - 0.03), min(own) - seen_ns)
    if cause == "compaction":
        # Few, and now long, now short: the middle of the one is about the middle of the other.
        assert percentile(named, 0.35) <= high
        assert percentile(named, 0.65) >= low
    else:
        assert low <= p50(named) <= high


@pytest.mark.parametrize("cause", MAKERS)
def test_a_cause_is_not_named_where_there_is_none(tracer: Tracer, cause: str) -> None:
    observe(tracer, cause)
    found = watched(tracer, "--compute-us", 20, "--steps", STEPS)
    assert found.steps >= 0.95 * STEPS
    # The interpreter has a few of its own.
    assert cause not in found.causes or found.causes[cause].steps <= 0.05 * found.steps


def test_file_metadata_in_memory_is_not_cold(tracer: Tracer) -> None:
    observe(tracer, "file_metadata", "cold_metadata")
    found = watched(tracer, "--cause", "file_metadata", "--steps", STEPS)
    assert found.causes["file_metadata"].steps >= 0.95 * found.steps
    cold = found.causes.get("cold_metadata")
    assert cold is None or cold.steps <= 0.05 * found.steps


@pytest.mark.measures
def test_cold_calls_are_calls_too(tracer: Tracer) -> None:
    observe(tracer, "file_metadata", "cold_metadata")
    found = watched(tracer, "--cause", "cold_metadata", "--steps", STEPS, "--interval-us", 3000)
    cold, calls = found.causes["cold_metadata"], found.causes["file_metadata"]
    assert 0 < cold.events <= calls.events
    assert 0 < cold.sum_ns <= calls.sum_ns == found.explained_ns


def test_causes_cost_nothing_while_they_are_off(tracer: Tracer) -> None:
    observe(tracer)
    found = watched(tracer, "--cause", "minor_fault", "--steps", 50)
    assert (found.causes, found.explained_ns) == ({}, 0)


def test_skipped_runs_of_causes_programs_are_counted_too(
    tracer: Tracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    observe(tracer, "minor_fault")
    assert tracer.causes._loaded is not None
    monkeypatch.setattr(syscall, "program_info", lambda fd: (0, 0, 1))
    programs = len(tracer._loaded.programs), len(tracer.causes._loaded.programs)
    assert tracer.recursion_misses() == sum(programs)


def test_a_cpu_that_goes_offline_does_not_take_page_faults_with_it(
    tracer: Tracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach, (gone, *rest) = syscall.attach_software_event, sorted(os.sched_getaffinity(0))
    if not rest:
        pytest.skip("needs two CPUs")

    def offline(program: int, event: int, cpu: int) -> int:
        if cpu == gone:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return attach(program, event, cpu)

    observe(tracer)
    monkeypatch.setattr(syscall, "attach_software_event", offline)
    observe(tracer, "minor_fault")
    found = watched(tracer, "--cause", "minor_fault", "--steps", 50, "--cpu", rest[0])
    # On a busy machine some gates are ready at once, and have no step.
    assert found.steps >= 25
    assert found.causes["minor_fault"].steps >= 0.95 * found.steps
    monkeypatch.undo()
    observe(tracer)


def test_a_slot_starts_with_no_causes(tracer: Tracer) -> None:
    observe(tracer, "minor_fault")
    slot = free_slot()
    tracer.clear(slot)
    with loop("--steps", 50, "--cause", "minor_fault") as running:
        tracer.assign({running.pid: slot}, {})
        running.run()
    assert tracer.cause_counters(slot, full=True)[0]["minor_fault"].steps > 0
    tracer.clear(slot)
    assert tracer.cause_counters(slot, full=True) == ({}, [0] * len(STAGES))


def test_nothing_of_causes_stays_in_the_kernel() -> None:
    tracer = load("lite")
    before = len(os.listdir("/proc/self/fd"))
    observe(tracer, "minor_fault")
    assert len(os.listdir("/proc/self/fd")) > before
    tracer.causes.close()
    assert until(lambda: len(os.listdir("/proc/self/fd")) == before)
    tracer.close()


def test_without_task_storage_causes_say_why_they_are_not_there() -> None:
    tracer = load("full", raw=True)
    try:
        tracer.causes.want(["minor_fault"])
        assert tracer.causes.loading is None
        for state in tracer.causes.states(cost=False):
            assert (state.state, "task-local storage" in state.reason) == ("n/a", True)
    finally:
        tracer.close()
