"""Reading very many processes never takes longer at a time than a slice."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.agents.rules import Rules
from agenttop.engine.agent_registry import Registry
from agenttop.linux import process as procinfo
from agenttop.linux import process_table as module
from agenttop.linux import slices
from agenttop.linux.process import ProcInfo
from agenttop.linux.process_table import ProcessTable
from agenttop.linux.slices import SLICE_S, Job, Jobs, whole
from agenttop.policies.base import Targets
from agenttop.policies.builtin.demote import Demote, Params
from tests.support.trees import Tree

#: What reading one process takes, s: as much as on a machine that is very busy.
READ_S = 0.002
LIMIT_S = 0.02


class Clock:
    """Time that passes when something is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "thread_time", lambda: self.now)


def process(pid: int, ppid: int = 1, comm: str = "worker", start: int = 7) -> ProcInfo:
    return ProcInfo(pid, ppid, comm, (comm,), None, None, start, 1, False)


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Clock]:
    """A machine with so many processes, each 1000th a claude; reading takes time."""

    def make(count: int) -> Clock:
        clock = Clock(monkeypatch)

        def read(pid: int, **_: object) -> ProcInfo:
            clock.now += READ_S
            return process(pid, 1, "worker" if pid % 1000 else "claude")

        monkeypatch.setattr(procinfo, "pids", lambda *_: iter(range(2, count + 2)))
        monkeypatch.setattr(procinfo, "read", read)
        return clock

    return make


@pytest.mark.parametrize("count", [10, 40_000])
def test_a_scan_is_done_in_slices_and_finds_all(
    many: Callable[[int], Clock], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = many(count)
    registry = Registry(Rules.load(patterns=["comm:^claude$"]))
    jobs, ended, longest = Jobs(), [], 0.0
    before = clock.now
    jobs.begin("agents", registry.scanning(), lambda: ended.append(clock.now))
    while jobs:
        longest = max(longest, clock.now - before)
        before = clock.now
        jobs.run()
    assert max(longest, clock.now - before) <= LIMIT_S
    assert len(ended) == 1
    assert len(registry.agents()) == count // 1000


def test_the_next_scan_waits_as_long_as_reading_them_costs(many: Callable[[int], Clock]) -> None:
    clock = many(40_000)
    registry = Registry(Rules.load(patterns=["comm:^claude$"]))
    assert registry.scan_due
    registry.scan()
    spent = 40_000 * READ_S
    clock.now += spent
    assert not registry.scan_due
    clock.now += module.PACE * spent
    assert registry.scan_due


def test_an_agent_comes_and_another_goes_between_two_scans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = Tree(tmp_path).use(monkeypatch)
    for pid in range(100, 4100):
        tree.process(pid, "worker")
    tree.process(50, "claude")
    registry = Registry(Rules.load(patterns=["comm:^claude$"]))
    registry.scan()
    (tree.proc / "50/stat").unlink()
    tree.process(5000, "claude")
    tree.process(5001, "tool", ppid=5000)
    registry.scan()
    assert [(a.root, a.alive, a.pids) for a in registry.agents()] == [
        (50, False, [50]),
        (5000, True, [5000, 5001]),
    ]


def test_old_processes_are_read_again_in_turns_and_young_ones_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = set(range(1, 5 * module.READ + 1))
    read: list[int] = []

    def one(pid: int) -> ProcInfo:
        read.append(pid)
        return process(pid)

    monkeypatch.setattr(procinfo, "pids", lambda *_: iter(sorted(there)))
    table = ProcessTable(one, lambda info: info.comm)
    for _ in range(module.YOUNG):
        read.clear()
        whole(table.look())
        assert set(read) == there
    seen: set[int] = set()
    for _ in range(5):
        read.clear()
        whole(table.look())
        assert len(read) <= module.READ
        seen |= set(read)
    assert seen == there
    there.add(900_000)
    there.discard(1)
    read.clear()
    whole(table.look())
    assert 900_000 in read
    assert table.infos.keys() == there


def test_background_work_is_looked_for_in_slices(many: Callable[[int], Clock]) -> None:
    clock = many(40_000)
    demote = Demote(Params(processes=["comm:^claude$"]))
    jobs, ended, longest = Jobs(), [], 0.0
    before = clock.now
    jobs.begin("look", demote.look(), lambda: ended.append(True))
    while jobs:
        longest = max(longest, clock.now - before)
        before = clock.now
        jobs.run()
    assert ended
    before = clock.now
    # None of them is there for the kernel: only what is known is looked at.
    assert demote.wanted(Targets(0), {}) == {}
    assert max(longest, clock.now - before) <= LIMIT_S


def test_what_a_process_becomes_is_judged_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {10: "bash", 11: "bash"}
    monkeypatch.setattr(procinfo, "pids", lambda *_: iter(names))
    judged: list[int] = []

    def judge(info: ProcInfo) -> str:
        judged.append(info.pid)
        return info.comm

    table = ProcessTable(lambda pid: process(pid, comm=names[pid]), judge)
    whole(table.look())
    names[11] = "claude"
    whole(table.look())
    assert table.verdicts == {10: "bash", 11: "claude"}
    assert judged == [10, 11, 11]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_jobs_take_turns_and_all_come_to_their_end(lengths: list[int]) -> None:
    jobs, ended = Jobs(), []

    def job(pieces: int) -> Job:
        for _ in range(pieces):
            yield

    def forever(_: int) -> Generator[None, None, None]:
        while True:
            yield

    with pytest.MonkeyPatch.context() as patch:
        now = [0.0]

        def clock() -> float:
            now[0] += SLICE_S
            return now[0]

        patch.setattr(slices.time, "monotonic", clock)
        jobs.begin("endless", forever(0), lambda: ended.append(-1))
        for i, pieces in enumerate(lengths):
            jobs.begin(str(i), job(pieces), lambda i=i: ended.append(i))
        for _ in range(100 * len(lengths)):
            jobs.run()
    assert sorted(ended) == list(range(len(lengths)))
    assert "endless" in jobs
    jobs.drop("endless")
    assert not jobs


@pytest.mark.parametrize("where", ["first", "later", "then"])
def test_a_job_that_fails_is_over_and_the_others_go_on(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "SLICE_S", 0.0)
    failed: list[str] = []
    ended: list[str] = []
    jobs = Jobs(lambda name, error: failed.append(f"{name}: {error}"))

    def job(pieces: int, fails: bool) -> Job:
        for _ in range(pieces):
            yield
        if fails:
            raise ValueError("no number")

    def then() -> None:
        if where == "then":
            raise ValueError("no number")
        ended.append("bad")

    jobs.begin("good", job(3, fails=False), lambda: ended.append("good"))
    jobs.begin("bad", job(0 if where == "first" else 2, fails=where != "then"), then)
    while jobs:
        jobs.run()
    assert (failed, ended) == (["bad: no number"], ["good"])
    assert not jobs.running
    where = ""
    jobs.begin("bad", job(0, fails=False), then)
    assert ended == ["good", "bad"]


def test_a_scan_that_fails_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    there = [5]
    monkeypatch.setattr(procinfo, "pids", lambda *_: iter(there))
    monkeypatch.setattr(procinfo, "read", lambda pid, **_: process(pid, comm="claude"))
    registry = Registry(Rules.load(patterns=["comm:^claude$"]))
    registry.scan()
    # With BPF nothing but lost edges asks for a scan.
    registry._tracer = object()  # type: ignore[assignment]

    def broken(*_: object) -> None:
        raise OSError("Input/output error")

    registry.edges((), lost=True)
    clock.now += 100
    with monkeypatch.context() as patch:
        patch.setattr(procinfo, "pids", broken)
        with pytest.raises(OSError, match="Input"):
            registry.scan()
    clock.now += 100
    assert registry.scan_due
