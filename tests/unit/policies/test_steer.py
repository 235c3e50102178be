"""steer: which interrupt lines it moves, where, and what it says of the others."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from agenttop.model.sample import PolicyStatus
from agenttop.policies.base import Settings, Targets
from agenttop.policies.builtin.steer import Params, Steer
from agenttop.policies.manager import PolicyManager
from tests.support.knob_files import START, Trees, agent, targets, use
from tests.support.policy_rig import needs_root


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trees:
    trees = use(tmp_path, monkeypatch)
    trees.interrupts({})
    return trees


class Rig:
    """A policy, and interrupts that fire at given rates while its clock goes on."""

    def __init__(self, trees: Trees, params: Params | None = None) -> None:
        self.trees = trees
        self.steer = Steer(params)
        self.held: Settings = {}
        self.seconds = 0.0
        self.counts: dict[int, dict[int, int]] = {}
        self.steps: dict[int, int] = {}

    def run(
        self,
        rates: dict[int, dict[int, int]],
        steps: dict[int, int],
        seconds: int = 1,
        offline: tuple[int, ...] = (),
    ) -> Settings:
        """Seconds with these interrupts and steps a second; what is wanted, and held from now."""
        if not self.seconds:
            self.steps = dict(steps)
            self.trees.interrupts(self.counts)
            self.steer.wanted(self.targets(), {})
        for _ in range(seconds):
            self.seconds += 1
            for irq, by_cpu in rates.items():
                for cpu, rate in by_cpu.items():
                    counts = self.counts.setdefault(irq, {})
                    counts[cpu] = counts.get(cpu, 0) + rate
            for cpu, count in steps.items():
                self.steps[cpu] = self.steps.get(cpu, 0) + count
            self.trees.interrupts(self.counts)
            self.held = self.steer.wanted(self.targets(offline), self.held)
        return self.held

    def targets(self, offline: tuple[int, ...] = ()) -> Targets:
        found = agent(dict(self.steps))
        return targets(found, seconds=self.seconds, offline=offline)


def lines(**cpus: str) -> Settings:
    return {("irq_affinity", name.removeprefix("irq")): text for name, text in cpus.items()}


def test_only_lines_that_fire_on_agents_cpus_are_moved(trees: Trees) -> None:
    for irq in (30, 31, 32):
        trees.irq(irq, f"queue{irq}", "0-3")
    rig = Rig(trees)
    wanted = rig.run({30: {1: 100}, 31: {2: 500}, 32: {1: 2}}, {1: 1000})
    assert wanted == lines(irq30="0,2-3")
    assert "30 (queue30) -> cpu0,2-3" in rig.steer.detail()
    assert rig.steer.agents() == {1: "cpu1"}


def test_a_moved_line_stays_moved_when_it_fires_elsewhere(trees: Trees) -> None:
    trees.irq(30, "queue", "0-3")
    rig = Rig(trees)
    rig.run({30: {1: 100}}, {1: 1000})
    assert rig.run({30: {0: 100}}, {1: 1000}, seconds=10) == lines(irq30="0,2-3")


def test_it_comes_back_once_no_agent_runs(trees: Trees) -> None:
    trees.irq(30, "queue", "0-3")
    rig = Rig(trees)
    assert rig.run({30: {1: 100}}, {1: 1000})
    rig.steer.wanted(targets(seconds=rig.seconds + 20), rig.held)
    assert rig.steer.wanted(targets(seconds=rig.seconds + 21), rig.held) == {}
    assert "no agent" in rig.steer.detail()


def test_what_an_operator_allowed_and_the_node_are_respected(trees: Trees) -> None:
    trees.irq(30, "bound", "1-2")
    trees.irq(31, "near", "0-3", node=0)
    trees.irq(32, "only-there", "1")
    trees.put("sys/devices/system/node/node0/cpulist", "0-1\n")
    fires = {irq: {1: 100} for irq in (30, 31, 32)}
    assert Rig(trees).run(fires, {1: 1000}) == lines(irq30="2", irq31="0", irq32="0,2-3")


def test_lines_that_cannot_be_moved_are_named_and_left(trees: Trees) -> None:
    trees.irq(30, "nvme0q1", "1", mode=0o444)
    trees.irq(31, "eth0-rx", "0-3")
    rig = Rig(trees)
    assert rig.run({30: {1: 100}, 31: {1: 100}}, {1: 1000}) == lines(irq31="0,2-3")
    assert "1 of 2 cannot be moved: 30 (nvme0q1)" in rig.steer.detail()


def test_a_line_that_was_refused_is_not_said_to_be_moved(trees: Trees) -> None:
    trees.irq(30, "managed", "0-3")
    trees.irq(31, "queue", "0-3")
    rig = Rig(trees)
    rig.run({30: {1: 100}, 31: {1: 100}}, {1: 1000})
    del rig.held["irq_affinity", "30"]
    rig.run({30: {1: 100}, 31: {1: 100}}, {1: 1000})
    assert "31 (queue) -> cpu0,2-3" in rig.steer.detail()
    assert "managed" not in rig.steer.detail()


def test_lines_to_be_kept_are_kept(trees: Trees) -> None:
    trees.irq(30, "queue", "0-3")
    assert Rig(trees, Params(keep=(30,))).run({30: {1: 100}}, {1: 1000}) == {}


def test_where_agents_use_every_cpu_the_one_with_the_fewest_steps_serves(trees: Trees) -> None:
    trees.irq(30, "queue", "0-3")
    trees.irq(31, "there", "0-3")
    rig = Rig(trees)
    fires = {30: {0: 100}, 31: {2: 100}}
    steps = {0: 1000, 1: 900, 2: 200, 3: 900}
    assert rig.run(fires, steps) == lines(irq30="2")
    assert "agents use every CPU" in rig.steer.detail()
    # Another one that has only a little less does not take over ...
    steps = {0: 1000, 1: 900, 2: 200, 3: 150}
    assert rig.run(fires, steps, seconds=30) == lines(irq30="2")
    # ... but one with much less does.
    steps = {0: 1000, 1: 900, 2: 1000, 3: 100}
    assert rig.run(fires, steps, seconds=30)["irq_affinity", "30"] == "3"


def test_a_cpu_that_goes_offline_serves_no_longer(trees: Trees) -> None:
    trees.irq(30, "queue", "0-3")
    rig = Rig(trees)
    assert rig.run({30: {1: 100}}, {1: 1000}) == lines(irq30="0,2-3")
    assert rig.run({30: {1: 100}}, {1: 1000}, offline=(0,)) == lines(irq30="2-3")


def test_a_wish_that_is_not_in_force_yet_is_told(trees: Trees) -> None:
    trees.irq(30, "queue", "0-3")
    rig = Rig(trees)
    rig.run({30: {1: 100}}, {1: 1000})
    effective = trees.proc / "irq/30/effective_affinity_list"
    effective.chmod(0o644)
    effective.write_text("1\n")
    rig.run({30: {1: 100}}, {1: 1000})
    assert "not in force before their next interrupt: 30 (queue)" in rig.steer.detail()
    effective.write_text("2\n")
    rig.run({30: {2: 100}}, {1: 1000})
    assert "not in force" not in rig.steer.detail()


def test_irqbalance_is_named(trees: Trees) -> None:
    trees.irq(30, "queue", "0-3")
    trees.put("proc/4711/comm", "irqbalance\n")
    rig = Rig(trees)
    rig.run({30: {1: 100}}, {1: 1000})
    assert "irqbalance (pid 4711)" in rig.steer.detail()


def test_a_plan_made_at_once_knows_what_has_fired_since_the_start(trees: Trees) -> None:
    trees.irq(30, "queue", "0-3")
    steer = Steer()
    trees.interrupts({30: {1: 0}})
    steer.wanted(targets(agent({1: 10})), {})
    steer.reset()
    trees.interrupts({30: {1: 100}})
    assert steer.wanted(targets(agent({1: 10}), seconds=2), {}) == lines(irq30="0,2-3")


@pytest.mark.parametrize("text", ["", "garbage", "CPU0\n 30: x\n", " CPU0 CPU1\n30: 1\n\0"])
def test_a_strange_interrupts_file_moves_nothing(trees: Trees, text: str) -> None:
    steer = Steer()
    for second in (0, 1):
        trees.put("proc/interrupts", text)
        assert steer.wanted(targets(agent({1: 10}), seconds=second), {}) == {}


# --------------------------------------------------------------------------- with the manager


def status(manager: PolicyManager) -> PolicyStatus:
    return next(s for s in manager.status() if s.name == "steer")


@needs_root
def test_what_irqbalance_rewrites_is_shown_and_left(trees: Trees, tmp_path: Path) -> None:
    affinity = trees.irq(30, "queue", "0-3")
    manager = PolicyManager(str(tmp_path / "state"))
    begun = time.monotonic_ns()
    try:
        time.sleep(0.25)  # rates need a moment
        trees.interrupts({30: {1: 1000}})
        looked = targets(agent({1: 10}), seconds=(time.monotonic_ns() - START) / 1e9)
        assert looked.t_ns > begun
        manager.set("steer", True, looked)
        assert affinity.read_text() == "0,2-3"
        affinity.write_text("1\n")
        deadline = time.monotonic() + 10
        while status(manager).state != "drift" and time.monotonic() < deadline:
            time.sleep(0.1)
            manager.tick(looked)
        assert "IRQ 30 (queue): now 1, set by somebody else" in status(manager).detail
    finally:
        manager.close()
    assert affinity.read_text() == "1\n"


@needs_root
def test_probe_says_why_not(trees: Trees) -> None:
    assert "no interrupt line can be moved" in (Steer().probe() or "")
    trees.irq(30, "queue", "0-3")
    assert Steer().probe() is None
    trees.put("sys/devices/system/cpu/online", "0\n")
    assert "only one CPU" in (Steer().probe() or "")
