"""--keep: left applied on purpose, said so, refused to be built upon, undone by restore."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenttop.policies.manager import PolicyManager
from tests.loops import loop
from tests.policying import needs_root, victims
from tests.test_policy_command import Shell

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
    from agenttop.policies.base import Targets

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


def test_what_somebody_else_has_set_since_is_left_alone(shell: Shell) -> None:
    keep(shell)
    PRESSURE.write_text("77\n")
    code, out, _ = shell.run("restore")
    assert code == 0
    assert "changed by somebody else since" in out
    assert PRESSURE.read_text() == "77\n"
    assert os.listdir(shell.env["AGENTTOP_STATE"]) in ([], ["lock"])
