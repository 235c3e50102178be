"""What a thread had not set itself, it has not set afterwards either."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenttop.policies.guardian.journal import load, open_state_dir
from agenttop.policies.guardian.lease import Lease
from agenttop.policies.knobs.base import AFFINITY, Change, format_cpus, thread_stat
from agenttop.policies.knobs.cgroup import mount
from agenttop.policies.knobs.cpusets import as_found
from agenttop.policies.knobs.sched_attr import IO_PRIORITY, UCLAMP_MIN, Attr, _libc
from tests.support.policy_rig import needs_root, needs_two_cpus, until

pytestmark = needs_root
CPUSET = mount(1, "cpuset")


class Group:
    """A cpuset (cgroup v1) of its own with one process."""

    def __init__(self, folder: Path, cpus: str) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "cpuset.mems").write_text("0")
        self.allow(cpus)
        self.process = subprocess.Popen(["sleep", "60"])
        (folder / "tasks").write_text(str(self.process.pid))
        stat = thread_stat(self.process.pid, self.process.pid)
        assert stat is not None
        self.target = f"{self.process.pid}/{self.process.pid}/{stat.start}"

    def allow(self, cpus: str) -> None:
        (self.folder / "cpuset.cpus").write_text(cpus)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert until(lambda: not (self.folder / "tasks").read_text(), 5)
        self.folder.rmdir()

    def has(self) -> set[int]:
        return os.sched_getaffinity(self.process.pid)


@pytest.fixture
def group() -> Iterator[Group]:
    """Allowed CPU 0 alone."""
    if CPUSET is None:
        pytest.skip("no cpuset controller of cgroup v1 here")
    group = Group(Path(CPUSET) / f"agenttop-test-{os.getpid()}", "0")
    yield group
    group.end()


@needs_two_cpus
def test_a_wider_cpuset_reaches_a_thread_that_had_no_affinity(group: Group, tmp_path: Path) -> None:
    lease = Lease(str(tmp_path / "state"))
    (result,) = lease.apply([Change("home", "affinity", group.target, "0", "0")])
    assert result.status == "ok"
    # Held, it does not follow: so the kernel does remember what it was given.
    group.allow("0-1")
    held = group.has()
    outcomes = lease.close()
    assert group.has() == {0, 1}
    assert all("+" not in outcome.text for outcome in outcomes)
    group.allow("0")
    group.allow("0-1")
    assert group.has() == {0, 1}
    major, minor = map(int, os.uname().release.split(".")[:2])
    assert held == {0} or (major, minor) < (6, 2)


@needs_two_cpus
def test_an_affinity_of_its_own_stays_exactly(group: Group, tmp_path: Path) -> None:
    group.allow("0-1")
    os.sched_setaffinity(group.process.pid, {0})
    lease = Lease(str(tmp_path / "state"))
    lease.apply([Change("home", "affinity", group.target, "0", "1")])
    assert group.has() == {1}
    lease.close()
    assert group.has() == {0}
    group.allow("0-1")
    assert group.has() == {0}


@needs_two_cpus
@pytest.mark.parametrize(("own", "at_last"), [(None, {0, 1}), ({0}, {0})])
def test_a_cpuset_that_changes_meanwhile_hides_no_hold(
    group: Group, tmp_path: Path, own: set[int] | None, at_last: set[int]
) -> None:
    """The kernel keeps the CPUs that were asked for: else they would be back with the cpuset."""
    group.allow("0-1")
    if own:
        os.sched_setaffinity(group.process.pid, own)
    before = format_cpus(group.has())
    lease = Lease(str(tmp_path / "state"))
    (result,) = lease.apply([Change("home", "affinity", group.target, before, "1")])
    assert result.status == "ok"
    group.allow("0")
    assert group.has() == {0}
    assert [outcome.foreign for outcome in lease.close()] == [False]
    group.allow("0-1")
    assert group.has() == at_last


@needs_two_cpus
def test_the_journal_says_what_had_no_affinity(group: Group, tmp_path: Path) -> None:
    lease = Lease(str(tmp_path / "state"))
    lease.apply([Change("home", "affinity", group.target, "0", "0")])
    dir_fd = open_state_dir(str(tmp_path / "state"))
    assert dir_fd is not None
    found = load(dir_fd)
    os.close(dir_fd)
    lease.close()
    assert found is not None
    assert [hold.original for hold in found.holds] == ["0+"]


def test_a_thread_that_has_ended_is_taken_as_it_was_seen() -> None:
    change = Change("home", "affinity", "999999999/999999999/1", "0", "1")
    assert as_found(change) == change


def test_the_mark_is_valid_once_and_compares_as_its_cpus() -> None:
    assert AFFINITY.valid("1/1/1", "0-1+")
    assert not AFFINITY.valid("1/1/1", "0-1++")
    assert not AFFINITY.valid("1/1/1", "+")
    assert AFFINITY.same("0-1", "0-1+")


@pytest.fixture
def sleeper() -> Iterator[str]:
    process = subprocess.Popen(["sleep", "60"])
    stat = thread_stat(process.pid, process.pid)
    assert stat is not None
    yield f"{process.pid}/{process.pid}/{stat.start}"
    process.kill()
    process.wait()


@pytest.mark.parametrize(("value", "written"), [("0", (1 << 32) - 1), ("1", 1), ("1024", 1024)])
def test_an_utilization_that_was_not_set_is_reset(
    monkeypatch: pytest.MonkeyPatch, value: str, written: int
) -> None:
    """As the kernel takes it: this one may be built without CONFIG_UCLAMP_TASK."""
    seen = []
    monkeypatch.setattr(Attr, "write", lambda self, tid, extra=0: seen.append(self.util_min))
    UCLAMP_MIN.put(os.getpid(), value)
    assert seen == [written]


def raw_ioprio(target: str) -> int:
    return int(_libc.syscall(252, 1, int(target.split("/")[0])))


def test_an_io_priority_that_was_not_set_is_not_set_again(sleeper: str, tmp_path: Path) -> None:
    found = raw_ioprio(sleeper)
    before = IO_PRIORITY.read(sleeper)
    assert before == "0:0"
    lease = Lease(str(tmp_path / "state"))
    lease.apply([Change("block", "ioprio", sleeper, before, "2:0")])
    assert IO_PRIORITY.read(sleeper) == "2:0"
    assert all(outcome.settled for outcome in lease.close())
    assert raw_ioprio(sleeper) >> 13 == 0
    assert raw_ioprio(sleeper) == found


@pytest.mark.parametrize("hint", [1, 7])
def test_the_hint_of_an_io_priority_comes_back(sleeper: str, tmp_path: Path, hint: int) -> None:
    wanted = 2 << 13 | hint << 3 | 5
    if _libc.syscall(251, 1, int(sleeper.split("/")[0]), wanted) < 0:
        pytest.skip("I/O priorities have no hints before Linux 6.5")
    before = IO_PRIORITY.read(sleeper)
    assert before == f"2:5:{hint}"
    lease = Lease(str(tmp_path / "state"))
    (result,) = lease.apply([Change("block", "ioprio", sleeper, before, "2:0")])
    assert result.status == "ok"
    assert raw_ioprio(sleeper) == 2 << 13
    lease.close()
    assert raw_ioprio(sleeper) == wanted
