"""Agents come, stay and go, by what the kernel's side (played here) lists of them."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any, cast

import pytest

from agenttop.agents.rules import Rules
from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.read.tracer import Asking, Edge, Thread, Tracer
from agenttop.engine import agent_registry as module
from agenttop.engine.agent_registry import OPT_IN_SLOTS, UNLISTED, Registry
from tests.support.trees import Tree

ME = os.getpid()


class Kernel:
    """Measures whom it is told to; ``ghosts`` are threads that were never counted out."""

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}
        self.ghosts: dict[int, int] = {}
        self.waiting: list[Asking] = []
        self.shares: dict[int, int] = {}

    def assign(self, processes: dict[int, int], threads: dict[int, int]) -> None:
        self.slots |= processes | threads
        self.waiting = [one for one in self.waiting if one.tid not in threads]

    def threads(self) -> list[Thread]:
        listed = {tid: slot for tid, slot in self.slots.items() if slot != layout.NO_SLOT}
        return [Thread(tid, tid, slot, 0, 0, 0) for tid, slot in listed.items()]

    def members(self, slot: int) -> int:
        return sum(s == slot for s in self.slots.values()) + self.ghosts.get(slot, 0)

    def asking(self) -> list[Asking]:
        return self.waiting

    def clear(self, slot: int, share: int = 0) -> None:
        self.shares[slot] = share
        self.ghosts.pop(slot, None)

    def release(self, slot: int) -> None:
        pass

    def shut(self, slot: int) -> None:
        self.slots = {tid: s for tid, s in self.slots.items() if s != slot}


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def registry(kernel: Kernel) -> Registry:
    made = Registry(Rules.load(patterns=["comm:^nobody is called so$"]))
    made.attach(cast(Tracer, kernel))
    return made


def marked(*tids: int) -> list[Edge]:
    """Threads of this process ask to be agents."""
    return [Edge("marker", ME, tid, 0) for tid in tids]


def only(registry: Registry, root: int) -> Any:
    (one,) = [agent for agent in registry.agents() if agent.root == root]
    return one


def test_an_agent_of_whom_nothing_is_listed_any_more_has_ended_whatever_is_counted(
    registry: Registry, kernel: Kernel
) -> None:
    registry.edges(marked(ME), lost=False)
    agent = only(registry, ME)
    registry.refresh()
    kernel.ghosts[agent.slot] = 1
    del kernel.slots[ME]
    for _ in range(UNLISTED - 1):
        registry.refresh()
        assert agent.alive
    # Once more there is one: nothing has ended.
    kernel.slots[ME] = agent.slot
    registry.refresh()
    del kernel.slots[ME]
    for _ in range(UNLISTED - 1):
        registry.refresh()
        assert agent.alive
    registry.refresh()
    assert not agent.alive


def ask(kernel: Kernel, *tids: int, uid: int = 0, ago_s: float = 0) -> None:
    """Threads of this process opted in and are listed as waiting."""
    now = time.monotonic_ns() - int(ago_s * 1e9)
    kernel.waiting = [one for one in kernel.waiting if one.tid not in tids]
    kernel.waiting += [Asking("marker", ME, tid, uid, now + i) for i, tid in enumerate(tids)]


def test_who_was_turned_away_is_seated_when_there_is_room(
    registry: Registry, kernel: Kernel
) -> None:
    first, late = list(range(1000, 1000 + OPT_IN_SLOTS)), [2000, 2001, 2002]
    ask(kernel, *first, *late)
    registry.refresh()
    assert sorted(kernel.slots) == first
    assert registry.slots_full == len(late)
    assert registry.slots_full_by_user == {"0": len(late)}
    ask(kernel, *late)
    for tid in first[:2]:
        del kernel.slots[tid]
    for _ in range(3):  # with many agents every other one lists
        registry.refresh()
        registry.forget()
    assert sorted(kernel.slots) == [*first[2:], *late[:2]]
    assert registry.slots_full == 1


def test_who_asks_no_more_is_not_counted_for_ever(
    registry: Registry, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(kernel, *range(1000, 1003 + OPT_IN_SLOTS))
    registry.refresh()
    assert registry.slots_full == 3
    now = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: now + int((module.ASKED_S + 1) * 1e9))
    registry.refresh()
    registry.refresh()
    assert registry.slots_full == 0


def test_any_number_may_ask_by_the_ring(registry: Registry) -> None:
    registry.edges(marked(*range(10_000, 40_000)), lost=False)
    assert len(registry.agents()) == OPT_IN_SLOTS
    assert 0 < registry.slots_full <= module.EDGE_BACKLOG


def test_who_opts_in_beside_a_flood_gets_a_seat_of_it(registry: Registry, kernel: Kernel) -> None:
    ask(kernel, *range(1000, 1000 + 3 * OPT_IN_SLOTS), uid=666)
    registry.refresh()
    assert len(kernel.slots) == OPT_IN_SLOTS
    ask(kernel, 5000, uid=1000)
    for _ in range(2):
        registry.refresh()
        registry.forget()
    assert 5000 in kernel.slots
    users = [agent.user for agent in registry.agents() if agent.alive]
    assert (users.count(1000), users.count(666)) == (1, OPT_IN_SLOTS - 1)


@pytest.fixture
def flooded(kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Tree, Path]:
    """300 processes of user 666 that are called claude; rules of two kinds."""
    tree = Tree(tmp_path / "proc").use(monkeypatch)
    tree.process(1, "init", ppid=0)
    for pid in range(1000, 1300):
        tree.process(pid, "claude", uid=666)
    rules = tmp_path / "agents.yaml"
    rules.write_text(
        "rules:\n- {name: hers, match: 'comm:^claude$', users: '1001'}\n"
        "- {name: claude, match: 'comm:^claude$'}\n"
    )
    return tree, rules


def seated(registry: Registry) -> dict[int, int]:
    """Process -> user, of those that are measured."""
    return {agent.root: agent.user for agent in registry.agents() if agent.alive and agent.seated}


def test_a_crowd_of_one_user_leaves_seats_to_others_and_is_only_counted_beyond(
    kernel: Kernel, flooded: tuple[Tree, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, rules = flooded
    made = Registry(Rules.load(str(rules)))
    made.attach(cast(Tracer, kernel))
    made.scan()
    most = layout.SLOTS - 1
    assert len(seated(made)) == most
    assert made.slots_full == 300 - most
    assert len(made.agents()) == most + module.WAITING_EACH
    monkeypatch.setattr(module, "WAITING_EACH", 64)
    for pid in range(2000, 2003):
        tree.process(pid, "claude", uid=1000)
    for pid in range(2100, 2240):
        tree.process(pid, "claude", uid=1001)
    made.scan()
    for _ in range(14):
        made.refresh()
        made.forget()
        made.scan()
    users = list(seated(made).values())
    # Root's rule names 1001: all of them. 1000 has fewest, and so all of its own, too.
    assert (users.count(1001), users.count(1000)) == (140, 3)
    assert users.count(666) == most - 143
    assert made.slots_full == 300 - (most - 143)
    assert made.slots_full_by_user == {"666": made.slots_full}
    # Each user draws on lanes for names of its own; root's choice on all.
    shares = {a.user: kernel.shares[a.slot] for a in made.agents() if a.alive and a.seated}
    assert shares[1001] == 0
    assert 0 != shares[1000] != shares[666] != 0
    held = [slot for slot in kernel.slots.values() if slot != layout.NO_SLOT]
    assert len(held) == len(set(held)) == most


def test_without_bpf_the_crowd_is_bounded_too(flooded: tuple[Tree, Path]) -> None:
    tree, rules = flooded
    tree.process(2000, "claude", uid=1000)
    made = Registry(Rules.load(str(rules)))
    for _ in range(3):
        made.scan()
        made.forget()
    assert len(seated(made)) == layout.SLOTS - 1
    assert seated(made)[2000] == 1000


def test_a_daemon_that_names_itself_leaves_the_tree_all_the_same(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = Tree(tmp_path).use(monkeypatch)
    tree.process(1, "init", ppid=0)
    tree.process(20, "claude")
    tree.process(21, "make", ppid=20)
    tree.process(30, "cached")  # its parent, of the tree, has ended
    made = Registry(Rules.load(patterns=["comm:^claude$"]))
    made.attach(cast(Tracer, kernel))
    made.scan()
    slot = only(made, 20).slot
    kernel.slots |= {21: slot, 30: slot}
    execs = [Edge("exec", pid, pid, slot) for pid in (21, 30)]
    made.edges([*execs, Edge("rename", 21, 21, 0), Edge("rename", 30, 30, 0)], lost=False)
    assert kernel.slots == {20: slot, 21: slot, 30: layout.NO_SLOT}


def test_who_asks_is_found_though_the_ring_dropped_that(registry: Registry, kernel: Kernel) -> None:
    """Anybody can fill the ring: that a thread waits for a slot is listed all the same."""
    ask(kernel, ME)
    ask(kernel, ME + 1, ago_s=2 * module.ASKED_S)
    registry.refresh()
    assert [agent.tid for agent in registry.agents()] == [ME]
    assert kernel.slots == {ME: only(registry, ME).slot}


def test_who_was_only_counted_is_not_any_more_once_it_has_a_seat(
    kernel: Kernel, flooded: tuple[Tree, Path]
) -> None:
    tree, rules = flooded
    made = Registry(Rules.load(str(rules)))
    made.attach(cast(Tracer, kernel))
    made.scan()
    assert made.slots_full > module.WAITING_EACH
    for pid in range(1000, 1100):
        shutil.rmtree(tree.proc / str(pid))
        kernel.slots.pop(pid, None)
    for _ in range(2 * layout.SLOTS // 32):
        made.refresh()
        made.forget()
        made.scan()
    assert len(seated(made)) == 200
    assert made.slots_full == 0
    assert not made.scan_due


def test_who_root_chose_is_not_hidden_by_a_crowd_of_the_same_user(
    kernel: Kernel, flooded: tuple[Tree, Path]
) -> None:
    tree, rules = flooded
    text = rules.read_text().replace("claude$'}", "claude$'}\n- {name: group, match: 'user:666'}")
    rules.write_text(text)
    made = Registry(Rules.load(str(rules)))
    made.attach(cast(Tracer, kernel))
    made.scan()
    tree.process(5000, "worker", uid=666)
    made.scan()
    for _ in range(8):
        made.refresh()
        made.forget()
        made.scan()
    assert 5000 in seated(made)
