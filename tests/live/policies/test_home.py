"""home: where threads are told to live. Real threads, synthetic CPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenttop.policies.base import Agent, Cpu, Settings, Targets, Thread
from agenttop.policies.builtin.home import DWELL_S, Home
from tests.support.policy_rig import Victim, needs_two_cpus, victims

pytestmark = [needs_two_cpus, pytest.mark.live]

SECOND = 1_000_000_000
LOW, HIGH = sorted(os.sched_getaffinity(0))[:2] if len(os.sched_getaffinity(0)) > 1 else (0, 1)


@pytest.fixture
def victim() -> Iterator[Victim]:
    with victims() as victim:
        yield victim


def targets(
    victim: Victim,
    seconds: float,
    heat: tuple[float, float] = (0.0, 0.0),
    busy: tuple[float, float] = (0.0, 0.0),
    load: float = 0.0,
    agents: int = 1,
    offline: tuple[int, ...] = (),
) -> Targets:
    """The victim's threads, dealt out to so many agents; all ran on the lower CPU."""
    tids = victim.tids()
    everybody = tuple(
        Agent(
            n,
            f"agent{n}",
            (victim.pid,),
            tuple(Thread(tid, victim.pid, LOW, 1, load) for tid in tids[n::agents]),
        )
        for n in range(agents)
    )
    cpus = tuple(
        Cpu(cpu, cpu not in offline, heat[i], 0.0, max(busy[i], heat[i]))
        for i, cpu in enumerate((LOW, HIGH))
    )
    return Targets(int(seconds * SECOND), everybody, cpus)


def homes(settings: Settings) -> set[str]:
    assert all(kind == "affinity" for kind, _ in settings)
    return set(settings.values())


def test_quiet_threads_of_an_agent_live_together_where_they_are_warm(victim: Victim) -> None:
    home = Home()
    settings = home.wanted(targets(victim, 0), {})
    assert len(settings) == len(victim.tids())
    assert str(LOW) in homes(settings)
    assert home.agents()[0].startswith("cpu")


def test_a_cpu_that_serves_interrupts_is_avoided(victim: Victim) -> None:
    assert homes(Home().wanted(targets(victim, 0, heat=(0.3, 0.0)), {})) == {str(HIGH)}
    assert homes(Home().wanted(targets(victim, 0, busy=(0.9, 0.0)), {})) == {str(HIGH)}


def test_agents_spread_by_load(victim: Victim) -> None:
    home = Home()
    home.wanted(targets(victim, 0, load=0.4, agents=2), {})
    assert set(home.agents()) == {0, 1}
    settings = home.wanted(targets(victim, 1, load=0.4, agents=2), {})
    assert sorted(settings.values()).count(str(LOW)) == len(settings) // 2


def test_a_home_that_turns_hot_is_left_after_a_while_and_not_for_a_trifle(victim: Victim) -> None:
    home = Home()
    held = home.wanted(targets(victim, 0, heat=(0.0, 0.3)), {})
    assert homes(held) == {str(LOW)}
    # A moment of heat, or a little of it, moves nobody.
    assert home.wanted(targets(victim, 1, heat=(0.5, 0.0)), held) == held
    mild = Home()
    held = mild.wanted(targets(victim, 0, heat=(0.0, 0.3)), {})
    for second in range(1, 30):
        assert mild.wanted(targets(victim, second, heat=(0.04, 0.0)), held) == held
    for second in range(1, int(DWELL_S) + 3):
        settings = home.wanted(targets(victim, second, heat=(0.5, 0.0)), held)
    assert homes(settings) == {str(HIGH)}


def test_an_offline_home_is_left_at_once(victim: Victim) -> None:
    home = Home()
    held = home.wanted(targets(victim, 0), {})
    settings = home.wanted(targets(victim, 0.1, offline=(LOW,)), held)
    assert homes(settings) == {str(HIGH)}
    assert home.wanted(targets(victim, 0.2, offline=(LOW, HIGH)), settings) == {}


def test_it_never_leaves_the_cpus_that_a_thread_was_allowed(victim: Victim) -> None:
    pinned = victim.tids()[-1]
    os.sched_setaffinity(pinned, {LOW})
    home = Home()
    settings = home.wanted(targets(victim, 0, heat=(0.9, 0.0)), {})
    assert not any(f"/{pinned}/" in target for _, target in settings)
    assert homes(settings) == {str(HIGH)}
    assert "1 threads pinned already" in home.detail()


def test_threads_that_end_are_let_go_and_new_ones_are_homed(victim: Victim) -> None:
    home = Home()
    held = home.wanted(targets(victim, 0), {})
    victim.spawn()
    settings = home.wanted(targets(victim, 1), held)
    assert len(settings) == len(held) + 1
    before = targets(victim, 2)
    victim.process.kill()
    victim.process.wait()
    # Whether the engine has noticed or the manager has.
    assert home.wanted(Targets(3 * SECOND, (), before.cpus), settings) == {}
    assert home.wanted(before, {}) == {}


def test_with_one_cpu_there_is_nothing_to_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "devices/system/cpu"
    root.mkdir(parents=True)
    (root / "online").write_text("0\n")
    monkeypatch.setenv("AGENTTOP_SYS", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert "only one CPU" in (Home().probe() or "")
