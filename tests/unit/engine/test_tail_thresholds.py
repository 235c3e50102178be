"""Which steps are kept whole: thresholds on made-up steps, then the real engine and real stalls."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenttop.engine.tail_thresholds import KEPT, KEPT_NS, Tail, kept_each
from agenttop.model.sample import Exemplar
from agenttop.model.vocabulary import SLOWPATH_STAGES, STAGES
from agenttop.stats.histogram import EDGES, bucket_of
from tests.support.engines import Engine, engine, needs_bpf
from tests.support.loops import Loop, loop

SECOND = 1_000_000_000
_SLOW = [STAGES.index(stage) for stage in SLOWPATH_STAGES]


class Kernel:
    """What chain.bpf.c's keep() does, and an engine that looks once a second."""

    def __init__(self, most: int = KEPT) -> None:
        self.tail = Tail()
        self.most = most
        self.counts = np.zeros(len(EDGES) - 1, dtype=np.uint32)
        self.slow_ns, self.keep, self.now = 0, 0, 0
        self._look()

    def second(self, steps: Sequence[int]) -> list[int]:
        """Steps of a second, by their slowpath; those that were kept."""
        kept = []
        for slow in steps:
            self.counts[bucket_of(slow)] += np.uint32(1)
            if slow <= self.slow_ns:
                continue
            if self.keep:
                self.keep -= 1
            else:
                self.slow_ns = slow
            kept.append(slow)
        self.now += SECOND
        for slow in kept:
            self.tail.keep(slow, self.now)
        self._look()
        return kept

    def _look(self) -> None:
        if self.tail.due(self.now):
            self.tail.renew(self.counts.copy(), self.now, self.most)
        self.tail.update(self.now, self.most)
        self.slow_ns, self.keep = self.tail.slow_ns, self.most


def seconds(rate: int, count: int, seed: int) -> Iterator[list[int]]:
    """Log-normal slowpaths about 20 us, as real ones are."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        yield random.lognormal(math.log(20_000), 0.7, rate).astype(np.int64).tolist()


@pytest.mark.parametrize("rate", [50, 500, pytest.param(5_000, marks=pytest.mark.long), 20_000])
def test_kept_steps_do_not_grow_with_the_step_rate(rate: int) -> None:
    kernel = Kernel()
    kept = [len(kernel.second(steps)) for steps in seconds(rate, 60, seed=rate)]
    assert max(kept) <= KEPT + 3 * math.log(rate)
    # Once the tail is known: the sixteen slowest of half a minute are renewed about once in it.
    assert sum(kept[20:]) / 40 < KEPT / 4
    assert sum(kept[20:])


def test_the_slowest_steps_are_all_kept_once_the_tail_is_known() -> None:
    kernel = Kernel()
    everything: list[int] = []
    kept: list[int] = []
    for second, steps in enumerate(seconds(2_000, 50, seed=7)):
        found = kernel.second(steps)
        if second >= 20:
            everything += steps
            kept += found
    assert set(sorted(everything)[-KEPT:]) <= set(kept)


def test_several_stalls_within_a_second_are_all_kept() -> None:
    kernel = Kernel()
    for steps in seconds(1_000, 10, seed=3):
        kernel.second(steps)
    stalls = [20_000_000, 15_000_000, 18_000_000, 3_000_000]
    steps = next(seconds(1_000, 1, seed=4))
    for place, stall in enumerate(stalls):
        steps.insert(100 + 200 * place, stall)
    assert set(stalls) <= set(kernel.second(steps))


def test_when_an_agent_has_become_faster_its_slowest_steps_are_kept_again() -> None:
    kernel = Kernel()
    for steps in seconds(1_000, 30, seed=5):
        kernel.second([100 * slow for slow in steps])
    kept = [len(kernel.second(steps)) for steps in seconds(1_000, 60, seed=6)]
    assert any(kept[:45])  # at the latest when the slow ones are half a minute old
    assert sum(kept[45:])


def test_steps_that_all_take_the_same_are_kept_too() -> None:
    kernel = Kernel()
    for _ in range(2 * KEPT_NS // SECOND):
        kernel.second([20_000, 20_001] * 500)
    assert kernel.tail.slow_ns <= 20_001


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1 << 34), max_size=120), min_size=1, max_size=12),
       st.integers(1, KEPT))  # fmt: skip
def test_the_slowest_of_a_second_is_kept_or_enough_others_were_slower(
    given_seconds: list[list[int]], most: int
) -> None:
    kernel = Kernel(most)
    for steps in given_seconds:
        threshold = kernel.slow_ns
        kept = kernel.second(steps)
        assert len(kept) <= most + len(set(steps))
        if steps and max(steps) > threshold:
            assert max(steps) in kept
        assert kernel.tail.slow_ns >= 0


def test_many_agents_share_what_is_kept() -> None:
    assert kept_each(1) == KEPT
    assert kept_each(256) * 256 <= 1024
    assert kept_each(0) == KEPT


# --------------------------------------------------------------------------- live


@pytest.fixture
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTTOP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def slow_of(exemplar: Exemplar) -> int:
    return sum(exemplar.stages_ns[i] or 0 for i in _SLOW)


def watch(running: Engine, one: Loop, seconds_: float) -> tuple[int, int, list[Exemplar]]:
    """Steps of the loop while ``seconds_`` go by, the time in ns, and its kept steps."""
    first = running.until(lambda s: any(a.pid == one.pid and a.steps for a in s.agents))
    mine = next(a for a in first.agents if a.pid == one.pid)
    kept = [e for e in first.exemplars if e.agent == mine.id]
    last = first
    while last.t_ns < first.t_ns + seconds_ * 1e9:
        last = running.until(lambda s: True)
        kept += [e for e in last.exemplars if e.agent == mine.id]
    now = next(a for a in last.agents if a.id == mine.id)
    return now.steps - mine.steps, last.t_ns - first.t_ns, kept


@pytest.mark.bpf
@pytest.mark.long
@pytest.mark.usefixtures("_own_state")
def test_live_ten_times_the_steps_are_not_more_kept_ones() -> None:
    needs_bpf()
    rates, kept = [], []
    for interval_us in (5_000, 300):
        with (
            loop("--name", "keeper", "--interval-us", interval_us, "--for", 60) as one,
            engine(agent_patterns=["comm:^keeper$"], delay_s=0.5) as running,
        ):
            running.measuring()
            one.go()
            watch(running, one, 8)  # until the tail is known
            steps, ns, found = watch(running, one, 8)
            rates.append(steps * 1e9 / ns)
            kept.append(len(found) * 1e9 / ns)
            assert running.last is not None
            assert running.last.trust.drops["slow_ring_full"] == 0
    assert rates[1] > 7 * rates[0]
    # At most `KEPT` and the records after them in each of two looks a second; in fact far fewer.
    assert kept[1] < 2 * KEPT
    assert kept[1] < max(4 * kept[0], 8)


@pytest.mark.bpf
@pytest.mark.usefixtures("_own_state")
def test_live_the_stall_of_a_known_step_is_kept_whole() -> None:
    """A hog above the loop, on the loop's own CPU, for 20 ms: that step's queue."""
    needs_bpf()
    cpu = max(os.sched_getaffinity(0))
    with (
        loop("--name", "stalled", "--interval-us", 1000, "--for", 60, "--cpu", cpu) as one,
        engine(agent_patterns=["comm:^stalled$"], delay_s=0.5) as running,
    ):
        running.measuring()
        one.go()
        watch(running, one, 3)
        stalls = [stall(cpu) for _ in range(3)]
        _, _, kept = watch(running, one, 3)
        found = sorted(kept, key=slow_of)[-3:]
        for begun, ended in stalls:
            mine = [e for e in found if begun <= e.t_ns - (e.stages_ns[-1] or 0) <= ended + SECOND]
            assert any(slow_of(e) > 10_000_000 for e in mine), (begun, ended, found)
        worst = found[-1]
        assert worst.pid == one.pid
        assert worst.cpu == cpu
        assert worst.source == "timer"
        assert worst.waker_cpu in os.sched_getaffinity(0)


def stall(cpu: int) -> tuple[int, int]:
    """Hold a CPU for 20 ms from above everything else; from when to when, CLOCK_MONOTONIC."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.sched_setaffinity(0, {cpu})
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            begun = time.monotonic_ns()
            while time.monotonic_ns() < begun + 20_000_000:
                pass
            os.write(write, b"%d %d" % (begun, time.monotonic_ns()))
        finally:
            os._exit(0)
    os.close(write)
    told = os.read(read, 64)
    os.close(read)
    os.waitpid(child, 0)
    if not told:
        pytest.skip("no SCHED_FIFO here")
    time.sleep(0.05)
    begun, ended = map(int, told.split())
    return begun, ended
