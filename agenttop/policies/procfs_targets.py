"""Targets from /proc alone, for `agenttop policy` and wherever BPF is not to be had.

A control-loop thread is one that has waited of its own accord since the last
look (voluntary context switches); each such wait counts as a step on the CPU
where the thread is found. Idle exits cannot be measured this way.
"""

from __future__ import annotations

import os
import time

from agenttop.agents.rules import Found, Rules, scan
from agenttop.linux import paths
from agenttop.linux.process import read_file, read_whole
from agenttop.policies.base import Agent, Cpu, Targets, Thread
from agenttop.policies.knobs.base import thread_stat


class ProcTargets:
    """Looks at the agents that the rules find. The first ``read`` has no rates yet."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._ids: dict[tuple[str, str, int, int], int] = {}
        self._t_ns = 0
        #: tid -> (voluntary switches, run ns) at the last look.
        self._seen: dict[int, tuple[int, int]] = {}
        self._threads: dict[int, Thread] = {}
        self._cpu_steps: dict[int, dict[int, int]] = {}
        self._stat: dict[int, list[int]] = {}

    def read(self) -> Targets:
        """The agents and CPUs now."""
        now = time.monotonic_ns()
        dt_ns = max(1, now - self._t_ns)
        self._t_ns = now
        seen: dict[int, tuple[int, int]] = {}
        threads: dict[int, Thread] = {}
        agents = [self._agent(found, dt_ns, seen, threads) for found in scan(self._rules)]
        self._seen, self._threads = seen, threads
        return Targets(now, tuple(agents), tuple(self._cpus()))

    def _agent(
        self,
        found: Found,
        dt_ns: int,
        seen: dict[int, tuple[int, int]],
        threads: dict[int, Thread],
    ) -> Agent:
        agent_id = self._ids.setdefault(found.key, len(self._ids) + 1)
        cpu_steps = self._cpu_steps.setdefault(agent_id, {})
        mine = []
        for pid in found.pids:
            for tid in _tasks(pid):
                counters = _counters(pid, tid)
                stat = thread_stat(pid, tid)
                if counters is None or stat is None:
                    continue
                seen[tid] = counters
                before = self._seen.get(tid, counters)
                waits = max(0, counters[0] - before[0])
                known = self._threads.get(tid)
                if not waits and known is None:
                    continue
                load = min(1.0, max(0, counters[1] - before[1]) / dt_ns)
                steps = waits + (known.steps if known else 0)
                cpu_steps[stat.cpu] = cpu_steps.get(stat.cpu, 0) + waits
                threads[tid] = Thread(tid, pid, stat.cpu, steps, load)
                mine.append(threads[tid])
        return Agent(agent_id, found.name, found.pids, tuple(mine), dict(cpu_steps))

    def _cpus(self) -> list[Cpu]:
        """From /proc/stat: user nice system idle iowait irq softirq steal, clock ticks."""
        lines = (read_whole(f"{paths.proc()}/stat") or b"").split(b"\n")
        found = {}
        for line in lines:
            name, *fields = line.split() or [b""]
            if name[:3] == b"cpu" and name[3:].isdigit():
                found[int(name[3:])] = [int(f) for f in fields[:8]]
        cpus = []
        for cpu, ticks in found.items():
            delta = [a - b for a, b in zip(ticks, self._stat.get(cpu, ticks), strict=True)]
            total = max(1, sum(delta))
            idle = delta[3] + delta[4]
            irq, softirq = delta[5] / total, delta[6] / total
            busy = 1 - idle / total if any(delta) else 0.0
            cpus.append(Cpu(cpu, True, max(0.0, irq), max(0.0, softirq), min(1.0, max(0.0, busy))))
        # A CPU that is offline has no line; it is missing here and so gets nothing.
        self._stat = found
        return cpus


def _tasks(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def _counters(pid: int, tid: int) -> tuple[int, int] | None:
    """Voluntary context switches, and run time in ns (schedstat; 0 where it is not kept)."""
    status = read_file(f"/proc/{pid}/task/{tid}/status", 8192)
    at = status.find(b"\nvoluntary_ctxt_switches:") if status else -1
    if status is None or at < 0:
        return None
    schedstat = read_file(f"/proc/{pid}/task/{tid}/schedstat", 256) or b"0"
    return int(status[at + 25 :].split(None, 1)[0]), int(schedstat.split(None, 1)[0])
