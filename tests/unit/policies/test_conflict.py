"""Two policies that set the same knob are not on together; drift is told of in time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from agenttop.linux.slices import Job
from agenttop.policies.base import Cpu, Key, Settings, Targets
from agenttop.policies.builtin.vfs import Vfs
from agenttop.policies.guardian.lease import LeaseLostError, Notice
from agenttop.policies.manager import PolicyManager
from tests.live.policies.test_guard import XEON, tree
from tests.live.policies.test_guard import targets as guarded
from tests.support.policy_rig import needs_root, victims

pytestmark = needs_root
PRESSURE = Path("/proc/sys/vm/vfs_cache_pressure")


class Second(Vfs):
    """Another policy that always wants the same knob."""

    name = "second"

    def wanted(self, targets: Targets, held: Mapping[Key, str]) -> Settings:
        return {("sysctl", "vm.vfs_cache_pressure"): "60"}


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PolicyManager]:
    from agenttop.policies import catalog
    from agenttop.policies.builtin import vfs

    both = {**catalog.POLICIES, "second": catalog.Entry(vfs.Params, Second)}
    monkeypatch.setattr(catalog, "POLICIES", both)
    before = PRESSURE.read_text()
    with victims():
        manager = PolicyManager(tmp_path / "state")
        yield manager
        manager.close()
        PRESSURE.write_text(before)


def now() -> Targets:
    return Targets(time.monotonic_ns(), (), (Cpu(0),))


def test_the_second_is_refused_with_both_names(manager: PolicyManager) -> None:
    manager.set("vfs", True, now())
    events = manager.set("second", True, now())
    assert [e.kind for e in events] == ["error"]
    assert "vfs and second both set vm.vfs_cache_pressure: switch vfs off first" in events[0].text
    states = {s.name: s.state for s in manager.status()}
    assert (states["vfs"], states["second"]) == ("on", "error")
    manager.set("vfs", False, now())
    assert not [e for e in manager.set("second", True, now()) if e.kind == "error"]


def test_a_knob_that_cannot_be_read_is_no_drift_and_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As amid the removal of a CPU: one look fails, the next finds it back."""
    monkeypatch.setenv("AGENTTOP_SYS", str(tmp_path))
    path = tree(tmp_path, XEON) / "cpu0/power/pm_qos_resume_latency_us"
    manager = PolicyManager(tmp_path / "state")
    seen = guarded({0: 100})
    try:
        manager.set("guard", True, seen)
        aside = path.rename(tmp_path / "aside")
        path.mkdir()
        until = time.monotonic() + 2.2  # two looks
        while time.monotonic() < until:
            assert manager.tick(seen) == []
            time.sleep(0.1)
        path.rmdir()
        aside.rename(path)
        status = next(s for s in manager.status() if s.name == "guard")
        assert (status.state, status.changes) == ("on", [f"{path}: 0 -> 5"])
    finally:
        manager.close()
    assert path.read_text().strip() == "0"


def test_drift_is_told_within_two_seconds_and_left_alone(manager: PolicyManager) -> None:
    manager.set("vfs", True, now())
    PRESSURE.write_text("77\n")
    until = time.monotonic() + 2.0
    while "drift" not in {s.state for s in manager.status()}:
        assert time.monotonic() < until
        manager.tick(now())
        time.sleep(0.1)
    manager.close()
    assert PRESSURE.read_text() == "77\n"


def test_a_check_for_drift_that_fails_is_told_once_and_ends_nothing(tmp_path: Path) -> None:
    manager = PolicyManager(tmp_path / "state")

    def check(error: Exception) -> Job:
        yield
        raise error

    for _ in range(2):
        manager._checking.begin("drift", check(ValueError("no number")), lambda: None)
    texts = [event.text for event in manager._heard()]
    assert texts == ["the check for drift failed: ValueError: no number"]
    # The end of the lease is for its owner to see.
    lost = LeaseLostError(Notice("the guardian was killed", [], True))
    with pytest.raises(LeaseLostError):
        manager._checking.begin("drift", check(lost), lambda: None)
