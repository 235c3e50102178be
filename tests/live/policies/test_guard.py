"""guard: which idle states it closes, where, and when. Fixture trees of real machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from agenttop.policies.base import Agent, Cpu, Exit, Settings, Targets, Thread
from agenttop.policies.builtin import guard as guards
from agenttop.policies.builtin.guard import Guard, Params

XEON = [("POLL", 0), ("C1", 2), ("C1E", 10), ("C6", 190)]
GUEST = [("POLL", 0), ("haltpoll idle", 1)]
SECOND = 1_000_000_000


def tree(
    root: Path, states: list[tuple[str, int]], driver: str = "intel_idle", cpus: int = 4
) -> Path:
    base = root / "devices/system/cpu"
    for cpu in range(cpus):
        (base / f"cpu{cpu}/power").mkdir(parents=True)
        (base / f"cpu{cpu}/power/pm_qos_resume_latency_us").write_text("0\n")
        for index, (name, latency) in enumerate(states):
            state = base / f"cpu{cpu}/cpuidle/state{index}"
            state.mkdir(parents=True)
            (state / "name").write_text(name + "\n")
            (state / "latency").write_text(f"{latency}\n")
    (base / "cpuidle").mkdir()
    (base / "cpuidle/current_driver").write_text(driver + "\n")
    return base


@pytest.fixture
def sys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENTTOP_SYS", str(tmp_path))
    return tmp_path


def targets(
    cpu_steps: dict[int, int],
    seconds: float = 0,
    cpus: int = 4,
    exits: dict[int, Exit] | None = None,
    offline: tuple[int, ...] = (),
) -> Targets:
    agent = Agent(1, "coder", (10,), (Thread(10, 10, 0),), cpu_steps)
    return Targets(
        int(seconds * SECOND),
        (agent,),
        tuple(Cpu(n, n not in offline, exits=exits or {}) for n in range(cpus)),
    )


def qos(**limits: str) -> Settings:
    return {("pm_qos", cpu): value for cpu, value in limits.items()}


@pytest.mark.parametrize(
    ("limit_us", "value"),
    [(1, "1"), (2, "2"), (5, "5"), (10, "10"), (50, "50"), (189, "189")],
)
def test_the_limit_is_what_the_kernel_is_told(sys: Path, limit_us: int, value: str) -> None:
    tree(sys, XEON)
    wanted = Guard(Params(limit_us=limit_us)).wanted(targets({1: 100}), {})
    # 1 us closes C1, which promises 2: any value below 2 will do that.
    assert wanted == qos(cpu1=value)


def test_a_limit_above_every_state_changes_nothing_and_says_so(sys: Path) -> None:
    tree(sys, XEON)
    guard = Guard(Params(limit_us=190))
    assert guard.wanted(targets({1: 100}), {}) == {}
    assert "nothing to close on cpu1" in guard.detail()


def test_a_state_that_breaks_its_promise_is_closed(sys: Path) -> None:
    tree(sys, XEON)
    slow = {2: Exit(70_000, 100)}
    guard = Guard(Params(limit_us=50))
    # C1E promises 10 us but takes 70: 9 us leaves C1.
    assert guard.wanted(targets({1: 100}, exits=slow), {}) == qos(cpu1="9")
    assert "C1E (70us measured)" in guard.detail()
    assert Guard(Params(limit_us=50)).wanted(
        targets({1: 100}, exits={2: Exit(70_000, 3)}), {}
    ) == qos(cpu1="50")


@pytest.mark.parametrize(
    ("exit_ns", "text"),
    [(70_250, "70.2us"), (99_990, "100us"), (999_900, "1000us"), (1_050_000, "1050us")],
)
def test_how_long_an_exit_takes_is_a_plain_number(sys: Path, exit_ns: int, text: str) -> None:
    tree(sys, XEON)
    guard = Guard(Params(limit_us=50))
    guard.wanted(targets({1: 100}, exits={2: Exit(exit_ns, 100)}), {})
    assert f"C1E ({text} measured)" in guard.detail()


def test_halt_of_a_guest_is_closed_by_default_even_unmeasured(sys: Path) -> None:
    tree(sys, GUEST, "haltpoll")
    guard = Guard()
    assert guard.wanted(targets({1: 100}), {}) == qos(cpu1="n/a")
    assert "haltpoll idle (8us assumed)" in guard.detail()
    fast = {1: Exit(2_000, 100)}
    assert Guard().wanted(targets({1: 100}, exits=fast), {}) == {}


def test_what_was_measured_before_closing_is_remembered(sys: Path) -> None:
    tree(sys, GUEST, "haltpoll")
    guard = Guard()
    held = qos(cpu1="n/a")
    assert guard.wanted(targets({1: 100}, exits={1: Exit(9_000, 100)}), {}) == held
    # Closed, the state is hardly entered; stragglers must not open it again.
    stragglers = {1: Exit(1_000, 30)}
    assert guard.wanted(targets({1: 200}, 1, exits=stragglers), held) == held


def test_somebody_elses_stricter_limit_is_kept(sys: Path) -> None:
    base = tree(sys, XEON)
    file = base / "cpu1/power/pm_qos_resume_latency_us"
    file.write_text("n/a\n")
    guard = Guard()
    assert guard.wanted(targets({1: 100, 2: 100}), {}) == qos(cpu2="5")
    assert "already as strict: cpu1=n/a" in guard.detail()
    file.write_text("100\n")
    assert guard.wanted(targets({1: 200, 2: 200}, 1), {}) == qos(cpu1="5", cpu2="5")


def test_it_follows_agents_but_not_every_hop(sys: Path) -> None:
    tree(sys, XEON)
    guard = Guard()
    assert guard.wanted(targets({0: 1000, 1: 20}), {}) == qos(cpu0="5")
    # The agent moves to CPU 1; CPU 0 stays guarded for a while.
    assert guard.wanted(targets({0: 1000, 1: 1020}, 1), {}) == qos(cpu0="5", cpu1="5")
    steps = 1020
    for second in range(2, 40):
        steps += 1000
        wanted = guard.wanted(targets({0: 1000, 1: steps}, second), {})
    assert wanted == qos(cpu1="5")
    assert guard.agents() == {1: "cpu1"}


def test_an_offline_cpu_is_let_go(sys: Path) -> None:
    tree(sys, XEON)
    guard = Guard()
    guard.wanted(targets({1: 100, 2: 100}), {})
    assert guard.wanted(targets({1: 200, 2: 200}, 1, offline=(2,)), {}) == qos(cpu1="5")


def test_all_cpus_are_guarded_by_the_file_that_the_kernel_drops(
    sys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(sys, XEON, cpus=2)
    device = tmp_path / "cpu_dma_latency"
    monkeypatch.setattr(guards, "CPU_LATENCY_DEVICE", str(device))
    both = targets({0: 100, 1: 100}, cpus=2)
    assert Guard().wanted(both, {}) == qos(cpu0="5", cpu1="5")
    device.touch()
    assert Guard().wanted(both, {}) == {("cpu_latency", "all"): "5"}
    assert Guard().wanted(targets({1: 100}, cpus=2), {}) == qos(cpu1="5")
    assert Guard(Params(per_cpu=True)).wanted(both, {}) == qos(cpu0="5", cpu1="5")


def test_without_idle_states_it_says_why(sys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    base = tree(sys, [("POLL", 0)])
    assert "no idle states to close" in (Guard().probe() or "")
    for cpu in range(4):
        state = base / f"cpu{cpu}/cpuidle/state1"
        state.mkdir()
        (state / "name").write_text("C1\n")
    (base / "cpu0/power/pm_qos_resume_latency_us").unlink()
    assert "CONFIG_PM" in (Guard().probe() or "")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert Guard().probe() == "needs root"


def test_hostile_state_files_do_no_harm(sys: Path) -> None:
    base = tree(sys, XEON)
    (base / "cpu1/cpuidle/state2/name").write_text("\x1b[2J" + "x" * 5000)
    (base / "cpu1/cpuidle/state3/latency").write_text("soon\n")
    guard = Guard()
    assert guard.wanted(targets({1: 100}), {}) == qos(cpu1="5")
    assert "\x1b" not in guard.detail()
    assert len(guard.detail()) < 300
