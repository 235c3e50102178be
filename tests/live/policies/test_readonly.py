"""--readonly: the engine writes nothing, not even to repair."""

from __future__ import annotations

from pathlib import Path

import pytest

from agenttop.model.sample import Command
from tests.live.policies.test_keep import PRESSURE
from tests.support.engines import engine
from tests.support.policy_rig import machine_lock, needs_root

pytestmark = needs_root


def test_nothing_is_switched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTTOP_STATE", str(tmp_path / "state"))
    before = PRESSURE.read_text()
    with engine(bpf="off", readonly=True) as run:
        run.until(lambda s: bool(s.policies))
        run.client.send(Command("policy", name="vfs", on=True))
        run.until(lambda s: any("vfs: read-only mode" in e.text for e in s.events))
        assert PRESSURE.read_text() == before
        assert not (tmp_path / "state").exists()


def test_the_plan_is_still_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTTOP_STATE", str(tmp_path / "state"))
    before = PRESSURE.read_text()
    with engine(bpf="off", readonly=True, settings={"vfs": {"pressure": 61}}) as run:
        run.until(lambda s: bool(s.policies))
        run.client.send(Command("plan", name="vfs", on=True))
        found = run.until(lambda s: any(p.plan for p in s.policies))
        (plan,) = (p.plan for p in found.policies if p.name == "vfs")
        assert plan == [f"vm.vfs_cache_pressure: {before.strip()} -> 61"]
        assert PRESSURE.read_text() == before
        assert not (tmp_path / "state").exists()


def test_a_second_engine_tells_who_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTTOP_STATE", str(tmp_path / "state"))
    with machine_lock(), engine(bpf="off") as first, engine(bpf="off") as second:
        assert second.until(lambda s: bool(s.policies)).policies_held_by is None
        first.client.send(Command("policy", name="vfs", on=True))
        first.until(lambda s: any(p.name == "vfs" and p.state == "on" for p in s.policies))
        found = second.until(lambda s: s.policies_held_by is not None)
        assert found.policies_held_by == first.client.pid
        second.client.send(Command("policy", name="vfs", on=True))
        second.until(lambda s: any(f"pid {first.client.pid} holds" in e.text for e in s.events))
        first.client.send(Command("policy", name="vfs", on=False))
        second.until(lambda s: s.policies_held_by is None)
