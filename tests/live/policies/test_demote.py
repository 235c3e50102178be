"""demote by cgroup and cpuset: v1 on the real kernel, v2 on fixture trees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenttop.errors import UserError
from agenttop.policies.base import Agent, Targets
from agenttop.policies.builtin.demote import Demote, Params
from agenttop.policies.guardian.journal import Hold, open_state_dir, ticks
from agenttop.policies.guardian.undo import recover, undo
from agenttop.policies.knobs import KNOBS
from agenttop.policies.knobs.base import AFFINITY
from agenttop.policies.knobs.cgroup import CPU, CPUSET
from agenttop.policies.manager import PolicyManager
from agenttop.policies.parts import chosen_cgroups
from tests.support.cgroup_rig import RealGroup, needs_cgroup1, real_group
from tests.support.knob_files import Trees, agent, targets, use
from tests.support.places import ROOT
from tests.support.policy_rig import Victim, needs_root, needs_two_cpus, victims

#: No process can have it.
NOBODY = (1 << 22) + 7
REAL_BTF = "/sys/kernel/btf/vmlinux"


def settings(group: RealGroup, **more: object) -> dict[str, dict[str, object]]:
    return {"demote": {"groups": [group.name], **more}}


def on_cpu0(seconds: float = 0) -> Targets:
    """An agent that runs on CPU 0 of two."""
    return targets(agent({0: 1000}), seconds=seconds, cpus=2)


def on(manager: PolicyManager, where: Targets) -> str:
    """Switch it on; its detail."""
    events = manager.set("demote", True, where)
    assert not [e for e in events if e.kind in ("warning", "error")], events
    return next(s.detail for s in manager.status() if s.name == "demote")


@pytest.fixture
def group() -> Iterator[RealGroup]:
    with real_group() as group:
        yield group


# --------------------------------------------------------------------------- the real kernel


@needs_cgroup1
@pytest.mark.policies
def test_a_group_is_idle_and_gets_its_weight_back(group: RealGroup, tmp_path: Path) -> None:
    (group.cpu / "cpu.shares").write_text("512")
    manager = PolicyManager(tmp_path / "state", settings=settings(group))
    assert f"1 cgroups to cpu.idle: {group.name}" in on(manager, targets())
    assert group.read("cpu.idle") == "1"
    manager.close()
    # The kernel alone would have made it 1024.
    assert (group.read("cpu.idle"), group.read("cpu.shares")) == ("0", "512")


@needs_cgroup1
@pytest.mark.policies
def test_a_group_gets_a_low_weight(group: RealGroup, tmp_path: Path) -> None:
    given = settings(group, groups_to="weight", weight=10)
    manager = PolicyManager(tmp_path / "state", settings=given)
    on(manager, targets())
    assert (group.read("cpu.idle"), group.read("cpu.shares")) == ("0", "102")
    manager.close()
    assert group.read("cpu.shares") == "1024"


@needs_cgroup1
@pytest.mark.policies
def test_a_lower_weight_of_somebody_else_stays(group: RealGroup) -> None:
    (group.cpu / "cpu.shares").write_text("20")
    policy = Demote(Params(groups=[group.name], groups_to="weight", weight=10))
    assert policy.wanted(targets(), {}) == {}
    assert "cpu.shares is 20 already" in policy.detail()


@needs_cgroup1
@pytest.mark.policies
def test_what_somebody_else_turned_back_is_told_and_the_weight_restored(group: RealGroup) -> None:
    (group.cpu / "cpu.shares").write_text("300")
    target = f"cpu.idle/{group.name}"
    assert CPU[1].read(target) == "0 300"
    CPU[1].write(target, "1")
    assert CPU[1].drift(target, "1") is None
    (group.cpu / "cpu.idle").write_text("0")
    assert CPU[1].drift(target, "1") == "0 1024"
    assert undo(Hold("demote", "cpu1", target, "0 300", ["1"], ticks())).settled
    assert CPU[1].read(target) == "0 300"
    # But a weight that somebody chose is theirs.
    CPU[1].write(target, "1")
    CPU[1].write(target, "0 77")
    assert undo(Hold("demote", "cpu1", target, "0 300", ["1"], ticks())).foreign
    assert CPU[1].read(target) == "0 77"


@needs_cgroup1
@pytest.mark.policies
@needs_two_cpus
@pytest.mark.skipif(not chosen_cgroups.keeps_pins(REAL_BTF), reason="a kernel before 6.2")
def test_a_cpuset_keeps_off_and_every_threads_own_choice_comes_back(
    group: RealGroup, tmp_path: Path
) -> None:
    pinned, free = group.start({0}), group.start()
    given = settings(group, keep_off=True, groups_to="none")
    manager = PolicyManager(tmp_path / "state", settings=given)
    assert "kept on cpu1, where no agent runs" in on(manager, on_cpu0())
    assert (group.read("cpuset.cpus"), group.read("cpu.idle")) == ("1", "0")
    assert os.sched_getaffinity(pinned) == os.sched_getaffinity(free) == {1}
    manager.close()
    assert group.read("cpuset.cpus") == "0-1"
    assert (os.sched_getaffinity(pinned), os.sched_getaffinity(free)) == ({0}, {0, 1})


@needs_cgroup1
@pytest.mark.policies
@needs_two_cpus
def test_where_the_kernel_would_forget_them_the_group_is_refused(
    group: RealGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Demote(Params(groups=[group.name], keep_off=True, groups_to="none"))
    (tmp_path / "kernel/btf").mkdir(parents=True)
    (tmp_path / "kernel/btf/vmlinux").write_bytes(b"\0task_struct\0")
    monkeypatch.setenv("AGENTTOP_SYS", str(tmp_path))
    free = group.start()
    assert policy.wanted(on_cpu0(), {}) == {("cpuset1", group.name): "1"}
    pinned = group.start({0})
    assert policy.wanted(on_cpu0(), {}) == {}
    assert f"refused: this kernel would forget that thread {pinned}" in policy.detail()
    assert os.sched_getaffinity(free) == {0, 1}


@needs_cgroup1
@pytest.mark.policies
@needs_two_cpus
def test_when_the_agents_move_all_is_given_back_first(
    group: RealGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenttop.policies.manager.PLAN_NS", 0)
    given = settings(group, keep_off=True)
    manager = PolicyManager(tmp_path / "state", settings=given)
    try:
        on(manager, on_cpu0())
        assert group.read("cpuset.cpus") == "1"
        everywhere = targets(agent({0: 2000, 1: 1000}), seconds=1, cpus=2)
        manager.tick(everywhere)
        assert (group.read("cpuset.cpus"), group.read("cpu.idle")) == ("0-1", "1")
        status = next(s for s in manager.status() if s.name == "demote")
        assert "as they were: agents use every CPU" in status.detail
        for seconds in (20, 40, 60):
            manager.tick(targets(agent({0: 2000, 1: 90_000}), seconds=seconds, cpus=2))
        assert group.read("cpuset.cpus") == "0"
    finally:
        manager.close()
    assert group.read("cpuset.cpus") == "0-1"


@needs_cgroup1
@pytest.mark.policies
def test_a_group_with_an_agent_is_refused_and_one_that_gets_one_is_given_back(
    group: RealGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenttop.policies.manager.PLAN_NS", 0)
    pid = group.start()
    inside = targets(Agent(1, "coder\x1b", (pid,)))
    policy = Demote(Params(groups=[group.name], keep_off=True))
    assert policy.wanted(inside, {}) == {}
    assert f"cgroup {group.name} refused: the agent coder\ufffd is in it" in policy.detail()
    manager = PolicyManager(tmp_path / "state", settings=settings(group))
    try:
        on(manager, targets())
        assert group.read("cpu.idle") == "1"
        manager.tick(inside)
        assert group.read("cpu.idle") == "0"
    finally:
        manager.close()


@needs_cgroup1
@pytest.mark.policies
def test_agenttops_own_group_is_refused(group: RealGroup) -> None:
    root = (group.cpu.parent / "cgroup.procs").open("w")
    (group.cpu / "cgroup.procs").write_text(str(os.getpid()))
    try:
        policy = Demote(Params(groups=[group.name]))
        assert policy.wanted(targets(), {}) == {}
        assert "refused: agenttop itself is in it" in policy.detail()
    finally:
        with root:
            root.write(str(os.getpid()))


@needs_cgroup1
@pytest.mark.policies
def test_a_group_that_a_group_below_needs_says_so(group: RealGroup, tmp_path: Path) -> None:
    below = group.cpuset / "below"
    below.mkdir()
    try:
        (below / "cpuset.cpus").write_text("0-1")
        given = settings(group, keep_off=True, groups_to="none")
        manager = PolicyManager(tmp_path / "state", settings=given)
        events = manager.set("demote", True, on_cpu0())
        assert "a cgroup below it uses other CPUs" in events[-1].text
        assert group.read("cpuset.cpus") == "0-1"
        manager.close()
    finally:
        below.rmdir()


@needs_cgroup1
@pytest.mark.policies
@needs_two_cpus
@pytest.mark.parametrize("together", [False, True], ids=["alone", "with the guardian"])
def test_groups_come_back_when_the_owner_is_killed(
    group: RealGroup, tmp_path: Path, together: bool
) -> None:
    (group.cpu / "cpu.shares").write_text("512")
    owner = (
        "import sys, time\n"
        "from agenttop.policies.manager import PolicyManager\n"
        "from tests.support.knob_files import agent, targets\n"
        "where = targets(agent({0: 1000}), cpus=2)\n"
        "given = {'demote': {'groups': [sys.argv[2]], 'keep_off': True}}\n"
        "m = PolicyManager(sys.argv[1], settings=given)\n"
        "m.set('demote', True, where)\n"
        "print(m.guardian, flush=True)\n"
        "while True:\n    m.tick(where); time.sleep(0.2)\n"
    )
    state = tmp_path / "state"
    command = [sys.executable, "-c", owner, str(state), group.name]

    def now() -> tuple[str, str | None]:
        return group.read("cpuset.cpus"), CPU[1].read(f"cpu.idle/{group.name}")

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout is not None
        guardian = int(holder.stdout.readline())
        assert now() == ("1", "1")
        if together:
            # Stopped first: neither gets to see the other's end.
            holder.send_signal(signal.SIGSTOP)
            os.kill(guardian, signal.SIGKILL)
            holder.kill()
            holder.wait()
            assert now() == ("1", "1")
            dir_fd = open_state_dir(str(state))
            assert dir_fd is not None
            assert all(o.settled and not o.foreign for o in recover(dir_fd) or ())
            os.close(dir_fd)
            assert now() == ("0-1", "0 512")
            return
        holder.kill()
        until = time.monotonic() + 1.0
        while now() != ("0-1", "0 512"):
            assert time.monotonic() < until, "not given back within 1 s"
            time.sleep(0.01)


@needs_root
@needs_two_cpus
def test_chosen_processes_are_kept_off_with_what_they_start(tmp_path: Path) -> None:
    with victims() as victim:
        before = victim.masks()
        given = {"processes": [f"pid:{victim.pid}"], "to": "none", "keep_off": True}
        manager = PolicyManager(tmp_path / "state", settings={"demote": given})
        try:
            on(manager, on_cpu0())
            assert set(map(frozenset, victim.masks().values())) == {frozenset({1})}
            assert os.sched_getscheduler(victim.pid) == os.SCHED_OTHER
            thread, child = victim.spawn()
            assert os.sched_getaffinity(child) == {1}
        finally:
            manager.close()
        after = victim.masks()
        assert {tid: after[tid] for tid in before} == before
        assert os.sched_getaffinity(child) == after[thread] == before[victim.pid]


@needs_root
@needs_two_cpus
def test_a_process_that_is_pinned_where_agents_run_stays(tmp_path: Path) -> None:
    with victims() as victim:
        pin(victim, {0})
        policy = Demote(Params(processes=[f"pid:{victim.pid}"], to="none", keep_off=True))
        assert policy.wanted(on_cpu0(), {}) == {}
        assert "pinned to cpu0, which agents use" in policy.detail()


def pin(victim: Victim, cpus: set[int]) -> None:
    for tid in victim.tids():
        os.sched_setaffinity(tid, cpus)
        assert AFFINITY.same(
            ",".join(map(str, cpus)), ",".join(map(str, os.sched_getaffinity(tid)))
        )


# --------------------------------------------------------------------------- fixture trees: v2


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trees:
    trees = use(tmp_path, monkeypatch)
    trees.cgroup2("cpuset cpu io")
    return trees


def v2_group(trees: Trees, path: str, *pids: int, cpus: str = "", effective: str = "0-3") -> Path:
    return trees.group(
        path,
        *(pids or (NOBODY,)),
        cpu_idle="0",
        cpu_weight="300",
        cpuset_cpus=cpus,
        cpuset_cpus_effective=effective,
    )


@needs_root
def test_v2_groups_are_demoted_kept_off_and_given_back(trees: Trees, tmp_path: Path) -> None:
    folder = v2_group(trees, "batch.slice/nightly job", cpus="0-3")
    given = {"groups": ["/batch.slice/nightly job/"], "keep_off": True}
    manager = PolicyManager(tmp_path / "state", settings={"demote": given})
    on(manager, targets(agent({1: 10})))
    assert (folder / "cpu.idle").read_text() == "1"
    assert (folder / "cpuset.cpus").read_text() == "0,2-3"
    manager.close()
    assert (folder / "cpu.idle").read_text() == "0"
    assert (folder / "cpu.weight").read_text().strip() == "300"
    assert (folder / "cpuset.cpus").read_text().strip() == "0-3"


def test_cpus_that_could_not_be_given_back_stay(trees: Trees) -> None:
    """With processes in it cpuset.cpus cannot be emptied (ENOSPC, seen in the lab on 6.1)."""
    v2_group(trees, "inherits", cpus="", effective="0-3")
    policy = Demote(Params(groups=["inherits"], groups_to="none", keep_off=True))
    assert policy.wanted(targets(agent({1: 10})), {}) == {}
    assert "cpuset of inherits refused: it has its parent's CPUs" in policy.detail()


def test_v2_weight_and_a_kernel_without_idle(trees: Trees) -> None:
    folder = v2_group(trees, "a")
    weighed = Demote(Params(groups=["a"], groups_to="weight", weight=7))
    assert weighed.wanted(targets(), {}) == {("cpu2", "cpu.weight/a"): "7"}
    (folder / "cpu.idle").unlink()
    assert Demote(Params(groups=["a"])).wanted(targets(), {}) == {("cpu2", "cpu.weight/a"): "1"}


def test_groups_that_are_not_there_or_lack_the_controller_are_named(trees: Trees) -> None:
    trees.group("bare", NOBODY)
    policy = Demote(Params(groups=["gone\x1b", "bare"], keep_off=True))
    assert policy.wanted(targets(agent({1: 10})), {}) == {}
    assert "no cgroup gone\ufffd in" in policy.detail()
    assert "bare/cpu.weight: not there" in policy.detail()


def test_a_threaded_group_is_refused(trees: Trees) -> None:
    v2_group(trees, "pool")
    trees.put("cgroup/pool/cgroup.type", "threaded\n")
    policy = Demote(Params(groups=["pool"]))
    assert policy.wanted(targets(), {}) == {}
    assert "cgroup pool refused: it is threaded" in policy.detail()


def test_a_group_with_only_agents_cpus_or_none_of_them_stays(trees: Trees) -> None:
    v2_group(trees, "theirs", cpus="1", effective="1")
    v2_group(trees, "apart", cpus="2-3", effective="2-3")
    policy = Demote(Params(groups=["theirs", "apart"], groups_to="none", keep_off=True))
    assert policy.wanted(targets(agent({1: 10})), {}) == {}
    assert "cpuset of theirs: has only CPUs that agents use" in policy.detail()
    assert "cpuset of apart: is 2-3 already" in policy.detail()


@needs_root
def test_without_any_controller_it_says_why(trees: Trees) -> None:
    assert Demote(Params(groups=["a"])).probe() is None
    trees.cgroup2("hugetlb")
    reason = Demote(Params(groups=["a"])).probe() or ""
    assert "does not have the cpu controller here (it has: hugetlb)" in reason
    assert "cgroup v1 has none mounted" in reason
    assert "demote.groups=[PATH]" in (Demote().probe() or "")


@pytest.mark.parametrize("path", ["/", "a/../b", "..", "a//b", "a\0b"])
def test_the_root_and_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(UserError, match=r"^demote.groups: '"):
        Demote(Params(groups=[path]))


# --------------------------------------------------------------------------- what may be written


@pytest.mark.parametrize(
    ("kind", "target", "value"),
    [
        ("cpu1", "cpu.idle/a b/c", "1"),
        ("cpu1", "cpu.idle/a", "0 1024"),
        ("cpu1", "cpu.shares/a", "2"),
        ("cpu2", "cpu.weight/a", "10000"),
        ("cpu2", "cpu.idle/a", "0 1"),
        ("cpuset1", "a/b", "0-3,8"),
        ("cpuset2", "a", ""),
    ],
)
def test_what_demote_writes_is_valid(kind: str, target: str, value: str) -> None:
    assert KNOBS[kind].valid(target, value)
    assert not KNOBS[kind].valid(target, value + "\n")
    assert not KNOBS[kind].valid(f"{target}/../x", value)
    assert not KNOBS[kind].valid("/" + target, value)


@pytest.mark.parametrize(
    ("kind", "target", "value"),
    [
        ("cpu1", "cpu.idle/", "1"),
        ("cpu1", "cpu.idle/a", "0"),
        ("cpu1", "cpu.weight/a", "5"),
        ("cpu1", "cpu.shares/a", "1"),
        ("cpu2", "cpu.shares/a", "5"),
        ("cpu2", "cpu.weight/a", "0"),
        ("cpu2", "cgroup.kill/a", "1"),
        ("cpuset1", "a", ""),
        ("cpuset1", "", "0"),
        ("cpuset2", "a", "0-99999"),
    ],
)
def test_what_a_journal_must_not_make_us_write(kind: str, target: str, value: str) -> None:
    assert not KNOBS[kind].valid(target, value)


@given(st.sampled_from(["cpu1", "cpu2", "cpuset1", "cpuset2"]), st.text(), st.text())
def test_no_target_leaves_its_hierarchy(kind: str, target: str, value: str) -> None:
    if KNOBS[kind].valid(target, value):
        assert ".." not in target.split("/")
        assert not target.startswith("/")
        assert "\n" not in value


@given(st.frozensets(st.integers(0, 70)), st.frozensets(st.integers(0, 70)))
def test_cpu_lists_are_the_same_when_their_cpus_are(a: frozenset[int], b: frozenset[int]) -> None:
    one, other = (",".join(map(str, sorted(cpus))) for cpus in (a, b))
    assert CPUSET[2].same(one, other) == (a == b)
