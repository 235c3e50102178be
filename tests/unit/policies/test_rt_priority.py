"""The guardian's real-time priority: taken, bounded, given up."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: Works for so long without a sleep, and says how it is scheduled meanwhile.
WORK = """
import os, sys, time
from agenttop.policies.guardian.rt_priority import REST_S, Urgency

def policy():
    return os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK

def work(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass

def work_on():
    # Until it is dropped: the kernel counts ticks, of which a busy host leaves some out.
    end = time.thread_time() + 5
    while policy() != os.SCHED_OTHER and time.thread_time() < end:
        pass

urgency = Urgency()
before = policy()
urgency.update(True, 10.0)
taken = policy()
work(0.005)
kept = policy()
work_on()
dropped = policy()
urgency.update(True, 11.0)
urgency.update(True, 11.0 + REST_S / 2)
resting = policy()
urgency.update(True, 11.1 + REST_S)
again = policy()
work_on()
dropped_again = policy()
urgency.update(True, 20.0)
urgency.update(True, 30.0)
urgency.update(False, 30.0)
print(before, taken, kept, dropped, resting, again, dropped_again, policy(), os.nice(0))
"""


def test_it_ends_when_it_works_too_long_without_a_sleep_and_comes_back_after_a_rest() -> None:
    probe = subprocess.run(["chrt", "-f", "1", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip("SCHED_FIFO is not allowed here")
    out = subprocess.run(
        [sys.executable, "-c", "import os; os.nice(-5)\n" + WORK],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    fifo, other = os.SCHED_FIFO, os.SCHED_OTHER
    expected = [other, fifo, fifo, other, other, fifo, other, other, -5]
    assert [int(word) for word in out.split()] == expected


def test_where_it_is_not_allowed_nothing_happens() -> None:
    as_nobody = "import os; os.setgid(65534); os.setuid(65534)\n"
    text = "urgency.update(True, 10.0)\nprint(urgency.on, policy())"
    out = subprocess.run(
        [
            sys.executable,
            "-c",
            WORK.replace("before = ", as_nobody + "before = ", 1).split(
                "urgency.update(True, 10.0)"
            )[0]
            + text,
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    assert out.split() == ["False", str(os.SCHED_OTHER)]
