"""A policy that reads all processes is planned and switched on once it has, not before."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agenttop.engine.loop import Engine
from agenttop.linux import slices
from agenttop.linux.slices import Job
from agenttop.model.options import EngineOptions
from agenttop.policies.base import Targets
from tests.support.trees import Tree
from tests.support.trees.machine import Machine


class Policies:
    """Demote has much to read, guard nothing."""

    guardian = None
    on: tuple[str, ...] = ()
    fails = False

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces
        self.switched: list[tuple[str, bool]] = []

    def look(self, name: str) -> Job | None:
        return self._read() if name == "demote" else None

    def _read(self) -> Job:
        for _ in range(self.pieces):
            yield
        if self.fails:
            raise KeyError("no such field")

    def set(self, name: str, on: bool, targets: Targets, trial: bool) -> list[Any]:
        self.switched.append((name, on))
        return []

    def plan(self, name: str, targets: Targets) -> list[Any]:
        return []

    def tick(self, targets: Targets) -> list[Any]:
        return []


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(slices, "SLICE_S", 0.0)  # each slice is one piece
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Engine(EngineOptions(), ours)


def test_it_is_switched_on_at_the_end_of_its_reading(engine: Engine) -> None:
    engine._policies = policies = Policies(3)  # type: ignore[assignment]
    engine._switch("guard", True)
    engine._switch("demote", True)
    assert policies.switched == [("guard", True)]
    assert engine._plan("demote") == ["the processes are being read"]
    while engine._jobs:
        engine._jobs.run()
    assert policies.switched == [("guard", True), ("demote", True)]
    assert engine._plan("demote") == []


def test_what_is_switched_has_cpu_figures_of_its_own_from_the_next_sample_on(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(Tree(tmp_path).use(monkeypatch), cpus=130, states=None, cpufreq=False, irqs=2).write()
    engine._policies = Policies(0)  # type: ignore[assignment]
    engine._sampler.look_again()
    assert engine._sampler.sample().cpus
    assert not engine._sampler.sample().cpus, "very many are read every few seconds"
    engine._switch("guard", True)
    assert engine._sampler.sample().cpus
    assert not engine._sampler.sample().cpus


def test_switched_off_before_that_it_never_was_on(engine: Engine) -> None:
    engine._policies = policies = Policies(3)  # type: ignore[assignment]
    engine._switch("demote", True)
    engine._switch("demote", False)
    while engine._jobs:
        engine._jobs.run()
    assert policies.switched == [("demote", False)]


def test_one_that_cannot_look_is_told_of_and_tried_again(engine: Engine) -> None:
    engine._policies = policies = Policies(2)  # type: ignore[assignment]
    policies.fails = True
    engine._switch("demote", True)
    while engine._jobs:
        engine._jobs.run()
    (event,) = engine._events
    assert event.text == "demote: looking at the processes failed: KeyError: 'no such field'"
    assert policies.switched == []
    policies.on = ("demote",)
    for _ in range(3):
        engine._tick_policies()  # tried again, told once
        while engine._jobs:
            engine._jobs.run()
    assert engine._plan("demote") == [event.text]
    assert engine._events == [event]
    policies.fails = False
    engine._switch("demote", True)
    while engine._jobs:
        engine._jobs.run()
    assert policies.switched == [("demote", True)]


def test_the_engine_goes_on_without_a_scan(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Job:
        yield
        raise ValueError("a line of /proc that is none")

    with monkeypatch.context() as patch:
        patch.setattr(engine._registry, "_scanning", broken)
        for _ in range(2):
            engine._scan()
            while engine._jobs:
                engine._jobs.run()
    (event,) = engine._events
    assert event.kind == "error"
    assert event.text.startswith("looking for agents failed: ValueError: a line")
    assert not engine._registry.scanned
    engine._scan()
    while engine._jobs:
        engine._jobs.run()
    assert engine._registry.scanned
