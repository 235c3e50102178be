"""Whether a silent process was killed or stopped, and what follows from that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenttop.policies.guardian import inheritance_programs, liveness, lock, protocol
from agenttop.policies.guardian.lease import Lease, LeaseLostError, Notice
from agenttop.policies.knobs.base import Change
from tests.support.knob_files import use
from tests.support.policy_rig import needs_root, until

#: Its name looks like the fields that follow it.
ODD = "open('/proc/self/comm', 'wb').write(b') T 1 (\\xff')\nprint(flush=True)\ninput()"


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", ODD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_it_is_seen_to_run_to_stop_and_to_end(process: subprocess.Popen[bytes]) -> None:
    assert liveness.look(process.pid) == liveness.RUNS
    os.kill(process.pid, signal.SIGSTOP)
    assert until(lambda: liveness.look(process.pid) == liveness.STOPPED, 5)
    os.kill(process.pid, signal.SIGCONT)
    assert until(lambda: liveness.look(process.pid) == liveness.RUNS, 5)
    os.kill(process.pid, signal.SIGKILL)
    assert until(lambda: liveness.look(process.pid) == liveness.EXITING, 5)
    process.wait()
    assert liveness.look(process.pid) == liveness.EXITING


def test_a_short_silence_ends_nothing(process: subprocess.Popen[bytes]) -> None:
    assert liveness.lost(process.pid, 100.0) is None
    os.kill(process.pid, signal.SIGSTOP)
    assert until(lambda: liveness.look(process.pid) == liveness.STOPPED, 5)
    assert liveness.lost(process.pid, liveness.STOPPED_S / 2) is None
    assert liveness.lost(process.pid, liveness.STOPPED_S) == "stopped"
    process.kill()
    process.wait()
    assert liveness.lost(process.pid, liveness.SILENT_S / 2) is None
    assert liveness.lost(process.pid, liveness.SILENT_S) == "killed"


def test_who_is_only_closing_its_files_holds_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(tmp_path, monkeypatch)
    held = lock.acquire(str(tmp_path / "one"))
    try:
        with pytest.raises(lock.LockedError):
            lock.acquire(str(tmp_path / "two"))
        monkeypatch.setattr(liveness, "look", lambda pid: liveness.EXITING)
    finally:
        threading.Timer(0.2, lock.close, (held,)).start()
    lock.close(lock.acquire(str(tmp_path / "two")))


@needs_root
def test_a_stopped_guardian_is_given_up_and_its_work_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inheritance_programs, "attach", lambda: None)  # No thread is held here.
    file = use(tmp_path, monkeypatch).sysctl("vm.vfs_cache_pressure", "100")
    lease = Lease(str(tmp_path / "state"))
    lease.apply([Change("vfs", "sysctl", "vm.vfs_cache_pressure", "100", "50")])
    assert file.read_text().strip() == "50"
    os.kill(lease.guardian, signal.SIGSTOP)
    notices: list[Notice] = []

    def given_up() -> bool:
        lease.beat()
        notices.extend(lease.poll())
        return bool(notices)

    assert until(given_up, 10)
    assert (notices[0].why, notices[0].lost) == ("the guardian was stopped", True)
    assert file.read_text().strip() == "100"


@needs_root
@pytest.mark.measures
@pytest.mark.parametrize("full", [True, False], ids=["queue full", "beat unanswered"])
def test_a_request_finds_a_stopped_guardian_within_two_seconds(
    full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inheritance_programs, "attach", lambda: None)  # No thread is held here.
    file = use(tmp_path, monkeypatch).sysctl("vm.vfs_cache_pressure", "100")
    lease = Lease(str(tmp_path / "state"))
    held = Change("vfs", "sysctl", "vm.vfs_cache_pressure", "100", "50")
    lease.apply([held])
    os.kill(lease.guardian, signal.SIGSTOP)
    stopped = time.monotonic()
    lease.beat()
    if full:  # The request cannot even be sent.
        while lease._send(protocol.Beat()):
            pass
    else:  # The request comes just before poll() would have given it up.
        time.sleep(0.9 * liveness.STOPPED_S)
    with pytest.raises(LeaseLostError) as lost:
        lease.undo([held.key])
    assert lost.value.notice.why == "the guardian was stopped"
    assert file.read_text().strip() == "100"
    assert time.monotonic() - stopped < 2.0
