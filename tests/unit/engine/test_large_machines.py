"""Machines of 2 to 512 CPUs, with gaps, offline CPUs and more that are possible."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.agents.rules import Rules
from agenttop.collectors.procfs.cpus import ProcfsCpus
from agenttop.collectors.procfs.interrupts import Interrupts
from agenttop.collectors.procfs.own_cpu import SelfCost
from agenttop.engine import sampler as sampling
from agenttop.engine.agent_registry import Registry
from agenttop.engine.sampler import Sampler
from tests.support.trees import Tree
from tests.support.trees.machine import Machine


@pytest.mark.parametrize("cpus", [2, 64, 256, pytest.param(512, marks=pytest.mark.long)])
def test_every_cpu_has_its_own_figures(
    cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(
        Tree(tmp_path).use(monkeypatch),
        cpus=cpus,
        offline={1},
        gaps=frozenset({0} if cpus == 2 else {9, 10}),
        possible=cpus,
        nodes=2,
        irqs=cpus,
    ).write()
    read = ProcfsCpus()
    read.read()
    machine.tick = 2
    machine.write()
    found = {cpu.cpu: cpu for cpu in read.read()}
    assert list(found) == machine.present
    for place, number in enumerate(machine.present):
        cpu = found[number]
        assert cpu.online == (number not in machine.offline)
        if cpu.online:
            assert {k: v.count for k, v in cpu.irqs.items()} == {str(24 + place): 200 + place}
            assert cpu.vectors["local_timer"].count == 2000 + number
            assert [state.entries for state in cpu.idle] == [20, 21, 22, 23]
            assert cpu.freq_khz == 2_000_000 + number


def test_very_many_cpus_are_read_every_few_seconds_and_with_each_full_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(Tree(tmp_path).use(monkeypatch), cpus=130, states=None, cpufreq=False, irqs=2).write()
    sampler = Sampler(Registry(Rules.load(patterns=["comm:^nobody$"])), SelfCost())
    now = [1000.0]
    monkeypatch.setattr(sampling.time, "monotonic", lambda: now[0])
    assert sampler.cpus_every_s == 3
    told = []
    for second in range(8):
        now[0] = 1000.0 + second
        if second == 4:
            sampler.ask_full()
        told.append(len(sampler.sample().cpus))
    assert told == [130, 0, 0, 130, 130, 0, 0, 130]


counts = st.one_of(st.integers(0, 99), st.integers(0, 10**12))


@given(st.lists(st.lists(counts, min_size=4, max_size=4), min_size=2, max_size=5))
def test_what_changed_in_interrupts_is_read_as_all_of_it(rounds: list[list[int]]) -> None:
    """Counts of more than ten digits move the columns behind them."""
    kept, fresh = Interrupts(), Interrupts()
    for row in rounds:
        fresh = Interrupts()
        columns = "".join(f" {count:10}" for count in row)
        text = (
            f"     CPU0 CPU1 CPU2 CPU3\n 24:{columns}  IR-PCI-MSIX-0000:01:00.0  0-edge  nvme0q0\n"
        )
        kept._parse(text.encode())
        fresh._parse(text.encode())
    told = {cpu: {k: a.count for k, a in one.items()} for cpu, one in kept._irqs.items()}
    for cpu, one in fresh._irqs.items():
        for line, activity in one.items():
            assert told[cpu][line] == activity.count
