"""Step markers through the whole engine: who opts in by them, and who means no good."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agenttop.collectors.bpf import layout
from agenttop.engine.agent_registry import OPT_IN_SLOTS
from agenttop.model.sample import Sample
from tests.support.engines import Engine, agent, engine, needs_bpf

# Any thread of the machine may ask for a slot, and here all are taken.
pytestmark = [pytest.mark.bpf, pytest.mark.alone]

NOBODY = 65534
PACKAGE = Path(layout.__file__).parents[2]
START = "import os, sys, time\nfrom agenttop.step import *\nprint('ready', flush=True); input()\n"


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep off the machine's own journal and rules."""
    monkeypatch.setenv("AGENTTOP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


class Child:
    """A program that waits for a line at each ``input()``."""

    def __init__(self, command: list[str], uid: int | None = None) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, user=uid
        )
        self.pid = self.process.pid

    def go(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


@contextmanager
def child(*command: str, uid: int | None = None) -> Iterator[Child]:
    started = Child(list(command), uid)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


@contextmanager
def program(text: str) -> Iterator[Child]:
    with child(sys.executable, "-c", START + text) as started:
        assert started.line() == "ready\n"
        yield started


def named(sample: Sample, pid: int) -> dict[str, int]:
    """Steps by name of the agent with this process."""
    found = agent(sample, pid)
    return {one.name: one.steps for one in found.named} if found else {}


def judged(sample: Sample, pid: int) -> int:
    """Contexts that met or missed their deadline, of the agent with this process."""
    found = agent(sample, pid)
    return sum(found.marks.met + found.marks.missed) if found and found.marks else 0


def test_a_thread_that_marks_its_steps_is_an_agent_with_names() -> None:
    needs_bpf()
    text = (
        "@step('hello')\n"
        "def hello(): time.sleep(0.01)\n"
        "for _ in range(100): hello()\n"  # until the engine has seen it
        "print('known', flush=True); input()\n"
        "for _ in range(150):\n"
        "    with step('tool:git', latency='interactive', within_ns=1): time.sleep(0.002)\n"
        "    with step('llm', latency='batch', within_ns=10**12): time.sleep(0.002)\n"
        "print('done', flush=True); input()\n"
    )
    with program(text) as one, engine() as running:
        running.measuring()
        one.go()
        assert one.line() == "known\n"
        running.until(lambda s: agent(s, one.pid) is not None)
        one.go()
        assert one.line() == "done\n"
        last = running.until(lambda s: judged(s, one.pid) == 300)
        found = agent(last, one.pid)
        assert found is not None
        assert found.rule == "marker"
        # The last step has not ended, and on a busy machine some switches go by unseen.
        told = named(last, one.pid)
        assert 0 < told.pop("hello") < 100
        assert told == {name: pytest.approx(147, abs=3) for name in ("tool:git", "llm")}
        assert found.marks is not None
        assert found.marks.missed == [0, 150, 0, 0]
        assert found.marks.met == [0, 0, 0, 150]
        snapshot = running.store.snapshot()
        assert snapshot is not None
        shown = next(a for a in snapshot.agents if a.pid == one.pid)
        llm = shown.steps_by_name["llm"]
        assert llm.step.p50_ns is not None
        assert 2_000_000 < llm.step.p50_ns < 3_000_000
        assert shown.deadlines["interactive"].missed == 150


def test_who_finds_no_slot_gets_one_that_becomes_free() -> None:
    needs_bpf()
    more = 6
    text = (
        "import threading\n"
        "leave = threading.Semaphore(0)\n"
        "def work():\n"
        "    while not leave.acquire(timeout=0.2):\n"
        "        with step('work'): time.sleep(0.001)\n"
        f"for _ in range({OPT_IN_SLOTS + more}):\n"
        "    threading.Thread(target=work, daemon=True).start()\n"
        f"input(); leave.release({2 * more}); input()\n"
    )
    with program(text) as many, engine() as running:
        running.measuring()
        many.go()
        running.until(lambda s: s.trust.slots_full == more)
        many.go()
        # As many as are left, and nobody waits.
        running.until(
            lambda s: (
                s.trust.slots_full == 0
                and sum(a.alive and a.pid == many.pid for a in s.agents) == OPT_IN_SLOTS - more
            )
        )


NEIGHBOUR = (
    "from agenttop.workloads import uring\n"
    "from agenttop.workloads.syscalls import Timespec, address\n"
    "asked = step('asked', latency='normal', within_ns=10**12)\n"
    "uring_user_data(asked)\n"
    "ring, span = uring.Uring(), Timespec(0, 1_000_000)\n"
    "def ask(i):\n"
    "    data = uring_user_data(asked, i)\n"
    "    ring.queue(uring.OP_TIMEOUT, -1, address(span), 1, 0, user_data=data)\n"
    "    ring.wait(); ring.reap()\n"
    "def work(names, n):\n"
    "    for i in range(n):\n"
    "        with step(names[i % len(names)], latency='normal', within_ns=10**12):\n"
    "            time.sleep(0.001)\n"
    "work(['before a', 'before b'], 400)\n"
    "print('half', flush=True)\n"
    "while input() == 'ask': ask(0); print('asked', flush=True)\n"
    "work([f'after {i}' for i in range(13)], 1300)\n"
    "for i in range(200): ask(i)\n"
    "print('done', flush=True); input()\n"
)


def fresh(running: Engine) -> Sample:
    """A Sample that was begun from now on."""
    seq = running.until(lambda s: True).seq
    return running.until(lambda s: s.seq > seq + 1)


def asks_are_seen(running: Engine, good: Child) -> int:
    """Ask until the programs that see it are there; the contexts that were judged so far."""
    while True:
        good.go("ask")
        assert good.line() == "asked\n"
        known = judged(fresh(running), good.pid)
        if known > 400:
            return known


@pytest.mark.long
def test_nobody_can_exhaust_or_corrupt_anything(tmp_path: Path) -> None:
    needs_bpf()
    fuzz = tmp_path / "step_fuzz"
    source = Path(__file__).with_name("step_fuzz.c")
    tmp_path.chmod(0o755)
    command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-I", str(PACKAGE)]
    subprocess.run([*command, str(source), "-o", str(fuzz)], check=True)
    for folder in tmp_path.parents:  # nobody must reach it
        if folder.owner() == "root" and folder.name.startswith("pytest"):
            folder.chmod(0o755)
    with program(NEIGHBOUR) as good, engine(agent_patterns=[f"pid:{good.pid}"]) as running:
        running.measuring()
        running.until(lambda s: agent(s, good.pid) is not None)
        good.go()
        assert good.line() == "half\n"
        before = asks_are_seen(running, good)
        with child(str(fuzz), "6", uid=NOBODY) as bad:
            assert bad.line() == "ready\n"
            running.until(lambda s: agent(s, bad.pid) is not None)
            bad.go()
            running.until(lambda s: s.trust.slots_full > 0)
            good.go()
            assert good.line() == "done\n"
            assert bad.line() == "done\n"
            last = running.until(lambda s: judged(s, good.pid) == before + 1500)
            found = agent(last, good.pid)
            assert found is not None
            # Its names, old and new ones, and its deadlines are its own.
            wanted = dict.fromkeys(("before a", "before b"), 200)
            wanted |= {f"after {i}": 100 for i in range(13)} | {"asked": before - 200}
            assert named(last, good.pid) == {n: pytest.approx(c, abs=5) for n, c in wanted.items()}
            assert found.marks is not None
            assert (sum(found.marks.missed), sum(found.marks.met)) == (0, before + 1500)
            assert (found.marks.contexts, found.marks.crowded) == (before + 1500, 0)
            assert (found.marks.unread, found.marks.invalid) == (0, 0)
            assert (found.marks.forgotten, found.marks.strays) == (0, 0)
            # What the others sent is bounded and counted.
            # One that has ended is told of once more, beside the one that has its place.
            marked = [a for a in last.agents if a.rule == "marker" and a.alive]
            assert len(marked) <= OPT_IN_SLOTS
            greedy = agent(last, bad.pid)
            assert greedy is not None
            assert greedy.marks is not None
            assert len(greedy.named) <= layout.NAMES_EACH + 1
            assert greedy.marks.crowded > 0
            assert greedy.marks.forgotten > 0
            assert greedy.marks.strays > 0
            snapshot = running.store.snapshot()
            assert snapshot is not None
            for one in snapshot.agents:
                assert len(one.steps_by_name) <= layout.NAMES_EACH + 1
                assert all(name.isprintable() for name in one.steps_by_name)
        # They are gone: nobody waits for a slot, and their lanes are free for others.
        running.until(lambda s: s.trust.slots_full == 0)
        last = running.until(lambda s: not any(a.rule == "marker" for a in s.agents))
        assert sum(named(last, good.pid).values()) == pytest.approx(before + 1500, abs=19)
