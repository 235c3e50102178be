"""The kernel's record: a child that chose its value keeps it, one that inherited it does not."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agenttop.policies.guardian import inheritance as inherited
from agenttop.policies.guardian import inheritance_programs
from agenttop.policies.guardian.heirs import release_all
from agenttop.policies.guardian.inheritance import ENTRY, FIELDS, KEY, THREAD
from agenttop.policies.guardian.journal import Hold, open_state_dir, ticks
from agenttop.policies.guardian.lease import Lease
from agenttop.policies.guardian.undo import recover
from agenttop.policies.knobs import KNOBS
from agenttop.policies.knobs.base import Change, thread_stat
from agenttop.policies.knobs.sched_attr import THREAD_KNOBS, default_slice
from tests.live.policies.test_heirs import running, shell, started
from tests.support.policy_rig import needs_root, needs_two_cpus, until

pytestmark = needs_root


@pytest.fixture(scope="module", autouse=True)
def _needs_record() -> None:
    """Skips where the kernel has no record to give; what fails beside that is a fault."""
    if not os.path.exists("/proc/sys/kernel/unprivileged_bpf_disabled"):
        pytest.skip("this kernel has no bpf(2)")


@pytest.fixture
def agent() -> Iterator[subprocess.Popen[str]]:
    with shell() as process:
        yield process


def target(pid: int) -> str:
    stat = thread_stat(pid, pid)
    assert stat is not None
    return f"{pid}/{pid}/{stat.start}"


def value(kind: str, pid: int) -> str | None:
    return KNOBS[kind].read(target(pid))


def hold(lease: Lease, kind: str, pid: int, after: str) -> str:
    """Hold a value of a process; what it was."""
    before = value(kind, pid)
    assert before is not None
    (result,) = lease.apply([Change("home", kind, target(pid), before, after)])
    assert result.status == "ok", result
    return before


#: Kind, the value that is held, and how a tool chooses that very value for itself.
CHOICES = [
    pytest.param("affinity", "1", "taskset -c 1", marks=needs_two_cpus),
    ("sched_policy", "IDLE:0", "chrt -i 0"),
    ("sched_policy", "BATCH:0", "chrt -b 0"),
    ("ioprio", "2:3", "ionice -c 2 -n 3"),
]


@pytest.mark.parametrize(("kind", "after", "chooses"), CHOICES)
def test_what_a_tool_chose_stays_and_what_it_inherited_is_released(
    agent: subprocess.Popen[str], tmp_path: Path, kind: str, after: str, chooses: str
) -> None:
    lease = Lease(str(tmp_path / "state"))
    before = hold(lease, kind, agent.pid, after)
    chose = started(agent, f"exec {chooses} sleep 60")
    # What a tool that chose has started is no heir of ours.
    below = started(agent, f'exec {chooses} sh -c "sleep 61; true"')
    inherited = started(agent, "exec sleep 60")
    assert until(lambda: comm(chose) == "sleep" and child_of(below) != 0, 5)
    lease.close()
    assert value(kind, chose) == after
    assert value(kind, child_of(below)) == after
    assert value(kind, inherited) == before
    assert value(kind, agent.pid) == before


def comm(pid: int) -> str:
    stat = thread_stat(pid, pid)
    return stat.comm if stat else ""


def child_of(pid: int) -> int:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return int(found.stdout or 0)


@needs_two_cpus
def test_what_another_process_chose_for_it_stays(
    agent: subprocess.Popen[str], tmp_path: Path
) -> None:
    lease = Lease(str(tmp_path / "state"))
    hold(lease, "affinity", agent.pid, "1")
    tool = started(agent, "exec sleep 60")
    subprocess.run(["taskset", "-cp", "1", str(tool)], check=True, capture_output=True)
    lease.close()
    assert os.sched_getaffinity(tool) == {1}


@needs_two_cpus
def test_a_call_that_failed_is_no_choice(agent: subprocess.Popen[str], tmp_path: Path) -> None:
    every = os.sched_getaffinity(0)
    lease = Lease(str(tmp_path / "state"))
    hold(lease, "affinity", agent.pid, "1")
    tool = started(agent, "exec sh -c 'taskset -cp 4000 $$; exec sleep 60'")
    assert until(lambda: comm(tool) == "sleep", 5)
    lease.close()
    assert os.sched_getaffinity(tool) == every


#: sched_setattr(0, flags): SCHED_FLAG_KEEP_POLICY | SCHED_FLAG_KEEP_PARAMS, then sleep.
_KEEPS = """
import ctypes, struct, time
attr = struct.pack("=IIQiIQQQII", 56, 0, 0x18, 0, 0, 0, 0, 0, 0, 0)
assert ctypes.CDLL(None).syscall(314, 0, attr, 0) == 0
ctypes.CDLL(None).prctl(15, b"kept", 0, 0, 0)
time.sleep(60)
"""


@pytest.mark.parametrize(("kind", "after"), [("sched_policy", "IDLE:0"), ("slice", "300000")])
def test_a_call_that_keeps_what_is_held_is_no_choice(
    agent: subprocess.Popen[str], tmp_path: Path, kind: str, after: str
) -> None:
    if kind == "slice" and not default_slice():
        pytest.skip("this kernel has no slice per thread (Linux 6.12 has)")
    script = tmp_path / "keeps.py"
    script.write_text(_KEEPS)
    lease = Lease(str(tmp_path / "state"))
    before = hold(lease, kind, agent.pid, after)
    tool = started(agent, f"exec {sys.executable} {script}")
    assert until(lambda: comm(tool) == "kept", 10)
    assert value(kind, tool) == after
    lease.close()
    assert value(kind, tool) == before


@needs_two_cpus
def test_what_another_process_chose_for_a_held_one_stays(
    agent: subprocess.Popen[str], tmp_path: Path
) -> None:
    lease = Lease(str(tmp_path / "state"))
    hold(lease, "affinity", agent.pid, "1")
    subprocess.run(["taskset", "-cp", "1", str(agent.pid)], check=True, capture_output=True)
    (outcome,) = lease.close()
    assert outcome.foreign
    assert os.sched_getaffinity(agent.pid) == {1}


#: A thread that replaces its process, whose id it gets; its own is said first.
_EXECS = """
import os, sys, threading
def thread():
    sys.stdin.readline()
    os.execvp("sleep", ["sleep", "60"])
started = threading.Thread(target=thread)
started.start()
print(started.native_id, flush=True)
started.join()
"""


@needs_two_cpus
def test_a_thread_that_execs_is_restored(tmp_path: Path) -> None:
    every = os.sched_getaffinity(0)
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", _EXECS], stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        tid = int(process.stdout.readline())
        lease = Lease(str(tmp_path / "state"))
        hold(lease, "affinity", process.pid, "1")
        stat = thread_stat(process.pid, tid)
        assert stat is not None
        thread = f"{process.pid}/{tid}/{stat.start}"
        before = KNOBS["affinity"].read(thread)
        assert before is not None
        lease.apply([Change("home", "affinity", thread, before, "1")])
        process.stdin.close()
        assert until(lambda: comm(process.pid) == "sleep", 5)
        assert os.sched_getaffinity(process.pid) == {1}
        assert lease._kernel is not None
        record = lease._kernel.record
        # Whoever gets the thread's own id next has nothing to do with it.
        assert record._entry(tid) is None
        assert record._entry(process.pid) == (tid, 0, 0, 0, 0, 0)
        assert not any(outcome.foreign for outcome in lease.close())
        assert os.sched_getaffinity(process.pid) == every
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@needs_two_cpus
def test_one_that_lost_its_parent_is_released(agent: subprocess.Popen[str], tmp_path: Path) -> None:
    every = os.sched_getaffinity(0)
    lease = Lease(str(tmp_path / "state"))
    hold(lease, "affinity", agent.pid, "1")
    between = started(agent, "(setsid sleep 62 &)")
    assert until(lambda: not running(between), 5)
    found = subprocess.check_output(["pgrep", "-fx", "sleep 62"], text=True)
    (tool,) = map(int, found.split())
    try:
        assert os.sched_getaffinity(tool) == {1}
        lease.close()
        assert os.sched_getaffinity(tool) == every
    finally:
        os.kill(tool, signal.SIGKILL)


def _guardian(lease: Lease) -> None:
    os.kill(lease.guardian, signal.SIGKILL)


def _nobody(lease: Lease) -> None:
    pass


@needs_two_cpus
@pytest.mark.parametrize("kill", [_nobody, _guardian])
def test_a_choice_is_known_whoever_is_killed(
    agent: subprocess.Popen[str], tmp_path: Path, kill: Callable[[Lease], None]
) -> None:
    every = os.sched_getaffinity(0)
    lease = Lease(str(tmp_path / "state"))
    hold(lease, "affinity", agent.pid, "1")
    chose = started(agent, "exec taskset -c 1 sleep 60")
    inherited = started(agent, "exec sleep 60")
    assert until(lambda: comm(chose) == "sleep", 5)
    kill(lease)
    lease.close()
    assert os.sched_getaffinity(chose) == {1}
    assert os.sched_getaffinity(inherited) == every


@needs_two_cpus
def test_without_a_record_heirs_are_found_by_value(
    agent: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inheritance_programs, "attach", lambda: None)
    every = os.sched_getaffinity(0)
    lease = Lease(str(tmp_path / "state"))
    hold(lease, "affinity", agent.pid, "1")
    inherited = started(agent, "exec sleep 60")
    lease.close()
    assert os.sched_getaffinity(inherited) == every


def events(pid: int) -> int:
    """Perf events that a process keeps open: they attach the record's programs."""
    found = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            found += os.readlink(f"/proc/{pid}/fd/{fd}") == "anon_inode:[perf_event]"
    return found


def test_nothing_is_attached_unless_a_thread_is_held(
    agent: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert until(lambda: events(os.getpid()) == 0, 10)  # Those of other tests are let go of.
    lease = Lease(str(tmp_path / "state"))
    both = (os.getpid(), lease.guardian)
    (result,) = lease.apply([Change("guard", "cpu_latency", "all", "none", "100000")])
    assert result.status == "ok", result
    assert [events(pid) for pid in both] == [0, 0]
    for _ in range(2):
        hold(lease, "ioprio", agent.pid, "2:3")
        lease.end_record()  # Refused: a thread is held.
        assert all(events(pid) > 0 for pid in both)
        chose = started(agent, "exec ionice -c 2 -n 3 sleep 60")
        inherited = started(agent, "exec sleep 60")
        assert until(lambda pid=chose: comm(pid) == "sleep", 5)  # type: ignore[misc]
        lease.undo([("ioprio", target(agent.pid))])
        assert value("ioprio", chose) == "2:3"
        assert value("ioprio", inherited) == value("ioprio", agent.pid) != "2:3"
        lease.end_record()
        assert events(lease.guardian) == 0
        assert until(lambda: events(os.getpid()) == 0, 10)
    lease.close()


#: Holds and says so; then it is killed.
_HOLDS = """
import sys, time
from agenttop.policies.knobs.base import Change
from agenttop.policies.guardian.lease import Lease
lease = Lease(sys.argv[1])
(result,) = lease.apply([Change("home", "ioprio", *sys.argv[2:5])])
print(result.status, lease.guardian, flush=True)
while True:
    time.sleep(0.2)
    lease.beat()
    lease.poll()
"""


def test_the_record_survives_a_killed_engine(agent: subprocess.Popen[str], tmp_path: Path) -> None:
    before = value("ioprio", agent.pid)
    assert before is not None
    arguments = [str(tmp_path / "state"), target(agent.pid), before, "2:3"]
    engine = subprocess.Popen(
        [sys.executable, "-c", _HOLDS, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert engine.stdout is not None
    status, guardian = engine.stdout.readline().split()
    assert status == "ok"
    chose = started(agent, "exec ionice -c 2 -n 3 sleep 60")
    inherited = started(agent, "exec sleep 60")
    assert until(lambda: comm(chose) == "sleep", 5)
    engine.kill()
    engine.wait()
    engine.stdout.close()
    assert until(lambda: not running(int(guardian)), 5)
    assert value("ioprio", agent.pid) == before
    assert value("ioprio", inherited) == before
    assert value("ioprio", chose) == "2:3"


def test_a_record_that_is_full_is_not_relied_upon() -> None:
    attached = inheritance_programs.Attached()
    try:
        record = attached.record
        for tid in range(1 << 20, (1 << 20) + 20_000):
            record.add("affinity", f"{tid}/{tid}/1")
        stat = thread_stat(os.getpid(), os.getpid())
        assert stat is not None
        mine = Hold(
            "home", "affinity", f"{os.getpid()}/{os.getpid()}/{stat.start}", "0", [], ticks()
        )
        assert not record.covered([mine])
    finally:
        attached.close()


def test_a_fork_that_is_under_way_is_waited_for(agent: subprocess.Popen[str]) -> None:
    """One that has copied its parent's value, and whose child is not to be seen yet."""
    attached = inheritance_programs.Attached()
    try:
        record = attached.record
        mine = Hold("home", "affinity", target(agent.pid), "0", ["1"], ticks())
        record.add(*mine.key)
        tool = started(agent, "exec sleep 60")
        assert record.forks(agent.pid) == 2
        assert record.forks(tool) == 0
        key = KEY.pack(agent.pid, THREAD)
        record._call(2, key, ENTRY.pack(agent.pid, 0, 0, 0, 0, 3))
        outcomes, unfinished = release_all([mine], record=record)
        assert unfinished == {mine.key}
        assert not outcomes[-1].settled
        timer = threading.Timer(
            0.1, lambda: record._call(2, key, ENTRY.pack(agent.pid, 0, 0, 0, 0, 4))
        )
        timer.start()
        _, unfinished = release_all([mine], record=record)
        assert not unfinished
        timer.join()
    finally:
        attached.close()


def test_a_record_that_the_kernel_left_a_fork_out_of_is_not_relied_upon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attached = inheritance_programs.Attached()
    try:
        record = attached.record
        mine = Hold("home", "affinity", target(os.getpid()), "0", [], ticks())
        assert record.covered([mine]) == {mine.key}
        monkeypatch.setattr(inherited, "_MISSED", struct.Struct("=200xQ"))  # run_cnt, in its place
        counted = Path("/proc/sys/kernel/bpf_stats_enabled")
        before = counted.read_text()
        try:
            counted.write_text("1")
            subprocess.run(["true"], check=True)
            assert not record.covered([mine])
        finally:
            counted.write_text(before)
    finally:
        attached.close()


def test_every_kind_of_thread_has_a_field() -> None:
    assert set(FIELDS) == {"affinity", *THREAD_KNOBS}


def test_a_journal_from_before_is_restored_without_a_record(
    agent: subprocess.Popen[str], tmp_path: Path
) -> None:
    lease = Lease(str(tmp_path / "state"))
    before = hold(lease, "ioprio", agent.pid, "2:3")
    lease.keep()
    dir_fd = open_state_dir(str(tmp_path / "state"))
    assert dir_fd is not None
    recover(dir_fd)
    os.close(dir_fd)
    assert value("ioprio", agent.pid) == before
