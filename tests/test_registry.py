"""Agents come, stay and go, by what the kernel's side (played here) lists of them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, cast

import pytest
from trees import Tree

from agenttop import registry as module
from agenttop.agents import Rules
from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.tracer import Asking, Edge, Thread, Tracer
from agenttop.registry import OPT_IN_SLOTS, UNLISTED, Registry

ME = os.getpid()


class Kernel:
    """Measures whom it is told to; ``ghosts`` are threads that were never counted out."""

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}
        self.ghosts: dict[int, int] = {}
        self.waiting: list[Asking] = []

    def assign(self, processes: dict[int, int], threads: dict[int, int]) -> None:
        self.slots |= processes | threads

    def threads(self) -> list[Thread]:
        listed = {tid: slot for tid, slot in self.slots.items() if slot != layout.NO_SLOT}
        return [Thread(tid, tid, slot, 0, 0, 0) for tid, slot in listed.items()]

    def members(self, slot: int) -> int:
        return sum(s == slot for s in self.slots.values()) + self.ghosts.get(slot, 0)

    def asking(self) -> list[Asking]:
        return self.waiting

    def clear(self, slot: int) -> None:
        self.ghosts.pop(slot, None)

    def release(self, slot: int) -> None:
        pass


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


def test_who_was_turned_away_is_seated_when_there_is_room_and_it_asks_again(
    registry: Registry, kernel: Kernel
) -> None:
    first, late = list(range(1000, 1000 + OPT_IN_SLOTS)), [2000, 2001, 2002]
    registry.edges(marked(*first, *late), lost=False)
    registry.edges(marked(*late), lost=False)
    registry.refresh()
    assert sorted(kernel.slots) == first
    assert registry.slots_full == len(late)
    for tid in first[:2]:
        del kernel.slots[tid]
    registry.refresh()
    registry.forget()
    registry.edges(marked(*late), lost=False)
    assert sorted(kernel.slots) == [*first[2:], *late[:2]]
    assert registry.slots_full == 1


def test_who_asks_no_more_was_turned_away_and_is_not_counted_for_ever(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.edges(marked(*range(1000, 1003 + OPT_IN_SLOTS)), lost=False)
    assert registry.slots_full == 3
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + module.ASKED_S + 1)
    assert registry.slots_full == 0


def test_any_number_may_ask(registry: Registry) -> None:
    registry.edges(marked(*range(10_000, 40_000)), lost=False)
    assert registry.slots_full <= module.EDGE_BACKLOG
    assert len(registry.agents()) == OPT_IN_SLOTS


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
    """A rename flood fills the ring: that a thread waits for a slot is listed all the same."""
    now = time.monotonic_ns()
    kernel.waiting = [
        Asking("marker", ME, ME, 0, now),
        Asking("marker", ME, ME + 1, 0, now - int(2 * module.ASKED_S * 1e9)),  # asks no more
    ]
    registry.refresh()
    assert [agent.tid for agent in registry.agents()] == [ME]
    assert kernel.slots == {ME: only(registry, ME).slot}
