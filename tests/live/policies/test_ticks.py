"""What policies do at each tick: in slices, however much they hold, and nothing read twice."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from agenttop.collectors.procfs import interrupts
from agenttop.collectors.procfs.interrupts import Interrupts
from agenttop.policies.base import Change, Cpu, Targets
from agenttop.policies.builtin import steer
from agenttop.policies.builtin.floor import StaticFloor
from agenttop.policies.knobs import KNOBS
from agenttop.policies.knobs.cpufreq import CPUFREQ
from agenttop.policies.manager import DRIFT_NS, PolicyManager
from agenttop.policies.parts import performance_floor
from agenttop.policies.parts.performance_floor import Domain
from tests.support.knob_files import Trees, agent, use

#: What reading one knob takes, s: as much as on a machine that is very busy.
READ_S = 0.002
LIMIT_S = 0.02
HELD = 4000


class Lease:
    """A lease that is only renewed."""

    guardian = 1

    def __init__(self) -> None:
        self.figures: dict[str, object] = {}
        self.undone: list[tuple[str, str]] = []

    def poll(self) -> list[object]:
        return []

    def beat(self) -> None:
        pass

    def end_record(self) -> None:
        pass

    def undo(self, keys: list[tuple[str, str]]) -> list[object]:
        self.undone += keys
        return []


def test_what_is_held_is_checked_for_drift_in_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(tmp_path, monkeypatch)
    manager = PolicyManager(str(tmp_path / "state"))
    manager._lease = lease = Lease()  # type: ignore[assignment]
    entry = manager._entries["guard"]
    for cpu in range(HELD):
        entry.hold(Change("guard", "pm_qos", f"cpu{cpu}", "0", "5"))
    now = [1000.0]
    read: list[str] = []

    def drift(target: str, written: str, thorough: bool = True) -> str | None:
        now[0] += READ_S
        read.append(target)
        return "7" if target == f"cpu{HELD - 1}" else None

    monkeypatch.setattr(KNOBS["pm_qos"], "drift", drift)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "monotonic_ns", lambda: int(now[0] * 1e9))
    manager._checked_ns = manager._planned_ns = int(now[0] * 1e9)
    now[0] += DRIFT_NS / 1e9
    told, ticks = [], 0
    while not told:
        before = now[0]
        told = manager.tick(Targets(int(now[0] * 1e9)))
        assert now[0] - before <= LIMIT_S
        now[0] += 0.25
        ticks += 1
        assert ticks < HELD
    assert ticks > 1
    assert sorted(read) == sorted(f"cpu{cpu}" for cpu in range(HELD))
    assert f"cpu{HELD - 1}" in told[0].text
    assert "now 7" in told[0].text
    assert lease.undone == [("pm_qos", f"cpu{HELD - 1}")]


@pytest.mark.skipif(os.geteuid() != 0, reason="policies need root")
def test_frequency_domains_are_read_when_a_cpu_comes_or_goes_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = machine(tmp_path, monkeypatch, cpus=64)
    floor, read = StaticFloor(), []
    known = performance_floor._domain

    def domain(name: str) -> Domain | None:
        read.append(name)
        return known(name)

    monkeypatch.setattr(performance_floor, "_domain", domain)
    monkeypatch.setattr(CPUFREQ, "read", lambda target: read.append(target) or "1")
    held = floor.wanted(looked(64), {})
    assert len(held) == 64
    assert len(read) == 3 * 64
    read.clear()
    assert floor.wanted(looked(64), held) == held
    assert read == []
    trees.put("sys/devices/system/cpu/online", "0-62\n")
    floor.wanted(looked(63), held)
    assert len(read) == 64


def machine(root: Path, monkeypatch: pytest.MonkeyPatch, cpus: int) -> Trees:
    trees = use(root, monkeypatch, cpus)
    for cpu in range(cpus):
        base = f"sys/devices/system/cpu/cpufreq/policy{cpu}"
        trees.put(f"{base}/scaling_min_freq", "800000\n")
        trees.put(f"{base}/cpuinfo_max_freq", "3600000\n")
        trees.put(f"{base}/affected_cpus", f"{cpu}\n")
        trees.put(f"{base}/energy_performance_preference", "1\n")
        trees.put(f"{base}/energy_performance_available_preferences", "balance_performance\n")
    return trees


def looked(cpus: int) -> Targets:
    """An agent on each CPU of its own."""
    agents = tuple(agent({cpu: 100}, cpu + 1) for cpu in range(cpus))
    return Targets(time.monotonic_ns(), agents, tuple(Cpu(cpu) for cpu in range(cpus)))


def test_interrupts_are_read_as_often_as_reading_them_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = use(tmp_path, monkeypatch)
    now, second = [0], 1_000_000_000

    class Slow(Interrupts):
        def read(self) -> Any:
            now[0] += second // 10
            return super().read()

    monkeypatch.setattr(interrupts, "Interrupts", Slow)
    monkeypatch.setattr(time, "thread_time_ns", lambda: now[0])
    trees.interrupts({24: {0: 100}})
    rates = steer.LineRates(0)
    read = []
    for t in range(1, 13):
        trees.interrupts({24: {0: 100 + 10 * t}})
        before = now[0]
        told = rates.update(t * second)
        if now[0] > before:
            read.append(t)
            assert told == {24: {0: pytest.approx(10)}}
    # A reading of 0.1 s at one part in 20.
    assert read == [2, 4, 6, 8, 10, 12]
