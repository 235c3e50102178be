"""The engine as a process: real agents, real ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agenttop.errors import UserError
from agenttop.model.sample import AgentCounters, Command, Sample
from agenttop.model.vocabulary import SLOWPATH_STAGES
from tests.support.engines import agent, engine, needs_bpf
from tests.support.loops import alive, loop, until
from tests.support.policy_rig import needs_root, needs_two_cpus

pytestmark = pytest.mark.bpf


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep off the machine's own journal and rules."""
    monkeypatch.setenv("AGENTTOP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_the_first_sample_does_not_wait_for_the_kernel_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_bpf()
    # Nothing compiled yet: that takes longer than a sample.
    monkeypatch.setenv("AGENTTOP_CACHE", str(tmp_path / "cache"))
    with engine() as running:
        first = running.until(lambda s: True)
        assert first.host is not None
        assert first.host.missing["chains"].startswith("loading")
        assert first.cpus
        assert first.agents == []
        loaded = running.measuring()
        assert loaded.full
        assert loaded.host is not None
        assert (loaded.host.mode, loaded.host.banner) == ("tp_btf", None)


def test_stages_add_up_in_every_snapshot() -> None:
    needs_bpf()
    with loop("--interval-us", 200, "--for", 20) as one, engine(level="full") as running:
        running.measuring()
        one.go()
        for _ in range(15):
            running.until(lambda s: True)
            snapshot = running.store.snapshot()
            assert snapshot is not None
            for found in snapshot.agents:
                stages = {k: v.sum_ns for k, v in found.stages.items() if v is not None}
                assert sum(stages.values()) == found.step.sum_ns
                slow = sum(stages[stage] for stage in SLOWPATH_STAGES)
                assert slow == found.slowpath.sum_ns
                assert found.step.count == found.steps
        assert found.steps > 100
        assert found.sources == {"timer": found.steps - found.unattributed}


def test_agents_come_and_go() -> None:
    needs_bpf()
    with engine(agent_patterns=["comm:^testloop$"]) as running:
        running.measuring()
        with loop("--name", "testloop", "--interval-us", 500, "--for", 20) as one:
            one.go()
            found = running.until(
                lambda s: (a := agent(s, one.pid)) is not None and a.steps > 50 and bool(a.run_ns)
            )
            mine = agent(found, one.pid)
            assert mine is not None
            assert mine.name == "testloop"
            assert (mine.threads, mine.threads_tracked) == (1, 1)
            one.process.kill()
            one.process.wait()
            gone = running.until(lambda s: (a := agent(s, one.pid)) is None or not a.alive)
            last = agent(gone, one.pid)
            assert last is None or last.steps >= mine.steps
            running.until(lambda s: agent(s, one.pid) is None)


def test_a_thread_opts_in_without_a_rule() -> None:
    needs_bpf()
    with engine(agent_patterns=["comm:^nobody-is-called-so$"]) as running:
        running.measuring()
        with loop("--name", "optedin", "--opt-in", "marker", "--for", 20) as one:
            one.go()
            found = running.until(lambda s: (a := agent(s, one.pid)) is not None and a.steps > 50)
            mine = agent(found, one.pid)
            assert mine is not None
            assert (mine.name, mine.rule) == ("optedin", "marker")


def test_without_bpf_only_what_proc_tells() -> None:
    with loop("--interval-us", 500, "--for", 20) as one, engine(bpf="off") as running:
        one.go()
        found = running.until(lambda s: (a := agent(s, one.pid)) is not None and bool(a.timeslices))
        mine = agent(found, one.pid)
        assert mine is not None
        assert mine.stage_sum_ns == [None] * 8
        assert mine.threads_tracked is None
        assert mine.run_ns
        assert running.store.host is not None
        assert running.store.host.mode == "procfs"
        assert "without BPF" in running.store.host.missing["chains"]


def test_without_privileges_it_says_what_would_help() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become nobody")
    code = (
        "import os, sys\n"
        "from agenttop.linux.capabilities import why_no_bpf\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print(why_no_bpf())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "root" in out.stdout, out.stderr


def test_bpf_time_is_measured_while_asked_for() -> None:
    needs_bpf()
    with loop("--interval-us", 500, "--for", 30) as one, engine() as running:
        running.measuring()
        one.go()
        assert running.until(lambda s: s.seq > 4).trust.bpf_ns is None
        running.client.send(Command(kind="bpf_stats", on=True))
        assert running.until(lambda s: bool(s.trust.bpf_ns)).trust.bpf_ns
        running.client.send(Command(kind="bpf_stats", on=False))
        running.until(lambda s: s.trust.bpf_ns is None)


def test_a_slow_reader_gets_fewer_samples_and_loses_no_counts() -> None:
    needs_bpf()
    with loop("--interval-us", 500, "--steps", 4000) as one, engine(delay_s=0.1) as running:
        running.measuring()
        one.go()
        time.sleep(3)
        # One sample waits, of the thirty that were due; the next one tells all of it.
        back = time.monotonic_ns()
        assert running.until(lambda s: True).t_ns < back - 2_000_000_000
        assert running.until(lambda s: True).t_ns > back
        running.until(lambda s: (a := agent(s, one.pid)) is None or not a.alive)
        snapshot = running.store.snapshot()
        assert snapshot is not None
        (mine,) = (a for a in snapshot.agents if a.pid == one.pid)
        assert mine.steps + (mine.ready or 0) >= 3900
        assert mine.step.count == mine.steps


def test_it_ends_with_its_reader() -> None:
    with engine(bpf="off") as running:
        running.until(lambda s: True)
        pid = running.client.pid
        running.client.close()
        assert not alive(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_it_ends_on_signals(number: int) -> None:
    with engine(bpf="off") as running:
        running.until(lambda s: True)
        os.kill(running.client.pid, number)
        with pytest.raises(UserError, match="engine ended"):
            running.until(lambda s: False)


def test_wrong_rules_are_one_line() -> None:
    with (
        engine(agents_file="/nonexistent/agents.yaml") as running,
        pytest.raises(UserError, match=r"/nonexistent/agents\.yaml"),
    ):
        running.until(lambda s: False)


@needs_root
@needs_two_cpus
def test_policies_go_on_and_off_and_end_with_the_engine(tmp_path: Path) -> None:
    needs_bpf()
    with loop("--interval-us", 500, "--for", 30) as one, engine() as running:
        running.measuring()
        one.go()
        running.until(lambda s: (a := agent(s, one.pid)) is not None and a.steps > 50)
        before = os.sched_getaffinity(one.pid)
        running.client.send(Command(kind="policy", name="home", on=True))
        running.until(lambda s: any(p.name == "home" and p.tids for p in s.policies))
        assert len(os.sched_getaffinity(one.pid)) == 1
        running.client.close()
        assert until(lambda: os.sched_getaffinity(one.pid) == before)


@needs_root
@needs_two_cpus
def test_a_plan_is_told_while_somebody_looks_and_changes_nothing() -> None:
    needs_bpf()
    with (
        loop("--interval-us", 500, "--for", 30) as one,
        engine(agent_patterns=[f"pid:{one.pid}"]) as running,
    ):
        running.measuring()
        one.go()
        running.until(lambda s: (a := agent(s, one.pid)) is not None and a.steps > 50)
        before = os.sched_getaffinity(one.pid)
        running.client.send(Command(kind="plan", name="home", on=True))
        found = running.until(lambda s: any(p.plan for p in s.policies))
        (line,) = next(p.plan for p in found.policies if p.name == "home")
        assert f"tid {one.pid}" in line
        running.client.send(Command(kind="plan", name="home", on=False))
        running.until(lambda s: not any(p.plan for p in s.policies))
        assert os.sched_getaffinity(one.pid) == before


def test_more_agents_than_slots_are_told_of_and_seated_later(tmp_path: Path) -> None:
    needs_bpf()

    def seated(sample: Sample) -> list[AgentCounters]:
        return [one for one in sample.agents if one.alive and one.name == "crowdtool"]

    # A name of its own: other tests run beside this one, and start and end processes.
    tool = shutil.copy(shutil.which("sleep") or "/bin/sleep", tmp_path / "crowdtool")
    parent = "import subprocess, sys\n"
    parent += f"ps = [subprocess.Popen(['{tool}', '120']) for _ in range(270)]\n"
    parent += "print('up', flush=True)\nsys.stdin.read()\n[p.kill() for p in ps[:100]]"
    parent += "\n[p.wait() for p in ps[:100]]\nprint('less', flush=True)\nsys.stdin.close()"
    parent += "\nimport time; time.sleep(60)"
    crowd = subprocess.Popen(
        [sys.executable, "-c", parent],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert crowd.stdin is not None
    assert crowd.stdout is not None
    try:
        assert crowd.stdout.readline() == b"up\n"
        with engine(agent_patterns=["comm:^crowdtool$"]) as running:
            running.measuring()
            # Those without a slot are counted, and cost the reader nothing. (Another test's process
            # that opts in takes a slot here too: how many of the crowd find one is not fixed.)
            running.until(
                lambda s: (
                    s.trust.slots_full == 270 - len(seated(s)) > 0
                    and s.trust.slots_full_by_user == {"0": s.trust.slots_full}
                )
            )
            crowd.stdin.close()
            full = running.until(lambda s: s.trust.slots_full == 0 and len(seated(s)) == 170)
            assert all(one.threads_tracked == 1 for one in seated(full))
    finally:
        os.killpg(crowd.pid, signal.SIGKILL)
        crowd.wait()
