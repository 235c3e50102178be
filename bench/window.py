"""How soon after a wake-up is the latency window's guard in force, and does it help?

A timer loop with gaps longer than the window: each of its steps opens one
anew, so that there is an edge per step: on an idle machine, while a screen of
another agenttop draws, and beside two CPU hogs. Before each round, what the
machine itself takes to wake a real-time thread: on a virtual one the host
decides that, and in some minutes it alone takes longer than the goal. So the
goal is held against the rounds in which it does not; what all of them took
stands beside. Then a loop whose windows never run out, with the policy off
and on.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Final

from agenttop.model.options import EngineOptions
from agenttop.model.sample import Budget, Command, PolicyStatus
from agenttop.stream.engine_client import EngineClient
from bench.guard import Slowpath
from bench.processes import agenttop, cpu_s
from bench.report import Report
from bench.terminal import Terminal

#: The window is over, and the guard gone, well before the next step.
GAP_US = 12_000
MEASURE_S, WARM_S = 8.0, 5.0
#: A machine that wakes its threads within this, at p99, leaves half of the goal to agenttop.
BARE_S, QUIET_US = 5.0, 500.0
#: Rounds at most for each that is wanted from a quiet machine.
TRIES = 2
#: What closes HLT on a virtual machine, where 50 us closes nothing.
SETTINGS: Final[dict[str, dict[str, object]]] = {"window": {"limit_us": 5}}


def run(report: Report, rounds: int) -> None:
    """Each round has the policy on anew, so its percentiles are of that round alone."""
    found: dict[str, list[tuple[float, Budget]]] = {
        "idle": [],
        "a screen draws": [],
        "two CPU hogs": [],
    }
    cost: list[float] = []
    seconds = len(found) * TRIES * rounds * (MEASURE_S + BARE_S + 4) + 60
    loop = subprocess.Popen(
        agenttop("loop", "--source", "timer", "--interval-us", GAP_US, "--for", int(seconds)),
        stdout=subprocess.DEVNULL,
    )
    client = EngineClient(
        EngineOptions(
            agent_patterns=[f"pid:{loop.pid}"],
            delay_s=0.5,
            settings=SETTINGS,
        )
    )
    try:
        _status(client, WARM_S)
        for name, budgets in found.items():
            with ExitStack() as beside:
                terminal = None
                if name == "a screen draws":
                    terminal = Terminal(agenttop("--delay", "0.5"), emulate=False)
                    beside.callback(terminal.close)
                    terminal.read(WARM_S)
                if name == "two CPU hogs":
                    for _ in range(2):
                        hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
                        beside.callback(hog.wait)
                        beside.callback(hog.kill)
                while len(budgets) < TRIES * rounds and len(_quiet(budgets)) < rounds:
                    bare = _bare_us(client, terminal)
                    budgets.append((bare, _round(client, terminal, cost)))
    finally:
        client.close()
        loop.kill()
        loop.wait()
    for name, pairs in found.items():
        report.add(f"a bare real-time thread late p99, {name}", "us", [bare for bare, _ in pairs])
        every = [budget for _, budget in pairs]
        report.add(f"edges, {name}", "", [b.edges for b in every])
        for field in ("edge_p50_ns", "edge_p99_ns", "edge_max_ns"):
            values = [(getattr(b, field) or 0) / 1000 for b in every]
            report.add(f"wake-up to guard in force {field[5:8]}, {name}", "us", values)
        quiet = [(b.edge_p99_ns or 0) / 1000 for b in _quiet(pairs)]
        if quiet:
            report.add(f"p99 while the machine wakes within 0.5 ms, {name}", "us", quiet, 1000.0)
    report.add("guardian CPU, 80 openings a second", "% core", cost)
    _helps(report, min(rounds, 7))


def _quiet(pairs: list[tuple[float, Budget]]) -> list[Budget]:
    """Of the rounds those before which the machine was quick to wake a thread."""
    return [budget for bare, budget in pairs if bare <= QUIET_US]


def _bare_us(client: EngineClient, terminal: Terminal | None) -> float:
    """The p99 of how late the machine wakes a bare real-time thread, us."""
    command = [sys.executable, "-m", "bench.bare", str(GAP_US), str(BARE_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as bare:
        # The screen goes on drawing meanwhile.
        _status(client, BARE_S + 1.0, terminal)
        out, _ = bare.communicate()
    return float(out)


def _helps(report: Report, rounds: int) -> None:
    """The slowpath of a loop with gaps of 1 ms, off and on in turns."""
    loop = subprocess.Popen(
        agenttop("loop", "--source", "timer", "--for", 15 * rounds + 40),
        stdout=subprocess.DEVNULL,
    )
    client = EngineClient(
        EngineOptions(agent_patterns=[f"pid:{loop.pid}"], delay_s=0.5, settings=SETTINGS)
    )
    found: dict[bool, list[list[int]]] = {False: [], True: []}
    try:
        slowpath = Slowpath(client, "window")
        slowpath.follow(WARM_S)
        for _ in range(rounds):
            for on, blocks in found.items():
                blocks.append(slowpath.block(on))
    finally:
        client.close()
        loop.kill()
        loop.wait()
    pairs = list(zip(found[False], found[True], strict=True))
    for i, name in enumerate(("p50", "p99")):
        for on, blocks in found.items():
            word = "on" if on else "off"
            report.add(f"slowpath {name}, window {word}", "us", [b[i] / 1000 for b in blocks])
        report.add(f"slowpath {name}, off over on", "x", [off[i] / on[i] for off, on in pairs])


def _round(client: EngineClient, terminal: Terminal | None, cost: list[float]) -> Budget:
    client.send(Command(kind="policy", name="window", on=True))
    status = _status(client, 1.5)
    if status.state != "on":
        raise RuntimeError(f"window is {status.state}: {status.detail}")
    guardian = _child(client.pid)
    before, started = cpu_s(guardian), time.monotonic()
    status = _status(client, MEASURE_S, terminal)
    cost.append(100 * (cpu_s(guardian) - before) / (time.monotonic() - started))
    client.send(Command(kind="policy", name="window", on=False))
    _status(client, 1.0, terminal)
    (budget,) = status.budgets.values()
    return budget


def _status(client: EngineClient, seconds: float, terminal: Terminal | None = None) -> PolicyStatus:
    """The window's, after that time."""
    last = None
    until = time.monotonic() + seconds
    while (now := time.monotonic()) < until:
        if terminal is not None:
            terminal.read(0.02)
        for sample in client.samples(until if terminal is None else now + 0.05):
            last = next(p for p in sample.policies if p.name == "window")
            break
    assert last is not None
    return last


def _child(pid: int) -> int:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return int(file.read().split()[-1])
