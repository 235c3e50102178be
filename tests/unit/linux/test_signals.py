"""Signals that ask to end: only noted, whichever thread the kernel gives them to."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from agenttop.linux import signals

#: Other threads wait with no signal blocked; the main one is busy, or waits.
SCRIPT = """
import sys, threading, time
from agenttop.linux import signals as ending
for _ in range(3):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
with ending.noted() as wait:
    print("ready", flush=True)
    busy_until = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < busy_until:
        pass
    while not wait(0.05):
        pass
    print("noted", wait(0), flush=True)
"""


@pytest.mark.parametrize("busy_s", [0, 0.5])
@pytest.mark.parametrize("number", signals.ENDING)
def test_a_signal_is_noted(number: signal.Signals, busy_s: float) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(busy_s)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    out, _ = child.communicate(timeout=20)
    assert (child.returncode, out) == (0, "noted True\n")


def test_handlers_are_as_before() -> None:
    before = [signal.getsignal(number) for number in signals.ENDING]
    with signals.noted() as wait:
        assert not wait(0)
        assert [signal.getsignal(number) for number in signals.ENDING] != before
    assert [signal.getsignal(number) for number in signals.ENDING] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_what_is_put_off_comes_at_the_end_once() -> None:
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with signals.put_off():
            for _ in range(3):
                signal.raise_signal(signal.SIGTERM)
            assert came == []
        assert came == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt), signals.put_off():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_nohup_keeps_its_meaning() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.noted():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
