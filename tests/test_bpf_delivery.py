"""Causes of the stages before compute on the live kernel: how a completion was delivered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from loops import loop
from test_bpf_causes import observe
from tracing import Measured, free_slot, load, measured

from agenttop.collectors.bpf.cpus import BpfCpus
from agenttop.collectors.bpf.tracer import Tracer
from agenttop.model import CauseCounters, DetailCounters
from agenttop.words import CAUSES, DETAILS, STAGES

pytestmark = pytest.mark.bpf

STEPS = 300


@pytest.fixture(scope="module", params=["lite", "full"])
def tracer(request: pytest.FixtureRequest) -> Iterator[Tracer]:
    tracer = load(request.param)
    cpus = BpfCpus(tracer)
    cpus.read(full=True)
    tracer.details.name_lines(cpus.irq_names())
    yield tracer
    tracer.close()


class Delivered(NamedTuple):
    """A loop that was an agent."""

    found: Measured
    causes: dict[str, CauseCounters]
    explained_ns: dict[str, int]
    labels: dict[str, list[DetailCounters]]


def delivered(tracer: Tracer, *options: object) -> Delivered:
    slot = free_slot()
    tracer.clear(slot)
    with loop(*options) as running:
        tracer.assign({running.pid: slot}, {})
        running.run()
    causes, explained = tracer.cause_counters(slot, full=True)
    labels = tracer.details.read(full=True).get(slot, {})
    found = measured(tracer, slot)
    explained_ns = dict(zip(STAGES, explained, strict=True))
    for cause in CAUSES:
        if cause.name in causes:
            # Nothing explains more time than there was.
            one = causes[cause.name]
            assert one.sum_ns <= found.stage_ns[cause.stage]
            assert one.steps <= found.steps
            if cause.name in DETAILS:
                told = labels[cause.name]
                assert sum(label.steps for label in told) == one.steps
                assert sum(label.sum_ns for label in told) == one.sum_ns
                assert sum(label.events for label in told) == one.events
    for stage, ns in explained_ns.items():
        assert ns <= found.stage_ns[stage]
    return Delivered(found, causes, explained_ns, labels)


def most(labels: list[DetailCounters]) -> DetailCounters:
    return max(labels, key=lambda one: one.steps)


def test_the_interrupt_of_a_timer_is_the_local_timer_of_the_loops_cpu(tracer: Tracer) -> None:
    observe(tracer, "interrupt")
    cpu = max(os.sched_getaffinity(0))
    seen = delivered(tracer, "--gate", "sleep", "--cpu", cpu, "--steps", STEPS)
    assert seen.causes["interrupt"].steps >= 0.95 * seen.found.steps
    label = most(seen.labels["interrupt"])
    assert label.label == {"line": None, "vector": "local_timer", "name": None, "cpu": cpu}
    assert label.steps >= 0.95 * seen.found.steps
    assert 0 < label.max_ns <= label.sum_ns
    # The timer's own lateness is in the stage too.
    assert 0 < seen.explained_ns["irq"] <= seen.found.stage_ns["irq"]


def test_the_interrupt_of_a_disk_has_the_line_that_counts_it(tracer: Tracer) -> None:
    observe(tracer, "interrupt")
    seen = delivered(tracer, "--gate", "read", "--source", "block", "--steps", STEPS)
    if seen.found.sources["block"] < 0.9 * seen.found.steps:
        pytest.skip("nothing here blocks on a disk")
    label = most(seen.labels["interrupt"])
    assert label.steps >= 0.8 * seen.found.steps
    if label.label["line"] is None:
        return  # completed on another CPU than the one that asked: an IPI
    assert isinstance(label.label["name"], str)
    lines = [line.split() for line in Path("/proc/interrupts").read_text().splitlines()]
    (count,) = [words[1:] for words in lines if words[0] == f"{label.label['line']}:"]
    assert sum(map(int, count[: os.cpu_count()])) >= label.steps


def test_no_interrupt_is_named_for_wakes_by_a_process(tracer: Tracer) -> None:
    observe(tracer, "interrupt")
    seen = delivered(tracer, "--gate", "read", "--source", "ipc", "--steps", STEPS)
    assert seen.found.steps >= 0.9 * STEPS
    steps = seen.causes["interrupt"].steps if "interrupt" in seen.causes else 0
    assert steps <= 0.05 * seen.found.steps


def test_labels_go_with_their_slot(tracer: Tracer) -> None:
    observe(tracer, "interrupt")
    slot = free_slot()
    tracer.clear(slot)
    with loop("--steps", 50) as running:
        tracer.assign({running.pid: slot}, {})
        running.run()
    assert tracer.details.read(full=False)[slot]["interrupt"]
    assert slot not in tracer.details.read(full=False)
    assert slot in tracer.details.read(full=True)
    tracer.release(slot)
    assert slot not in tracer.details.read(full=True)
