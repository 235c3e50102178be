"""What the engine tells the policies of threads: their loads, whatever their number."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from agenttop.collectors.bpf.read.tracer import Thread
from agenttop.engine import policy_targets as module
from agenttop.engine.policy_targets import LOADS, EngineTargets
from agenttop.model.sample import Sample

SECOND = 1_000_000_000


class Machine:
    """One agent with so many threads; each uses a quarter of a CPU."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = SECOND
        self.reads = 0
        self.threads = [Thread(1000, 1000 + n, 1, 10, 0, 0) for n in range(count)]
        self.agent: Any = SimpleNamespace(
            id=1, name="a", root=1000, pids=[1000], threads=self.threads, alive=True,
            slot=1, background=False, user=0, chosen=False,
        )  # fmt: skip
        monkeypatch.setattr(module.time, "monotonic_ns", lambda: self.now)
        monkeypatch.setattr(module.process, "read_file", self._read)
        self.engine = EngineTargets(self)  # type: ignore[arg-type]

    def agents(self) -> list[Any]:
        return [self.agent]

    def _read(self, path: str, size: int) -> bytes:
        assert re.fullmatch(r"/proc/1000/task/\d+/schedstat", path)
        self.reads += 1
        return b"%d 0 1\n" % (self.now // 4)

    def second(self) -> dict[int, float]:
        """Thread -> its load, a second after the last."""
        self.now += SECOND
        self.engine.update(Sample(t_ns=self.now, wall_s=0, seq=1, full=True))
        (agent,) = self.engine.current().agents
        return {thread.tid: thread.load_ratio for thread in agent.threads}


@pytest.mark.parametrize("count", [1, LOADS, LOADS + 1, 20_000])
def test_each_has_its_load_and_no_sample_reads_many(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(count, monkeypatch)
    for _ in range(2 * -(-count // LOADS)):
        before = machine.reads
        loads = machine.second()
        assert machine.reads - before <= LOADS
    assert loads == dict.fromkeys(range(1000, 1000 + count), pytest.approx(0.25))


def test_what_another_thread_of_the_same_number_used_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(2, monkeypatch)
    machine.second()
    machine.agent.threads = machine.threads[:1]
    machine.second()
    machine.agent.threads = machine.threads
    assert machine.second() == {1000: pytest.approx(0.25), 1001: 0.0}
