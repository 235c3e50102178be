"""memory: protection by cgroup, on fixture trees; MADV_COLD on a real process."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenttop.errors import UserError
from agenttop.policies.base import Agent, Settings
from agenttop.policies.builtin.memory import MB, Memory, Params
from agenttop.policies.knobs.base import thread_stat
from agenttop.policies.manager import PolicyManager
from agenttop.policies.parts import madvise_cold
from agenttop.policies.parts.madvise_cold import Cooler
from tests.support.knob_files import Trees, agent, targets, use
from tests.support.policy_rig import needs_root

PID = 900_001


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trees:
    trees = use(tmp_path, monkeypatch)
    trees.cgroup2("io memory")
    trees.put("proc/meminfo", "MemTotal:        1024000 kB\nMemFree: 1 kB\n")
    return trees


def group(trees: Trees, path: str, used_mb: int, *pids: int, low: str = "0") -> Path:
    return trees.group(
        path, *(pids or (PID,)), memory_current=str(used_mb * MB), memory_low=low, memory_min="0"
    )


def low(path: str, mb: int, file: str = "memory.low") -> Settings:
    return {("cgroup", f"{file}/{path}"): str(mb * MB)}


# --------------------------------------------------------------------------- protection


def test_what_an_agent_uses_is_protected(trees: Trees) -> None:
    group(trees, "one", 100)
    memory = Memory()
    assert memory.wanted(targets(agent({0: 1})), {}) == low("one", 100)
    assert memory.agents() == {1: "low 100M"}


def test_it_follows_large_changes_only(trees: Trees) -> None:
    group(trees, "one", 100)
    memory = Memory()
    held = memory.wanted(targets(agent({0: 1})), {})
    for used, protected in ((110, 100), (60, 100), (130, 130), (64, 64)):
        trees.put("cgroup/one/memory.current", str(used * MB))
        held = memory.wanted(targets(agent({0: 1})), held)
        assert held == low("one", protected)


def test_all_together_are_bounded(trees: Trees) -> None:
    group(trees, "one", 600, 900_001)
    group(trees, "two", 200, 900_002)
    memory = Memory(Params(most_percent=40))
    wanted = memory.wanted(targets(agent({0: 1}, 1), agent({0: 1}, 2)), {})
    assert wanted == low("one", 300) | low("two", 100)
    assert "bounded by 40%" in memory.detail()


def test_a_part_can_be_protected_always(trees: Trees) -> None:
    group(trees, "one", 100)
    wanted = Memory(Params(min_percent=20)).wanted(targets(agent({0: 1})), {})
    assert wanted == low("one", 100) | low("one", 20, "memory.min")


@pytest.mark.parametrize("already", ["max", str(200 * MB)])
def test_stronger_protection_of_somebody_else_stays(trees: Trees, already: str) -> None:
    group(trees, "one", 100, low=already)
    memory = Memory()
    assert memory.wanted(targets(agent({0: 1})), {}) == {}
    assert "memory.low is as high already" in memory.detail()


def test_shared_cgroups_and_the_root_are_left_alone(trees: Trees) -> None:
    group(trees, "session", 100, PID, 4711)
    trees.put(f"proc/{PID + 1}/cgroup", "0::/\n")
    memory = Memory()
    assert memory.wanted(targets(agent({0: 1}), agent({0: 1}, 2)), {}) == {}
    assert "1 shared with other processes left alone" in memory.detail()


def test_a_cgroup_above_that_is_not_protected_is_named(trees: Trees) -> None:
    trees.put("cgroup/user.slice/memory.low", "0\n")
    group(trees, "user.slice/one", 100)
    memory = Memory()
    assert memory.wanted(targets(agent({0: 1})), {}) == low("user.slice/one", 100)
    assert "little effect below user.slice" in memory.detail()


def test_a_cgroup_without_the_controller_is_named(trees: Trees) -> None:
    trees.group("one", PID)
    memory = Memory()
    assert memory.wanted(targets(agent({0: 1})), {}) == {}
    assert "one: has no memory controller" in memory.detail()


@needs_root
def test_it_can_be_had_with_the_controller_or_chosen_processes(trees: Trees) -> None:
    assert Memory().probe() is None
    trees.cgroup2("hugetlb")
    reason = Memory().probe() or ""
    assert "does not have the memory controller" in reason
    assert "--set 'memory.processes=" in reason
    assert Memory(Params(processes=["comm:scan"])).probe() == madvise_cold.available()


@needs_root
def test_protection_is_given_back(trees: Trees, tmp_path: Path) -> None:
    folder = group(trees, "one", 100)
    manager = PolicyManager(str(tmp_path / "state"))
    manager.set("memory", True, targets(agent({0: 1})))
    assert (folder / "memory.low").read_text() == str(100 * MB)
    manager.close()
    assert (folder / "memory.low").read_text() == "0"


def test_what_is_no_pattern_is_refused() -> None:
    with pytest.raises(UserError):
        Memory(Params(processes=["scan"]))


# --------------------------------------------------------------------------- the action

SIZE = 8 * MB
SCANNER = f"""
import mmap, sys
area = mmap.mmap(-1, {SIZE}, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.write(b"hot " * ({SIZE} // 4))
print("ready", flush=True)
sys.stdin.readline()
area.seek(0)
print(area.read() == b"hot " * ({SIZE} // 4), flush=True)
"""

needs_madvise = pytest.mark.skipif(
    madvise_cold.available() is not None, reason=str(madvise_cold.available())
)


@pytest.fixture
def scanner() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCANNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def referenced(pid: int) -> int:
    """Bytes of a process's own memory that count as used lately; the kernel spares shared pages."""
    total = 0
    own = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            own = len(line.split()) == 5  # without a path
        elif own and line.startswith("Referenced:"):
            total += int(line.split()[1]) * 1024
    return total


def start_of(pid: int) -> int:
    stat = thread_stat(pid, pid)
    assert stat is not None
    return stat.start


@needs_root
@needs_madvise
def test_a_scanners_memory_is_cold_and_still_there(scanner: subprocess.Popen[str]) -> None:
    assert referenced(scanner.pid) >= SIZE
    cooler = Cooler(scanner.pid, start_of(scanner.pid))
    assert cooler.cool(1 << 40) >= SIZE
    assert referenced(scanner.pid) < SIZE // 2
    assert scanner.stdin is not None
    assert scanner.stdout is not None
    scanner.stdin.write("\n")
    scanner.stdin.flush()
    assert scanner.stdout.readline() == "True\n"


@needs_root
@needs_madvise
def test_a_bounded_part_at_a_time_goes_all_the_way_round(scanner: subprocess.Popen[str]) -> None:
    cooler = Cooler(scanner.pid, start_of(scanner.pid))
    for _ in range(200):
        assert cooler.cool(MB) <= MB
    assert referenced(scanner.pid) < SIZE // 2


@needs_root
@needs_madvise
def test_a_part_that_is_no_whole_number_of_pages(scanner: subprocess.Popen[str]) -> None:
    """Several scanners share what is due in a second, so that it is seldom whole pages."""
    cooler = Cooler(scanner.pid, start_of(scanner.pid))
    for _ in range(200):
        assert cooler.cool(MB // 3) <= MB // 3
    assert referenced(scanner.pid) < SIZE // 2


@needs_root
@needs_madvise
def test_a_process_that_only_has_the_same_id_is_left_alone(
    scanner: subprocess.Popen[str],
) -> None:
    before = referenced(scanner.pid)
    assert Cooler(scanner.pid, start_of(scanner.pid) - 1).cool(1 << 40) == 0
    assert referenced(scanner.pid) >= before


@needs_root
@needs_madvise
def test_only_chosen_processes_and_never_an_agents(scanner: subprocess.Popen[str]) -> None:
    memory = Memory(Params(low=False, processes=[f"pid:{scanner.pid}"], cold_mb=1024))
    memory.wanted(targets(), {})
    memory.act(targets(Agent(1, "a", (scanner.pid,))))
    assert referenced(scanner.pid) >= SIZE
    assert "none of the chosen processes runs" in memory.detail()
    memory.act(targets())
    assert referenced(scanner.pid) < SIZE // 2
    assert "cannot be undone" in memory.detail()


@needs_root
@needs_madvise
def test_a_plan_does_nothing_and_being_on_does(
    scanner: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"low": False, "processes": [f"pid:{scanner.pid}"], "cold_mb": 1024}
    manager = PolicyManager(str(tmp_path / "state"), settings={"memory": given})
    manager.plan("memory", targets())
    assert referenced(scanner.pid) >= SIZE
    monkeypatch.setattr("agenttop.policies.manager.PLAN_NS", 0)
    try:
        manager.set("memory", True, targets())
        manager.tick(targets())
        assert referenced(scanner.pid) < SIZE // 2
    finally:
        manager.close()
