"""The engine switches all of a bundle, with the bundle's parameters, and leaves out what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from agenttop.model.sample import Command, PolicyStatus, Sample
from tests.support.engines import engine
from tests.support.policy_rig import needs_root, victims

pytestmark = needs_root
PRESSURE = Path("/proc/sys/vm/vfs_cache_pressure")


def state(sample: Sample, name: str) -> PolicyStatus:
    return next(p for p in sample.policies if p.name == name)


def test_on_with_its_parameters_and_off_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTTOP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "agenttop/policies"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("title: t\npolicies: {demote: {}, vfs: {pressure: 61}}\n")
    before = PRESSURE.read_text()
    try:
        with victims() as victim, engine(agent_patterns=[f"pid:{victim.pid}"], bpf="off") as run:
            run.until(lambda s: bool(s.policies))
            run.client.send(Command("bundle", name="mine", on=True))
            run.until(lambda s: state(s, "vfs").state == "on")
            assert PRESSURE.read_text() == "61\n"
            # Nobody has chosen processes for it.
            assert any(e.startswith("mine: left out demote (no processes") for e in run.events)
            run.client.send(Command("bundle", name="mine", on=False))
            run.until(lambda s: state(s, "vfs").state == "off")
            assert PRESSURE.read_text() == before
            # By itself it has its own parameters again.
            run.client.send(Command("policy", name="vfs", on=True))
            run.until(lambda s: state(s, "vfs").state == "on")
            assert PRESSURE.read_text() == "50\n"
            run.client.send(Command("bundle", name="nix", on=True))
            run.until(lambda s: any("no bundle 'nix'" in e.text for e in s.events))
        assert PRESSURE.read_text() == before
    finally:
        PRESSURE.write_text(before)
