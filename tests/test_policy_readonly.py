"""--readonly: the engine writes nothing, not even to repair."""

from __future__ import annotations

from pathlib import Path

import pytest

from agenttop.model import Command
from tests.engines import engine
from tests.policying import needs_root
from tests.test_policy_keep import PRESSURE

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
