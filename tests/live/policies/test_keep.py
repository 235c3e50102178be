"""--keep: left applied on purpose, said so, refused to be built upon, undone by restore."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenttop.policies.base import Agent, Cpu, Targets
from agenttop.policies.knobs.base import RESUME_LATENCY, cpu_set
from agenttop.policies.manager import PolicyManager
from tests.live.policies.test_command import Shell
from tests.support.loops import loop
from tests.support.policy_rig import cpu_latency, needs_qos, needs_root, victims

pytestmark = needs_root
PRESSURE = Path("/proc/sys/vm/vfs_cache_pressure")


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    before = PRESSURE.read_text()
    try:
        with victims():
            yield Shell(tmp_path / "state")
    finally:
        PRESSURE.write_text(before)


def keep(shell: Shell) -> str:
    code, out, err = shell.run(
        "policy", "apply", "vfs", "--keep", "--set", "vfs.pressure=61", "--agent", "pid:1"
    )
    assert code == 0, err
    return out


def test_it_stays_until_restore(shell: Shell, tmp_path: Path) -> None:
    before = PRESSURE.read_text()
    out = keep(shell)
    assert "vfs left applied" in out
    assert out.endswith("'agenttop restore' undoes it\n")
    assert PRESSURE.read_text() == "61\n"
    _, out, _ = shell.run("policy", "status")
    assert out.startswith("kept: left applied on purpose (--keep)")
    assert "  vfs: vm.vfs_cache_pressure: " in out
    # The next agenttop neither undoes it nor builds upon it.
    code, _, err = shell.run("policy", "apply", "vfs", "--for", "1", "--agent", "pid:1")
    assert code == 2
    assert "--keep" in err
    assert "agenttop restore" in err
    code, _, err = shell.run("policy", "revert")
    assert code == 2
    assert "agenttop restore" in err
    assert PRESSURE.read_text() == "61\n"
    code, out, _ = shell.run("restore")
    assert code == 0
    assert f"61 -> {before.strip()}" in out
    assert PRESSURE.read_text() == before
    assert shell.run("policy", "status")[1] == "no policy is applied\n"


def test_the_next_engine_says_so_and_leaves_it(shell: Shell, tmp_path: Path) -> None:
    keep(shell)
    events = PolicyManager(tmp_path / "state").tick(Targets(0))
    assert [e.kind for e in events] == ["warning"]
    assert "--keep" in events[0].text
    assert PRESSURE.read_text() == "61\n"
    assert shell.run("restore")[0] == 0


def test_status_tells_which_settings_have_drifted(shell: Shell) -> None:
    budget = Path("/proc/sys/net/core/netdev_budget")
    before = budget.read_text()
    code, _, err = shell.run(
        *("policy", "apply", "vfs", "softirq", "--keep", "--agent", "pid:1"),
        *("--set", "vfs.pressure=61", "--set", "softirq.budget=200"),
    )
    try:
        assert code == 0, err
        _, out, _ = shell.run("policy", "status")
        assert "drifted" not in out
        PRESSURE.write_text("77\n")
        code, out, _ = shell.run("policy", "status")
        assert code == 0
        drifted = [line for line in out.splitlines() if "drifted" in line]
        assert len(drifted) == 1
        assert drifted[0].startswith("  vfs: vm.vfs_cache_pressure: ")
        assert drifted[0].endswith(" -> 61; drifted: now 77, set by somebody else")
        assert "  softirq: net.core.netdev_budget: " in out
        PRESSURE.write_text("61\n")
        assert "drifted" not in shell.run("policy", "status")[1]
    finally:
        assert shell.run("restore")[0] == 0
        assert budget.read_text() == before


def test_status_tells_what_has_gone(shell: Shell) -> None:
    with loop("--interval-us", 5000, "--for", 60) as one:
        one.go()
        code, _, err = shell.run("policy", "apply", "slice", "--keep", "--agent", f"pid:{one.pid}")
        assert code == 0, err
        assert "has gone" not in shell.run("policy", "status")[1]
    assert "; has gone" in shell.run("policy", "status")[1]
    assert shell.run("restore")[0] == 0


@needs_qos
def test_a_guard_of_all_cpus_is_left_applied_too(shell: Shell) -> None:
    cpus = sorted(cpu_set("online"))
    before = [RESUME_LATENCY.read(f"cpu{cpu}") for cpu in cpus]
    with contextlib.ExitStack() as stack:
        agents = []
        for cpu in cpus:
            one = stack.enter_context(loop("--interval-us", 2000, "--for", 60))
            os.sched_setaffinity(one.pid, {cpu})
            one.go()
            agents += ["--agent", f"pid:{one.pid}"]
        code, out, err = shell.run(
            *("policy", "apply", "guard", "vfs", "--keep", *agents),
            *("--set", "guard.limit_us=1", "--set", "vfs.pressure=61"),
        )
    try:
        assert code == 0, err
        assert "guard, vfs left applied\n" in out
        assert all(RESUME_LATENCY.read(f"cpu{cpu}") != "0" for cpu in cpus)
    finally:
        assert shell.run("restore")[0] == 0
    assert [RESUME_LATENCY.read(f"cpu{cpu}") for cpu in cpus] == before


@needs_qos
@pytest.mark.parametrize("others", [(), ("vfs",)])
def test_what_ends_with_its_writer_is_not_said_to_be_left(
    shell: Shell, tmp_path: Path, others: tuple[str, ...]
) -> None:
    cpus = sorted(cpu_set("online"))
    before = cpu_latency()
    steps = dict.fromkeys(cpus, 100)
    every = Targets(time.monotonic_ns(), (Agent(1, "one", cpu_steps=steps),), tuple(map(Cpu, cpus)))
    settings = {"guard": {"limit_us": 1}, "vfs": {"pressure": 61}}
    manager = PolicyManager(tmp_path / "state", settings=settings)
    try:
        for name in ("guard", *others):
            manager.set(name, True, every)
        assert cpu_latency() == 0
        told = [event.text for event in manager.keep()]
    finally:
        manager.close()
        assert shell.run("restore")[0] == 0
    assert cpu_latency() == before
    left = ["vfs left applied: 1 restored"] if others else []
    undoes = ["'agenttop restore' undoes it"] if others else []
    assert told == [*left, "guard: nothing of it is left applied", *undoes]


def test_nothing_to_set_is_nothing_left(shell: Shell) -> None:
    PRESSURE.write_text("61\n")
    out = keep(shell)
    assert out.endswith("! vfs: nothing of it is left applied\n")
    assert shell.run("restore")[1] == "nothing to restore\n"


def test_what_somebody_else_has_set_since_is_left_alone(shell: Shell) -> None:
    keep(shell)
    PRESSURE.write_text("77\n")
    code, out, _ = shell.run("restore")
    assert code == 0
    assert "changed by another process since" in out
    assert PRESSURE.read_text() == "77\n"
    assert os.listdir(shell.env["AGENTTOP_STATE"]) in ([], ["lock"])
