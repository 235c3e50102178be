"""Agents that end while no Sample is made, as a reader is behind: room for others, right totals."""

from __future__ import annotations

import os

import pytest

from agenttop.agents.rules import Rules
from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.read.cpu_rows import CpuRows
from agenttop.collectors.bpf.read.tracer import Edge
from agenttop.collectors.procfs.own_cpu import SelfCost
from agenttop.engine.agent_registry import MANY, MAX_ENDED, Registry
from agenttop.engine.sampler import Sampler
from agenttop.store.store import Store
from bench.madeup import SPREAD, STEPS, MadeUp
from tests.support.synth import Synth

ME = os.getpid()
#: Agents that come and go each second, for so long.
EACH, SECONDS = 50, 20


class Kernel(MadeUp):
    """Of this machine's CPUs."""

    def __init__(self) -> None:
        super().__init__(list(CpuRows.present().cpus))
        #: Steps of an agent in a second.
        self.each = STEPS // SPREAD * min(SPREAD, len(self.cpu_rows))

    def all_end(self) -> None:
        self._listed.clear()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> tuple[Registry, Sampler, Kernel]:
    """A sampler whose kernel side is made up."""
    monkeypatch.setattr("agenttop.engine.agent_registry.OPT_IN_SLOTS", layout.SLOTS)
    registry = Registry(Rules.load(patterns=["comm:^nobody is called so$"]))
    made = Sampler(registry, SelfCost())
    kernel = Kernel()
    made.attach(kernel)
    registry.scan()
    return registry, made, kernel


def _second(registry: Registry, kernel: Kernel, first: int) -> None:
    """Other agents than before have come; they step for a second, and end."""
    registry.edges([Edge("marker", ME, first + i, 0) for i in range(EACH)], lost=False)
    kernel.pass_second()
    kernel.all_end()


def test_they_leave_their_slots_and_their_steps_stay_in_the_totals(
    measured: tuple[Registry, Sampler, Kernel],
) -> None:
    registry, sampler, kernel = measured
    store = Store()
    first = sampler.sample()
    first.host = Synth()._host()
    store.feed(first)
    for second in range(SECONDS):
        _second(registry, kernel, 10_000 + second * EACH)
        for _ in range(4):  # with many agents every other look is one; one unlisted is not enough
            sampler.pass_by()
        assert len(registry.agents()) <= MAX_ENDED
        assert registry.slots_full == 0
    sample = sampler.sample()
    store.feed(sample)
    assert len(sample.agents) == MAX_ENDED
    snapshot = store.snapshot()
    assert snapshot is not None
    assert snapshot.trust.steps == EACH * SECONDS * kernel.each
    assert snapshot.trust.steps_of_others == (EACH * SECONDS - MAX_ENDED) * kernel.each


def test_what_a_sample_has_told_of_them_counts_once(
    measured: tuple[Registry, Sampler, Kernel],
) -> None:
    registry, sampler, kernel = measured
    store = Store()
    first = sampler.sample()
    first.host = Synth()._host()
    store.feed(first)
    agents = MAX_ENDED + MANY
    registry.edges([Edge("marker", ME, 10_000 + i, 0) for i in range(agents)], lost=False)
    kernel.pass_second()
    store.feed(sampler.sample())
    kernel.pass_second()
    kernel.all_end()
    for _ in range(4):
        sampler.pass_by()
    store.feed(sampler.sample())
    snapshot = store.snapshot()
    assert snapshot is not None
    assert snapshot.trust.steps == agents * 2 * kernel.each
    assert snapshot.trust.steps_of_others == MANY * kernel.each


def test_a_few_are_told_by_name(measured: tuple[Registry, Sampler, Kernel]) -> None:
    registry, sampler, kernel = measured
    _second(registry, kernel, 10_000)
    for _ in range(4):
        sampler.pass_by()
    assert len(sampler.sample().agents) == EACH
