"""vfs: one number, only lowered, given back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agenttop.errors import UserError
from agenttop.policies import catalog
from agenttop.policies.builtin.vfs import NAME, Params, Vfs
from agenttop.policies.knobs.files import SYSCTL
from agenttop.policies.manager import PolicyManager
from tests.support.knob_files import Trees, targets, use
from tests.support.policy_rig import machine_lock, needs_root


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trees:
    return use(tmp_path, monkeypatch)


def test_it_is_lowered(trees: Trees) -> None:
    trees.sysctl(NAME, "100")
    assert Vfs().wanted(targets(), {}) == {("sysctl", NAME): "50"}
    assert Vfs(Params(pressure=20)).wanted(targets(), {}) == {("sysctl", NAME): "20"}


@pytest.mark.parametrize("current", ["0", "30", "50"])
def test_it_is_never_raised(trees: Trees, current: str) -> None:
    trees.sysctl(NAME, current)
    vfs = Vfs()
    assert vfs.wanted(targets(), {}) == {}
    assert f"is {current} already" in vfs.detail()


def test_zero_cannot_be_asked_for() -> None:
    with pytest.raises(UserError, match="vfs: "):
        catalog.params("vfs", {"pressure": 0})


@needs_root
def test_where_it_is_missing_probe_says_so(trees: Trees) -> None:
    assert NAME in (Vfs().probe() or "")


@needs_root
@pytest.mark.skipif(not os.path.exists("/proc/sys/vm/vfs_cache_pressure"), reason="no such sysctl")
def test_the_real_one_goes_there_and_back(tmp_path: Path) -> None:
    with machine_lock():
        before = SYSCTL.read(NAME)
        assert before is not None
        lower = str(max(10, min(100, int(before) - 1)))
        manager = PolicyManager(str(tmp_path / "state"), settings={"vfs": {"pressure": int(lower)}})
        try:
            manager.set("vfs", True, targets())
            assert SYSCTL.read(NAME) == (lower if int(before) > int(lower) else before)
        finally:
            manager.close()
        assert SYSCTL.read(NAME) == before
