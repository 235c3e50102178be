"""Large machines, as fixture trees of /proc and /sys: what the engine and the screen take.

Each case runs in a process of its own. What a Sample takes is the CPU time of
making and encoding it (and of what policies are told), at one a second: the
mean of as many Samples as it takes to read each CPU once. Memory is the
engine's own; what it reads of the kernel's maps is a figure of its own.
Fixtures are plain files: what the kernel takes to format its own is left out,
and the kernel side is made up (bench/madeup.py).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from agenttop.collectors.bpf.layout import SLOTS
from bench.report import Report

ROOT = Path(__file__).resolve().parents[1]
CPUS = (2, 64, 256, 512)
NOTE = "fixture: without what the kernel takes to format its files"
#: CPUs, agents, processes, with the kernel side made up.
CASES: dict[str, tuple[int, int, int, bool]] = {
    **{f"{n} CPUs, 100 agents": (n, 100, 300, True) for n in CPUS},
    **{f"{n} CPUs, no BPF, 100 agents": (n, 100, 300, False) for n in CPUS},
    "2 CPUs, 1,000 agents": (2, 1000, 3000, True),
    "2 CPUs, 40,000 processes": (2, 100, 40_000, True),
    "2 CPUs, no BPF, 40,000 processes": (2, 100, 40_000, False),
}
#: The goal: of one core, MB.
GOAL, GOAL_CPU, GOAL_MB = "512 CPUs, 100 agents", 3.0, 120.0
#: A slice of a scan takes no longer, ms.
SLICE_MS = 20.0
WARM = 1
ROUNDS = 3
#: Agents that there is room for at least, all of one user.
FEWEST = 100
#: Samples in a round.
LEAST = 8


def run(report: Report, rounds: int) -> None:
    """Each case, with its goal where it has one."""
    for name in CASES:
        told = _child("engine", name, rounds)
        goal = name == GOAL
        report.add(f"{name}: engine CPU", "% core", told["cpu"], GOAL_CPU if goal else None)
        report.add(f"{name}: engine PSS without maps", "MB", told["pss"], GOAL_MB if goal else None)
        report.add(f"{name}: kernel maps in use", "MB", told["maps"], note="made up")
        report.add(f"{name}: sample", "kB", told["sample"])
        report.add(f"{name}: longest sample", "ms", told["most"])
        report.add(f"{name}: first scan", "ms CPU", told["scan"])
        report.add(f"{name}: longest slice of a scan", "ms", told["slice"], SLICE_MS)
    # Of more agents than there are slots the others are only counted.
    for cpus, agents in (*((n, 100) for n in CPUS), (2, SLOTS - 1)):
        told = _child("screen", f"{cpus} {agents}", rounds)
        for size in ("200x50", "80x24"):
            report.add(f"{cpus} CPUs, {agents} agents: frame, {size}", "ms", told[size])
    print(f"  ({NOTE})")


def _child(kind: str, name: str, rounds: int) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "AGENTTOP_PROC": f"{folder}/proc",
            "AGENTTOP_SYS": f"{folder}/sys",
        }
        command = [sys.executable, "-m", "bench.large", kind, name, str(rounds), folder]
        done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


# --------------------------------------------------------------------------- in a child


def _machine(folder: Path, cpus: int, agents: int, processes: int) -> Any:
    from tests.support.trees import Tree
    from tests.support.trees.machine import Machine

    gone = set(range(cpus // 2, cpus // 2 + cpus // 32))
    machine = Machine(
        Tree(folder),
        cpus=cpus,
        offline=gone,
        gaps=frozenset(range(9, 9 + cpus // 64)),
        possible=cpus,
        nodes=2,
        irqs=max(4, cpus),
    ).write()
    machine.tree.process(1, "/sbin/init", ppid=0)
    for i in range(processes):
        pid = 100 + i
        name = "claude" if i < agents else "worker --id 7"
        machine.tree.process(pid, name, ppid=1, threads=[(pid, 10**9, 10**6, 100)])
    return machine


def _engine(name: str, rounds: int, folder: Path) -> dict[str, list[float]]:
    cpus, agents, processes, bpf = CASES[name]
    machine = _machine(folder, cpus, agents, processes)

    from agenttop.agents.rules import Rules
    from agenttop.collectors.procfs.own_cpu import SelfCost
    from agenttop.engine.agent_registry import Registry
    from agenttop.engine.loop import spare_collections
    from agenttop.engine.policy_targets import EngineTargets
    from agenttop.engine.sampler import Sampler
    from agenttop.linux.slices import Jobs
    from agenttop.stream.framing import encode

    registry = Registry(Rules.load(patterns=["prog:claude"]))
    sampler = Sampler(registry, SelfCost())
    targets = EngineTargets(registry)
    kernel = None
    if bpf:
        from bench.madeup import MadeUp

        kernel = MadeUp(machine.present)
        sampler.attach(kernel)
    jobs, slices, second = Jobs(), [], Second()

    def scan() -> float:
        """CPU time; and how long each slice was."""
        started = time.thread_time()
        before = time.thread_time()
        jobs.begin("agents", registry.scanning(), lambda: None)
        slices.append(time.thread_time() - before)
        while jobs:
            before = time.thread_time()
            jobs.run()
            slices.append(time.thread_time() - before)
        return time.thread_time() - started

    spare_collections()
    first = scan()
    told: dict[str, list[float]] = {
        **{name: [] for name in ("cpu", "most", "pss", "maps", "sample")},
        "scan": [first * 1000],
    }
    # Figures of very many CPUs are not in each Sample: rounds have so many that each has them once.
    each = max(LEAST, round(sampler.cpus_every_s))
    for number in range(-WARM, min(rounds, ROUNDS)):
        spent, most, size = 0.0, 0.0, 0
        for _ in range(each):
            if kernel is not None:
                kernel.pass_second()
            # With BPF idle states are not read from files.
            machine.advance(idle=not bpf)
            if registry.scan_due:
                spent += scan()
            second.pass_()
            started = time.thread_time()
            sample = sampler.sample()
            targets.update(sample)
            targets.current()
            frame = encode(sample)
            took = time.thread_time() - started
            spent, most, size = spent + took, max(most, took), size + len(frame)
            # Those without a slot are counted, and are not all in it.
            assert len(sample.agents) >= min(agents, FEWEST), len(sample.agents)
            assert len(sample.cpus) in (0, cpus)
        if number >= 0:
            told["cpu"].append(100 * spent / each)
            told["most"].append(1000 * most)
            told["sample"].append(size / 1000 / each)
            own, maps = _pss_mb()
            told["pss"].append(own)
            told["maps"].append(maps)
    told["slice"] = [1000 * max(slices)]
    return told


class Second:
    """Makes a second pass between two Samples that follow one another at once."""

    def __init__(self) -> None:
        self._real, self._ahead = time.monotonic, 0.0
        self._last = self._real()
        time.monotonic = lambda: self._real() + self._ahead

    def pass_(self) -> None:
        now = time.monotonic()
        self._ahead += max(0.0, self._last + 1.0 - now)
        self._last += 1.0


def _pss_mb() -> tuple[float, float]:
    """Of the engine's own, and of the made-up maps (the kernel's memory, if they were real)."""
    from bench.madeup import NAME

    own = maps = 0
    made_up = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if "-" in name.split(" ")[0]:
            made_up = NAME in line
        elif name == "Pss":
            kb = int(rest.split()[0])
            own, maps = (own, maps + kb) if made_up else (own + kb, maps)
    return own * 1024 / 1e6, maps * 1024 / 1e6


async def _screen(cpus: int, agents: int, rounds: int) -> dict[str, list[float]]:
    from tests.support.screen_rig import rig
    from tests.support.synth import Synth

    told: dict[str, list[float]] = {}
    for width, height in ((200, 50), (80, 24)):
        frames = told[f"{width}x{height}"] = []
        synth = Synth(agents=agents, cpus=cpus)
        async with rig(size=(width, height), samples=WARM, synth=synth) as screen:
            for _ in range(rounds):
                before = screen.lines()
                screen.source.tick()
                started = time.thread_time()
                await screen.drawn()
                frames.append(1000 * (time.thread_time() - started))
                assert screen.lines() != before
    return told


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("engine", "screen"))
    parser.add_argument("name")
    parser.add_argument("rounds", type=int)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.kind == "engine":
        told = _engine(args.name, args.rounds, args.folder)
    else:
        cpus, agents = map(int, args.name.split())
        told = asyncio.run(_screen(cpus, agents, args.rounds))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
