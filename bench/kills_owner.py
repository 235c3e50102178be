"""What is killed: stands in for the engine, changes settings at random through a real guardian.

``python -m bench.kills_owner SCENE``: forks an owner, in a process group of its own, for each
line on stdin (JSON: state, seed, mode, descriptors), and prints its process id. SCENE is the
JSON that kills_scene.py writes. Modes:

lease     writes what the scene lists, and attributes of its threads, through a Lease
trees     the same with the scene's fixture trees in the place of /proc and /sys
policies  switches every policy on and off
start     as the next start of agenttop does: repairs, and ends

SIGUSR1: nothing more is switched; what is applied stays.
"""

from __future__ import annotations

import json
import os
import random
import resource
import select
import signal
import sys
import time
from contextlib import suppress
from ctypes import CDLL
from pathlib import Path
from typing import Any

from agenttop.policies.base import Agent, Change, Cpu, Exit, Targets, Thread
from agenttop.policies.guardian.lease import Lease, LeaseLostError
from agenttop.policies.knobs import KNOBS
from agenttop.policies.knobs.base import KnobError, cpu_set, thread_stat
from agenttop.policies.manager import PolicyManager

_PR_SET_PDEATHSIG = 1
#: Longest pause between two changes, s.
PAUSE_S = 0.02


def die_with_parent() -> None:
    """Whoever ends a bench ends what it started; the guardians restore."""
    CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Owner:
    """Changes settings until it is told or killed."""

    def __init__(self, scene: dict[str, Any], order: dict[str, Any]) -> None:
        self._scene = scene
        self._state: str = order["state"]
        self._chance = random.Random(order["seed"])
        self._trees = order["mode"] == "trees"
        self._calm = False
        signal.signal(signal.SIGUSR1, self._be_calm)

    def _be_calm(self, *_: object) -> None:
        self._calm = True

    # ----------------------------------------------------------------- through a lease

    def lease(self) -> None:
        """Write, write again, undo, end the lease and begin another one, at random."""
        while not self._calm:
            lease = Lease(self._state)
            held: dict[tuple[str, str], str] = {}
            try:
                while self._calm or self._chance.random() > 0.03:
                    self._step(lease, held)
                    if any(notice.lost for notice in lease.poll()):
                        return
                    self._wait(lease.fds())
            except LeaseLostError:
                return
            lease.close()

    def _step(self, lease: Lease, held: dict[tuple[str, str], str]) -> None:
        lease.beat()
        if self._calm:
            return
        chance = self._chance
        if held and chance.random() < 0.3:
            keys = [key for key in held if chance.random() < 0.4]
            lease.undo(keys)
            for key in keys:
                del held[key]
        for result in lease.apply(list(self._changes(held))):
            if result.status == "ok":
                held[result.change.key] = result.change.after
            else:
                held.pop(result.change.key, None)

    def _changes(self, held: dict[tuple[str, str], str]) -> list[Change]:
        chance = self._chance
        share = chance.choice((0.3, 0.7, 1.0))
        wanted = [
            (kind, target, chance.choice(values))
            for kind, target, values in self._scene["trees" if self._trees else "settings"]
            if chance.random() < share
        ]
        for pid in self._scene["victims"]:
            for tid in _threads(pid):
                stat = thread_stat(pid, tid)
                for kind, values in self._scene["thread_kinds"].items():
                    if stat and chance.random() < share / 3:
                        target = f"{pid}/{tid}/{stat.start}"
                        wanted.append((kind, target, chance.choice(values)))
        changes = []
        for kind, target, after in wanted:
            with suppress(KnobError):
                before = held.get((kind, target)) or KNOBS[kind].read(target)
                if before is not None and not KNOBS[kind].same(before, after):
                    changes.append(Change("kills", kind, target, before, after))
        return changes

    def _wait(self, fds: list[int]) -> None:
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        poll.poll(self._chance.random() * PAUSE_S * 1000)

    # ----------------------------------------------------------------- through policies

    def policies(self) -> None:
        manager = PolicyManager(self._state, settings={"demote": {"processes": ["comm:^killhog$"]}})
        chance = self._chance
        for step in range(1, 1_000_000):
            now = self._targets(step * 100)
            manager.tick(now)
            for name in manager.names:
                if not self._calm and chance.random() < 0.5:
                    manager.set(name, chance.random() < 0.6, now)
            self._wait(manager.fds())

    def _targets(self, steps: int) -> Targets:
        cpus = sorted(cpu_set("online"))
        resumed = cpus if self._chance.random() < 0.5 else cpus[-1:]
        agents = []
        for number, pid in enumerate(self._scene["agents"], 1):
            threads = tuple(
                Thread(tid, pid, stat.cpu, steps, 0.01)
                for tid in _threads(pid)
                if (stat := thread_stat(pid, tid))
            )
            shares = dict.fromkeys(resumed, steps)
            agents.append(Agent(number, f"victim{number}", (pid,), threads, shares))
        exits = {1: Exit(9_000, 100)}
        return Targets(
            time.monotonic_ns(), tuple(agents), tuple(Cpu(cpu, exits=exits) for cpu in cpus)
        )


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def _own(scene: dict[str, Any], order: dict[str, Any]) -> None:
    if order["mode"] == "trees" or order.get("fixture"):
        os.environ.update(scene["environment"])
    if count := order.get("descriptors", 0):
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (count + 512, max(count + 512, limits[1])))
        for _ in range(count):
            os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    if order["mode"] == "start":
        Lease(order["state"]).close()
        return
    owner = Owner(scene, order)
    if order["mode"] == "policies":
        owner.policies()
    else:
        owner.lease()
    # Nothing is held any more: now it waits to be killed.
    while True:
        signal.pause()


def main() -> None:
    die_with_parent()
    scene = json.loads(Path(sys.argv[1]).read_text())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            die_with_parent()
            os.setpgid(0, 0)
            with open(os.devnull, "r+b") as nowhere:
                os.dup2(nowhere.fileno(), 0)
                os.dup2(nowhere.fileno(), 1)
            code = 1
            try:
                _own(scene, order)
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(code)
        print(child, flush=True)


if __name__ == "__main__":
    main()
