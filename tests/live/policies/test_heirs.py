"""What held threads start inherits what is held, and gets what it would have had."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agenttop.linux.slices import whole
from agenttop.policies.base import Agent, Cpu, Targets, Thread
from agenttop.policies.guardian import heirs
from agenttop.policies.guardian.journal import Hold, Journal, open_state_dir, ticks
from agenttop.policies.guardian.undo import recover, release_heirs, undo_all
from agenttop.policies.knobs import KNOBS
from agenttop.policies.knobs.base import Change, cpu_set, thread_stat
from agenttop.policies.knobs.sched_attr import SCHED_POLICY
from agenttop.policies.manager import PolicyManager
from agenttop.policies.parts.chosen_processes import Chosen
from tests.support.policy_rig import needs_root, needs_two_cpus, until

pytestmark = needs_root


@contextmanager
def shell() -> Iterator[subprocess.Popen[str]]:
    """A shell that runs what is written to it, in a process group of its own."""
    process = subprocess.Popen(
        ["bash", "-c", "echo heirtest > /proc/self/comm; echo; while read -r x; do eval $x; done"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process
    finally:
        os.killpg(process.pid, 9)
        process.wait()
        process.stdin.close()
        process.stdout.close()


def started(process: subprocess.Popen[str], command: str) -> int:
    """The process of a command that the shell starts in the background."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{command} > /dev/null 2>&1 & echo $!\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def targets(*groups: tuple[int, ...]) -> Targets:
    """An agent of each group of processes."""
    steps = time.monotonic_ns() // 1_000_000
    agents = tuple(
        Agent(n, f"a{n}", pids, tuple(Thread(p, p, 0, steps) for p in pids), {0: steps})
        for n, pids in enumerate(groups, 1)
    )
    cpus = tuple(Cpu(cpu) for cpu in sorted(cpu_set("online")))
    return Targets(time.monotonic_ns(), agents, cpus)


def run(manager: PolicyManager, seconds: float, *groups: tuple[int, ...]) -> None:
    """Tick as the engine does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        manager.tick(targets(*groups))
        time.sleep(0.1)


def running(pid: int) -> bool:
    stat = thread_stat(pid, pid)
    return stat is not None and stat.state not in "ZX"


def priority(pid: int) -> str:
    return SCHED_POLICY.get(pid)


@pytest.fixture
def demoting(tmp_path: Path) -> Iterator[PolicyManager]:
    settings = {"demote": {"processes": ["comm:^heirtest$"]}}
    manager = PolicyManager(tmp_path / "state", settings=settings)
    yield manager
    manager.close()


def test_a_child_with_another_nice_value_is_given_back_and_keeps_it(
    demoting: PolicyManager,
) -> None:
    with shell() as parent:
        demoting.set("demote", True, targets())
        child = started(parent, "exec nice -n 10 sleep 60")
        assert until(lambda: priority(child) == "IDLE:10", 5)
        demoting.close()
        assert (priority(parent.pid), priority(child)) == ("OTHER:0", "OTHER:10")


def test_a_demoted_process_that_was_reniced_is_given_back_and_stays_so(
    demoting: PolicyManager,
) -> None:
    with shell() as process:
        demoting.set("demote", True, targets())
        os.setpriority(os.PRIO_PROCESS, process.pid, 5)
        run(demoting, 2.5)
        assert priority(process.pid) == "IDLE:5"
        demoting.close()
        assert priority(process.pid) == "OTHER:5"


@contextmanager
def orphan(manager: PolicyManager) -> Iterator[int]:
    """A child of a demoted process that was demoted with it and has lost it."""
    with shell() as parent:
        manager.set("demote", True, targets())
        child = started(parent, "exec sleep 60")
        run(manager, 1.5)
        assert priority(child) == "IDLE:0"
        parent.kill()
        parent.wait()
        yield child


def test_a_child_that_outlives_its_parent_is_given_back(demoting: PolicyManager) -> None:
    with orphan(demoting) as child:
        # Nobody who was chosen is among its ancestors any more.
        run(demoting, 1.5)
        assert priority(child) == "OTHER:0"


def test_a_child_that_outlives_all_is_in_the_journal(
    demoting: PolicyManager, tmp_path: Path
) -> None:
    with orphan(demoting) as child:
        # As it is found by who comes after a kill of engine and guardian.
        dir_fd = open_state_dir(str(tmp_path / "state"))
        assert dir_fd is not None
        try:
            recover(dir_fd)
        finally:
            os.close(dir_fd)
        assert priority(child) == "OTHER:0"


@needs_two_cpus
def test_what_another_agent_was_pinned_to_by_somebody_stays(tmp_path: Path) -> None:
    manager = PolicyManager(tmp_path / "state")
    try:
        with shell() as mine, shell() as other:
            manager.set("home", True, targets((mine.pid,), (other.pid,)))
            homes = {p.pid: os.sched_getaffinity(p.pid) for p in (mine, other)}
            (cpu,) = homes[mine.pid]
            pinned = subprocess.Popen(["taskset", "-c", str(cpu), "sleep", "60"])
            tool = started(mine, "exec sleep 60")
            try:
                assert until(lambda: os.sched_getaffinity(pinned.pid) == {cpu}, 5)
                run(manager, 2.5, (mine.pid, tool), (other.pid,), (pinned.pid,))
                assert os.sched_getaffinity(pinned.pid) == {cpu}
                manager.close()
                assert os.sched_getaffinity(pinned.pid) == {cpu}
                assert os.sched_getaffinity(tool) == os.sched_getaffinity(0)
            finally:
                pinned.kill()
                pinned.wait()
    finally:
        manager.close()


@needs_two_cpus
def test_a_tool_that_lost_its_parent_is_its_agents_heir_and_nobody_elses() -> None:
    every = os.sched_getaffinity(0)
    with shell() as agent:
        stat = thread_stat(agent.pid, agent.pid)
        assert stat is not None
        target = f"{agent.pid}/{agent.pid}/{stat.start}"
        hold = Hold("home", "affinity", target, ",".join(map(str, sorted(every))), ["0"], ticks())
        time.sleep(0.02)
        between = started(agent, "(taskset -c 0 sleep 60 &)")
        assert until(lambda: not running(between), 5)
        child = int(subprocess.check_output(["pgrep", "-s", str(agent.pid), "-x", "sleep"]))
        assert until(lambda: os.sched_getaffinity(child) == {0}, 5)
        assert release_heirs([hold], [[agent.pid], [child]], [hold.key]) == []
        assert os.sched_getaffinity(child) == {0}
        (outcome,) = release_heirs([hold], [[agent.pid, child]], [hold.key])
        assert outcome.target.startswith(f"{child}/{child}/")
        assert os.sched_getaffinity(child) == every


def test_a_process_that_got_a_chosen_ones_number_is_not_chosen() -> None:
    chosen = Chosen(["comm:^heirtest$"])
    with shell() as process:
        whole(chosen.look())
        assert [info.pid for info in chosen.find(targets())] == [process.pid]
        infos = chosen._table.infos
        known = infos[process.pid]
        infos[process.pid] = known._replace(starttime=known.starttime - 1)
        assert chosen.find(targets()) == []
        # The next look finds that it is a chosen one itself.
        whole(chosen._table.look())
        assert [info.pid for info in chosen.find(targets())] == [process.pid]


@contextmanager
def ending(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is killed at the end, however a test ends."""
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def held(pid: int, at: int = 0) -> Hold:
    """A process that is demoted."""
    stat = thread_stat(pid, pid)
    assert stat is not None
    return Hold("demote", "sched_policy", f"{pid}/{pid}/{stat.start}", "OTHER:0", ["IDLE:0"], at)


def test_one_that_copies_much_is_soon_known_to_start_nobody(state: int) -> None:
    """It has no user time to speak of, and it never sleeps."""
    copying = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M"]
    with ending(copying) as process:
        assert until(lambda: KNOBS["sched_policy"].read(held(process.pid).target) == "OTHER:0", 5)
        (key, target) = held(process.pid).key
        journal = Journal(state)
        journal.record([Change("demote", key, target, "OTHER:0", "IDLE:0")])
        KNOBS[key].write(target, "IDLE:0")
        assert [outcome.text for outcome in undo_all(journal) if not outcome.settled] == []
        assert not journal.holds


def test_only_whose_heirs_may_be_missing_is_unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heirs, "BOUND_S", 0.05)
    with shell() as forks, shell() as sleeps:
        mine = [held(forks.pid), held(sleeps.pid)]
        monkeypatch.setattr(heirs, "_progress", lambda t: 0 if t == mine[0].target else None)
        (outcome,), unfinished = heirs.release_all(mine)
        assert unfinished == {mine[0].key}
        assert "may be starting a thread just now" in outcome.text


def test_a_long_look_for_heirs_says_that_it_goes_on() -> None:
    with shell() as process:
        steps: list[int] = []
        heirs.release_all([held(process.pid)], step=lambda: steps.append(1))
        assert len(steps) > len([name for name in os.listdir("/proc") if name.isdigit()]) // 2
