"""Kills inside the lab: what this guest has and most machines lack is restored after each.

A process holds as many policies at once as the guest can have, then it or its
guardian or both are killed; what the journal held must have its old values.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

from rig import CPU, LIMIT_US, Skip, cgroup, report, text, wait

from agenttop.policies.base import Agent, Cpu, Targets, Thread
from agenttop.policies.guardian import lock
from agenttop.policies.guardian.journal import NAME, Hold, load, open_state_dir
from agenttop.policies.guardian.undo import recover
from agenttop.policies.knobs import KNOBS
from agenttop.policies.knobs.base import thread_stat
from agenttop.policies.manager import PolicyManager

SETTINGS: Final[dict[str, dict[str, object]]] = {
    "guard": {"limit_us": LIMIT_US, "per_cpu": True},
    "floor": {},
    "home": {},
    "slice": {},
    "vfs": {},
    "softirq": {},
    "memory": {"min_percent": 50},
    "block": {"devices": ["nvme0n1"], "latency_us": 5000},
    "demote": {"groups": ["labnoise"], "keep_off": True, "processes": ["comm:^sleep$"]},
}
#: Kinds of knob that must be among them in each guest.
KINDS: Final = {"pm_qos", "affinity", "sysctl", "blockdev", "cgroup", "sched_policy"}
#: What holds a floor, by the kernel's means.
FLOORS: Final = {"cpufreq", "uclamp_min"}
#: What is killed, in this order; where both are dead, what the next start does must restore.
WAYS: Final = (("engine",), ("guardian", "engine"), ("engine", "guardian"), ("stopped engine",))
#: Rounds go on for so long, and each way comes once at least, s.
LONG_S: Final = 45.0
#: All policies are on by then: some attempts to start a guardian, s.
START_S: Final = 300.0


def _targets(pid: int, steps: int) -> Targets:
    cpus = sorted(os.sched_getaffinity(os.getpid()))
    stat = thread_stat(pid, pid)
    thread = Thread(pid, pid, stat.cpu if stat else CPU, steps)
    agent = Agent(1, "labagent", (pid,), (thread,), {CPU: steps})
    return Targets(time.monotonic_ns(), (agent,), tuple(Cpu(cpu) for cpu in cpus))


def _own(state: str, pid: int) -> None:
    """Hold all policies until killed; STATE.on is there once they are, STATE.said what was said.

    On a busy machine the emulator may start no guardian in its time, or keep one from answering:
    what is off is switched on again.
    """
    manager = PolicyManager(state, settings=SETTINGS)
    names = [name for name in SETTINGS if manager.reason(name) is None]
    steps = 1000
    while True:
        for name in names:
            if not manager.is_on(name):
                events = manager.set(name, True, _targets(pid, steps))
                Path(f"{state}.said").write_text("; ".join(event.text for event in events))
                if not manager.is_on(name):
                    break
        # The floor holds nothing before it has seen the agent run.
        if all(manager.is_on(name) for name in names) and _floored(state, names):
            Path(f"{state}.on").touch()
        time.sleep(0.2)
        steps += 100
        manager.tick(_targets(pid, steps))


def _start(state: str, pid: int) -> int:
    """A process that holds all policies."""
    child = os.fork()
    if not child:
        try:
            os.setpgid(0, 0)
            _own(state, pid)
        finally:
            os._exit(1)
    try:
        wait(Path(f"{state}.on").exists, "policies held", START_S)
    except AssertionError as error:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise AssertionError(f"{error}: {text(Path(f'{state}.said'))}") from None
    return child


def _holds(state: str) -> list[Hold]:
    dir_fd = open_state_dir(state, create=False)
    assert dir_fd is not None
    try:
        found = load(dir_fd)
    finally:
        os.close(dir_fd)
    return found.holds if found else []


def _floored(state: str, names: list[str]) -> bool:
    """Whether a floor is held, if that policy is to be had here."""
    return "floor" not in names or any(hold.kind in FLOORS for hold in _holds(state))


def _other(hold: Hold) -> bool:
    """Whether the knob has another value than before."""
    now = KNOBS[hold.kind].read(hold.target)
    return now is None or not KNOBS[hold.kind].same(now, hold.original)


def _round(state: str, pid: int, way: tuple[str, ...]) -> set[str]:
    """Kinds that were changed as it was killed. AssertionError: something is not as before."""
    engine = _start(state, pid)
    found = lock.owner(state)
    guardian = found.guardian if found else 0
    holds = _holds(state)
    kinds = {hold.kind for hold in holds if _other(hold)}
    try:
        for whom in way:
            number = signal.SIGSTOP if whom.startswith("stopped") else signal.SIGKILL
            if victim := guardian if whom == "guardian" else engine:
                os.kill(victim, number)
        if "guardian" in way:
            os.waitpid(engine, 0)
            wait(lambda: lock.owner(state) is None, "the end of both")
            dir_fd = open_state_dir(state)
            assert dir_fd is not None
            recover(dir_fd)
            os.close(dir_fd)
        journal = Path(state) / NAME
        try:
            wait(lambda: not (any(map(_other, holds)) or journal.exists()), "all restored")
        except AssertionError:
            left = [f"{one.kind} {one.target}: was {one.original}" for one in holds if _other(one)]
            raise AssertionError(f"after a kill of {', '.join(way)}: {left}") from None
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(engine, signal.SIGKILL)
            os.waitpid(engine, 0)
    wait(lambda: lock.owner(state) is None, "the guardian's end")
    return kinds


def leave_nothing_changed() -> None:
    uses = "memory = b'x' * (16 << 20); import time; time.sleep(600)"
    hits: Counter[str] = Counter()
    rounds, until = 0, time.monotonic() + LONG_S
    with (
        cgroup("labagent", sys.executable, "-c", uses) as (folder, agent),
        cgroup("labnoise", "sleep", "600"),
        tempfile.TemporaryDirectory() as states,
    ):
        wait(lambda: int(text(folder / "memory.current")) > 4 << 20, "memory in use")
        while rounds < len(WAYS) or time.monotonic() < until:
            way = WAYS[rounds % len(WAYS)]
            hits.update(_round(f"{states}/{rounds}", agent.pid, way))
            rounds += 1
    if not hits:
        raise Skip("no policy could be had")
    speed = FLOORS & hits.keys()
    told = ", ".join(f"{kind} {number}" for kind, number in sorted(hits.items()))
    assert hits.keys() >= KINDS, f"never applied: {sorted(KINDS - hits.keys())}; {told}"
    assert speed, f"neither uclamp nor cpufreq was applied; {told}"
    report("ok", "kills", f"{rounds} kills, all restored; while applied: {told}")
