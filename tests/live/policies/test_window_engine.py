"""The window in a running engine: it cannot be held open, whatever is stopped or killed."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agenttop.model.sample import Budget, Command, PolicyStatus, Sample
from agenttop.policies.guardian import lock
from agenttop.policies.knobs.base import RESUME_LATENCY, cpu_set
from tests.support.engines import Engine, engine, needs_bpf
from tests.support.loops import Loop, loop
from tests.support.policy_rig import machine_lock, needs_qos, needs_root

pytestmark = [pytest.mark.bpf, needs_root, needs_qos]

#: As short as a step: the loop's windows never run out. It closes HLT too.
SETTINGS = {"window": {"limit_us": 1, "window_us": 2_000, "budget": {"capacity": 1e6}}}
#: What the issue allows: the window and 10 ms.
BOUND_S = 0.002 + 0.010


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("AGENTTOP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with machine_lock():
        before = limits()
        yield tmp_path / "state"
        assert limits() == before


def limits() -> dict[str, str | None]:
    return {f"cpu{cpu}": RESUME_LATENCY.read(f"cpu{cpu}") for cpu in sorted(cpu_set("online"))}


def armed() -> bool:
    return any(value not in ("0", None) for value in limits().values())


def came(check: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    return True


def status(sample: Sample, name: str = "window") -> PolicyStatus:
    return next(policy for policy in sample.policies if policy.name == name)


@contextlib.contextmanager
def at_work(*agents: Loop, **settings: object) -> Iterator[Engine]:
    """An engine with the window on; the loops are its agents and run."""
    needs_bpf()
    patterns = [f"pid:{one.pid}" for one in agents]
    given = {**SETTINGS, "window": {**SETTINGS["window"], **settings}}
    with engine(agent_patterns=patterns, settings=given) as running:
        running.measuring()
        for one in agents:
            one.go()
        running.client.send(Command(kind="policy", name="window", on=True))
        running.until(lambda s: status(s).state == "on" and len(status(s).budgets) == len(agents))
        yield running


def guardian(state: Path) -> int:
    owner = lock.owner(str(state))
    assert owner is not None
    return owner.guardian


def test_it_is_in_force_and_the_sample_tells_of_it() -> None:
    with loop("--interval-us", 12_000, "--for", 60) as one, at_work(one) as running:
        found = running.until(lambda s: any(b.edges >= 20 for b in status(s).budgets.values()))
        window = status(found)
        (budget,) = window.budgets.values()
        # Each step opened a window anew; none was refused.
        assert budget.grants >= budget.edges
        assert (budget.refusals, budget.throttled, budget.degraded_ns) == (0, False, 0)
        assert 0 < budget.edge_p50_ns <= budget.edge_p99_ns <= budget.edge_max_ns
        assert list(window.agents.values()) == ["100%"]
        assert all(line.endswith(" while a window is open") for line in window.changes)
        assert "in force" in window.detail


@pytest.mark.measures
def test_stop_the_agent_and_the_guard_is_gone() -> None:
    took = []
    with loop("--interval-us", 1000, "--for", 90) as one, at_work(one):
        for _ in range(9):
            assert came(armed, 20)
            time.sleep(0.05)
            os.kill(one.pid, signal.SIGSTOP)
            stopped = time.monotonic()
            assert came(lambda: not armed(), 5), "held open without its agent"
            took.append(time.monotonic() - stopped)
            time.sleep(0.02)
            assert not armed()
            os.kill(one.pid, signal.SIGCONT)
    print(f"guard gone after {', '.join(f'{s * 1000:.1f}' for s in sorted(took))} ms")
    # The median: on a shared machine a single one may be late, the guardian being one of many.
    assert statistics.median(took) <= BOUND_S


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.measures
def test_stop_or_kill_the_engine_and_the_guard_is_gone(number: int) -> None:
    with loop("--interval-us", 1000, "--for", 90) as one, at_work(one) as running:
        assert came(armed, 20)
        os.kill(running.client.pid, number)
        stopped = last = time.monotonic()
        try:
            # The agent goes on and would keep its windows open for ever.
            while (now := time.monotonic()) < stopped + 2.5:
                last = now if armed() else last
                time.sleep(0.001)
            print(f"in force for {last - stopped:.2f} s after signal {number}")
            assert last - stopped <= 2.0
        finally:
            os.kill(running.client.pid, signal.SIGCONT)
        if number == signal.SIGSTOP:
            found = running.until(lambda s: status(s).state == "off")
            assert "was stopped" in status(found).detail
            assert status(found).budgets == {}


def test_kill_the_guardian_and_the_engine_gives_the_guard_back(state: Path) -> None:
    with loop("--interval-us", 1000, "--for", 90) as one, at_work(one) as running:
        assert came(armed, 20)
        os.kill(guardian(state), signal.SIGKILL)
        assert came(lambda: not armed(), 2.0)
        running.until(lambda s: status(s).state == "off")
        # And on again, with a new guardian.
        running.client.send(Command(kind="policy", name="window", on=True))
        running.until(lambda s: status(s).state == "on")
        assert came(armed, 20)


def test_kill_both_while_it_is_armed_and_restore_repairs(state: Path) -> None:
    with loop("--interval-us", 1000, "--for", 90) as one, at_work(one) as running:
        assert came(armed, 20)
        pid = guardian(state)
        os.kill(pid, signal.SIGSTOP)  # it must not be quicker
        os.kill(running.client.pid, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        assert came(lambda: lock.owner(str(state)) is None, 5)
        assert armed(), "nothing was left to repair"
        done = subprocess.run(
            [sys.executable, "-m", "agenttop", "restore"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "-> 0" in done.stdout
        assert not armed()


def test_what_an_operator_sets_meanwhile_stays() -> None:
    with loop("--interval-us", 1000, "--for", 90) as one, at_work(one) as running:
        assert came(armed, 20)
        try:
            RESUME_LATENCY.write("cpu0", "7")
            running.until(lambda s: status(s).state == "drift")
            assert "now 7, set by somebody else" in status(running.last).detail
            running.client.send(Command(kind="policy", name="window", on=False))
            running.until(lambda s: status(s).state == "off")
            assert RESUME_LATENCY.read("cpu0") == "7"
        finally:
            RESUME_LATENCY.write("cpu0", "0")


@pytest.mark.parametrize(("first", "second"), [("guard", "window"), ("window", "guard")])
def test_beside_the_static_guard_it_is_refused_with_both_names(first: str, second: str) -> None:
    settings = {**SETTINGS, "guard": {"limit_us": 1}}
    with loop("--interval-us", 1000, "--for", 90) as one:
        needs_bpf()
        patterns = [f"pid:{one.pid}"]
        with engine(agent_patterns=patterns, settings=settings) as running:
            running.measuring()
            one.go()
            for name in (first, second):
                running.client.send(Command(kind="policy", name=name, on=True))
                running.until(lambda s, name=name: status(s, name).state in ("on", "error"))
            states = [(status(running.last, n).state) for n in (first, second)]
            assert states == ["on", "error"]
            told = f"{first} and {second} both set CPUs' idle limits: switch {first} off first"
            assert status(running.last, second).detail == told
            running.client.send(Command(kind="policy", name=first, on=False))
            running.client.send(Command(kind="policy", name=second, on=True))
            running.until(lambda s: status(s, second).state == "on")


@pytest.mark.measures
def test_a_moderate_agent_beside_an_abuser() -> None:
    """The one keeps its window, the other is thrown out, and both p99s are told."""
    budget = {"capacity": 200, "refill_per_s": 400, "recovery": 0.5}
    with (
        loop("--name", "moderate", "--interval-us", 5000, "--for", 90) as good,
        loop("--name", "abuser", "--interval-us", 200, "--for", 90) as bad,
        at_work(good, bad, budget=budget) as running,
    ):
        running.until(lambda s: any(b.throttles >= 3 for b in status(s).budgets.values()))
        found = status(running.last)
        names = {agent.id: agent.pid for agent in running.last.agents}
        budgets: dict[int, Budget] = {names[int(k)]: b for k, b in found.budgets.items()}
        kept, thrown = budgets[good.pid], budgets[bad.pid]
        assert (kept.refusals, kept.throttles, kept.degraded_ns) == (0, 0, 0)
        assert kept.grants > 100
        assert thrown.refusals > thrown.grants
        assert thrown.degraded_ns > 0
        snapshot = running.store.snapshot()
        assert snapshot is not None
        for agent in snapshot.agents:
            p99_ns = agent.slowpath.p99_ns
            assert p99_ns
            name = "moderate" if agent.pid == good.pid else "abuser"
            print(f"{name}: slowpath p99 {p99_ns / 1000:.0f} us, {budgets[agent.pid]}")
        running.until(lambda s: any("is throttled" in text for text in running.events))
