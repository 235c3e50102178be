"""A name that means something else here, or nothing: the hold is kept, said, and tried again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agenttop.policies.guardian.journal import load, open_state_dir
from agenttop.policies.guardian.lease import Lease
from agenttop.policies.knobs.base import Change
from tests.live.policies.test_command import Shell
from tests.support.knob_files import Trees, use
from tests.support.places import ROOT
from tests.support.policy_rig import machine_lock, needs_root

pytestmark = needs_root
THREADED = Change("softirq", "netdev", "2/threaded", "0", "1")
LOW = Change("memory", "cgroup", "memory.low/tools", "0", "4096")
BUDGET = Change("softirq", "sysctl", "net.core.netdev_budget", "300", "128")


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trees:
    trees = use(tmp_path, monkeypatch)
    trees.netdev(2, "eth0")
    trees.cgroup2("memory")
    trees.group("tools", memory_low="0")
    trees.sysctl("net.core.netdev_budget", "300")
    return trees


def applied(state: Path, *changes: Change) -> Lease:
    lease = Lease(str(state))
    assert {result.status for result in lease.apply(changes)} == {"ok"}
    return lease


def left(state: Path) -> list[str]:
    dir_fd = open_state_dir(str(state))
    assert dir_fd is not None
    found = load(dir_fd)
    os.close(dir_fd)
    return [hold.target for hold in found.holds] if found else []


def kept(state: Path, lease: Lease, change: Change, why: str) -> Shell:
    """End the lease: one hold cannot be restored, and says why; then by ``restore``, too."""
    assert {(o.target, o.settled) for o in lease.close()} == {(change.target, False)}
    assert left(state) == [change.target]
    shell = Shell(state)
    code, out, _ = shell.run("restore")
    assert (code, why in out, "restore --forget" in out) == (1, True, True), out
    assert left(state) == [change.target]
    return shell


def test_an_interface_that_moved_away_is_kept(trees: Trees, tmp_path: Path) -> None:
    lease = applied(tmp_path / "state", THREADED)
    folder = trees.sys / "class/net/eth0"
    assert (folder / "threaded").read_text() == "1"
    folder.rename(tmp_path / "elsewhere")
    shell = kept(tmp_path / "state", lease, THREADED, "moved to another network namespace")
    # Back, under another name.
    (tmp_path / "elsewhere").rename(trees.sys / "class/net/lan")
    assert shell.run("restore")[0] == 0
    assert (trees.sys / "class/net/lan/threaded").read_text() == "0"
    assert left(tmp_path / "state") == []


def test_another_namespaces_interface_is_not_taken_for_it(trees: Trees, tmp_path: Path) -> None:
    lease = applied(tmp_path / "state", THREADED)
    (trees.sys / "class/net").rename(tmp_path / "host")
    mine = trees.netdev(2, "eth0") / "threaded"
    mine.write_text("1")  # Of its own choice.
    shell = kept(tmp_path / "state", lease, THREADED, "set in another network namespace")
    assert mine.read_text() == "1"
    shutil.rmtree(trees.sys / "class/net")
    (tmp_path / "host").rename(trees.sys / "class/net")
    assert shell.run("restore")[0] == 0
    assert mine.read_text() == "0"


def test_a_queue_that_is_gone_is_no_reason_to_keep_it(trees: Trees, tmp_path: Path) -> None:
    change = THREADED._replace(target="2/queues/rx-0/rps_cpus", after="3")
    lease = applied(tmp_path / "state", change)
    shutil.rmtree(trees.sys / "class/net/eth0/queues/rx-0")
    assert [outcome.settled for outcome in lease.close()] == [True]
    assert left(tmp_path / "state") == []


def test_a_mount_of_cgroups_that_is_gone_keeps_them(trees: Trees, tmp_path: Path) -> None:
    lease = applied(tmp_path / "state", LOW)
    mounts = trees.proc / "mounts"
    table = mounts.read_text()
    mounts.write_text("")
    shell = kept(tmp_path / "state", lease, LOW, "cgroups are not mounted here")
    mounts.write_text(table)
    assert shell.run("restore")[0] == 0
    assert (trees.cgroup / "tools/memory.low").read_text() == "0"


def test_a_path_below_another_mount_is_not_taken_for_it(trees: Trees, tmp_path: Path) -> None:
    lease = applied(tmp_path / "state", LOW)
    trees.cgroup.rename(tmp_path / "host")
    mine = trees.group("tools", memory_low="4096") / "memory.low"
    kept(tmp_path / "state", lease, LOW, "set in another cgroup namespace or mount")
    assert mine.read_text().strip() == "4096"


def test_a_cgroup_that_was_removed_has_ended(trees: Trees, tmp_path: Path) -> None:
    lease = applied(tmp_path / "state", LOW)
    shutil.rmtree(trees.cgroup / "tools")
    assert [outcome.settled for outcome in lease.close()] == [True]


def test_what_is_gone_for_good_is_forgotten_by_name(trees: Trees, tmp_path: Path) -> None:
    lease = applied(tmp_path / "state", THREADED, BUDGET)
    shutil.rmtree(trees.sys / "class/net/eth0")
    budget = trees.proc / "sys/net/core/netdev_budget"
    budget.unlink()  # As a container's /proc/sys has it.
    assert [outcome.settled for outcome in lease.close()] == [False, False]
    budget.write_text("128\n")
    code, out, _ = Shell(tmp_path / "state").run("restore", "--forget")
    assert code == 0
    assert budget.read_text() == "300"
    assert [line for line in out.splitlines() if "forgotten" in line] == [
        "2/threaded: forgotten, it was 0"
    ]
    assert left(tmp_path / "state") == []
    assert Shell(tmp_path / "state").run("restore") == (0, "nothing to restore\n", "")


#: Holds a setting until it is killed; prints its guardian.
HOLD = """
import sys
from agenttop.policies.knobs.base import Change
from agenttop.policies.guardian.lease import Lease
lease = Lease(sys.argv[1])
(result,) = lease.apply([Change(*sys.argv[2:])])
assert result.status == "ok", result
print(lease.guardian, flush=True)
sys.stdin.read()
"""


@pytest.mark.policies
def test_restore_in_a_container_leaves_its_interfaces_alone(tmp_path: Path) -> None:
    """Interface 1 is lo in every network namespace."""
    file = Path("/sys/class/net/lo/gro_flush_timeout")
    before = file.read_text()
    change = Change("softirq", "netdev", "1/gro_flush_timeout", before.strip(), "4321")
    with machine_lock():
        owner = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / "state"), *change],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        try:
            assert owner.stdout is not None
            guardian = int(owner.stdout.readline())
            os.kill(guardian, signal.SIGSTOP)
            owner.kill()
            os.kill(guardian, signal.SIGKILL)
            owner.communicate()
            assert file.read_text() == "4321\n"
            shell = Shell(tmp_path / "state")
            inside = "mount -t sysfs none /sys; echo 4321 > /sys/class/net/lo/gro_flush_timeout;"
            process = shell.start(
                "restore",
                before=(
                    "unshare", "-m", "-n", "sh", "-c",
                    inside + ' "$@"; echo $?; cat /sys/class/net/lo/gro_flush_timeout', "sh",
                ),
            )  # fmt: skip
            out, _ = process.communicate(timeout=30)
            assert "set in another network namespace" in out
            assert out.endswith("1\n4321\n")
            assert file.read_text() == "4321\n"
            assert shell.run("restore")[0] == 0
            assert file.read_text() == before
        finally:
            owner.kill()
            file.write_text(before)
