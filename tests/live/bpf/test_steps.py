"""Step markers on the live kernel, against programs that know what they marked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.read.step_names import Named
from agenttop.collectors.bpf.read.tracer import Tracer
from agenttop.model.histogram_layout import BUCKETS
from agenttop.model.vocabulary import STEP_MEASURES
from agenttop.stats.histogram import percentiles
from agenttop.step import CLASSES
from tests.support.tracing import VARIANTS, free_slot, load_variant, measured

pytestmark = pytest.mark.bpf

PACKAGE = Path(layout.__file__).parents[2]


@pytest.fixture(scope="module", params=VARIANTS)
def tracer(request: pytest.FixtureRequest) -> Iterator[Tracer]:
    tracer = load_variant(request.param)
    yield tracer
    tracer.close()


def switches_lost(tracer: Tracer) -> int:
    return tracer.losses(tracer.cpus())["switch_in"]


def watch(tracer: Tracer, slot: int, text: str) -> Any:
    """Run a program as an agent from its ``input()`` on; what it prints as JSON at its end."""
    start = (
        "import json, os, time\nfrom agenttop.step import *\nprint('ready', flush=True); input()\n"
    )
    return watch_command(tracer, slot, [sys.executable, "-c", start + text])


def watch_command(tracer: Tracer, slot: int, command: list[str]) -> Any:
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        tracer.assign({child.pid: slot}, {})
        out, error = child.communicate("\n", timeout=60)
        assert child.returncode == 0, error
        return json.loads(out) if out else None
    finally:
        child.kill()
        child.wait()


def by_name(tracer: Tracer, slot: int) -> dict[str, Named]:
    return {one.name.decode(): one for one in tracer.steps.named(slot, full=True)}


def at(named: Named, measure: str, ratio: float) -> int:
    counts = np.zeros(BUCKETS, dtype=np.uint64)
    histogram = named.histograms[measure]
    counts[np.frombuffer(histogram.buckets, dtype="<u2")] = np.frombuffer(
        histogram.counts, dtype="<u8"
    )
    assert int(counts.sum()) == named.steps
    return percentiles(counts, [ratio])[0] or 0


@pytest.mark.measures
def test_steps_are_told_apart_by_name(tracer: Tracer, slot: int) -> None:
    watch(
        tracer,
        slot,
        "for i in range(200):\n"
        "    with step('retrieve'): time.sleep(0.001)\n"
        "    with step('tool:git'): time.sleep(0.004)\n"
        "    if i % 2: time.sleep(0.0005)\n",
    )
    named = by_name(tracer, slot)
    assert set(named) == {"retrieve", "tool:git"}
    for one in named.values():
        assert one.steps == pytest.approx(200, abs=2)
        assert set(one.histograms) == set(STEP_MEASURES)
        assert at(one, "slowpath", 0.5) < at(one, "step", 0.5)
    assert 1.0e6 < at(named["retrieve"], "step", 0.5) < 2.0e6
    assert 4.0e6 < at(named["tool:git"], "step", 0.5) < 5.0e6
    everything = measured(tracer, slot)
    assert everything.steps >= 495
    # The unnamed ones are in neither.
    assert sum(one.steps for one in named.values()) <= everything.steps - 95
    assert tracer.steps.marks(slot).contexts == 400


def test_missed_deadlines_are_counted_exactly(tracer: Tracer, slot: int) -> None:
    truth = watch(
        tracer,
        slot,
        "import random\nrandom.seed(7)\nmet, missed, unsure = [0] * 4, [0] * 4, [0] * 4\n"
        "for _ in range(400):\n"
        "    latency = random.randrange(4)\n"
        "    deadline = time.monotonic_ns() + random.choice([50_000, 300_000, 2_000_000])\n"
        "    with step('x', latency=CLASSES[latency], deadline_ns=deadline):\n"
        "        wait = random.choice([0, 150_000, 800_000])\n"
        "        while time.monotonic_ns() < deadline - 40_000 - wait: pass\n"
        "        if wait == 0: time.sleep(0.0002)\n"
        "        before = time.monotonic_ns()\n"
        "    after = time.monotonic_ns()\n"
        "    if before > deadline: missed[latency] += 1\n"
        "    elif after < deadline: met[latency] += 1\n"
        "    else: unsure[latency] += 1\n"
        "print(json.dumps([met, missed, unsure]))",
    )
    marks = tracer.steps.marks(slot)
    for latency, (met, missed, unsure) in enumerate(zip(*truth, strict=True)):
        assert met
        assert missed
        assert met <= marks.met[latency] <= met + unsure
        assert marks.met[latency] + marks.missed[latency] == met + missed + unsure
    # The machine may take the CPU away between two looks at the clock.
    assert sum(truth[2]) <= 8
    assert marks.contexts == 400


def test_a_context_that_nobody_ends_is_judged_at_the_threads_end(tracer: Tracer, slot: int) -> None:
    watch(
        tracer,
        slot,
        "import threading\n"
        "def late(): step(latency='batch', within_ns=1_000).__enter__(); time.sleep(0.001)\n"
        "def early(): step(latency='normal', within_ns=60 * 10**9).__enter__()\n"
        "for one in (late, late, early):\n"
        "    t = threading.Thread(target=one); t.start(); t.join()\n",
    )
    marks = tracer.steps.marks(slot)
    assert dict(zip(CLASSES, marks.missed, strict=True))["batch"] == 2
    assert dict(zip(CLASSES, marks.met, strict=True))["normal"] == 1
    assert sum(marks.missed) + sum(marks.met) == 3


@pytest.mark.measures
def test_a_budget_counts_time_on_the_cpu_only(tracer: Tracer, slot: int) -> None:
    lost = switches_lost(tracer)
    watch(
        tracer,
        slot,
        "def burn(ns):\n"
        "    end = time.thread_time_ns() + ns\n"
        "    while time.thread_time_ns() < end: pass\n"
        "for _ in range(20):\n"
        "    with step('over', latency='interactive', budget_ns=1_000_000): burn(1_500_000)\n"
        "    with step('slept', latency='normal', budget_ns=5_000_000): time.sleep(0.008)\n"
        # Nested: 2 ms of its own around somebody else's 3.
        "    with step('outer', latency='batch', budget_ns=4_000_000):\n"
        "        burn(1_000_000)\n"
        "        with step('inner'): burn(3_000_000)\n"
        "        burn(1_000_000)\n",
    )
    marks = tracer.steps.marks(slot)
    overrun = dict(zip(CLASSES, marks.overrun, strict=True))
    # Where a switch-in is not seen, the time that follows it is not known.
    lost = switches_lost(tracer) - lost
    assert 20 - lost <= overrun["interactive"] <= 20
    assert lost < 10
    assert overrun["normal"] == 0
    # Interrupts and hypervisor pauses count as time on the CPU: now and then 2 ms are 4.
    assert overrun["batch"] <= 4
    assert overrun["none"] == 0


def test_names_beyond_the_limit_are_counted_together(tracer: Tracer, slot: int) -> None:
    watch(
        tracer,
        slot,
        "for i in range(40):\n    with step(f'name {i}'): time.sleep(0.0005)\n"
        "for i in range(40):\n    with step(f'name {i}'): time.sleep(0.0005)\n",
    )
    named = by_name(tracer, slot)
    assert set(named) == {f"name {i}" for i in range(layout.NAMES_EACH)} | {""}
    marks = tracer.steps.marks(slot)
    assert marks.names == layout.NAMES_EACH
    assert marks.crowded == 2 * (40 - layout.NAMES_EACH)
    assert named[""].steps == pytest.approx(marks.crowded, abs=2)
    tracer.clear(slot)
    assert tracer.steps.named(slot, full=True) == []
    assert tracer.steps.marks(slot).crowded == 0


def test_a_name_is_read_each_time_and_belongs_to_the_agent_of_the_time(
    tracer: Tracer, slot: int
) -> None:
    """One buffer for names that change, in a thread that comes to another agent."""
    other = free_slot()
    tracer.clear(other)
    text = (
        "import ctypes\n"
        "from agenttop.step import _Context, mark\n"
        "print('ready', flush=True); input()\n"
        "told = _Context(48, 0, b'')\n"
        "def go():\n"
        "    for i in range(30):\n"
        "        told.name = [b'a', b'b', b'ab'][i % 3]\n"
        "        mark(1, context=ctypes.addressof(told)); time.sleep(0.0005)\n"
        "    mark(0)\n"
        "import time; go(); print('again', flush=True); input(); go(); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            for word, place in (("ready", slot), ("again", other)):
                assert child.stdout.readline() == f"{word}\n"
                tracer.assign({child.pid: place}, {})
                child.stdin.write("\n")
                child.stdin.flush()
            child.communicate("\n", timeout=60)
        finally:
            child.kill()
    for place in (slot, other):
        steps = {name: one.steps for name, one in by_name(tracer, place).items()}
        assert steps == {name: pytest.approx(10, abs=1) for name in ("a", "b", "ab")}


def test_lanes_are_given_back(tracer: Tracer) -> None:
    """Far more names than there are lanes, one agent after the other."""
    for _ in range(3 * layout.LANES // layout.NAMES_EACH // 8):
        slot = free_slot()
        tracer.clear(slot)
        watch(tracer, slot, "for i in range(16):\n    with step(f'{os.getpid()} {i}'): pass\n")
        assert tracer.steps.marks(slot).crowded == 0
        assert len(tracer.steps.named(slot, full=True)) == 16
        tracer.release(slot)


def test_a_user_leaves_lanes_to_others(tracer: Tracer) -> None:
    names = f"for i in range({layout.NAMES_EACH}):\n    with step(f'name {{i}}'): pass\n"
    crowd = [free_slot() for _ in range(10)]
    hers, named = free_slot(), free_slot()
    try:
        for slot in crowd:
            tracer.clear(slot, share=1)
            watch(tracer, slot, names)
        taken = sum(tracer.steps.marks(slot).names for slot in crowd)
        assert layout.LANES_BY_RULE // 3 < taken <= layout.LANES_BY_RULE // 2
        for slot, share in ((hers, 2), (named, 0)):
            tracer.clear(slot, share=share)
            watch(tracer, slot, names)
            assert tracer.steps.marks(slot).names == layout.NAMES_EACH
            assert tracer.steps.marks(slot).crowded == 0
        # Returned, they can be had again.
        for slot in (hers, named):
            tracer.clear(slot)
        tracer.clear(crowd[0], share=1)
        watch(tracer, crowd[0], names)
        assert tracer.steps.marks(crowd[0]).names == layout.NAMES_EACH
    finally:
        for slot in (*crowd, hers, named):
            tracer.clear(slot)


@pytest.mark.measures
def test_a_coroutines_step_survives_the_others(tracer: Tracer, slot: int) -> None:
    truth = watch(
        tracer,
        slot,
        "import asyncio\n"
        "@step('quick', latency='interactive', within_ns=400_000_000)\n"
        "async def quick():\n"
        "    for _ in range(40): await asyncio.sleep(0.003)\n"
        "@step('slow', latency='normal', within_ns=30_000_000)\n"
        "async def slow():\n"
        "    for _ in range(20): await asyncio.sleep(0.007)\n"
        "async def unnamed():\n"
        "    for _ in range(10): await asyncio.sleep(0.011)\n"
        "async def main():\n"
        "    await asyncio.gather(quick(), slow(), unnamed())\n"
        "asyncio.run(main())\n"
        "print(json.dumps(time.monotonic_ns()))",
    )
    assert truth
    marks = tracer.steps.marks(slot)
    # Judged once each, at their ends and not at their awaits.
    assert dict(zip(CLASSES, marks.met, strict=True))["interactive"] == 1
    assert dict(zip(CLASSES, marks.missed, strict=True))["normal"] == 1
    assert sum(marks.met) + sum(marks.missed) == 2
    assert marks.contexts == 2
    named = by_name(tracer, slot)
    assert set(named) == {"quick", "slow"}
    # Timers that expire together (the loop's waits are whole milliseconds) wake it once.
    assert 20 <= named["quick"].steps <= 40
    assert 5 <= named["slow"].steps <= 20
    assert measured(tracer, slot).steps >= named["quick"].steps + named["slow"].steps + 2


C_PROGRAM = r"""
#include <stdio.h>
#include <time.h>
#include "agenttop_step.h"

int main(void)
{
	static const struct agenttop_step_context named = AGENTTOP_STEP_CONTEXT("from C");
	struct timespec ms = { 0, 1000000 };

	puts("ready");
	fflush(stdout);
	getchar();
	for (int i = 1; i <= 50; i++) {
		agenttop_step(i, AGENTTOP_CLASS_BATCH, i % 2 ? 1 : ~0ULL >> 1, &named);
		nanosleep(&ms, NULL);
	}
	agenttop_step_end();
	printf("[%zu, %zu, %d, %d, %d]", sizeof(named), sizeof(named.name), AGENTTOP_STEP,
		AGENTTOP_STEP_PAUSE, AGENTTOP_STEP_RESUME);
	return 0;
}
"""


def test_the_c_header_says_the_same(tracer: Tracer, slot: int, tmp_path: Path) -> None:
    from agenttop import step

    source = tmp_path / "marks.c"
    source.write_text(C_PROGRAM)
    command = ["cc", "-Wall", "-Wextra", "-Werror", "-I", str(PACKAGE), str(source)]
    subprocess.run([*command, "-o", str(tmp_path / "marks")], check=True)
    sizes = watch_command(tracer, slot, [str(tmp_path / "marks")])
    assert sizes == [step.CONTEXT_BYTES, step.NAME_BYTES, step.MARKER, step.PAUSE, step.RESUME]
    assert by_name(tracer, slot)["from C"].steps == pytest.approx(50, abs=1)
    marks = tracer.steps.marks(slot)
    assert marks.missed == [0, 0, 0, 25]
    assert marks.met == [0, 0, 0, 25]
