"""Both policies on the real kernel: they take effect, notice others, and leave nothing behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agenttop.errors import UserError
from agenttop.model.sample import Event, PolicyStatus
from agenttop.policies.base import Agent, Cpu, Exit, Targets, Thread
from agenttop.policies.guardian import lock
from agenttop.policies.knobs import change_line
from agenttop.policies.knobs.base import RESUME_LATENCY, cpu_set
from agenttop.policies.manager import PolicyManager
from tests.support.policy_rig import (
    Victim,
    cpu_latency,
    machine,
    needs_qos,
    needs_root,
    needs_two_cpus,
    victims,
)

pytestmark = pytest.mark.live

real = [needs_root, needs_qos, needs_two_cpus]


@pytest.fixture
def victim() -> Iterator[Victim]:
    with victims() as victim:
        yield victim


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[PolicyManager]:
    manager = PolicyManager(tmp_path / "state", settings={"guard": {"limit_us": 1}})
    yield manager
    manager.close()


def targets(victim: Victim, cpus: list[int] | None = None) -> Targets:
    steps = time.monotonic_ns() // 1_000_000
    threads = tuple(Thread(tid, victim.pid, 0, steps) for tid in victim.tids())
    used = dict.fromkeys([0] if cpus is None else cpus, steps)
    exits = {n: Exit(9_000, 100) for n in range(1, 10)}
    return Targets(
        time.monotonic_ns(),
        (Agent(1, "victim", victim.pids, threads, used),),
        tuple(Cpu(cpu, exits=exits) for cpu in sorted(cpu_set("online"))),
    )


def status(manager: PolicyManager, name: str) -> PolicyStatus:
    return next(s for s in manager.status() if s.name == name)


def texts(events: list[Event]) -> str:
    return "\n".join(f"{event.kind}: {event.text}" for event in events)


def run(
    manager: PolicyManager, victim: Victim, seconds: float, until: Callable[[], bool] | None = None
) -> list[Event]:
    """Tick as the engine does."""
    events = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not (until and until()):
        events += manager.tick(targets(victim))
        time.sleep(0.1)
    return events


def idle_entries(cpu: int) -> int:
    states = Path(f"/sys/devices/system/cpu/cpu{cpu}/cpuidle").glob("state*")
    return sum(
        int((state / "usage").read_text())
        for state in states
        if (state / "name").read_text().strip() != "POLL"
    )


class TestAtRest:
    def test_nothing_exists_before_the_first_policy(self, tmp_path: Path, victim: Victim) -> None:
        manager = PolicyManager(tmp_path / "state")
        assert manager.tick(targets(victim)) == []
        manager.status()
        assert manager.fds() == []
        assert manager.guardian is None
        assert manager.close() == []
        assert not (tmp_path / "state").exists()

    def test_read_only_switches_nothing(self, tmp_path: Path, victim: Victim) -> None:
        manager = PolicyManager(tmp_path / "state", readonly=True)
        before = machine(victim)
        for name in manager.names:
            assert "read-only" in texts(manager.set(name, True, targets(victim)))
        assert {s.state for s in manager.status()} <= {"off", "n/a"}
        assert machine(victim) == before
        assert not (tmp_path / "state").exists()

    @needs_root
    @needs_two_cpus
    def test_read_only_tells_what_it_would_do(self, tmp_path: Path, victim: Victim) -> None:
        manager = PolicyManager(tmp_path / "state", readonly=True)
        before = machine(victim)
        (status,) = (s for s in manager.status() if s.name == "home")
        assert status.state == "off"
        planned = {change.target.split("/")[1] for change in manager.plan("home", targets(victim))}
        assert planned & {str(tid) for tid in victim.tids()}
        assert machine(victim) == before
        assert not (tmp_path / "state").exists()

    @needs_root
    def test_another_owner_is_named(self, tmp_path: Path, victim: Victim) -> None:
        state = str(tmp_path / "state")
        manager = PolicyManager(state)
        assert manager.held_by is None
        fd = lock.acquire(state)
        try:
            assert manager.held_by == os.getpid()
            lock.sign(fd, 0, 0)
            assert manager.held_by == 0
        finally:
            lock.release(fd)
        assert manager.held_by is None

    def test_without_root_it_says_so(
        self, tmp_path: Path, victim: Victim, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("os.geteuid", lambda: 1000)
        manager = PolicyManager(tmp_path / "state")
        assert {(s.state, s.detail) for s in manager.status()} == {("n/a", "needs root")}

    def test_a_policy_that_is_none(self, tmp_path: Path, victim: Victim) -> None:
        with pytest.raises(UserError, match="no policy 'turbo': there are guard, "):
            PolicyManager(tmp_path / "state").set("turbo", True, targets(victim))


class TestOnTheKernel:
    pytestmark = real

    def test_a_plan_says_what_then_happens(self, manager: PolicyManager, victim: Victim) -> None:
        before = machine(victim)
        now = targets(victim)
        planned = {n: [change_line(c) for c in manager.plan(n, now)] for n in ("guard", "home")}
        assert machine(victim) == before
        assert manager.guardian is None
        path = RESUME_LATENCY.path("cpu0")
        assert planned["guard"] == [f"{path}: 0 -> n/a"]
        assert len(planned["home"]) == len(victim.tids())
        for name in planned:
            manager.set(name, True, now)
            assert status(manager, name).changes == planned[name]

    def test_guard_closes_idle_states_on_that_cpu(
        self, manager: PolicyManager, victim: Victim
    ) -> None:
        before = machine(victim)
        events = manager.set("guard", True, targets(victim))
        assert "policy: guard on: <=1us: cpu0 closes " in texts(events)
        now = status(manager, "guard")
        assert (now.state, now.cpus, now.agents) == ("on", [0], {"1": "cpu0"})
        assert now.since_ns is not None
        run(manager, victim, 0.3)
        entries = idle_entries(0)
        run(manager, victim, 1.0)
        guarded = idle_entries(0) - entries
        manager.set("guard", False, targets(victim))
        assert machine(victim) == before
        entries = idle_entries(0)
        time.sleep(1.0)
        # The victim's threads and the timer tick wake it hundreds of times a second.
        assert guarded < (idle_entries(0) - entries) / 3

    def test_guard_of_all_cpus_leaves_no_file_behind(
        self, manager: PolicyManager, victim: Victim
    ) -> None:
        every = sorted(cpu_set("online"))
        before = machine(victim)
        manager.set("guard", True, targets(victim, every))
        assert cpu_latency() == 0
        assert status(manager, "guard").cpus == every
        assert {RESUME_LATENCY.read(f"cpu{n}") for n in every} == {before[f"cpu{n}"] for n in every}
        manager.set("guard", False, targets(victim))
        assert machine(victim) == before

    def test_home_moves_threads_and_takes_in_new_ones(
        self, manager: PolicyManager, victim: Victim
    ) -> None:
        before = victim.masks()
        manager.set("home", True, targets(victim))
        assert all(len(mask) == 1 for mask in victim.masks().values())
        assert status(manager, "home").tids == victim.tids()
        tid, child = victim.spawn()
        run(manager, victim, 1.5)
        assert tid in status(manager, "home").tids
        # What it inherited is not taken for its own: it goes back to all CPUs.
        assert os.sched_getaffinity(child) == os.sched_getaffinity(0)
        manager.set("home", False, targets(victim))
        assert victim.masks() == {**before, tid: os.sched_getaffinity(0)}

    def test_off_ends_the_guardian_and_on_works_again(
        self, manager: PolicyManager, victim: Victim
    ) -> None:
        for _ in range(2):
            manager.set("guard", True, targets(victim))
            guardian = manager.guardian
            assert guardian
            assert manager.set("guard", True, targets(victim)) == []
            manager.set("guard", False, targets(victim))
            assert manager.guardian is None
            assert not os.path.exists(f"/proc/{guardian}")
            assert status(manager, "guard").state == "off"

    def test_somebody_elses_write_is_drift_and_stays(
        self, manager: PolicyManager, victim: Victim
    ) -> None:
        manager.set("guard", True, targets(victim))
        manager.set("home", True, targets(victim))
        tid = victim.tids()[1]
        others = set(os.sched_getaffinity(0)) - os.sched_getaffinity(tid)
        try:
            RESUME_LATENCY.write("cpu0", "100")
            os.sched_setaffinity(tid, others)
            events = run(
                manager,
                victim,
                4,
                lambda: all(s.state == "drift" for s in manager.status()),
            )
            assert "guard drifted" in texts(events)
            assert "now 100, set by somebody else (n/a was ours)" in status(manager, "guard").detail
            assert status(manager, "home").state == "drift"
            run(manager, victim, 1.5)
            assert RESUME_LATENCY.read("cpu0") == "100"
            assert os.sched_getaffinity(tid) == others
            events = manager.close()
            assert texts(events).count("left as it is") == 2
            assert RESUME_LATENCY.read("cpu0") == "100"
            assert os.sched_getaffinity(tid) == others
            assert len(os.sched_getaffinity(victim.tids()[0])) > 1
        finally:
            RESUME_LATENCY.write("cpu0", "0")

    def test_a_second_agenttop_is_told_who_has_them(
        self, manager: PolicyManager, victim: Victim, tmp_path: Path
    ) -> None:
        manager.set("guard", True, targets(victim))
        second = PolicyManager(tmp_path / "state")
        said = texts(second.set("home", True, targets(victim)))
        assert f"error: home: agenttop with pid {os.getpid()} holds the policies" in said
        assert status(second, "home").state == "error"
        assert status(manager, "guard").state == "on"

    def test_threads_that_end_are_forgotten(self, manager: PolicyManager, victim: Victim) -> None:
        manager.set("home", True, targets(victim))
        last = targets(victim)
        victim.process.kill()
        victim.process.wait()
        deadline = time.monotonic() + 4
        while status(manager, "home").tids and time.monotonic() < deadline:
            manager.tick(last)
            time.sleep(0.1)
        assert status(manager, "home").tids == []
        assert status(manager, "home").state == "on"

    def test_an_untouchable_state_directory_is_an_error_not_a_crash(
        self, tmp_path: Path, victim: Victim
    ) -> None:
        (tmp_path / "state").write_text("a file")
        manager = PolicyManager(tmp_path / "state")
        assert "error: guard: " in texts(manager.set("guard", True, targets(victim)))
        assert status(manager, "guard").state == "error"

    @pytest.mark.skipif(
        os.environ.get("AGENTTOP_TEST_HOTPLUG") != "1",
        reason="takes a CPU offline, which resets affinities of the whole machine:"
        " AGENTTOP_TEST_HOTPLUG=1",
    )
    def test_a_home_that_goes_offline(self, manager: PolicyManager, victim: Victim) -> None:
        last = max(cpu_set("online"))
        switch = Path(f"/sys/devices/system/cpu/cpu{last}/online")
        now = targets(victim, [last])
        hot = tuple(Cpu(c.cpu, irq_ratio=0.0 if c.cpu == last else 0.9) for c in now.cpus)
        before = machine(victim)
        manager.set("home", True, Targets(now.t_ns, now.agents, hot))
        manager.set("guard", True, now)
        assert set(map(frozenset, victim.masks().values())) == {frozenset({last})}
        try:
            switch.write_text("0")
            events = run(manager, victim, 2.5)
            assert "error" not in texts(events)
            assert status(manager, "home").state == "on"
            assert RESUME_LATENCY.read(f"cpu{last}") == "0"
        finally:
            switch.write_text("1")
        manager.close()
        assert machine(victim) == before
