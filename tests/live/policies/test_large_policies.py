"""Policies on machines of 2 to 512 CPUs with gaps and offline ones: planned, applied, restored.

The real guardian writes into fixture trees, each of which is a machine with a lock of its own.
Settings of threads have no files: home, slice, block's priorities and demote's processes act on
a child of the test, which stands on the tree's first CPUs, as the machine has no more. That all
threads of an agent come back is shown in test_policy_home, _threads and _demote, on the machine's
own CPUs. window's settings are planned here; they are written when wake-ups open windows, which
only BPF can do (test_policy_window, test_window_live).
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from agenttop.policies.base import Agent, Cpu, Targets, Thread
from agenttop.policies.builtin import steer
from agenttop.policies.knobs.sched_attr import Attr
from agenttop.policies.manager import PolicyManager
from tests.support.knob_files import Trees, agent
from tests.support.trees import Tree
from tests.support.trees.machine import C_STATES, Machine, State, cpulist

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="policies need root")

SETTINGS: dict[str, dict[str, object]] = {
    "guard": {"per_cpu": True},
    "floor": {},
    "steer": {},
    "softirq": {"rps": True, "xps": True},
    "block": {"ioprio": False},
    "demote": {"groups": ["batch"], "groups_to": "weight", "keep_off": True},
    "memory": {},
    "vfs": {},
}
PID = 900_001
GIB = 1 << 30


def machine(root: Path, cpus: int, states: tuple[State, ...] = C_STATES) -> Machine:
    """The second CPU (of two: none) is offline, some numbers are none's, more are possible."""
    small = cpus == 2
    made = Machine(
        Tree(root),
        cpus=cpus,
        offline=set() if small else {1, cpus // 2},
        gaps=frozenset({1} if small else {9, 10, 20}),
        possible=cpus,
        nodes=2,
        states=states,
        irqs=cpus,
    )
    trees = Trees(root)
    made.write()
    every = cpulist(made.present).strip()
    for line in range(cpus):
        trees.irq(24 + line, f"nvme0q{line}", every)
    for cpu in made.online:
        base = f"sys/devices/system/cpu/cpufreq/policy{cpu}"
        trees.put(f"{base}/scaling_min_freq", "800000\n")
        trees.put(f"{base}/cpuinfo_max_freq", "3600000\n")
        trees.put(f"{base}/affected_cpus", f"{cpu}\n")
        trees.put(f"{base}/energy_performance_preference", "power\n")
        trees.put(f"{base}/energy_performance_available_preferences", "balance_performance power\n")
    trees.sysctl("vm.vfs_cache_pressure", "100")
    trees.sysctl("net.core.netdev_budget", "300")
    trees.sysctl("net.core.netdev_budget_usecs", "8000")
    trees.netdev(2, "eth0")
    trees.disk("8:0", "sda")
    trees.cgroup2("cpu cpuset io memory")
    trees.put("proc/meminfo", f"MemTotal: {64 * GIB // 1024} kB\n")
    trees.group("agents/one", PID, memory_low="0", memory_min="0", memory_current=str(GIB))
    trees.group("batch", cpu_weight="100", cpu_idle="0", cpuset_cpus="")
    trees.put("cgroup/batch/cpuset.cpus.effective", f"{every}\n")
    return made


def targets(made: Machine) -> Targets:
    """An agent on the first and the last CPU."""
    online = set(made.online)
    return Targets(
        time.monotonic_ns(),
        (agent({made.online[0]: 100, made.online[-1]: 100}, 1, PID),),
        tuple(Cpu(cpu, cpu in online) for cpu in made.present),
    )


def files(root: Path) -> dict[Path, bytes]:
    """Without the line's end, which the kernel adds and a plain file loses when it is written."""
    return {p: p.read_bytes().removesuffix(b"\n") for p in root.rglob("*") if p.is_file()}


TWO, FOUR = C_STATES[:2], C_STATES


@pytest.mark.parametrize(
    ("cpus", "states"),
    [
        pytest.param(
            cpus,
            states,
            marks=[pytest.mark.long] if cpus > 64 or (cpus, states) == (64, TWO) else [],
            id=f"{cpus} CPUs, {len(states)} states",
        )
        for cpus in (2, 64, 256, 512)
        for states in (TWO, FOUR)
    ],
)
def test_every_policy_is_planned_applied_and_restored_to_the_byte(
    cpus: int, states: tuple[State, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "machine"
    made = machine(root, cpus, states)
    made.tree.use(monkeypatch)
    monkeypatch.setattr(steer, "SPAN_S", 600)  # However long the others take to be planned.
    first, last = made.online[0], made.online[-1]
    manager = PolicyManager(str(tmp_path / "state"), settings=SETTINGS)
    reasons = {name: manager.reason(name) for name in SETTINGS}
    time.sleep(0.25)  # rates need a moment
    made.advance()
    before, looked = files(root), targets(made)
    try:
        # Two states have exits that are short enough: there is nothing to guard.
        quick = {"guard"} if len(states) == 2 else set()
        for name in SETTINGS:
            assert reasons[name] is None or name in quick, reasons[name]
            if name in quick:
                continue
            planned = {change.key for change in manager.plan(name, looked)}
            assert planned, name
            events = manager.set(name, True, looked)
            assert not [e for e in events if e.kind in ("error", "warning")], events
            held = manager.status()
            status = next(each for each in held if each.name == name)
            assert (status.state, len(status.changes)) == ("on", len(planned)), status
        changed = {p for p, text in files(root).items() if before.get(p) != text}
        sysfs = root / "sys/devices/system/cpu"
        limits = {p for p in changed if p.name == "pm_qos_resume_latency_us"}
        assert (
            limits == set()
            if quick
            else limits
            == {sysfs / f"cpu{cpu}/power/pm_qos_resume_latency_us" for cpu in (first, last)}
        )
        lowest = {p.parent.name for p in changed if p.name == "scaling_min_freq"}
        assert lowest == {f"policy{first}", f"policy{last}"}
        if cpus > 2:
            serving = cpulist([c for c in made.online if c not in (first, last)]).strip()
            line = root / f"proc/irq/{24 + cpus - 1}/smp_affinity_list"
            assert line.read_text() == serving
            mask = (root / "sys/class/net/eth0/queues/rx-0/rps_cpus").read_text()
            bits = int(mask.replace(",", ""), 16)
            assert [c for c in range(last + 1) if bits >> c & 1] == [
                c for c in made.online if c not in (first, last)
            ]
    finally:
        events = manager.close()
    assert not [e for e in events if e.kind in ("error", "warning")], events
    assert files(root) == before


class Kernel:
    """The kernel side of windows, which here is only asked for an agent's cell."""

    def cell_of(self, slot: int) -> int:
        return 1000 + slot


@pytest.mark.parametrize("cpus", [2, 64, pytest.param(512, marks=pytest.mark.long)])
def test_a_window_is_planned_for_each_cpu(
    cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = machine(tmp_path / "machine", cpus)
    made.tree.use(monkeypatch)
    manager = PolicyManager(str(tmp_path / "state"), settings={"window": {"floor": True}})
    manager.attach(cast("Any", Kernel()))
    looked = targets(made)
    one = Agent(1, "coder", (PID,), looked.agents[0].threads, looked.agents[0].cpu_steps, slot=3)
    planned = manager.plan("window", Targets(looked.t_ns, (one,), looked.cpus))
    limits = {change.target for change in planned if change.kind == "pm_qos"}
    assert limits == {f"cpu{cpu}" for cpu in made.online}
    floors = {change.target for change in planned if change.kind == "cpufreq"}
    assert floors == {f"policy{cpu}/scaling_min_freq" for cpu in made.online}
    # All of them are written in one message to the guardian, and none is here.
    assert manager.guardian is None


@pytest.fixture
def child() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "100"])
    yield process.pid
    process.kill()
    process.wait()


def settings_of(pid: int) -> tuple[object, ...]:
    attr = Attr(pid)
    ioprio = subprocess.run(["ionice", "-p", str(pid)], capture_output=True, check=True).stdout
    return os.sched_getaffinity(pid), attr.policy, attr.nice, attr.runtime, ioprio


@pytest.mark.policies
@pytest.mark.parametrize("cpus", [2, 64, pytest.param(512, marks=pytest.mark.long)])
def test_a_thread_of_this_machine_gets_its_own_settings_back(
    cpus: int, child: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "machine"
    made = machine(root, cpus)
    made.tree.use(monkeypatch)
    # The very process, also where policies look for those that they were told to choose.
    for file in ("stat", "cmdline"):
        made.tree.write(f"proc/{child}/{file}", Path(f"/proc/{child}/{file}").read_bytes())
    online = set(made.online)
    looked = Targets(
        time.monotonic_ns(),
        (Agent(1, "coder", (child,), (Thread(child, child, 0, 100, 0.1),), {0: 100}),),
        tuple(Cpu(cpu, cpu in online, busy_ratio=0.5 if cpu == 0 else 0.0) for cpu in made.present),
    )
    nobody = Targets(looked.t_ns, (), looked.cpus)
    before, tree = settings_of(child), files(root)
    manager = PolicyManager(
        str(tmp_path / "state"), settings={"demote": {"processes": ["comm:^sleep$"]}}
    )
    wanted = {"home": looked, "slice": looked, "block": looked, "demote": nobody}
    try:
        for name, told in wanted.items():
            if name == "demote":
                # An agent's process is never demoted: it is somebody else's from here on.
                manager.close()
                assert settings_of(child) == before
            reason = manager.reason(name)
            if name == "slice" and reason and "no slice per thread" in reason:
                continue
            assert reason is None, reason
            planned = [change.key for change in manager.plan(name, told)]
            events = manager.set(name, True, told)
            assert not [e for e in events if e.kind in ("error", "warning")], events
            assert manager.is_on(name)
            mine = {kind for kind, target in planned if target.startswith(f"{child}/")}
            kinds = {"home": "affinity", "slice": "slice", "block": "ioprio"}
            assert mine == {kinds.get(name, "sched_policy")}
        assert Attr(child).policy == os.SCHED_IDLE
    finally:
        events = manager.close()
    assert not [e for e in events if e.kind in ("error", "warning")], events
    assert settings_of(child) == before
    assert files(root) == tree
