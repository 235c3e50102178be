"""A running engine in tests."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from agenttop.model.options import EngineOptions
from agenttop.model.sample import AgentCounters, Sample
from agenttop.store.store import Store
from agenttop.stream.engine_client import EngineClient

PATIENCE_S = 60.0


class Engine:
    """Reads Samples until something holds; keeps a Store of all of them."""

    def __init__(self, client: EngineClient) -> None:
        self.client = client
        self.store = Store()
        self.events: list[str] = []
        self.last: Sample | None = None

    def until(self, condition: Callable[[Sample], bool]) -> Sample:
        """The first Sample for which the condition holds."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            for sample in self.client.samples(end):
                self.last = sample
                self.store.feed(sample)
                self.events += [event.text for event in sample.events]
                if condition(sample):
                    return sample
        agents = [(a.name, a.pid, a.steps, a.alive) for a in self.last.agents] if self.last else []
        policies = [(p.name, p.state, p.detail) for p in self.last.policies] if self.last else []
        raise AssertionError(f"it never held: {agents} {policies} {self.events}")

    def measuring(self) -> Sample:
        """The first Sample with step chains (or without, where they can't be had)."""
        return self.until(lambda s: s.host is not None and s.host.missing.get("chains") is None)


def agent(sample: Sample, pid: int) -> AgentCounters | None:
    """The agent that this process belongs to."""
    return next((one for one in sample.agents if pid in (one.pid, *one.pids)), None)


@contextmanager
def engine(**options: object) -> Iterator[Engine]:
    """A started engine; ended with the block."""
    given = {"delay_s": 0.2, **options}
    client = EngineClient(EngineOptions(**given))  # type: ignore[arg-type]
    try:
        yield Engine(client)
    finally:
        client.close()


def needs_bpf() -> None:
    """Skip without root or BCC."""
    if os.geteuid() != 0:
        pytest.skip("needs root for BPF")
    from agenttop.collectors.bpf.load.loader import LoadError, bcc

    try:
        bcc()
    except LoadError as error:
        pytest.skip(str(error))
