"""Agents come, stay and go, by what the kernel's side (played here) lists of them."""

from __future__ import annotations

import os
from typing import Any, cast

import pytest

from agenttop.agents import Rules
from agenttop.collectors.bpf import layout
from agenttop.collectors.bpf.tracer import Edge, Thread, Tracer
from agenttop.registry import UNLISTED, Registry

ME = os.getpid()


class Kernel:
    """Measures whom it is told to; ``ghosts`` are threads that were never counted out."""

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}
        self.ghosts: dict[int, int] = {}

    def assign(self, processes: dict[int, int], threads: dict[int, int]) -> None:
        self.slots |= processes | threads

    def threads(self) -> list[Thread]:
        listed = {tid: slot for tid, slot in self.slots.items() if slot != layout.NO_SLOT}
        return [Thread(tid, tid, slot, 0, 0, 0) for tid, slot in listed.items()]

    def members(self, slot: int) -> int:
        return sum(s == slot for s in self.slots.values()) + self.ghosts.get(slot, 0)

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
    return [Edge("marker", tid, tid, 0) for tid in tids]


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
