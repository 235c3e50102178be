"""A lease outlasts a loop that is busy for long, and none that hangs or is stopped."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

import pytest

from agenttop.policies.guardian import heartbeat
from agenttop.policies.guardian.lease import Lease
from agenttop.policies.guardian.process import LEASE_S
from tests.support.policy_rig import machine_lock, needs_root

pytestmark = needs_root


def test_a_busy_loop_loses_no_lease(tmp_path: Path) -> None:
    with machine_lock():
        lease = Lease(str(tmp_path / "state"))
        try:
            lease.beat()
            until = time.monotonic() + 2 * LEASE_S
            while time.monotonic() < until:  # A scan of /proc: it gives nothing else a turn.
                sum(range(10_000))
            assert lease.poll() == []
            lease.beat()
        finally:
            assert lease.close() == []


def test_a_loop_that_hangs_loses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BUSY_S", 0.1)
    with machine_lock():
        lease = Lease(str(tmp_path / "state"))
        lease.beat()
        # It ends by itself: nobody asks it to.
        ended = select.poll()
        ended.register(os.pidfd_open(lease.guardian), select.POLLIN)
        assert ended.poll(LEASE_S * 4000)
        assert [notice.lost for notice in lease.poll()] == [True]
