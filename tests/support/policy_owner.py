"""A stand-in for the engine: toggles both policies at random until it is told or killed.

Arguments: state directory, process whose threads are the agent, seed (or
"steady": guard and home on, no toggling; or "keep:" and a seed: policies on, then left applied);
or "forker" and that process.
SIGUSR1 ends the toggling, not the policies. Prints a line per event.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import time

from agenttop.policies.base import Agent, Cpu, Exit, Targets, Thread
from agenttop.policies.knobs.base import cpu_set, thread_stat
from agenttop.policies.manager import PolicyManager
from agenttop.policies.procfs_targets import _tasks

#: Left applied by "keep:".
KEPT = ("home", "slice", "vfs", "block", "softirq", "demote")


def targets(pid: int, cpus: list[int], steps: int) -> Targets:
    threads = []
    for tid in _tasks(pid):
        stat = thread_stat(pid, tid)
        if stat:
            threads.append(Thread(tid, pid, stat.cpu, steps, 0.01))
    online = cpu_set("online")
    exits = {1: Exit(9_000, 100)}
    return Targets(
        time.monotonic_ns(),
        (Agent(1, "victim", (pid,), tuple(threads), dict.fromkeys(cpus, steps)),),
        tuple(Cpu(cpu, exits=exits) for cpu in sorted(online)),
    )


def main() -> None:
    if sys.argv[1] == "forker":
        fork_owners(int(sys.argv[2]))
    else:
        own(sys.argv[1], int(sys.argv[2]), sys.argv[3])


def fork_owners(pid: int) -> None:
    """An owner, in a process group of its own, for each "STATE SEED" on stdin; says its pid."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        state, seed = line.split()
        child = os.fork()
        if not child:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setpgid(0, 0)
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            own(state, pid, seed)
            os._exit(0)
        print(child, flush=True)


def own(state: str, pid: int, seed: str) -> None:
    steady, keeping = seed == "steady", seed.startswith("keep:")
    chance = random.Random(seed)
    every = sorted(cpu_set("online"))
    manager = PolicyManager(state, settings={"demote": {"processes": ["comm:^killhog$"]}})
    toggling = True

    def calm(*_: object) -> None:
        nonlocal toggling
        toggling = False

    signal.signal(signal.SIGUSR1, calm)
    if keeping:
        for name in KEPT:
            manager.set(name, True, targets(pid, every, 1000))
            time.sleep(chance.random() * 0.03)
        manager.keep()
        return
    for step in range(1, 100_000):
        cpus = every if chance.random() < 0.5 and not steady else every[:1]
        now = targets(pid, cpus, step * 100)
        events = manager.tick(now)
        if toggling:
            for name in ("guard", "home") if steady else manager.names:
                if steady or chance.random() < 0.5:
                    events += manager.set(name, steady or chance.random() < 0.6, now)
            toggling = toggling and not steady
        for event in events:
            print(event.kind, event.text, flush=True)
        pause = 0.1 if steady else chance.random() * 0.03
        poll = select.poll()
        for fd in manager.fds():
            poll.register(fd, select.POLLIN)
        poll.poll(pause * 1000)


main()
