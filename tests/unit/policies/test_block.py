"""block: disks, I/O priorities and cgroups, on fixture trees and on this machine's own disk."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from agenttop.policies.base import Agent, Key, Settings, Targets, Thread
from agenttop.policies.builtin.block import Block, Params
from agenttop.policies.knobs.base import thread_stat
from agenttop.policies.knobs.files import BLOCKDEV
from agenttop.policies.knobs.sched_attr import IO_PRIORITY
from agenttop.policies.manager import PolicyManager
from tests.support.knob_files import Trees, agent, targets, use
from tests.support.policy_rig import Victim, needs_root, until, victims


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trees:
    return use(tmp_path, monkeypatch)


@pytest.fixture
def victim() -> Iterator[Victim]:
    with victims() as victim:
        yield victim


def wanted(params: Params, held: Settings | None = None) -> tuple[Settings, str]:
    block = Block(params)
    return block.wanted(targets(agent({1: 10})), held or {}), block.detail()


DISKS_ONLY = Params(ioprio=False, weight=0)


def test_disks_with_hardware_are_meant(trees: Trees) -> None:
    trees.disk("254:0", "vda")
    trees.disk("7:0", "loop0", hardware=False)
    settings, detail = wanted(DISKS_ONLY)
    assert settings == {
        ("blockdev", "254:0/rq_affinity"): "2",
        ("blockdev", "254:0/wbt_lat_usec"): "2000",
    }
    assert detail == "vda"


@needs_root
def test_a_disk_that_comes_amid_a_revert_is_given_back_too(
    trees: Trees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine has not heard of the revert yet when it sets the new disk."""
    trees.sysctl("vm.vfs_cache_pressure", "100")
    known = trees.disk("8:0", "sda") / "rq_affinity"
    new = trees.sys / "block/sdb/queue/rq_affinity"
    state = tmp_path / "state"
    given = {"ioprio": False, "weight": 0, "wbt_lat_us": 0}
    manager = PolicyManager(state, settings={"block": given})
    planned = Block.wanted

    def wanted(self: Block, targets: Targets, held: Mapping[Key, str]) -> Settings:
        if held and not new.exists():
            trees.disk("8:16", "sdb")
            (state / "request").write_text("block")
            os.kill(manager.guardian or 0, signal.SIGUSR1)
            assert until(lambda: known.read_text().strip() == "1", 10)
        return planned(self, targets, held)

    monkeypatch.setattr(Block, "wanted", wanted)
    try:
        for name in ("vfs", "block"):  # the lease goes on for the other one
            manager.set(name, True, targets())
        assert known.read_text().strip() == "2"
        assert until(lambda: bool(manager.tick(targets())), 10)
        states = {status.name: status.state for status in manager.status()}
        assert (states["vfs"], states["block"]) == ("on", "off")
        assert new.read_text().strip() == "1"
    finally:
        manager.close()


def test_named_disks_and_none_else(trees: Trees) -> None:
    trees.disk("254:0", "vda")
    trees.disk("7:0", "loop0", hardware=False)
    params = Params(ioprio=False, weight=0, wbt_lat_us=0, devices=("loop0", "gone"))
    settings, detail = wanted(params)
    assert settings == {("blockdev", "7:0/rq_affinity"): "2"}
    assert "disk gone: not there" in detail


@pytest.mark.parametrize(
    ("wbt", "said"),
    [
        (None, "no writeback throttling"),
        ("0", "no writeback throttling"),
        ("1000", "is 1000 already"),
    ],
)
def test_write_throttling_is_neither_switched_on_nor_eased(
    trees: Trees, wbt: str | None, said: str
) -> None:
    trees.disk("254:0", "vda", wbt=wbt)
    settings, detail = wanted(DISKS_ONLY)
    assert settings == {("blockdev", "254:0/rq_affinity"): "2"}
    assert said in detail


def test_our_own_number_is_not_taken_for_somebody_elses(trees: Trees) -> None:
    trees.disk("254:0", "vda", wbt="2000")
    held = {("blockdev", "254:0/wbt_lat_usec"): "2000"}
    assert held.items() <= wanted(DISKS_ONLY, held)[0].items()


def test_cgroups_of_agents_get_their_weight(trees: Trees) -> None:
    trees.cgroup2("io memory")
    trees.disk("8:0", "sda", wbt=None)
    trees.group("agents/one", 900_001, io_weight="default 100", io_latency="")
    found, detail = wanted(Params(ioprio=False, rq_affinity=False, wbt_lat_us=0, latency_us=50))
    assert found == {
        ("cgroup", "io.weight/agents/one"): "300",
        ("cgroup", "io.latency@8:0/agents/one"): "50",
    }
    assert "1 cgroups of agents" in detail


def test_a_cgroup_that_others_live_in_is_left_alone(trees: Trees) -> None:
    trees.cgroup2("io")
    trees.group("session", 900_001, 4711, io_weight="default 100")
    trees.group("session/below")
    found, detail = wanted(Params(ioprio=False, rq_affinity=False, wbt_lat_us=0))
    assert found == {}
    assert "1 shared with other processes left alone" in detail


@pytest.mark.parametrize("controllers", [None, "", "hugetlb"])
def test_without_the_controller_it_says_so(trees: Trees, controllers: str | None) -> None:
    if controllers is not None:
        trees.cgroup2(controllers)
    found, detail = wanted(Params(ioprio=False, rq_affinity=False, wbt_lat_us=0))
    assert found == {}
    assert "no io.weight: cgroup v2" in detail


# --------------------------------------------------------------------------- this machine

DISKS = [
    path.parent.parent.name
    for path in sorted(Path("/sys/block").glob("*/queue/rq_affinity"))
    if (path.parent.parent / "device").exists()
]


@needs_root
def test_control_loop_threads_have_the_first_priority_and_lose_it(
    victim: Victim, tmp_path: Path
) -> None:
    tid = victim.tids()[-1]
    stat = thread_stat(victim.pid, tid)
    assert stat is not None
    name = f"{victim.pid}/{tid}/{stat.start}"
    found = Agent(1, "a", (victim.pid,), (Thread(tid, victim.pid, 0),), {0: 1})
    before = IO_PRIORITY.read(name)
    given = {"rq_affinity": False, "wbt_lat_us": 0, "weight": 0}
    manager = PolicyManager(str(tmp_path / "state"), settings={"block": given})
    try:
        manager.set("block", True, targets(found))
        assert IO_PRIORITY.read(name) == "2:0"
    finally:
        manager.close()
    assert IO_PRIORITY.read(name) == before


@needs_root
@pytest.mark.skipif(not DISKS, reason="no disk with hardware behind it")
def test_a_real_disk_goes_there_and_back(tmp_path: Path, victim: Victim) -> None:
    number = Path(f"/sys/block/{DISKS[0]}/dev").read_text().strip()
    keys = [f"{number}/rq_affinity"]
    if (Path(f"/sys/block/{DISKS[0]}/queue/wbt_lat_usec")).exists():
        keys.append(f"{number}/wbt_lat_usec")
    before = {key: _read(key) for key in keys}
    given = {"devices": [DISKS[0]], "ioprio": False, "weight": 0, "wbt_lat_us": 1500}
    manager = PolicyManager(str(tmp_path / "state"), settings={"block": given})
    try:
        manager.set("block", True, targets())
        assert BLOCKDEV.read(keys[0]) == "2"
        throttled = before.get(f"{number}/wbt_lat_usec") or "0"
        if throttled.isdigit() and int(throttled) > 1500:
            assert BLOCKDEV.read(keys[1]) == "1500"
    finally:
        manager.close()
    assert {key: _read(key) for key in keys} == before


def _read(key: str) -> str:
    path = BLOCKDEV.path(key)
    try:
        return Path(path).read_text().strip() if os.path.exists(path) else ""
    except OSError:
        return ""  # A disk without throttling answers EINVAL.
