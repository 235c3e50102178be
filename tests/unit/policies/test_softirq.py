"""softirq: what is bounded and moved, device by device, and given back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agenttop.errors import UserError
from agenttop.policies import catalog
from agenttop.policies.base import Settings
from agenttop.policies.builtin.softirq import BUDGET, BUDGET_USECS, Params, Softirq, least_usecs
from agenttop.policies.knobs.files import NETDEV, SYSCTL
from agenttop.policies.manager import PolicyManager
from tests.support.knob_files import Trees, agent, targets, use
from tests.support.policy_rig import machine_lock, needs_root

BUDGETS: Settings = {("sysctl", BUDGET_USECS): "2000", ("sysctl", BUDGET): "128"}
NO_BUDGETS = {"budget": 0, "budget_usecs": 0}


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trees:
    trees = use(tmp_path, monkeypatch)
    trees.sysctl(BUDGET, "300")
    trees.sysctl(BUDGET_USECS, "8000")
    monkeypatch.setattr("agenttop.policies.builtin.softirq.least_usecs", lambda: 2000)
    return trees


def params(**given: object) -> Any:
    return catalog.params("softirq", given)


def test_by_default_only_batches_are_bounded(trees: Trees) -> None:
    trees.netdev(2, "eth0")
    softirq = Softirq()
    assert softirq.wanted(targets(agent({1: 10})), {}) == BUDGETS
    assert "netdev_budget 128" in softirq.detail()


def test_what_somebody_has_set_lower_stays(trees: Trees) -> None:
    trees.sysctl(BUDGET, "100")
    softirq = Softirq()
    assert softirq.wanted(targets(), {}) == {("sysctl", BUDGET_USECS): "2000"}
    assert f"{BUDGET} is 100 already" in softirq.detail()
    # Ours is not taken for somebody else's.
    trees.sysctl(BUDGET, "128")
    assert softirq.wanted(targets(), BUDGETS) == BUDGETS


def test_never_less_than_the_kernel_takes(trees: Trees, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agenttop.policies.builtin.softirq.least_usecs", lambda: 8000)
    softirq = Softirq()
    # As low as it gets already: left out, with the reason.
    assert softirq.wanted(targets(), {}) == {("sysctl", BUDGET): "128"}
    assert "no batch below 8000us, two clock ticks" in softirq.detail()
    assert f"{BUDGET_USECS} is 8000 already" in softirq.detail()
    trees.sysctl(BUDGET_USECS, "20000")
    assert softirq.wanted(targets(), {})["sysctl", BUDGET_USECS] == "8000"


def test_what_the_kernel_refused_is_not_said_to_hold(trees: Trees) -> None:
    softirq = Softirq()
    softirq.wanted(targets(), {})
    softirq.wanted(targets(), {("sysctl", BUDGET): "128"})
    assert softirq.detail() == f"{BUDGET} 128"


def test_a_sysctl_that_is_not_there_is_told(trees: Trees) -> None:
    (trees.proc / "sys/net/core/netdev_budget_usecs").unlink()
    softirq = Softirq()
    assert softirq.wanted(targets(), {}) == {("sysctl", BUDGET): "128"}
    assert f"{BUDGET_USECS}: not there" in softirq.detail()


def test_devices_that_are_up_and_real_are_meant(trees: Trees) -> None:
    trees.netdev(1, "lo", hardware=False)
    trees.netdev(2, "eth0")
    trees.netdev(3, "eth1", up=False)
    given = params(gro_flush_us=20, defer_irqs=2, **NO_BUDGETS)
    wanted = Softirq(given).wanted(targets(), {})
    # The time limit first, and so taken back last.
    assert list(wanted.items()) == [
        (("netdev", "2/gro_flush_timeout"), "20000"),
        (("netdev", "2/napi_defer_hard_irqs"), "2"),
    ]


def test_named_devices_and_none_else(trees: Trees) -> None:
    trees.netdev(1, "lo", hardware=False)
    trees.netdev(2, "eth0")
    softirq = Softirq(params(devices=["lo", "gone\x1b"], threaded=True, **NO_BUDGETS))
    assert softirq.wanted(targets(), {}) == {("netdev", "1/threaded"): "1"}
    assert "network device gone\ufffd: not there" in softirq.detail()


def test_receive_work_goes_where_no_agent_runs(trees: Trees) -> None:
    trees.netdev(2, "eth0")
    softirq = Softirq(params(rps=True, xps=True, **NO_BUDGETS))
    wanted = softirq.wanted(targets(agent({1: 10})), {})
    assert wanted == {
        ("netdev", "2/queues/rx-0/rps_cpus"): "d",
        ("netdev", "2/queues/tx-0/xps_cpus"): "d",
    }
    assert "cpu0,2-3" in softirq.detail()


def test_where_agents_use_every_cpu_no_masks_are_set(trees: Trees) -> None:
    trees.netdev(2, "eth0")
    softirq = Softirq(params(rps=True, **NO_BUDGETS))
    everywhere = agent({0: 10, 1: 10, 2: 10, 3: 10})
    assert softirq.wanted(targets(everywhere), {}) == {}
    assert "agents use every CPU" in softirq.detail()


def test_a_queue_without_a_mask_is_told(trees: Trees) -> None:
    (trees.netdev(2, "eth0") / "queues/tx-0/xps_cpus").unlink()
    softirq = Softirq(params(xps=True, **NO_BUDGETS))
    assert softirq.wanted(targets(agent({1: 10})), {}) == {}
    assert "xps_cpus: not there" in softirq.detail()


@pytest.mark.parametrize(
    "given",
    [
        {"gro_flush_us": 20},
        {"defer_irqs": 2},
        {"budget": 10},
        {"budget_usecs": 10},
        {"gro_flush_us": 5000, "defer_irqs": 1},
        {"threaded": 2},
        {"devices": ["a" * 16]},
    ],
)
def test_parameters_that_make_no_sense_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"softirq: .*"):
        params(**given)


# --------------------------------------------------------------------------- with the manager


@needs_root
def test_everything_on_a_device_is_given_back(trees: Trees, tmp_path: Path) -> None:
    device = trees.netdev(2, "eth0")
    given = {"threaded": True, "rps": True, "xps": True, "gro_flush_us": 20, "defer_irqs": 2}
    manager = PolicyManager(str(tmp_path / "state"), settings={"softirq": given})
    before = {path: path.read_text().strip() for path in device.rglob("*") if path.is_file()}
    events = manager.set("softirq", True, targets(agent({1: 10})))
    assert not [e for e in events if e.kind == "error"], events
    assert (device / "threaded").read_text() == "1"
    assert (device / "queues/rx-0/rps_cpus").read_text() == "d"
    assert SYSCTL.read(BUDGET) == "128"
    manager.set("softirq", False, targets())
    assert {path: path.read_text().strip() for path in before} == before
    assert SYSCTL.read(BUDGET) == "300"


@needs_root
@pytest.mark.skipif(
    not os.path.exists("/sys/class/net/lo/gro_flush_timeout")
    or not os.path.exists("/proc/sys/net/core/netdev_budget"),
    reason="no such settings here",
)
def test_the_real_kernel_takes_it_and_gets_it_back(tmp_path: Path) -> None:
    """On the loopback device, which polls nothing and so keeps what is set to itself."""
    with machine_lock():
        index = Path("/sys/class/net/lo/ifindex").read_text().strip()
        keys = [f"{index}/gro_flush_timeout", f"{index}/napi_defer_hard_irqs"]
        before = [NETDEV.read(key) for key in keys] + [SYSCTL.read(BUDGET)]
        given = {"devices": ["lo"], "gro_flush_us": 20, "defer_irqs": 2, "budget": 100}
        manager = PolicyManager(str(tmp_path / "state"), settings={"softirq": given})
        try:
            manager.set("softirq", True, targets())
            assert [NETDEV.read(key) for key in keys] == ["20000", "2"]
            assert SYSCTL.read(BUDGET) == "100"
        finally:
            manager.close()
        assert [NETDEV.read(key) for key in keys] + [SYSCTL.read(BUDGET)] == before


@needs_root
@pytest.mark.skipif(
    not os.path.exists("/proc/sys/net/core/netdev_budget_usecs"), reason="no such setting here"
)
def test_the_default_can_be_applied_whole_here(tmp_path: Path) -> None:
    with machine_lock():
        manager = PolicyManager(str(tmp_path / "state"))
        before = SYSCTL.read(BUDGET), SYSCTL.read(BUDGET_USECS)
        try:
            events = manager.set("softirq", True, targets())
            status = next(s for s in manager.status() if s.name == "softirq")
            assert not [e for e in events if e.kind in ("warning", "error")], events
            assert (status.state, "cannot be set" in status.detail) == ("on", False)
            assert int(SYSCTL.read(BUDGET_USECS) or 0) <= max(2000, least_usecs())
        finally:
            manager.close()
        assert (SYSCTL.read(BUDGET), SYSCTL.read(BUDGET_USECS)) == before


def test_defaults_are_within_what_can_be_set() -> None:
    assert params() == Params()
