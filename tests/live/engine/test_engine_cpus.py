"""CPUs that come while the engine runs: they are measured, and nothing is booked wrongly."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from agenttop.collectors.bpf import syscall
from agenttop.collectors.bpf.causes.cpu_power import Power
from agenttop.collectors.bpf.causes.loader import LoadedCauses
from agenttop.collectors.bpf.causes.observer import Causes
from agenttop.collectors.bpf.read.cpu_rows import CpuRows
from agenttop.collectors.bpf.read.tracer import Tracer
from agenttop.engine.loop import SETTLED_S, Engine
from agenttop.engine.sampler import Sampler
from agenttop.model.options import EngineOptions
from agenttop.model.sample import Command, CpuCounters, Histogram, Sample
from tests.support.engines import agent, engine, needs_bpf
from tests.support.loops import loop


@pytest.fixture
def cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree in which there is one CPU."""
    folder = tmp_path / "devices/system/cpu"
    folder.mkdir(parents=True)
    say(folder, "0")
    monkeypatch.setenv("AGENTTOP_SYS", str(tmp_path))
    return folder


def say(folder: Path, there: str) -> None:
    for name in ("online", "present"):
        (folder / name).write_text(f"{there}\n")


@pytest.mark.bpf
@pytest.mark.long
@pytest.mark.skipif(os.cpu_count() == 1, reason="needs two CPUs")
def test_steps_on_a_cpu_that_came_later_are_lost_until_its_arrays_are_there(cpus: Path) -> None:
    needs_bpf()
    options = ("--interval-us", 500, "--for", 120, "--cpu", 1, "--name", "laterloop")
    with (
        loop(*options) as one,
        engine(agent_patterns=["comm:^laterloop$"], bpf_stats=True, causes="idle") as running,
    ):
        one.go()
        running.measuring()
        lost = running.until(lambda s: s.trust.drops.get("new_cpu", 0) > 0)
        found = agent(lost, one.pid)
        assert found is not None
        assert not found.cpu_steps, "there is no row for them"
        say(cpus, "0-1")
        again = running.until(lambda s: s.host is not None and s.host.cpus == 2)
        assert [cpu.cpu for cpu in again.cpus] == [0, 1]
        assert again.trust.drops["new_cpu"] == 0, "counters start again"
        assert any("CPU 1 came online" in text for text in running.events)
        found = agent(running.until(lambda s: bool((a := agent(s, one.pid)) and a.steps)), one.pid)
        assert found is not None
        assert set(found.cpu_steps) == {"1"}
        snapshot = running.store.snapshot()
        assert snapshot is not None
        assert all(load.per_s >= 0 for cpu in snapshot.cpus for load in cpu.softirqs.values())
        running.until(lambda s: any(c.name == "idle" and c.state == "on" for c in s.causes))
        running.until(lambda s: bool(s.trust.bpf_ns))
        # Commands are obeyed as before.
        running.client.send(Command("causes", name="off"))
        running.until(lambda s: all(c.state != "on" for c in s.causes))


def test_the_programs_of_causes_are_told_which_cpus_run(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[int, bytes] = {}
    monkeypatch.setattr(syscall, "map_update", lambda fd, key, value: told.update({fd: value}))
    maps = {"cause_wanted": 1, "online_cpus": 2}
    power = cast(Power, SimpleNamespace(refresh=lambda: None))
    causes = Causes("full", maps, CpuRows(range(140)), power)
    causes._loaded = LoadedCauses({}, {})
    causes.want(())
    assert told[2] == sum(1 << cpu for cpu in causes._online).to_bytes(16, "little")
    # The first 128 are looked at.
    causes.follow_cpus(frozenset({0, 3, 64, 127, 128, 139}))
    assert told[2] == (1 | 1 << 3 | 1 << 64 | 1 << 127).to_bytes(16, "little")


class Programs:
    """Those that others take the place of."""

    def __init__(self, edges_fd: int) -> None:
        self.edges_fd = edges_fd
        self.causes = SimpleNamespace(loading=None)

    def close(self) -> None:
        pass


def exits(number: int) -> Sample:
    """So many exits from the idle state 1 since the programs were loaded."""
    one = Histogram(np.array([5], "<u2").tobytes(), np.array([number], "<u8").tobytes())
    return Sample(t_ns=1, wall_s=0.0, seq=1, full=True, cpus=[CpuCounters(0)], idle_exit={"1": one})


def wakes(engine: Engine) -> int:
    return engine._targets.current().cpus[0].exits[1].samples


def test_policies_are_told_of_idle_exits_since_the_new_programs() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        made = Engine(EngineOptions(), ours)
        made._tracer = cast(Tracer, Programs(theirs.fileno()))
        made._targets.update(exits(1000))
        assert wakes(made) == 1000
        made._detach()
        made._targets.update(exits(3))
        assert wakes(made) == 3


def test_those_that_come_one_by_one_are_measured_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now, later = [1000.0], set[int]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        made = Engine(EngineOptions(), ours)
        sampler = SimpleNamespace(look_again=lambda: None)
        made._sampler = cast(Sampler, sampler)
        monkeypatch.setattr(made, "_describe", lambda: None)

        def sample() -> list[str]:
            sampler.later_cpus = frozenset(later)
            made._look_for_cpus()
            return [event.text for event in made._events]

        for cpu in range(2, 34):
            later.add(cpu)
            for _ in range(4):
                assert sample() == []
                now[0] += 1
        now[0] += SETTLED_S - 4.5
        assert sample() == []
        now[0] += 1
        (text,) = sample()
        assert text.startswith("CPU 2, 3, 4,")
        assert ", 33 came online" in text
        now[0] += 60
        assert sample() == [text]


@pytest.mark.live
def test_without_bpf_a_cpu_that_came_later_is_seen(cpus: Path) -> None:
    with engine(bpf="off") as running:
        first = running.until(lambda s: s.host is not None)
        assert [cpu.cpu for cpu in first.cpus] == [0]
        say(cpus, "0-1")
        running.until(lambda s: [cpu.cpu for cpu in s.cpus] == [0, 1])
        assert running.store.host is not None
        assert running.store.host.cpus == 2
        assert sum("came online" in text for text in running.events) == 1
