"""One writer a machine, whatever its /run, its state directory or its namespaces are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenttop.policies.guardian import lock, machine
from agenttop.policies.guardian.journal import JournalError
from agenttop.policies.guardian.lease import Lease
from agenttop.policies.knobs.base import Change
from tests.live.policies.test_command import Shell
from tests.support.knob_files import use
from tests.support.places import ROOT
from tests.support.policy_rig import machine_lock, until

BUDGET = "net.core.netdev_budget"
CHANGE = Change("softirq", "sysctl", BUDGET, "300", "128")
PRESSURE = Path("/proc/sys/vm/vfs_cache_pressure")

#: Takes the lock with the state directory argv[1], says so, and holds it until stdin ends.
HOLDER = """
import sys
from agenttop.policies.guardian import lock
try:
    held = lock.acquire(sys.argv[1])
except (lock.LockedError, lock.JournalError) as error:
    print(error, flush=True)
else:
    print("held", flush=True)
    sys.stdin.read()
"""

ENGINE = f"""
import sys
from agenttop.policies.knobs.base import Change
from agenttop.policies.guardian.lease import Lease
lease = Lease(sys.argv[1])
print(lease.apply([Change(*{tuple(CHANGE)!r})])[0].status, flush=True)
sys.stdin.read()
"""


def holder(state: Path, *before: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, sys.executable, "-c", HOLDER, str(state)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="policies need root")


# --------------------------------------------------------------------------- fixture trees


@needs_root
def test_another_state_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = use(tmp_path, monkeypatch).sysctl(BUDGET, "300")
    first = Lease(str(tmp_path / "first"))
    first.apply([CHANGE])
    with pytest.raises(lock.LockedError, match=f"pid {os.getpid()}, which has another state"):
        Lease(str(tmp_path / "second"))
    owner = lock.owner(str(tmp_path / "second"))
    assert owner == lock.Owner(os.getpid(), 0, elsewhere=True)
    code, _, error = Shell(tmp_path / "second").run("policy", "revert")
    assert code == 2
    assert "another state directory" in error
    first.close()
    assert file.read_text() == "300"
    assert lock.owner(str(tmp_path / "second")) is None
    Lease(str(tmp_path / "second")).close()


@needs_root
def test_it_is_held_until_the_guardian_has_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = use(tmp_path, monkeypatch).sysctl(BUDGET, "300")
    engine = subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(tmp_path / "first")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert said(engine) == "ok"
    assert file.read_text() == "128"
    engine.kill()
    engine.communicate()
    held = lock.acquire(str(tmp_path / "second"))
    assert file.read_text() == "300"
    lock.release(held)


@needs_root
def test_of_many_that_start_at_once_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(tmp_path, monkeypatch)
    everyone = [holder(tmp_path / str(n)) for n in range(6)]
    answers = [said(process) for process in everyone]
    assert answers.count("held") == 1
    for process in everyone:
        process.kill()
        process.communicate()
    held = lock.acquire(str(tmp_path / "after"))
    lock.release(held)


@needs_root
def test_a_lock_of_a_stranger_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(tmp_path, monkeypatch)
    fd = machine.open_anchor()
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, os, sys; os.setuid(65534);"
            f" fcntl.flock({fd}, 2); print(flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[fd],
    )
    os.close(fd)
    assert child.stdout is not None
    child.stdout.readline()
    with pytest.raises(lock.LockedError, match=rf"^pid {child.pid} \(.*\) of uid 65534 .*: end it"):
        lock.acquire(str(tmp_path / "state"))
    child.communicate(b"")


def test_trees_are_machines_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(tmp_path / "one", monkeypatch)
    held = lock.acquire(str(tmp_path / "first"))
    trees = use(tmp_path / "two", monkeypatch)
    other = lock.acquire(str(tmp_path / "second"))
    lock.release(held)
    lock.release(other)
    assert os.path.samestat(os.stat(machine.open_anchor()), trees.proc.stat())


def test_a_full_disk_keeps_nobody_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing could be restored there: who has the lock is only said in its file."""
    use(tmp_path / "trees", monkeypatch)
    child = holder(tmp_path / "state", "prlimit", "--fsize=0")
    assert said(child) == "held"
    child.communicate("")


# --------------------------------------------------------------------------- namespaces


@pytest.fixture
def alone() -> Iterator[None]:
    with machine_lock():
        yield


@pytest.mark.policies
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("namespaces", ["m", "mn", "mniuC", "mniuCT"])
def test_a_container_sees_the_host_and_the_host_a_container(
    tmp_path: Path, namespaces: str
) -> None:
    unshare = ["unshare", *(f"-{letter}" for letter in namespaces)]
    for first, second in (([], unshare), (unshare, [])):
        a = holder(tmp_path / "a", *first)
        assert said(a) == "held"
        b = holder(tmp_path / "b", *second)
        assert "holds the policies of this machine" in said(b)
        b.communicate()
        a.communicate()


#: What is mounted in a container, and by whom it is started.
MOUNTS = {
    "nothing": "umount -l /sys/kernel/tracing /sys/kernel/debug 2>&-",
    "tracefs": "mount -t tracefs none /sys/kernel/tracing",
    "another in its place": "mount -t tmpfs none /sys/kernel/tracing",
    "a part of it": "mount -t tracefs none /mnt && mount --bind /mnt/events /sys/kernel/tracing",
    "debugfs": "mount -t debugfs none /sys/kernel/debug",
}


@pytest.mark.policies
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("mounts", MOUNTS.values(), ids=MOUNTS)
def test_what_is_mounted_makes_no_difference(tmp_path: Path, mounts: str) -> None:
    there = ["unshare", "-m", "sh", "-c", f'{mounts}; exec "$@"', "sh"]
    for first, second in (([], there), (there, [])):
        a = holder(tmp_path / "a", *first)
        assert said(a) == "held"
        b = holder(tmp_path / "b", *second)
        assert "holds the policies of this machine" in said(b)
        b.communicate()
        a.communicate()


@pytest.mark.policies
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("namespaces", [0, 0x10020000], ids=["", "root of its own namespaces"])
def test_a_user_cannot_hold_it(tmp_path: Path, namespaces: int) -> None:
    """Whatever it locks."""
    script = f"""
import fcntl, os, sys
from agenttop.linux import kernel_filesystems
from agenttop.policies.guardian import machine
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
kernel_filesystems.syscall(272, {namespaces})  # unshare(2)
held = []
for path in ("/sys/kernel/tracing", "/sys/kernel/debug", machine.PID_NS, "/proc", "/sys"):
    try:
        held.append(os.open(path, os.O_RDONLY))
        fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pass
try:
    fcntl.flock(machine.open_anchor(), fcntl.LOCK_EX)
    print("held", flush=True)
except machine.AnchorError as error:
    print(error, flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "is not to be had (Operation not permitted)" in said(process)
    held = lock.acquire(str(tmp_path / "state"))
    lock.release(held)
    process.communicate()


@pytest.mark.policies
def test_without_the_capability_policies_are_refused_and_doctor_says_so(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "state")
    hide = f'{MOUNTS["nothing"]}; exec "$@"'
    drop = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    before = ("unshare", "-m", "sh", "-c", hide, "sh", *drop)
    for command, code in (("policy apply vfs --for 1", 2), ("restore", 2), ("doctor", 0)):
        process = shell.start(*command.split(), before=before)
        out, error = process.communicate(timeout=60)
        assert "--cap-add SYS_ADMIN" in out + error, (out, error)
        assert process.returncode == code or command == "doctor"


def test_a_kernel_without_either_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = tmp_path / "filesystems"
    monkeypatch.setattr(machine, "FILESYSTEMS", str(known))
    with pytest.raises(machine.AnchorError, match="mount /proc"):
        machine.open_anchor()
    known.write_text("nodev\tsysfs\n\text4\n")
    with pytest.raises(machine.AnchorError, match="neither tracefs nor debugfs"):
        machine.open_anchor()


@pytest.mark.policies
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("options", [["-p", "-f"], ["-p", "-f", "--mount-proc"]])
def test_a_pid_namespace_of_its_own_is_refused(tmp_path: Path, options: list[str]) -> None:
    shell = Shell(tmp_path / "state")
    unshare = ("unshare", *options)
    before = PRESSURE.read_text()
    for command in (("policy", "plan", "vfs"), ("policy", "apply", "vfs", "--for", "1")):
        process = shell.start(*command, before=unshare)
        out, error = process.communicate(timeout=30)
        assert "--pid=host" in out + error
    assert PRESSURE.read_text() == before
    process = shell.start("restore", before=unshare)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "refused, nothing has been touched: not from a PID namespace of its own" in error
    process = shell.start("doctor", before=unshare)
    assert "--pid=host" in process.communicate(timeout=30)[0]


@pytest.mark.policies
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("shared", [True, False])
def test_a_container_that_is_killed_whole(tmp_path: Path, shared: bool) -> None:
    """As docker kill ends one with --pid=host: the engine and its guardian at once."""
    state = tmp_path / "run"
    state.mkdir(0o700)
    shell = Shell(state)
    hide = "" if shared else f"mount -t tmpfs -o mode=700 none {state}; "
    before = PRESSURE.read_text()
    process = shell.start(
        "policy", "apply", "vfs", "--for", "60",
        before=("unshare", "-m", "sh", "-c", hide + 'exec "$@"', "sh"),
    )  # fmt: skip
    try:
        assert until(lambda: PRESSURE.read_text() != before, 20)
        guardians = [
            int(folder.name)
            for folder in Path("/proc").glob("[0-9]*")
            if f"\0{state}\0".encode() in read(folder / "cmdline")
        ]
        assert len(guardians) == 1
        assert process.stdout is not None
        told = ""
        while "vfs on" not in told:
            line = process.stdout.readline()
            assert line, told
            told += line
        for pid in (*guardians, process.pid):
            os.kill(pid, signal.SIGSTOP)
        for pid in (*guardians, process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=10)
        assert ("goes with this container" in told) == (not shared)
        assert until(lambda: lock.owner(str(state)) is None, 5)
        code, out, _ = shell.run("restore")
        assert code == 0
        assert (PRESSURE.read_text() == before) == shared
        assert ("nothing to restore" in out) == (not shared)
    finally:
        PRESSURE.write_text(before)


def read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def test_no_proc_no_policies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "PID_NS", str(tmp_path / "none"))
    with pytest.raises(JournalError, match="mount /proc"):
        lock.acquire(str(tmp_path / "state"))
