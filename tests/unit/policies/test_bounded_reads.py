"""What a policy reads at one look is bounded, however many processes there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from agenttop.linux import process
from agenttop.linux.process import ProcInfo
from agenttop.policies.base import Targets
from agenttop.policies.builtin import softirq
from agenttop.policies.knobs.base import ThreadStat
from agenttop.policies.parts import chosen_cgroups
from agenttop.policies.parts.chosen_cgroups import AT_ONCE, MOST, REREAD, ChosenGroups
from tests.support.knob_files import Trees, use


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trees:
    trees = use(tmp_path, monkeypatch)
    trees.cgroup2("cpuset cpu io")
    return trees


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that were read."""
    found: list[int] = []

    def one(pid: int, **_: object) -> ProcInfo:
        found.append(pid)
        return ProcInfo(pid, 1, "make", ("make",), None, None, 7, 1, False)

    monkeypatch.setattr(chosen_cgroups.process, "read", one)
    return found


def fill(trees: Trees, path: str, count: int) -> None:
    numbers = range(500_000, 500_000 + count)
    trees.put(f"cgroup/{path}/cgroup.procs", "".join(f"{pid}\n" for pid in numbers))


def test_a_large_group_is_read_in_parts_before_it_is_held(trees: Trees, read: list[int]) -> None:
    fill(trees, "batch", 2 * AT_ONCE + 10)
    groups = ChosenGroups(["batch"])
    for _ in range(2):
        left: list[str] = []
        read.clear()
        assert groups.find("cpu", Targets(0), left) == []
        assert left == ["cgroup batch refused: its processes are being read"]
        assert len(read) == AT_ONCE
    assert len(groups.find("cpu", Targets(0), [])) == 1
    # Held, it stays so; each process is read again now and then.
    read.clear()
    for _ in range(REREAD):
        assert len(groups.find("cpu", Targets(0), [])) == 1
    assert len(set(read)) == 2 * AT_ONCE + 10
    assert len(read) < 3 * AT_ONCE
    fill(trees, "batch", 4 * AT_ONCE)
    assert len(groups.find("cpu", Targets(0), [])) == 1


def test_a_group_of_very_many_is_refused(trees: Trees, read: list[int]) -> None:
    fill(trees, "batch/one", MOST)
    fill(trees, "batch/two", MOST + 1)
    left: list[str] = []
    assert ChosenGroups(["batch"]).find("cpu", Targets(0), left) == []
    assert left == [f"cgroup batch refused: more than {MOST} processes are in it"]
    assert read == []


def test_napi_threads_are_looked_for_among_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = {40: "napi/eth0-1", 41: "kworker/0", 42: "napi/eth1-1"}

    def children(path: str) -> bytes | None:
        return b"40 41 42 " if path == "/proc/2/task/2/children" else None

    def stat(pid: int, tid: int) -> ThreadStat:
        return ThreadStat(threads[pid], "I", 2, 7, 0)

    monkeypatch.setattr(process, "read_whole", children)
    monkeypatch.setattr(softirq, "thread_stat", stat)
    monkeypatch.setattr(process, "pids", lambda *_: pytest.fail("all processes are read"))
    assert softirq._napi_threads("eth0") == ["40/40/7"]
    monkeypatch.setattr(process, "read_whole", lambda _: None)
    monkeypatch.setattr(process, "pids", lambda *_: iter(threads))
    assert softirq._napi_threads("eth1") == ["42/42/7"]
