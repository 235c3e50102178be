"""Policies on single threads: slice, demote, floor. Real threads, except for cpufreq."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.errors import UserError
from agenttop.policies.base import Agent, Cpu, Targets, Thread
from agenttop.policies.builtin.demote import Demote
from agenttop.policies.builtin.demote import Params as DemoteParams
from agenttop.policies.builtin.floor import Params as FloorParams
from agenttop.policies.builtin.floor import StaticFloor
from agenttop.policies.builtin.slice import Params as SliceParams
from agenttop.policies.builtin.slice import Slice
from agenttop.policies.guardian.journal import Journal
from agenttop.policies.guardian.undo import undo_all
from agenttop.policies.knobs import KNOBS
from agenttop.policies.knobs.base import Change, KnobError, thread_stat
from agenttop.policies.knobs.sched_attr import (
    IO_PRIORITY,
    SCHED_POLICY,
    SLICE,
    THREAD_KNOBS,
    Attr,
    default_slice,
)
from agenttop.policies.manager import PolicyManager
from tests.support.policy_rig import Victim, needs_root, victims

pytestmark = needs_root

needs_slices = pytest.mark.skipif(
    os.geteuid() != 0 or default_slice() == 0, reason="no slice per thread (Linux 6.12 has)"
)

#: A hog under a name of its own that starts a child when it is told to, and says its pid.
HOG = """
import subprocess, sys
open('/proc/self/comm', 'w').write('testhog')
print('ready', flush=True)
for line in sys.stdin:
    print(subprocess.Popen(['sleep', '60']).pid, flush=True)
"""


@contextmanager
def hog() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOG],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def child_of(process: subprocess.Popen[str]) -> int:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return int(process.stdout.readline())


@pytest.fixture
def victim() -> Iterator[Victim]:
    with victims() as victim:
        yield victim


def targets(victim: Victim | None) -> Targets:
    agents: tuple[Agent, ...] = ()
    if victim is not None:
        threads = tuple(Thread(tid, victim.pid, 0, 10) for tid in victim.tids())
        agents = (Agent(1, "victim", victim.pids, threads, {0: 1000}),)
    return Targets(time.monotonic_ns(), agents, tuple(Cpu(n) for n in range(2)))


def name_of(pid: int, tid: int | None = None) -> str:
    stat = thread_stat(pid, tid or pid)
    assert stat is not None
    return f"{pid}/{tid or pid}/{stat.start}"


def values(kind: str, victim: Victim) -> set[str]:
    return {THREAD_KNOBS[kind].get(tid) for tid in victim.tids()}


# --------------------------------------------------------------------------- the knobs


def test_a_write_changes_one_attribute_and_keeps_the_others(victim: Victim) -> None:
    name = name_of(victim.pid)
    IO_PRIORITY.write(name, "2:0")
    SCHED_POLICY.write(name, "BATCH:7")
    if default_slice():
        SLICE.write(name, "400000")
        assert SLICE.read(name) == "400000"
    assert (IO_PRIORITY.read(name), SCHED_POLICY.read(name)) == ("2:0", "BATCH:7")
    SCHED_POLICY.write(name, "OTHER:0")
    if default_slice():
        assert SLICE.read(name) == "400000"
        SLICE.write(name, str(default_slice()))
        assert SLICE.read(name) == str(default_slice())
    assert IO_PRIORITY.read(name) == "2:0"


def test_a_real_time_thread_is_left_alone(victim: Victim) -> None:
    os.sched_setscheduler(victim.pid, os.SCHED_RR, os.sched_param(1))
    name = name_of(victim.pid)
    for knob, value in ((SCHED_POLICY, "IDLE:0"), (SLICE, "300000")):
        with pytest.raises(KnobError, match="SCHED_RR: left alone"):
            knob.write(name, value)
    assert os.sched_getscheduler(victim.pid) == os.SCHED_RR


@pytest.mark.parametrize("kind", THREAD_KNOBS)
def test_an_ended_or_other_thread_is_not_touched(kind: str, victim: Victim) -> None:
    knob = THREAD_KNOBS[kind]
    before = knob.read(name_of(victim.pid))
    other = f"{victim.pid}/{victim.pid}/1"
    assert knob.read(other) is None
    knob.write(other, {"sched_policy": "IDLE:0", "ioprio": "3:0"}.get(kind, "500000"))
    assert knob.read(name_of(victim.pid)) == before


@pytest.mark.parametrize(
    ("kind", "held", "chosen"),
    [
        ("sched_policy", "IDLE:0", "BATCH:7"),
        ("ioprio", "3:0", "2:4"),
        ("slice", "500000", "400000"),
    ],
)
def test_what_a_thread_chooses_between_the_read_and_the_write_stays(
    kind: str, held: str, chosen: str, victim: Victim
) -> None:
    if kind == "slice" and not default_slice():
        pytest.skip("this kernel has no slices of fair threads")
    knob, name = THREAD_KNOBS[kind], name_of(victim.pid)
    before = knob.read(name)
    assert before is not None
    knob.write(name, held)
    knob.write(name, chosen)
    assert not knob.replace(name, held, before)
    assert knob.read(name) == chosen
    assert knob.replace(name, chosen, before)
    assert knob.read(name) == before


@given(kind=st.sampled_from(["cpufreq", *THREAD_KNOBS]), target=st.text(), value=st.text())
def test_a_journal_can_name_only_what_there_is(kind: str, target: str, value: str) -> None:
    assert not KNOBS[kind].valid(target, value)
    assert not KNOBS[kind].valid("1/1/1\n", "0")
    assert not KNOBS[kind].valid("policy0/../../x", "1")


def test_real_time_values_cannot_be_written() -> None:
    assert not IO_PRIORITY.valid("1/1/1", "1:0")
    assert not SCHED_POLICY.valid("1/1/1", "FIFO:0")


# --------------------------------------------------------------------------- slice


@needs_slices
def test_slice_is_set_follows_and_is_given_back(victim: Victim, tmp_path: Path) -> None:
    manager = PolicyManager(tmp_path / "state", settings={"slice": {"slice_us": 300}})
    before = values("slice", victim)
    events = manager.set("slice", True, targets(victim))
    assert not [e for e in events if e.kind == "error"]
    assert values("slice", victim) == {"300000"}
    thread, child = victim.spawn()
    assert Attr(child).runtime == 300_000  # inherited
    manager.close()
    assert values("slice", victim) == before
    # What had inherited it has the kernel's own again.
    assert {Attr(thread).runtime, Attr(child).runtime} == {default_slice()}


@needs_slices
def test_a_slice_comes_back_though_its_thread_was_put_under_idle(
    victim: Victim, state: int
) -> None:
    """The kernel changes no slice under SCHED_IDLE: it waits until the policy is restored."""
    stat = thread_stat(victim.pid, victim.pid)
    assert stat is not None
    target = f"{victim.pid}/{victim.pid}/{stat.start}"
    before = Attr(victim.pid).runtime
    journal = Journal(state)
    changes = [
        Change("slice", "slice", target, str(before), "300000"),
        Change("demote", "sched_policy", target, "OTHER:0", "IDLE:0"),
    ]
    journal.record(changes)
    for change in changes:
        KNOBS[change.kind].write(target, change.after)
    (outcome,) = undo_all(journal, [("slice", target)])
    assert not outcome.settled
    assert "SCHED_IDLE" in outcome.text
    assert ("slice", target) in journal.holds
    # Found in any order, as after one policy was switched off and on.
    journal.undone([("sched_policy", target)])
    journal.undone([("slice", target)])
    journal.record([changes[1], changes[0]])
    assert all(outcome.settled for outcome in undo_all(journal))
    assert (Attr(victim.pid).runtime, Attr(victim.pid).policy) == (before, 0)
    journal.close()


@needs_slices
def test_a_slice_as_short_already_stays_its_owners(victim: Victim) -> None:
    SLICE.write(name_of(victim.pid), "200000")
    policy = Slice(SliceParams(slice_us=300))
    wanted = policy.wanted(targets(victim), {})
    assert ("slice", name_of(victim.pid)) not in wanted
    assert len(wanted) == len(victim.tids()) - 1
    assert "1 as short already" in policy.detail()


@needs_slices
def test_a_slice_that_is_no_shorter_is_refused() -> None:
    long = Slice(SliceParams(slice_us=default_slice() // 1000))
    assert "is no longer than that" in (long.probe() or "")


# --------------------------------------------------------------------------- demote


def test_chosen_processes_and_what_they_start_are_demoted(tmp_path: Path) -> None:
    settings = {"demote": {"processes": ["comm:^testhog$"]}}
    with hog() as process:
        first = child_of(process)
        manager = PolicyManager(tmp_path / "state", settings=settings)
        manager.set("demote", True, targets(None))
        assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
        assert os.sched_getscheduler(first) == os.SCHED_IDLE
        later = child_of(process)
        assert os.sched_getscheduler(later) == os.SCHED_IDLE
        status = next(s for s in manager.status() if s.name == "demote")
        assert "to SCHED_IDLE: sleep, testhog" in status.detail
        manager.close()
        for pid in (process.pid, first, later):
            assert os.sched_getscheduler(pid) == os.SCHED_OTHER


def test_agents_and_unchosen_processes_are_never_demoted(victim: Victim) -> None:
    policy = Demote(DemoteParams(processes=["cmd:."]))
    wanted = policy.wanted(targets(victim), {})
    pids = {int(target.split("/")[0]) for _, target in wanted}
    assert pids.isdisjoint({1, 2, os.getppid() * 0 + victim.pid})
    assert Demote().probe() is not None
    with pytest.raises(UserError, match="is no pattern"):
        Demote(DemoteParams(processes=["nonsense"]))


def test_demoted_processes_come_back_when_the_owner_is_killed(tmp_path: Path) -> None:
    owner = (
        "import sys, time\n"
        "from agenttop.policies.manager import PolicyManager\n"
        "from agenttop.policies.base import Targets\n"
        "m = PolicyManager(sys.argv[1], settings={'demote': {'processes': ['comm:^testhog$']}})\n"
        "m.set('demote', True, Targets(time.monotonic_ns()))\n"
        "print('on', flush=True)\n"
        "while True:\n    m.tick(Targets(time.monotonic_ns())); time.sleep(0.2)\n"
    )
    with hog() as process:
        command = [sys.executable, "-c", owner, str(tmp_path / "state")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "on\n"
            assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
            holder.kill()
            until = time.monotonic() + 1.0
            while os.sched_getscheduler(process.pid) != os.SCHED_OTHER:
                assert time.monotonic() < until, "not given back within 1 s"
                time.sleep(0.01)


# --------------------------------------------------------------------------- floor


def cpufreq(root: Path, preference: str) -> Path:
    """Two domains of one CPU each, as acpi-cpufreq and intel_pstate show them."""
    for cpu in (0, 1):
        folder = root / f"devices/system/cpu/cpufreq/policy{cpu}"
        folder.mkdir(parents=True)
        for file, text in {
            "affected_cpus": str(cpu),
            "cpuinfo_max_freq": "3000000",
            "scaling_min_freq": "800000",
            "energy_performance_preference": preference,
            "energy_performance_available_preferences": "performance balance_performance power",
        }.items():
            (folder / file).write_text(f"{text}\n")
    return root / "devices/system/cpu/cpufreq"


@pytest.fixture
def sys_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENTTOP_SYS", str(tmp_path / "sys"))
    monkeypatch.setenv("AGENTTOP_PROC", str(tmp_path / "proc"))
    return tmp_path / "sys"


def test_the_floor_is_under_the_agents_domains_only(sys_tree: Path, victim: Victim) -> None:
    folder = cpufreq(sys_tree, "power")
    manager = PolicyManager(sys_tree.parent / "state", settings={"floor": {"min_util_ratio": 0.6}})
    manager.set("floor", True, targets(victim))
    assert (folder / "policy0/scaling_min_freq").read_text().strip() == "1800000"
    preference = folder / "policy0/energy_performance_preference"
    assert preference.read_text().strip() == "balance_performance"
    assert (folder / "policy1/scaling_min_freq").read_text() == "800000\n"
    manager.close()
    assert (folder / "policy0/scaling_min_freq").read_text().strip() == "800000"
    assert preference.read_text().strip() == "power"


def test_a_floor_is_a_frequency_that_the_driver_has(sys_tree: Path, victim: Victim) -> None:
    folder = cpufreq(sys_tree, "performance")
    (folder / "policy0/scaling_available_frequencies").write_text("3000000 2000000 800000\n")
    wanted = StaticFloor(FloorParams()).wanted(targets(victim), {})
    assert wanted == {("cpufreq", "policy0/scaling_min_freq"): "2000000"}


def test_a_higher_floor_of_somebody_else_stays(sys_tree: Path, victim: Victim) -> None:
    folder = cpufreq(sys_tree, "performance")
    (folder / "policy0/scaling_min_freq").write_text("2500000\n")
    policy = StaticFloor(FloorParams())
    assert policy.wanted(targets(victim), {}) == {}


def test_without_cpufreq_and_clamps_it_says_so(sys_tree: Path) -> None:
    sys_tree.mkdir()
    assert "no cpufreq driver" in (StaticFloor().probe() or "")
